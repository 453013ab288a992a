"""Operators that treat every cell alike, and what meets in them: maps, constants, global context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, is_splat, reshaped
from graphopt.graph.edit import Edit
from graphopt.graph.scope import attribute_int
from graphopt.rewrites.dense.changes import hint_of, with_operands
from graphopt.rewrites.dense.states import (
    SPACE_AXES,
    Context,
    Map,
    Ruling,
    Site,
    WideError,
    label,
    with_result,
)

Array = np.ndarray[Any, Any]


def unary(site: Site) -> Ruling:
    """The same on every element, whatever the shape."""
    return site.same(site.map())


def quantized(site: Site) -> Ruling:
    """QuantizeLinear, DequantizeLinear: with one scale, or one a channel."""
    state, axis = site.map(), attribute_int(site.node, "axis", 1)
    if int(np.prod(site.shape(1))) != 1:
        kept = axis == 1 and state.is_one_cell if state.form == "flat" else True
        if not kept or axis % state.rank != state.channel_axis:
            raise site.refusal("has a scale for every place of the map")
    return site.same(state)


def normalized(site: Site) -> Ruling:
    """BatchNormalization: a scale and a shift a channel."""
    state = site.map("map", "flat")
    if any(output.uses() or output.is_graph_output() for output in site.node.outputs[1:]):
        raise site.refusal("is in training mode: its statistics are outputs")
    if not attribute_int(site.node, "spatial", 1) and not state.is_one_cell:
        raise site.refusal("has statistics for every place of the map")
    if state.form == "flat" and not state.is_one_cell:
        raise site.refusal("has statistics for every place of the map it gets flattened")
    return Ruling((state, *(None,) * (len(site.node.outputs) - 1)))


def across_channels(site: Site) -> Ruling:
    """LRN: every cell by itself."""
    return site.same(site.map("map"))


def over_the_picture(site: Site) -> Ruling:
    """InstanceNormalization, GroupNormalization: statistics of the picture, not of the window."""
    state = site.map("map")
    return site.same(state.told(f"{label(site.node)} takes its statistics from the whole picture"))


def nary(site: Site) -> Ruling:
    """Broadcasting operators: maps of one geometry, constants a channel, global context."""
    joined = _joined(site)
    changed: dict[int, Array] = {}
    for index, value in enumerate(site.node.inputs):
        state = site.state(index)
        if isinstance(state, Context):
            joined = _weighted(site, joined, state, index)
        elif value is not None and state is None:
            array = constant(value)
            if array is None:
                if int(np.prod(site.shape(index))) != 1:
                    raise site.refusal("has a constant operand that is still to be folded")
                continue
            fitting = _for_channels(site, array, joined)
            if fitting is not None:
                changed[index] = fitting
    result = with_result(joined, site.result())
    if not changed:
        return site.same(result)

    def operands(edit: Edit) -> dict[int, ir.Value]:
        hint = f"{hint_of(site.node)}_constant"
        return {index: edit.constant(array, hint) for index, array in changed.items()}

    return site.same(result, with_operands(site.node, operands))


def _joined(site: Site) -> Map:
    """The map that the maps among the operands broadcast to."""
    maps = [state for _, state in site.found() if isinstance(state, Map)]
    if not maps or not all(isinstance(state, Map | Context) for _, state in site.found()):
        raise site.refusal("computes with the sizes of a map, or with its channels in groups")
    largest = max(maps, key=lambda state: state.size)
    return together(site, maps, largest)


def together(site: Site, maps: list[Map], largest: Map) -> Map:
    """Maps that meet cell by cell, as the largest of them.

    Raises:
        WideError: One of them is pooled from a whole map, and weights the largest.
    """
    for state in maps:
        if state.size != largest.size:
            if state.is_one_cell and state.pools:
                raise WideError(state.pools)
            raise site.refusal(
                f"joins maps of {_by(state)} and {_by(largest)}: their cells do not correspond"
            )
        if (state.form, state.rank) != (largest.form, largest.rank):
            raise site.refusal("joins maps that are laid out differently")
        if state.stride != largest.stride:
            raise site.refusal("joins maps of different strides: only at this size do they agree")
    told = next((state.inexact for state in maps if state.inexact), None)
    pools = frozenset[ir.Node]().union(*(state.pools for state in maps))
    return replace(largest, pools=pools).told(told)


def _by(state: Map) -> str:
    return "x".join(map(str, state.size))


def _weighted(site: Site, joined: Map, context: Context, index: int) -> Map:
    """A map that meets a value about the whole picture: a scalar, or one number a channel."""
    shape = site.shape(index)
    axes = SPACE_AXES[joined.form]
    if not axes or len(shape) not in (0, joined.rank) or any(shape[i] != 1 for i in axes if shape):
        raise site.refusal("mixes what is said of the whole picture into a flattened map")
    return joined.told(f"{min(map(label, context.pools))} looks at the whole picture")


def _for_channels(site: Site, array: Array, state: Map) -> Array | None:
    """A constant operand as it meets [N, C, h, w]; None where it does as it is.

    It must not differ from place to place (a positional weight), nor between samples.
    """
    if array.ndim > state.rank:
        raise site.refusal("has a constant with more dimensions than the map")
    if array.size == 1:
        return None
    full = reshaped(array, (1,) * (state.rank - array.ndim) + array.shape)
    if full.shape[0] != 1:
        raise site.refusal("has a constant that differs between the samples of a batch")
    places = _places(site, full, state)
    if places.shape[1:] == (1, 1) and state.form in ("map", "last"):
        return None
    if not is_splat(places) and (places != places[:, :1, :1]).any():
        raise site.refusal("has a constant that varies over space (a positional weight)")
    return reshaped(
        places[:, 0, 0], (len(places),) if state.form == "last" else (len(places), 1, 1)
    )


def _places(site: Site, full: Array, state: Map) -> Array:
    """A constant [1, ...] of full rank as [C, h, w]."""
    height, width = state.size
    if state.form == "labels":
        raise site.refusal("has a constant that varies over space (a positional weight)")
    if state.form == "flat":
        channels, rest = divmod(full.size, height * width)
        if rest or full.shape[1] != full.size:
            raise site.refusal("has a constant that widens the map it gets flattened")
        return reshaped(full, (channels, height, width))
    if state.form == "last":
        full = full.transpose(0, 3, 1, 2)
    if full.shape[2] not in (1, height) or full.shape[3] not in (1, width):
        raise site.refusal("has a constant that widens the map")
    places: Array = full[0]
    return places
