"""Operators along the channel axis: softmax, classes, joining, splitting and picking channels."""

from __future__ import annotations

from dataclasses import replace

from graphopt.graph.scope import attribute_int
from graphopt.rewrites.dense.changes import channels_last, with_axis
from graphopt.rewrites.dense.elementwise import together
from graphopt.rewrites.dense.pooling import without_channels
from graphopt.rewrites.dense.states import Map, Ruling, Site, with_result


def along(site: Site, default: int) -> Ruling:
    """An operator with an `axis` that keeps the rank: TopK, LpNormalization, Split."""
    state = _on_channels(site, site.map(), attribute_int(site.node, "axis", default))
    outputs = range(len(site.node.outputs))
    results = tuple(with_result(state, site.result(index)) for index in outputs)
    return replace(_in_place(site, state), outputs=results)


def softmax(site: Site) -> Ruling:
    """Softmax, LogSoftmax, Hardmax: before opset 13 over all axes from `axis` on, taken as one."""
    state, node = site.map(), site.node
    flattens = site.scope.opset < 13
    axis = attribute_int(node, "axis", 1 if flattens else -1)
    if not flattens or (state.form == "last" and axis % state.rank == 3):
        return _in_place(site, _on_channels(site, state, axis))
    if axis % state.rank != 1 or not state.is_one_cell or state.form not in ("flat", "map"):
        raise site.refusal("takes channels and space together")
    return site.same(state, channels_last(node, {"axis": 3}))


def layer_norm(site: Site) -> Ruling:
    """LayerNormalization over the channels of every cell."""
    state, node = site.map("last", "flat"), site.node
    if attribute_int(node, "axis", -1) % state.rank != state.rank - 1 or state.rank == 3:
        raise site.refusal("normalizes over more than the channels")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise site.refusal("has its statistics as outputs")
    if state.form == "last":
        return Ruling((state, *(None,) * (len(node.outputs) - 1)))
    if not state.is_one_cell:
        raise site.refusal("normalizes over the places of the map it gets flattened")
    return Ruling((state, *(None,) * (len(node.outputs) - 1)), channels_last(node, {"axis": -1}))


def class_of(site: Site) -> Ruling:
    """ArgMax, ArgMin: one class for every cell."""
    state = _on_channels(site, site.map(), attribute_int(site.node, "axis", 0))
    keeps = bool(attribute_int(site.node, "keepdims", 1))
    return replace(_in_place(site, state), outputs=(without_channels(site, state, keeps=keeps),))


def concatenated(site: Site) -> Ruling:
    """Concat of maps that correspond cell by cell."""
    found = [state for _, state in site.found()]
    maps = [state for state in found if isinstance(state, Map)]
    if len(maps) != len(site.node.inputs):
        raise site.refusal("joins a map with something else")
    joined = together(site, maps, max(maps, key=lambda state: state.size))
    state = _on_channels(site, joined, attribute_int(site.node, "axis", 1))
    return replace(_in_place(site, state), outputs=(with_result(state, site.result()),))


def gathered(site: Site) -> Ruling:
    """Gather of channels by constant indices."""
    state = _on_channels(site, site.map(), attribute_int(site.node, "axis", 0))
    if not site.shape(1):
        return replace(
            _in_place(site, state), outputs=(without_channels(site, state, keeps=False),)
        )
    if len(site.shape(1)) != 1:
        raise site.refusal("picks channels into several axes")
    return replace(_in_place(site, state), outputs=(with_result(state, site.result()),))


def _on_channels(site: Site, state: Map, axis: int) -> Map:
    if state.channel_axis is None or axis % state.rank != state.channel_axis:
        raise site.refusal("works along space or along the batch")
    if state.form == "flat" and not state.is_one_cell:
        raise site.refusal("works along the channels and places of a flattened map")
    return state


def _in_place(site: Site, state: Map) -> Ruling:
    """The node as it is, or with its axis given anew where the channels are not its last axis any more."""
    axis = site.node.attributes.get("axis")
    moved = state.form == "flat" and (axis is None or axis.as_int() != 1)
    return site.same(state, with_axis(site.node, "axis") if moved else None)
