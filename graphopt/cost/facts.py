"""What of a small model its latency depends on, as plain data that can be kept with a timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import attribute_int, is_op
from graphopt.graph.shapes import Shape, TensorInfo, infer, true_inputs


@dataclass(frozen=True)
class NodeFacts:
    """One operator: shapes of its first input, of its weight (none: ()) and of its first output.

    weight: [O, C/g, *kernel] of a convolution, [O, C] of a matrix product.
    """

    op: str
    source: Shape
    weight: Shape
    result: Shape
    group: int = 1

    @classmethod
    def read(cls, plain: object) -> NodeFacts:
        """From what `plain` gave and a file kept. Raises TypeError or ValueError for anything else."""
        if not isinstance(plain, list) or len(plain) != 5:
            raise ValueError(f"no facts of a node: {plain!r}")
        source, weight, result = (tuple(map(int, shape)) for shape in plain[1:4])
        return cls(str(plain[0]), source, weight, result, int(plain[4])).checked()

    def checked(self) -> NodeFacts:
        """Itself. Raises ValueError if it is no node that a time can be told of."""
        sizes = (*self.source, *self.weight, *self.result, self.group)
        fits = len(self.weight) in (0, 2) or len(self.weight) == len(self.result) > 2
        if min(sizes) < 1 or not fits or (self.weight and not self.result):
            raise ValueError(f"sizes {sizes} of {self.op}")
        return self

    def plain(self) -> list[object]:
        """As lists, for a file."""
        return [self.op, list(self.source), list(self.weight), list(self.result), self.group]


Facts = tuple[NodeFacts, ...]
"""Of all nodes of a small model, in their order."""


def facts_of(model: ir.Model) -> Facts | None:
    """The facts of a model with fixed input shapes; None where a shape or the type is unfit.

    Only float32 is told: other types run on other kernels.
    """
    infos = _annotated(model)
    if infos is None:
        shapes = {v.name or "": tuple(v.shape.numpy()) for v in true_inputs(model.graph) if v.shape}
        infos = infer(model, shapes)
    found = [_node(node, infos) for node in model.graph if node.op_type != "Constant"]
    known = tuple(facts for facts in found if facts is not None)
    return known if len(known) == len(found) else None


def _annotated(model: ir.Model) -> dict[str, TensorInfo] | None:
    """Shapes of all values as the model has them, if it has all of them."""
    infos = {}
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if value.shape is None or value.dtype is None or not value.shape.is_static():
            return None
        infos[value.name or ""] = TensorInfo(value.dtype, tuple(value.shape.numpy()))
    return infos


def _node(node: ir.Node, infos: Mapping[str, TensorInfo]) -> NodeFacts | None:
    source, result = infos.get(_name(node.inputs)), infos.get(_name(node.outputs))
    if source is None or result is None or result.dtype != ir.DataType.FLOAT:
        return None
    if is_op(node, "DeformConv"):
        return None  # what sampling takes is no feature of the model
    weight: Shape = ()
    if is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
        array = constant(node.inputs[1])
        if array is None:
            return None
        weight = tuple(array.shape)
        if is_op(node, "MatMul") or (is_op(node, "Gemm") and not attribute_int(node, "transB", 0)):
            weight = weight[::-1]
    group = attribute_int(node, "group", 1)
    try:
        return NodeFacts(node.op_type, source.shape, weight, result.shape, group).checked()
    except ValueError:
        return None


def _name(values: Sequence[ir.Value | None]) -> str:
    first = values[0] if values else None
    return "" if first is None else first.name or ""
