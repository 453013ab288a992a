"""Remove Split, Slice and Concat that undo one another, and merge those that follow one another."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, attribute_int, follower, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.cleanup.axes import integers
from graphopt.rewrites.cleanup.slices import END, Cut, SliceView, make_slice


@dataclass(frozen=True)
class UndoSplits(ExactRewrite):
    """Split | Slice and Concat that undo one another  ==>  nothing; neighbours of a kind  ==>  one.

        Concat(Split(x)) = x                    Concat(x[:a], x[a:]) = x
        Split(Concat(a, b)) = a, b              Concat(a, b)[|a|:] = b
        Concat(a, Concat(b, c)) = Concat(a, b, c)          x[a:b][c:] = x[a + c:b]

    All along one axis. Slices of different axes merge too. Sizes must be the same for every input
    where they count. Declines when a Split or Slice cuts through the operands of a Concat, when
    the value between is needed elsewhere too and nothing would be saved, where two names of the
    interface would become one.
    """

    name = "undo-splits"
    kind = "clean-up"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per Concat, Split or Slice behind another of them."""
        for node in scope.graph:
            if is_op(node, "Concat"):
                yield from self._concat(scope, node)
            elif is_op(node, "Split"):
                yield from self._split(scope, node)
            elif is_op(node, "Slice"):
                yield from self._slice(scope, node)

    def _concat(self, scope: Scope, node: ir.Node) -> Iterator[Finding]:
        operands, spent = _joined(scope, node)
        if not spent:
            return
        if len(operands) == 1:
            yield self._pass_on(scope, (*spent, node), {node.outputs[0]: operands[0]})
            return

        def edit() -> None:
            change = Edit(scope, self.name, self.kind)
            new = change.like(node, operands)
            change.commit(_unread((*spent, node), scope), {node.outputs[0]: new})

        yield Proposal(self.name, _unread((*spent, node), scope), edit)

    def _split(self, scope: Scope, node: ir.Node) -> Iterator[Finding]:
        before = _concat_before(scope, node, attribute_int(node, "axis", 0))
        if before is None:
            return
        axis = attribute_int(before, "axis", 0)
        parts = _sizes(scope, before.inputs, axis)
        given = integers(node, "split", 1) or _sizes(scope, node.outputs, axis)
        if None in parts or list(given) != list(parts):
            yield self.decline("its parts are not the operands of the Concat", before, node)
            return
        operands = [value for value in before.inputs if value is not None]
        outputs = dict(zip(node.outputs, operands, strict=True))
        yield self._pass_on(scope, (before, node), outputs)

    def _slice(self, scope: Scope, node: ir.Node) -> Iterator[Finding]:
        view = SliceView.of(node, scope)
        if view is None:
            return
        before = view.source.producer()
        inner = SliceView.of(before, scope)
        if inner is not None and before is not None:
            yield self._slices(scope, inner, view)
        elif len(view.cuts) == 1:
            ((axis, cut),) = view.cuts.items()
            before = _concat_before(scope, node, axis)
            if before is None or cut.step != 1:
                return
            kept = _operand_kept(scope, before, axis, cut)
            if kept is None:
                yield self.decline("it does not keep just one operand of the Concat", before, node)
            else:
                yield self._pass_on(scope, (before, node), {node.outputs[0]: kept})

    def _slices(self, scope: Scope, inner: SliceView, outer: SliceView) -> Finding:
        if follower(scope, inner.node) is not outer.node:
            return self.decline("the value between is needed elsewhere too", inner.node, outer.node)
        cuts = dict(inner.cuts)
        for axis, cut in outer.cuts.items():
            merged = cuts[axis].then(cut) if axis in cuts else cut
            if merged is None:
                return self.decline("steps, or ends counted from the back", inner.node, outer.node)
            cuts[axis] = merged

        def edit() -> None:
            change = Edit(scope, self.name, self.kind)
            new = make_slice(change, outer.node, inner.source, cuts, scope)
            change.commit((inner.node, outer.node), {outer.node.outputs[0]: new})

        return Proposal(self.name, (inner.node, outer.node), edit)

    def _pass_on(
        self, scope: Scope, nodes: Sequence[ir.Node], outputs: dict[ir.Value, ir.Value]
    ) -> Finding:
        """Take the last node out; its outputs are values that are there already."""
        named = [new for old, new in outputs.items() if old.is_graph_output()]
        free = all(
            value.producer() is not None
            and value.producer().graph is scope.graph  # type: ignore[union-attr]
            and not value.is_graph_output()
            for value in named
        )
        if not free or len(named) != len(set(named)):
            return self.decline("it connects an output with a name that must stay", nodes[-1])
        removed = _unread(nodes, scope, read=set(outputs.values()))
        return Proposal(self.name, removed, lambda: Edit(scope, self.name).commit(removed, outputs))


