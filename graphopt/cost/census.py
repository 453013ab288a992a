"""What every change did to a model's cost, told by comparing what was there before and after.

A census is taken around each applied rewrite: nodes and tensors that are gone are its `before`,
those that are new its `after`. So the sums over all rewrites are exactly the difference of the
totals, however a library's pass went about its work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.cost.counts import macs, parameters, tensors
from graphopt.graph.scope import graphs
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
    """Everything that counts: MACs by node, and stored tensors with their owners.

    tensors: by the identities of owner and tensor (a pass may also give a value another tensor in
    place); holding the objects keeps the identities valid.
    """

    nodes: Mapping[ir.Node, int]
    tensors: Mapping[tuple[int, int], tuple[object, ir.TensorProtocol]]

    def total(self) -> Tally:
        """The cost of the whole model."""
        return self.without(Snapshot({}, {}))

    def without(self, other: Snapshot) -> Tally:
        """The cost of what is here and not in `other`."""
        nodes = [count for node, count in self.nodes.items() if node not in other.nodes]
        here = [t for key, (_, t) in self.tensors.items() if key not in other.tensors]
        return Tally(
            nodes=len(nodes),
            parameters=sum(parameters(tensor) for tensor in here),
            weight_bytes=sum(int(tensor.nbytes) for tensor in here),
            macs=sum(nodes),
        )


class Census:
    """Takes snapshots of one model as it changes.

    infos: shapes of the main graph's values, extended in place as rewrites make new ones.
    """

    def __init__(self, model: ir.Model, infos: dict[str, TensorInfo]) -> None:
        self._model = model
        self._infos = infos
        self._macs: dict[ir.Node, int] = {}

    def take(self) -> Snapshot:
        """The model as it is now. Called around every change, so only new nodes are looked at."""
        known = self._macs
        nodes: dict[ir.Node, int] = {}
        for graph in graphs(self._model):
            for node in graph:
                count = known.get(node)
                if count is None:
                    known[node] = count = self._count(node)
                nodes[node] = count
        stored = {(id(owner), id(t)): (owner, t) for owner, t in tensors(self._model)}
        return Snapshot(nodes, stored)

    def _count(self, node: ir.Node) -> int:
        if node.graph is not self._model.graph:
            return 0
        if any(output.name and output.name not in self._infos for output in node.outputs):
            self._infos |= infer_node(node, self._infos)
        return macs(node, self._infos)
