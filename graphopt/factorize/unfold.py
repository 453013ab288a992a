"""Unfoldings of a convolution weight [O, C, *kernel] into matrices, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def unfold_inputs(weight: Array) -> Array:
    """[O, C, *kernel] -> [C, O * prod(kernel)], float64: one row per input channel."""
    moved = np.moveaxis(np.asarray(weight, np.float64), 1, 0)
    return moved.reshape(weight.shape[1], -1)


def fold_inputs(matrix: Array, out_channels: int, kernel: tuple[int, ...]) -> Array:
    """[R, O * prod(kernel)] -> [O, R, *kernel]: the inverse of `unfold_inputs`."""
    return np.moveaxis(matrix.reshape(matrix.shape[0], out_channels, *kernel), 0, 1)


def relative_error(exact: Array, approximation: Array) -> float:
    """||exact - approximation|| / ||exact|| (Frobenius), 0 when both are zero."""
    wide = np.asarray(exact, np.float64)  # squares of float16 overflow
    norm, distance = float(np.linalg.norm(wide)), float(np.linalg.norm(wide - approximation))
    return distance / norm if norm else (0.0 if distance == 0 else math.inf)
