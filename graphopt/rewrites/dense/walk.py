"""One walk over a network in topological order: what every value is, and what has to be changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.graph.scope import STANDARD_DOMAINS, Scope, is_op
from graphopt.rewrites.dense.states import (
    Change,
    Context,
    Groups,
    Map,
    NotDenseError,
    Ruling,
    Site,
    Sizes,
    State,
    WideError,
    label,
)
from graphopt.rewrites.dense.table import RULES


@dataclass
class Walk:
    """What was found: states of the values that depend on the picture, and changes in order."""

    states: dict[ir.Value, State]
    changes: list[Change] = field(default_factory=list)
    doubts: list[NotDenseError] = field(default_factory=list)


def walk(scope: Scope, picture: ir.Value, state: Map, *, sized: bool) -> Walk:
    """Every value's state, from that of the picture on.

    A pooling is taken to be over the window, until its result weights a map (squeeze-and-excite)
    or meets an operator that is only known over the whole picture: then the walk begins anew, and
    it stays global.

    Raises:
        NotDenseError: The network has no dense form.
    """
    if scope.opset < 7:
        raise NotDenseError(f"opset {scope.opset} is older than 7")
    wide = frozenset[ir.Node]()
    first: NotDenseError | None = None
    while True:
        found = Walk({picture: state})
        for node in scope.graph:
            try:
                _visit(found, Site(node, scope, found.states, wide, sized))
            except WideError as error:
                wide |= error.pools
                break
            except NotDenseError as error:
                pools = _pools_at(found, node) - wide
                if not pools:
                    raise first or error from None
                wide, first = wide | pools, first or error
                break
        else:
            wrong = next(_wrong_outputs(found, scope.graph), None) or next(iter(found.doubts), None)
            if wrong is not None:
                raise first or wrong
            if not any(isinstance(found.states.get(out), Map) for out in scope.graph.outputs):
                raise NotDenseError("no output depends on its picture")
            return found


def _visit(found: Walk, site: Site) -> None:
    ruling = _ruling(site)
    for value, state in zip(site.node.outputs, ruling.outputs, strict=True):
        if state is not None:
            found.states[value] = state
    if ruling.change is not None:
        found.changes.append(ruling.change)
    if ruling.doubt is not None:
        found.doubts.append(ruling.doubt)


def _ruling(site: Site) -> Ruling:
    node, states = site.node, [state for _, state in site.found()]
    if any(value in site.states for value in _captured(node)):
        raise site.refusal("runs a body over the picture")
    if not states:
        return site.same(None)
    if is_op(node, "Shape", "Size"):
        return site.same(_asked(states[0]))
    sizes = [state for state in states if isinstance(state, Sizes)]
    if len(sizes) == len(states):
        return site.same(Sizes(stale=any(state.stale for state in sizes)))
    if any(isinstance(state, Context) for state in states) and not any(
        isinstance(state, Map | Groups) for state in states
    ):
        return _about_the_picture(site, states)
    rule = RULES.get(node.op_type) if node.domain in STANDARD_DOMAINS else None
    if rule is None:
        raise site.refusal("is not known to work on a map of any size")
    return rule(site)


def _asked(state: State) -> Sizes:
    """The shape of a value. It has another one now, if the file flattens it."""
    if isinstance(state, Map):
        return Sizes(stale=state.form not in ("map", "last"))
    return Sizes(stale=not isinstance(state, Context))


def _about_the_picture(site: Site, states: list[State]) -> Ruling:
    """Any operator on values that have one shape whatever the size of the picture."""
    if any(isinstance(state, Sizes) for state in states):
        shape = site.result()
        stale = any(isinstance(state, Sizes) and state.stale for state in states)
        if stale or not is_op(site.node, "Reshape") or set(shape[2:]) - {1}:
            raise site.refusal("computes with the sizes of a map")
    contexts = (state for state in states if isinstance(state, Context))
    return site.same(Context(frozenset().union(*(state.pools for state in contexts))))


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """What the bodies of a node read."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies = list(attribute.as_graphs())
        else:
            continue
        for body in bodies:
            yield from body.outputs
            for inner in body.all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def _pools_at(found: Walk, node: ir.Node) -> frozenset[ir.Node]:
    """The global poolings that a node's operands come from."""
    states = [found.states.get(value) for value in node.inputs if value is not None]
    maps = [state for state in states if isinstance(state, Map)]
    return frozenset().union(*(state.pools for state in maps))


def _wrong_outputs(found: Walk, graph: ir.Graph) -> Iterator[NotDenseError]:
    """Why outputs would not be maps."""
    for output in graph.outputs:
        state, producer = found.states.get(output), output.producer()
        if state is None or producer is None:
            continue
        if isinstance(state, Context):
            yield NotDenseError(f"{label(producer)} is an output, and about the whole picture")
        elif not isinstance(state, Map):
            yield NotDenseError(f"{label(producer)} is an output, and no map")
        elif state.form == "flat" and not state.is_one_cell:
            yield NotDenseError(f"{label(producer)} is an output, and flattens a map of one size")
