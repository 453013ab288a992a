"""What every change did to a model's cost, told by comparing what was there before and after.

Nodes and tensors that are gone after a rewrite are its `before`, those that are new its `after`. So
the sums over all rewrites are exactly the difference of the totals. What an Edit did it has noted
itself; around a library's pass a census of the whole model is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.cost.counts import constant_tensor, macs, parameters
from graphopt.graph.scope import Scope, bodies
from graphopt.graph.shapes import TensorInfo, infer_node


@dataclass(frozen=True)
class Tally:
    """Nodes, parameters, weight bytes and MACs (at batch 1) of a set of nodes and tensors."""

    nodes: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    macs: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Everything that counts: the nodes, and stored tensors with their owners.

    nodes: of the main graph. inner: of bodies, whose MACs are not counted. macs: of the main graph's
    (and perhaps of others). tensors: by the identities of owner and tensor (a pass may also give a
    value another tensor in place); holding the objects keeps them valid.
    """

    nodes: Set[ir.Node]
    inner: Set[ir.Node]
    macs: Mapping[ir.Node, int]
    tensors: Mapping[tuple[int, int], tuple[object, ir.TensorProtocol]]

    def total(self) -> Tally:
        """The cost of the whole model."""
        return self.without(Snapshot(frozenset(), frozenset(), {}, {}))

    def without(self, other: Snapshot) -> Tally:
        """The cost of what is here and not in `other`; a node that left a body is another one."""
        nodes = self.nodes - other.nodes
        here = [self.tensors[key][1] for key in self.tensors.keys() - other.tensors.keys()]
        return Tally(
            nodes=len(nodes) + len(self.inner - other.inner),
            parameters=sum(parameters(tensor) for tensor in here),
            weight_bytes=sum(int(tensor.nbytes) for tensor in here),
            macs=sum(self.macs[node] for node in nodes),
        )


class Census:
    """Takes snapshots of one model as it changes.

    infos: shapes of the main graph's values, extended in place as rewrites make new ones.
    """

    def __init__(self, model: ir.Model, infos: dict[str, TensorInfo]) -> None:
        self._model = model
        self._infos = infos
        self._macs: dict[ir.Node, int] = {}
        """Of every node that has been in the main graph."""

    def take(self) -> Snapshot:
        """The model as it is now. Only new nodes are counted."""
        graph = self._model.graph
        return self._part(True, list(graph), list(graph.initializers.values()))

    def changed(self, scope: Scope) -> tuple[Tally, Tally]:
        """What went and what came by the Edits in the journal of a scope, which is then empty.

        The model must have been taken at some time before.
        """
        changes = tuple(scope.journal)
        scope.journal.clear()
        gone = self._part(
            scope.is_main,
            [node for change in changes for node in change.removed],
            [value for change in changes for value in change.dropped],
        )
        come = self._part(
            scope.is_main,
            [node for change in changes for node in change.made],
            [value for change in changes for value in change.registered],
        )
        return gone.without(come), come.without(gone)

    def _part(self, main: bool, nodes: Sequence[ir.Node], values: Sequence[ir.Value]) -> Snapshot:
        """Some nodes, with the bodies in them, and initializers."""
        inner: list[ir.Node] = [] if main else list(nodes)
        stored: dict[tuple[int, int], tuple[object, ir.TensorProtocol]] = {}
        found = [body for node in nodes for body in bodies(node)]
        for graph in found:
            here = list(graph)
            inner += here
            found += [body for node in here for body in bodies(node)]
        if main:
            for node in nodes:
                if node not in self._macs:
                    # What was made and removed again has lost its inputs; and cancels out.
                    self._macs[node] = 0 if node.graph is None else self._count(node)
        weights = (value for graph in found for value in graph.initializers.values())
        for value in (*values, *weights):
            if value.const_value is not None:
                stored[id(value), id(value.const_value)] = value, value.const_value
        for node in (*nodes, *inner):
            tensor = constant_tensor(node)
            if tensor is not None:
                stored[id(node), id(tensor)] = node, tensor
        return Snapshot(set(nodes) if main else set(), set(inner), self._macs, stored)

    def _count(self, node: ir.Node) -> int:
        if any(output.name and output.name not in self._infos for output in node.outputs):
            self._infos |= infer_node(node, self._infos)
        return macs(node, self._infos)
