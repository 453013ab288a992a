"""Shared by the recognisers: several nodes that are one operator of the standard set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.polynomials import is_closed

RUNNABLE = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""Element types that onnxruntime runs the smooth and the hard activations in on the CPU."""


def tolerance(value: ir.Value | None) -> float:
    """How far a constant of an activation may be from the real number, relatively.

    Exporters write 0.7071 or 1.4142 (5 figures); in float16 a constant has hardly 4.
    """
    half = value is not None and value.dtype == ir.DataType.FLOAT16
    return 1e-3 if half else 5e-5


@dataclass(frozen=True)
class Recognised:
    """`nodes` compute `result` from `source` as one operator.

    since: the opset that has it first. last: the newest in which onnxruntime runs it, if not all.
    times_source: the operator's result is multiplied by the source still. types: of elements that
    onnxruntime runs it in.
    """

    op_type: str
    since: int
    source: ir.Value
    result: ir.Value
    nodes: frozenset[ir.Node]
    attributes: Mapping[str, float | str] = field(default_factory=dict)
    last: int | None = None
    times_source: bool = False
    types: Collection[ir.DataType] = RUNNABLE

    @property
    def is_closed(self) -> bool:
        """Whether nothing between the source and the result is seen elsewhere."""
        return is_closed(self.nodes, self.result)

    def finding(self, rewrite: ExactRewrite, scope: Scope, *, gated: bool = False) -> Finding:
        """The proposal to put the operator in place of the nodes, or why that cannot be."""
        nodes = tuple(node for node in scope.graph if node in self.nodes)
        if scope.opset < self.since:
            reason = f"no {self.op_type} before opset {self.since} (this is opset {scope.opset})"
            return rewrite.decline(reason, *nodes)
        if self.last is not None and scope.opset > self.last:
            reason = f"onnxruntime cannot run a {self.op_type} of opset {scope.opset}"
            return rewrite.decline(reason, *nodes)
        if not self.is_closed:
            return rewrite.decline("an intermediate value is used elsewhere", *nodes)
        dtype = self.source.dtype or self.result.dtype
        if dtype is None:
            return rewrite.decline("the element type is unknown", *nodes)
        if dtype not in self.types:
            reason = f"onnxruntime has no {self.op_type} of type {dtype.name.lower()}"
            return rewrite.decline(reason, *nodes)
        edit = partial(self._replace, rewrite.name, scope, nodes)
        return Proposal(rewrite.name, nodes, edit, {"operator": self.op_type}, gated=gated)

    def _replace(self, rewrite: str, scope: Scope, nodes: tuple[ir.Node, ...]) -> None:
        change = Edit(scope, rewrite)
        producer = self.result.producer()
        new = change.node(
            self.op_type,
            [self.source],
            self.attributes,
            hint=self.result.name or self.op_type,
            name=None if producer is None else producer.name,
        )
        if self.times_source:
            new = change.node("Mul", [self.source, new], hint=self.result.name or "Mul")
        change.commit(nodes, {self.result: new})
