"""Reshapes: those that only flatten a map are dropped, a channel shuffle becomes a Gather."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import is_op
from graphopt.rewrites.cleanup.axes import integers, is_identity, order_of
from graphopt.rewrites.dense.changes import TO_FIRST, TO_LAST, bypassed, hint_of, swapped
from graphopt.rewrites.dense.states import Form, Groups, Map, Ruling, Site


def reshaped(site: Site) -> Ruling:
    """Flatten, Reshape, Squeeze, Unsqueeze: told by the shapes before and after."""
    state, target = site.state(0), site.result()
    if isinstance(state, Groups):
        return _regrouped(site, state, target)
    if not isinstance(state, Map):
        raise site.refusal("gives the sizes of a map another shape")
    source = site.shape(0)
    if target == source:
        return site.same(state, bypassed(site.node))
    if source[:1] != target[:1]:
        raise site.refusal(f"changes {_dims(source)} to {_dims(target)}: the batch is not kept")
    found = _RULINGS[state.form](site, state, target)
    if found is None:
        raise site.refusal(f"changes {_dims(source)} to {_dims(target)}: {_mixed(state, target)}")
    return found


def transposed(site: Site) -> Ruling:
    """Transpose: between channels first and last, or of groups of channels."""
    state, order = site.state(0), order_of(site.node, site.scope)
    if isinstance(state, Groups) and order is not None:
        count = len(state.parts)
        kept = (0, *range(count + 1, len(order)))
        if (order[0], *order[count + 1 :]) == kept:
            numbers = np.reshape(state.order, state.parts)
            moved = np.transpose(numbers, [axis - 1 for axis in order[1 : count + 1]])
            parts, numbered = moved.shape, tuple(int(n) for n in moved.reshape(-1))
            return site.same(replace(state, parts=parts, order=numbered))
    if isinstance(state, Map) and order is not None:
        if is_identity(order):
            return site.same(state)
        if state.form == "map" and order == TO_LAST:
            return site.same(replace(state, form="last"))
        if state.form == "last" and order == TO_FIRST:
            return site.same(replace(state, form="map"))
    raise site.refusal("changes the order of the axes: space would not stay apart from the rest")


def _from_map(site: Site, state: Map, target: tuple[int, ...]) -> Ruling | None:
    rest, (height, width) = target[1:], state.size
    flat = (state.channels * height * width,)
    if rest == flat or (state.is_one_cell and rest == (state.channels, 1)):
        return site.same(replace(state, form="flat", rank=len(target)), bypassed(site.node))
    for space in ((height, width), (height * width,)):
        parts = rest[: -len(space)]
        if len(parts) > 1 and rest[-len(space) :] == space and math.prod(parts) == state.channels:
            return site.same(Groups(state, site.node, parts, tuple(range(state.channels)), space))
    return None


def _from_flat(site: Site, state: Map, target: tuple[int, ...]) -> Ruling | None:
    rest = target[1:]
    if rest == (state.channels, *state.size):
        return site.same(replace(state, form="map", rank=4), bypassed(site.node))
    if state.is_one_cell and rest in ((state.channels,), (state.channels, 1)):
        return site.same(replace(state, rank=len(target)), bypassed(site.node))
    return None


def _from_last(site: Site, state: Map, target: tuple[int, ...]) -> Ruling | None:
    if not state.is_one_cell or target[1:] != (state.channels,):
        return None

    def build(edit: Edit) -> ir.Value:
        hint = hint_of(site.node)
        return edit.node("Transpose", [site.node.inputs[0]], {"perm": TO_FIRST}, hint=hint)

    return site.same(replace(state, form="flat", rank=2), swapped(site.node, build))


def _from_labels(site: Site, state: Map, target: tuple[int, ...]) -> Ruling | None:
    """A channel axis put back where it belongs: the same node does it for any size."""
    if not is_op(site.node, "Unsqueeze") or integers(site.node, "axes", 1) != (1,):
        return None
    form: Form = "map" if len(target) == 4 else "flat"
    return site.same(replace(state, channels=1, form=form, rank=len(target)))


_RULINGS: Mapping[Form, Callable[[Site, Map, tuple[int, ...]], Ruling | None]] = {
    "map": _from_map,
    "flat": _from_flat,
    "last": _from_last,
    "labels": _from_labels,
}


def _regrouped(site: Site, state: Groups, target: tuple[int, ...]) -> Ruling:
    origin = state.origin
    if target[1:] != (origin.channels, *origin.size):
        raise site.refusal("keeps the channels of a map in groups: only a channel shuffle is known")

    def build(edit: Edit) -> ir.Value:
        # Whatever the size: channels are picked, where reshapes would have to know it.
        order = edit.constant(np.asarray(state.order, np.int64), f"{hint_of(site.node)}_order")
        operands = [state.start.inputs[0], order]
        return edit.node(
            "Gather", operands, {"axis": 1}, hint=hint_of(site.node), name=site.node.name
        )

    return site.same(origin, swapped(site.node, build))


def _mixed(state: Map, target: tuple[int, ...]) -> str:
    height, width = state.size
    if height * width in target[1:] and state.channels in target[1:]:
        return "the places of the map become a sequence"
    return "space is turned into channels"


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, ("N", *shape[1:])))
