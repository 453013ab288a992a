"""Folding a per-channel affine map y = scale * (W x + b) + shift into the linear operator before it.

Computed in float64 and rounded once to the weight's type. Arrays of one repeated element (strides
0) stay so, to keep generated weights small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def is_uniform(array: Array) -> bool:
    """Whether an array holds one repeated element, told from its strides or a single element."""
    return array.size == 1 or not any(array.strides)


def scale_axis(weight: Array, scale: Array, axis: int) -> Array:
    """`weight` with its slices along `axis` multiplied by `scale` [weight.shape[axis]].

    A uniform weight times a uniform scale stays uniform.
    """
    if is_uniform(weight) and np.all(scale == scale.flat[0]):
        product = np.float64(weight.flat[0]) * np.float64(scale.flat[0])
        return np.broadcast_to(weight.dtype.type(product), weight.shape)
    shape = [1] * weight.ndim
    shape[axis] = -1
    # Slice by slice, so that the float64 intermediate stays small beside the weight.
    out = np.empty(weight.shape, weight.dtype)
    moved_in, moved_out = np.moveaxis(weight, axis, 0), np.moveaxis(out, axis, 0)
    with np.errstate(over="ignore"):  # the caller asks whether it `fits`
        for index, factor in enumerate(np.asarray(scale, np.float64)):
            moved_out[index] = (moved_in[index].astype(np.float64) * factor).astype(weight.dtype)
    return out


def fold_bias(bias: Array | None, scale: Array, shift: Array, dtype: Any) -> Array | None:
    """scale * bias + shift, in `dtype`; None when that is zero everywhere and there was no bias.

    bias: [O] or None. scale, shift: [O].
    """
    folded = np.asarray(shift, np.float64)
    if bias is not None:
        folded = folded + np.asarray(scale, np.float64) * np.asarray(bias, np.float64)
    elif not np.any(folded):
        return None
    with np.errstate(over="ignore"):
        return folded.astype(dtype)


def fits(array: Array | None) -> bool:
    """Whether no element became infinite by rounding to the array's type (float16 ends at 65504)."""
    return array is None or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def compact(array: Array) -> Array:
    """The array as a broadcast scalar if all its elements are equal, else unchanged."""
    if array.size > 1 and np.all(array == array.flat[0]):
        return np.broadcast_to(array.flat[0], array.shape)
    return array
