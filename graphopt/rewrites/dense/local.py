"""Operators that see a neighbourhood of every place: what they do to stride, size and exactness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from graphopt.graph.constants import constant
from graphopt.graph.scope import attribute_int, attribute_ints, attribute_string, is_op
from graphopt.rewrites.cleanup.axes import integers, is_given, operand
from graphopt.rewrites.dense.changes import with_axis
from graphopt.rewrites.dense.pooling import pooled, spans_the_map
from graphopt.rewrites.dense.states import (
    SPACE_AXES,
    Map,
    Ruling,
    Site,
    Sizes,
    label,
    with_result,
)

_TO_THE_END = 1 << 30
"""Ends of a Slice from here on mean the end of the axis, whatever its size."""


def convolved(site: Site) -> Ruling:
    """Conv: exact unless it pads."""
    state = site.map("map")
    kernel = site.shape(1)[2:]
    result = _strided(site, state, _strides(site))
    return Ruling((result.told(_border(site, state, result, kernel)),))


def deformed(site: Site) -> Ruling:
    """DeformConv: samples wherever another map says, so beyond the window too."""
    state = site.map("map", others=True)
    result = _strided(site, state, _strides(site))
    for index, other in site.found():
        if index in (1, 3) or not isinstance(other, Map):
            raise site.refusal("takes its weight from the picture")
        if index and (other.stride, other.size) != (result.stride, result.size):
            raise site.refusal("takes its offsets from a map of another stride")
    return Ruling((result.told(f"{label(site.node)} may sample beyond the window"),))


def transposed(site: Site) -> Ruling:
    """ConvTranspose: exact where kernels do not overlap and nothing is cropped."""
    state = site.map("map")
    node, kernel, strides = site.node, site.shape(1)[2:], _strides(site)
    if attribute_ints(node, "output_shape"):
        raise site.refusal("has an output_shape for one size of its input")
    apart = tuple(kernel) == strides and not any(attribute_ints(node, "pads") or ())
    apart &= not any(attribute_ints(node, "output_padding") or ())
    apart &= attribute_string(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    result = _strided(site, state, [Fraction(1, s) for s in strides])
    return Ruling((result.told(None if apart else f"{label(node)} overlaps at the border"),))


def windowed(site: Site) -> Ruling:
    """AveragePool, MaxPool, LpPool: of the whole map they are global poolings."""
    state, node = site.map("map"), site.node
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise site.refusal("gives positions in a map of one size")
    if spans_the_map(site, state):
        return pooled(site, state, "Max" if is_op(node, "MaxPool") else "Average")
    kernel = attribute_ints(node, "kernel_shape") or ()
    result = _strided(site, state, _strides(site))
    border = _border(site, state, result, kernel)
    if border is None and _is_cut(site, state, result, kernel):
        border = f"{label(node)} ends beyond the map (ceil_mode)"
    return Ruling((result.told(border), *(None,) * (len(node.outputs) - 1)))


def padded(site: Site) -> Ruling:
    """Pad: of space it is a border; a negative one cuts, which every window does alike."""
    state = site.map("map", "last")
    pads = integers(site.node, "pads", 1)
    axes = integers(site.node, "axes", 3) if is_given(site.node, "axes", 3) else range(state.rank)
    if pads is None or axes is None:
        raise site.refusal("pads by what is computed at run time")
    begins, ends = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    by_axis = {
        a % state.rank: pair for a, pair in zip(axes, zip(begins, ends, strict=True), strict=True)
    }
    if any(by_axis.get(0, ())):
        raise site.refusal("pads the batch")
    grows = any(max(by_axis.get(axis, (0,))) > 0 for axis in SPACE_AXES[state.form])
    result = with_result(state, site.result())
    return Ruling((result.told(f"{label(site.node)} pads" if grows else None),))


def sliced(site: Site) -> Ruling:
    """Slice: of channels, or of space from a place near the beginning to one near the end."""
    state, node = site.map("map", "last", "flat"), site.node
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    axes = integers(node, "axes", 3) if is_given(node, "axes", 3) else range(len(starts or ()))
    steps = integers(node, "steps", 4) if is_given(node, "steps", 4) else (1,) * len(starts or ())
    if starts is None or ends is None or axes is None or steps is None:
        raise site.refusal("cuts at places that are computed at run time")
    factors = [1, 1]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        at = axis % state.rank
        if at == 0:
            raise site.refusal("cuts the batch")
        if at == state.channel_axis and (state.form != "flat" or state.is_one_cell):
            continue
        if state.form == "flat":
            raise site.refusal("cuts a flattened map")
        if step < 1 or start < 0 or 0 <= end < _TO_THE_END:
            raise site.refusal("cuts space at places for one size of the map")
        factors[SPACE_AXES[state.form].index(at)] = step
    moved = state.form == "flat" and tuple(axes) != (1,)
    change = with_axis(node, "axes", 3) if moved else None
    return Ruling((_strided(site, state, factors),), change)


def rearranged(site: Site) -> Ruling:
    """DepthToSpace, SpaceToDepth: blocks of cells."""
    state = site.map("map")
    block = Fraction(attribute_int(site.node, "blocksize", 1))
    factor = 1 / block if is_op(site.node, "DepthToSpace") else block
    return Ruling((_strided(site, state, (factor, factor)),))


def resized(site: Site) -> Ruling:
    """Resize, Upsample: by a factor, or to the sizes of another map."""
    state, node = site.map("map", others=True), site.node
    result = with_result(state, site.result())
    factors = [Fraction(a, b) for a, b in zip(state.size, result.size, strict=True)]
    by_size = is_op(node, "Resize") and site.scope.opset >= 11 and operand(node, 3) is not None
    if any(not isinstance(other, Sizes) or other.stale for i, other in site.found() if i):
        raise site.refusal("resizes by what is computed from the picture")
    if by_size and not isinstance(site.state(3), Sizes):
        raise site.refusal("resizes to a fixed size")
    if not by_size and not _scales_fit(site, factors):
        raise site.refusal("resizes by a factor that does not divide the map")
    result = _strided(site, state, factors)
    whole = all(factor.numerator == 1 for factor in factors)
    mode = attribute_string(node, "mode", "nearest")
    corners = attribute_string(node, "coordinate_transformation_mode", "half_pixel")
    exact = whole and mode == "nearest" and corners not in ("align_corners", "tf_crop_and_resize")
    return Ruling((result.told(None if exact else f"{label(node)} interpolates at the border"),))


def _scales_fit(site: Site, factors: Sequence[Fraction]) -> bool:
    """Whether the scales of a Resize are constant, and these factors (of the stride)."""
    node = site.node
    attribute = node.attributes.get("scales")
    index = 2 if is_op(node, "Resize") and site.scope.opset >= 11 else 1
    array = constant(operand(node, index)) if attribute is None else attribute.as_floats()
    if array is None or "axes" in node.attributes:
        return False
    wanted = [1.0, 1.0, *(float(1 / factor) for factor in factors)]
    scales = np.asarray(array, np.float64).reshape(-1)
    return len(scales) == 4 and bool(np.allclose(scales, wanted, rtol=1e-6))


def _strided(site: Site, state: Map, factors: Sequence[int | Fraction]) -> Map:
    """The result, its cells so many times as far apart."""
    height, width = (old * new for old, new in zip(state.stride, factors, strict=True))
    return replace(with_result(state, site.result()), stride=(height, width))


def _strides(site: Site) -> tuple[int, ...]:
    return attribute_ints(site.node, "strides") or (1, 1)


def _border(site: Site, state: Map, result: Map, kernel: Sequence[int]) -> str | None:
    """Why cells at the border differ: explicit pads, or those that auto_pad asks for."""
    node = site.node
    mode = attribute_string(node, "auto_pad", "NOTSET")
    pads: Sequence[int] = attribute_ints(node, "pads") or ()
    if mode.startswith("SAME"):
        dilations = attribute_ints(node, "dilations") or (1, 1)
        geometry = zip(state.size, result.size, kernel, _strides(site), dilations, strict=True)
        pads = [(after - 1) * s + d * (k - 1) + 1 - before for before, after, k, s, d in geometry]
    elif mode == "VALID":
        pads = ()
    return f"{label(node)} pads" if any(pad > 0 for pad in pads) else None


def _is_cut(site: Site, state: Map, result: Map, kernel: Sequence[int]) -> bool:
    """Whether the last window ends beyond the map, as it may with ceil_mode."""
    dilations = attribute_ints(site.node, "dilations") or (1, 1)
    geometry = zip(state.size, result.size, kernel, _strides(site), dilations, strict=True)
    return any((after - 1) * s + d * (k - 1) + 1 > before for before, after, k, s, d in geometry)
