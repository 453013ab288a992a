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
    """Everything that counts, by identity; holding the objects keeps the identities valid."""

    nodes: Mapping[int, tuple[ir.Node, int]]
    tensors: Mapping[tuple[int, int], tuple[object, ir.TensorProtocol]]

    def total(self) -> Tally:
        """The cost of the whole model."""
        return self.without(Snapshot({}, {}))

    def without(self, other: Snapshot) -> Tally:
        """The cost of what is here and not in `other`."""
        nodes = [count for key, (_, count) in self.nodes.items() if key not in other.nodes]
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
        self._macs: dict[int, tuple[ir.Node, int]] = {}

    def take(self) -> Snapshot:
        """The model as it is now."""
        nodes: dict[int, tuple[ir.Node, int]] = {}
        for graph in self._model.graphs():
            for node in graph:
                known = self._macs.get(id(node))
                if known is None:
                    known = (node, self._count(node))
                    self._macs[id(node)] = known
                nodes[id(node)] = known
        # By owner and tensor: a pass may also give a value another tensor in place.
        stored = {(id(owner), id(t)): (owner, t) for owner, t in tensors(self._model)}
        return Snapshot(nodes, stored)

    def _count(self, node: ir.Node) -> int:
        if node.graph is not self._model.graph:
            return 0
        if any(output.name and output.name not in self._infos for output in node.outputs):
            self._infos |= infer_node(node, self._infos)
        return macs(node, self._infos)