def _unread(
    nodes: Sequence[ir.Node], scope: Scope, *, read: Collection[ir.Value] = ()
) -> tuple[ir.Node, ...]:
    """The last node, and those of the others that nothing else reads: in order of the graph."""
    gone = {nodes[-1]}
    for node in sorted(set(nodes[:-1]), key=list(scope.graph).index, reverse=True):
        uses = [use.node for output in node.outputs for use in output.uses()]
        kept = any(output.is_graph_output() or output in read for output in node.outputs)
        if not kept and all(user in gone for user in uses):
            gone.add(node)
    return tuple(node for node in scope.graph if node in gone)


def _same_axis(a: int, b: int, rank: int | None) -> bool:
    return a == b or (rank is not None and a % rank == b % rank)


def _concat_before(scope: Scope, node: ir.Node, axis: int) -> ir.Node | None:
    """The Concat along the same axis that makes a node's input."""
    value = node.inputs[0]
    before = None if value is None else value.producer()
    if before is None or before.graph is not scope.graph or not is_op(before, "Concat"):
        return None
    own = attribute_int(before, "axis", 1)
    return before if _same_axis(own, axis, scope.rank(value)) else None


def _sizes(scope: Scope, values: Sequence[ir.Value | None], axis: int) -> list[int | None]:
    return [scope.fixed_dim(value, axis) for value in values]


def _operand_kept(scope: Scope, concat: ir.Node, axis: int, cut: Cut) -> ir.Value | None:
    """The one operand a cut of a Concat keeps, if it is exactly that."""
    sizes = _sizes(scope, concat.inputs, axis)
    count = len(sizes)
    front = _offsets(sizes)
    back = [None if n is None else -n for n in _offsets(sizes[::-1])][::-1]
    for index, value in enumerate(concat.inputs):
        starts = cut.start == (front[index] if cut.start >= 0 else back[index])
        last = cut.end == END and index + 1 == count
        ends = cut.end == (front[index + 1] if cut.end >= 0 else back[index + 1])
        if starts and (last or ends):
            return value
    return None


def _offsets(sizes: Sequence[int | None]) -> list[int | None]:
    """Where operands begin and the last one ends, as far as the sizes before are known."""
    offsets: list[int | None] = [0]
    for size in sizes:
        total = offsets[-1]
        offsets.append(None if total is None or size is None else total + size)
    return offsets


def _joined(scope: Scope, node: ir.Node) -> tuple[list[ir.Value], list[ir.Node]]:
    """The operands of a Concat with whole values in place of their parts, and the nodes passed by."""
    axis, rank = attribute_int(node, "axis", 1), scope.rank(node.outputs[0])
    left = [value for value in node.inputs if value is not None]
    operands: list[ir.Value] = []
    spent: list[ir.Node] = []
    while left:
        whole = (
            _of_split(scope, left, axis, rank)
            or _of_slices(scope, left, axis, rank)
            or _of_concat(scope, node, left, axis, rank)
        )
        if whole is None:
            operands.append(left.pop(0))
            continue
        values, count, nodes = whole
        operands += values
        spent += nodes
        del left[:count]
    return operands, spent


_Whole = tuple[list[ir.Value], int, list[ir.Node]]
"""Operands to put in place of the first few, how many those are, and the nodes that made them."""


def _of_split(scope: Scope, left: Sequence[ir.Value], axis: int, rank: int | None) -> _Whole | None:
    split = left[0].producer()
    if split is None or split.graph is not scope.graph or not is_op(split, "Split"):
        return None
    count, source = len(split.outputs), split.inputs[0]
    if source is None or list(left[:count]) != list(split.outputs):
        return None
    if not _same_axis(attribute_int(split, "axis", 0), axis, rank):
        return None
    return [source], count, [split]


def _of_slices(
    scope: Scope, left: Sequence[ir.Value], axis: int, rank: int | None
) -> _Whole | None:
    """Slices of one value, each beginning where the one before ends, from its start to its end."""
    if rank is None:
        return None
    nodes: list[ir.Node] = []
    bounds = [0]
    source: ir.Value | None = None
    for value in left:
        view = SliceView.of(value.producer(), scope)
        if view is None or set(view.cuts) != {axis % rank} or source not in (None, view.source):
            return None
        cut, source = view.cuts[axis % rank], view.source
        if cut.step != 1 or cut.start != bounds[-1]:
            return None
        nodes.append(view.node)
        bounds.append(cut.end)
        if cut.end == END:
            break
    inner = bounds[1:-1]
    if bounds[-1] != END or source is None or inner != sorted(inner):
        return None
    if inner and (inner[0] < 0) != (inner[-1] < 0):
        return None  # from the front and from the back: they may overlap
    return [source], len(nodes), nodes


def _of_concat(
    scope: Scope, node: ir.Node, left: Sequence[ir.Value], axis: int, rank: int | None
) -> _Whole | None:
    inner = left[0].producer()
    if inner is None or inner.graph is not scope.graph or not is_op(inner, "Concat"):
        return None
    if not _same_axis(attribute_int(inner, "axis", 1), axis, rank):
        return None
    if left[0].is_graph_output() or any(use.node is not node for use in left[0].uses()):
        return None
    return [value for value in inner.inputs if value is not None], 1, [inner]
