"""What a rewrite sees: one graph (the main one or a body), its opset, and shapes where known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.graph.change import Change
from graphopt.graph.shapes import TensorInfo

STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Scope:
    """One graph and what may be asked about it.

    `infos` holds element type and concrete shape of values of the main graph, by name; bodies of
    If, Loop and Scan have none. `open_dims` says whether a shape holds for every input or just for
    the one it was computed with: see `fixed_dim`. `journal` is what Edits have done here, for who
    keeps count and clears it.
    """

    model: ir.Model
    graph: ir.Graph
    infos: Mapping[str, TensorInfo] = field(default_factory=dict)
    journal: list[Change] = field(default_factory=list, compare=False, repr=False)

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        imports = self.model.graph.opset_imports
        return max((imports.get(domain, 0) for domain in STANDARD_DOMAINS), default=0)

    @property
    def is_main(self) -> bool:
        """Whether this is the main graph."""
        return self.graph is self.model.graph

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Concrete shape of a value for the bound inputs (dynamic dimensions filled in)."""
        info = self._info(value)
        return None if info is None else info.shape

    def rank(self, value: ir.Value | None) -> int | None:
        """Number of dimensions of a value, which does not depend on the inputs."""
        shape = self.shape(value)
        if shape is not None:
            return len(shape)
        return None if value is None or value.shape is None else len(value.shape)

    def fixed_dim(self, value: ir.Value | None, axis: int) -> int | None:
        """A dimension that is the same for every input, or None when it is open or unknown."""
        if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
            return None
        size = value.shape[axis]
        return size if isinstance(size, int) and size >= 0 else None

    def dim(self, value: ir.Value | None, axis: int) -> int | str | None:
        """A dimension as a number, or as a symbol that stands for one number; None if unknown."""
        if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
            return None
        size = value.shape[axis]
        return size if isinstance(size, int) else size.value

    def _info(self, value: ir.Value | None) -> TensorInfo | None:
        if value is None or value.name is None or not self.is_main:
            return None
        info = self.infos.get(value.name)
        if info is None and value.const_value is not None:  # made by a rewrite
            tensor = value.const_value
            return TensorInfo(tensor.dtype, tuple(tensor.shape.numpy()))
        return info


def scopes(model: ir.Model, infos: Mapping[str, TensorInfo]) -> Iterator[Scope]:
    """The main graph, then every body in it."""
    main, *bodies = graphs(model)
    yield Scope(model, main, infos)
    for graph in bodies:
        yield Scope(model, graph)


def graphs(model: ir.Model) -> list[ir.Graph]:
    """The main graph, then every body (of If, Loop, Scan) in it, outer ones first.

    Asked for by every rewrite, so it does without the library's general traversal.
    """
    found = [model.graph]
    for graph in found:
        for node in graph:
            found += bodies(node)
    return found


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph, then those of the bodies in it."""
    return (node for graph in graphs(model) for node in graph)


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs in a node's own attributes (of If, Loop, Scan)."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.data.values():  # half the time of going through the mapping
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def has_bodies(model: ir.Model) -> bool:
    """Whether there are graphs within the main one, which may read values that no node names."""
    return any(bodies(node) for node in model.graph)


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether a node is one of these operators of the standard domain."""
    return node is not None and node.domain in STANDARD_DOMAINS and node.op_type in op_types


def only_use(value: ir.Value) -> ir.Node | None:
    """The one node that uses a value, or None: several uses, none, or a graph output."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node


def follower(scope: Scope, node: ir.Node) -> ir.Node | None:
    """The only node fed by a node's first output, if both are in this graph (not in a body of it)."""
    after = only_use(node.outputs[0])
    here = after is not None and after.graph is scope.graph and node.graph is scope.graph
    return after if here else None


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def attribute_float(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def attribute_ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """An integer-list attribute, or None."""
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def attribute_string(node: ir.Node, name: str, default: str) -> str:
    """A string attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def site_of(*nodes: ir.Node) -> tuple[str, ...]:
    """How reports name a place: node names, or the first output where a node has no name."""
    return tuple(node.name or node.outputs[0].name or node.op_type for node in nodes)
