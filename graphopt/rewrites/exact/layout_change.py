"""One region of operators written for another layout, and what that saves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import is_op
from graphopt.rewrites.cleanup.axes import inverse, order_of
from graphopt.rewrites.exact.layout_cut import Field, bytes_of, is_outermost

_Ends = tuple[ir.Value | None, ir.Value | None]
"""What a Transpose reads and what it makes, as far as they are there."""


class LayoutChange:
    """One region written for the other layout: what it makes and what it takes away."""

    def __init__(self, rewrite: str, region: Field) -> None:
        self._rewrite, self._region, self._scope = rewrite, region, region.scope
        made = dict.fromkeys(
            output for node, flip in region.flips.items() if flip.moves for output in node.outputs
        )
        values = dict.fromkeys(_values_of(region))
        self._exits = [node for node in _in_order(region.exits, region) if node.inputs[0] in made]
        entries = {value.producer() for value in values} & region.entries
        self._entries = [node for node in _in_order(entries, region) if not self._stays(node)]
        self._kept = [node for node in _in_order(entries, region) if self._stays(node)]
        self._back = [value for value in made if self._read_outside(value)]
        self._forth = [
            value
            for value in values
            if value not in made and value.producer() not in entries and not self._undone(value)
        ]

    @property
    def operators(self) -> int:
        """How many operators change layout."""
        return len(self._region.flips)

    @property
    def transposes(self) -> list[ir.Node]:
        """The Transposes that go."""
        return [*self._entries, *self._exits]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The operators and the Transposes around them, in order."""
        return tuple(_in_order({*self._region.flips, *self.transposes, *self._kept}, self._region))

    def gain(self) -> tuple[int, int, int]:
        """By how much Transposes, bytes transposed and Transposes inside the model grow."""
        gone: list[_Ends] = [(node.inputs[0], node.outputs[0]) for node in self.transposes]
        new: list[_Ends] = []
        new += [(None, value) for value in self._back]
        new += [(value, None) for value in self._forth]

        def bytes_in(pairs: list[_Ends]) -> int:
            values = (source or result for source, result in pairs)
            return sum(bytes_of(self._scope, value) for value in values if value is not None)

        def inside(pairs: list[_Ends]) -> int:
            return sum(not is_outermost(self._scope, *pair) for pair in pairs)

        return (
            len(new) - len(gone),
            bytes_in(new) - bytes_in(gone),
            inside(new) - inside(gone),
        )

    def apply(self) -> None:
        """Make the operators anew for the other layout and drop the Transposes."""
        region, change = self._region, Edit(self._scope, self._rewrite)
        self._edit = change
        self._flipped: dict[ir.Value, ir.Value] = {}
        outputs: dict[ir.Value, ir.Value] = {}
        for node, flip in region.flips.items():
            inputs = list(node.inputs)
            for index in flip.operands:
                inputs[index] = self._flip(inputs[index])
            for index, array in flip.constants.items():
                inputs += [None] * (index + 1 - len(inputs))
                old = node.inputs[index] if index < len(node.inputs) else None
                hint = (old.name if old is not None else None) or f"{node.outputs[0].name}_operand"
                inputs[index] = change.constant(array, hint)
            if flip.op_type is not None:
                hint = node.outputs[0].name or node.op_type
                made = [
                    change.node(flip.op_type, inputs, flip.attributes, hint=hint, name=node.name)
                ]
            else:
                count = len(node.outputs) if is_op(node, "Split") else 1
                made = change.copies(node, inputs, attributes=flip.attributes, outputs=count)
            pairs = zip(node.outputs, made, strict=False)
            (self._flipped if flip.moves else outputs).update(pairs)
        for value in self._back:
            outputs[value] = self._keep(value)
        for node in self._exits:
            outputs[node.outputs[0]] = self._flip(node.inputs[0])
        # Of several values that become one, the name of the graph's output has to last.
        ordered = sorted(outputs, key=lambda value: value.is_graph_output())
        removed = [*region.flips, *self.transposes]
        change.commit(removed, {value: outputs[value] for value in ordered})

    def _flip(self, value: ir.Value | None) -> ir.Value:
        """A value as it is before Transpose(order)."""
        assert value is not None
        known = self._flipped.get(value)
        if known is not None:
            return known
        producer = value.producer()
        if producer in self._region.entries and producer is not None:
            known = producer.inputs[0]
        else:
            known = self._undone(value) or self._transposed(
                value, inverse(self._region.order), value
            )
        assert known is not None
        self._flipped[value] = known
        return known

    def _keep(self, value: ir.Value) -> ir.Value:
        """A value of the region as it was, for those outside."""
        return self._transposed(self._flip(value), self._region.order, value)

    def _transposed(self, value: ir.Value, order: Sequence[int], stands_for: ir.Value) -> ir.Value:
        hint = stands_for.name or "transposed"
        return self._edit.node("Transpose", [value], {"perm": list(order)}, hint=hint)

    def _stays(self, entry: ir.Node) -> bool:
        """Whether an entry is read outside the region too."""
        output = entry.outputs[0]
        return output.is_graph_output() or any(
            not self._region.reads_flipped(use.node, use.idx) for use in output.uses()
        )

    def _read_outside(self, value: ir.Value) -> bool:
        return value.is_graph_output() or any(
            use.node not in self._region.exits and not self._region.reads_flipped(use.node, use.idx)
            for use in value.uses()
        )

    def _undone(self, value: ir.Value) -> ir.Value | None:
        """The result of a Transpose that is there and gives the flipped value."""
        back = inverse(self._region.order)
        for use in value.uses():
            node = use.node
            if node in self._entries or node.graph is not self._scope.graph:
                continue
            if order_of(node, self._scope) == back:
                return node.outputs[0]
        return None


def _values_of(field: Field) -> Iterator[ir.Value]:
    for node in field.flips:
        yield from field.operands(node)


def _in_order(nodes: Collection[ir.Node | None], region: Field) -> list[ir.Node]:
    return [node for node in region.scope.graph if node in nodes]
