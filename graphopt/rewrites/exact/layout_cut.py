"""The cheapest choice of layout for the operators between Transposes, as a minimum cut.

For one order p, every operator that can be written for u as well as for x = Transpose(u, p) gets
one of two layouts. A value that is made in one and read in the other costs one Transpose, however
many readers it has; `Transpose(p)` makes a value that is there in both, `Transpose(inverse of p)`
is a reader. The fewest Transposes, among those the fewest bytes moved, among those the ones at the
model's inputs and outputs or before a fully connected layer, are a minimum cut between what can
only be as it is and what is there transposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.scope import Scope
from graphopt.rewrites.cleanup.axes import Order, inverse, order_of
from graphopt.rewrites.exact.fold_transpose_into_fc import is_flattened_for_layers
from graphopt.rewrites.exact.layout_ops import flip_of
from graphopt.rewrites.exact.layout_rules import Flip

_AS_IS, _FLIPPED = "as it is", "flipped"


@dataclass(frozen=True)
class Field:
    """Where Transpose(order) could be moved through.

    flips: operators that have a choice, in graph order. entries: Transpose(order) nodes whose
    operand serves as their flipped result. exits: nodes that undo the order.
    """

    scope: Scope
    order: Order
    flips: Mapping[ir.Node, Flip]
    entries: frozenset[ir.Node]
    exits: frozenset[ir.Node]

    def reads_flipped(self, node: ir.Node, index: int) -> bool:
        """Whether a node has a choice for this input."""
        return node in self.flips and index in self.flips[node].operands

    def makes(self, value: ir.Value) -> ir.Node | None:
        """The operator with a choice whose layout is that of this value, if it has one."""
        node = value.producer()
        flip = None if node is None else self.flips.get(node)
        return node if flip is not None and flip.moves else None

    def within(self, nodes: frozenset[ir.Node]) -> Field:
        """The same with fewer operators."""
        kept = {node: flip for node, flip in self.flips.items() if node in nodes}
        return Field(self.scope, self.order, kept, self.entries, self.exits)

    def operands(self, node: ir.Node) -> list[ir.Value]:
        """The inputs a node with a choice has one for."""
        values = (node.inputs[index] for index in self.flips[node].operands)
        return list(dict.fromkeys(value for value in values if value is not None))


def fields(scope: Scope, *, convolve: bool) -> Iterator[Field]:
    """One field per order in the graph and its inverse; each as the graph is when it is asked for."""
    there = [order for node in scope.graph if (order := order_of(node, scope)) is not None]
    for order in sorted({*there, *map(inverse, there)}):
        if order == tuple(range(len(order))):
            continue
        if order != inverse(order):
            field = _field(scope, order, frozenset(), convolve=convolve)
            if field is not None:
                yield field
            continue
        # An order that undoes itself: each Transpose is an entry or an exit. Try each as an entry.
        tried = [node for node in scope.graph if order_of(node, scope) == order]
        for entry in tried:
            if entry.graph is scope.graph:
                field = _field(scope, order, frozenset({entry}), convolve=convolve)
                if field is not None:
                    yield field


def _field(
    scope: Scope, order: Order, start: frozenset[ir.Node], *, convolve: bool
) -> Field | None:
    back, own = inverse(order), order == inverse(order)
    here = [node for node in scope.graph if order_of(node, scope) in (order, back)]
    forth = {node for node in here if order_of(node, scope) == order}
    entries = start if own else frozenset(forth)
    found: dict[ir.Node, Flip] = {}
    refused: set[ir.Node] = set()

    def consider(node: ir.Node | None) -> bool:
        if node is None or node.graph is not scope.graph or node in found or node in refused:
            return False
        flip = None if node in here else flip_of(node, scope, order, convolve=convolve)
        if flip is None or _crosses(node, flip, scope, entries, order, own=own):
            refused.add(node)
            return False
        found[node] = flip
        return True

    frontier = [use.node for node in entries for use in node.outputs[0].uses()]
    if not own:
        before = (node.inputs[0] for node in here if node not in forth)
        frontier += [node for value in before if value is not None and (node := value.producer())]
    while frontier:
        node = frontier.pop()
        if not consider(node):
            continue
        flip = found[node]
        if flip.moves:
            frontier += [use.node for output in node.outputs for use in output.uses()]
        values = (node.inputs[index] for index in flip.operands)
        frontier += [made for value in values if value and (made := value.producer())]
    if not found:
        return None
    flips = {node: found[node] for node in scope.graph if node in found}
    return Field(scope, order, flips, entries, _exits(scope, here, entries, back))


def _crosses(
    node: ir.Node,
    flip: Flip,
    scope: Scope,
    entries: frozenset[ir.Node],
    order: Order,
    *,
    own: bool,
) -> bool:
    """Whether a node stands on the other side of the Transposes: before an entry, behind an exit."""
    after = {use.node for output in node.outputs for use in output.uses()}
    if flip.moves and after & entries:
        return True
    if own:
        return False
    values = (node.inputs[index] for index in flip.operands)
    back = inverse(order)
    return any(order_of(value.producer(), scope) == back for value in values if value is not None)


def _exits(
    scope: Scope,
    here: list[ir.Node],
    entries: frozenset[ir.Node],
    back: Order,
) -> frozenset[ir.Node]:
    """Transposes that undo the order behind an operator with a choice.

    Of those that are graph outputs only one a value, because two outputs cannot be one value.
    """
    exits: set[ir.Node] = set()
    named: set[ir.Value] = set()
    for node in here:
        value = node.inputs[0]
        if value is None or node in entries or order_of(node, scope) != back:
            continue
        if node.outputs[0].is_graph_output():
            if value in named:
                continue
            named.add(value)
        exits.add(node)
    return frozenset(exits)


def regions(field: Field) -> list[Field]:
    """The operators to flip, cut into parts that have nothing to do with one another."""
    chosen = _cut(field)
    import networkx as nx

    links: nx.Graph[ir.Node | ir.Value] = nx.Graph()
    for node in field.flips:
        if node in chosen:
            links.add_edges_from((node, value) for value in field.operands(node))
            links.add_edges_from((node, value) for value in node.outputs)
    parts = (frozenset(n for n in part if n in chosen) for part in nx.connected_components(links))
    return [field.within(part) for part in parts]


def _cut(field: Field) -> set[ir.Node]:
    values = dict.fromkeys(
        value
        for node in field.flips
        for value in (*field.operands(node), *(node.outputs if field.flips[node].moves else ()))
    )
    weights = _Weights.of(field, list(values))
    import networkx as nx

    network: nx.DiGraph[object] = nx.DiGraph()
    network.add_nodes_from((_AS_IS, _FLIPPED))
    for value in values:
        maker: object = field.makes(value)
        if maker is None:
            maker = _FLIPPED if value.producer() in field.entries else _AS_IS
        to, back = ("to", value), ("back", value)
        network.add_edge(to, maker, capacity=weights.forth(value))  # made flipped, read as it is
        network.add_edge(maker, back, capacity=weights.back(value))  # made as it is, read flipped
        for reader in _readers(field, value):
            network.add_edge(reader, to)  # no capacity: infinite
            network.add_edge(back, reader)
    _, (_, flipped) = nx.minimum_cut(network, _AS_IS, _FLIPPED)
    return {node for node in field.flips if node in flipped}


def _readers(field: Field, value: ir.Value) -> set[object]:
    readers: set[object] = {_AS_IS} if value.is_graph_output() else set()
    for use in value.uses():
        if field.reads_flipped(use.node, use.idx):
            readers.add(use.node)
        else:
            readers.add(_FLIPPED if use.node in field.exits else _AS_IS)
    return readers


@dataclass(frozen=True)
class _Weights:
    """Transposes, bytes and distance from the inputs as one number, in that order of importance."""

    field: Field
    bytes: int
    count: int

    @classmethod
    def of(cls, field: Field, values: list[ir.Value]) -> _Weights:
        return cls(field, 1 + sum(bytes_of(field.scope, v) for v in values), 1 + len(values))

    def forth(self, value: ir.Value) -> int:
        """The price of Transpose(order) that results in a value."""
        maker = value.producer()
        source = maker.inputs[0] if maker in self.field.entries and maker is not None else None
        return self._of(value, is_outermost(self.field.scope, source, value))

    def back(self, value: ir.Value) -> int:
        """The price of the inverse Transpose of a value."""
        named = any(
            use.node in self.field.exits and use.node.outputs[0].is_graph_output()
            for use in value.uses()
        )
        return self._of(value, named or _is_fed(self.field.scope, value))

    def _of(self, value: ir.Value, outside: bool) -> int:
        return (self.bytes + bytes_of(self.field.scope, value)) * self.count + (not outside)


def bytes_of(scope: Scope, value: ir.Value) -> int:
    """Size of a value for the bound inputs; 0 if unknown."""
    shape = scope.shape(value)
    if shape is None or value.dtype is None:
        return 0
    size = 1
    for length in shape:
        size *= length
    return int(size * value.dtype.itemsize)


def is_outermost(scope: Scope, source: ir.Value | None, result: ir.Value | None) -> bool:
    """Whether a Transpose stands in nobody's way: at the model's edge, or where weights take it in."""
    if result is not None and (result.is_graph_output() or is_flattened_for_layers(result)):
        return True
    return _is_fed(scope, source)


def _is_fed(scope: Scope, value: ir.Value | None) -> bool:
    return value is not None and scope.is_main and value.is_graph_input()
