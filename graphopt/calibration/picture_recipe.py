"""`--preprocess` and the model's input brought together: every step of a picture settled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.calibration.preprocessing import Color, Filter, Layout, Preprocessing
from graphopt.errors import InputError
from graphopt.graph.shapes import Shape, bind_inputs, dimension, true_inputs
from graphopt.runtime import Array

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_AXES: dict[Layout, tuple[int, int, int]] = {"nchw": (1, 2, 3), "nhwc": (3, 1, 2)}
"""Channel, height and width of a rank-4 input."""
_ELSEWHERE = "give an .npz or file.py:function"


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes one sample of input `name`.

    size: (height, width) of the sample. cover: scale the picture, proportions kept, until it just
    covers these (height, width), and cut out the middle; None: stretch it to `size`. scale, mean
    [C] and std [C] apply to floats only.
    """

    name: str
    dtype: np.dtype[np.generic]
    layout: Layout
    color: Color
    size: tuple[int, int]
    cover: tuple[int, int] | None
    filter: Filter
    scale: float
    mean: Array
    std: Array

    @property
    def bytes(self) -> int:
        """Memory that one sample takes."""
        channels = 1 if self.color == "gray" else 3
        return math.prod(self.size) * channels * self.dtype.itemsize

    def sample(self, pixels: Array) -> Array:
        """The sample [C, H, W] or [H, W, C] of pixels in the network's colours [H, W, C] uint8."""
        values = pixels
        if self.dtype != np.uint8:
            exact = np.dtype(np.float64 if self.dtype == np.float64 else np.float32)
            mean, std = self.mean.astype(exact), self.std.astype(exact)
            values = ((pixels.astype(exact) / exact.type(self.scale) - mean) / std).astype(
                self.dtype
            )
        if self.layout == "nchw":
            values = np.moveaxis(values, -1, 0)
        return np.ascontiguousarray(values)


def settle(spec: Preprocessing, graph: ir.Graph, given: Mapping[str, Shape]) -> Recipe:
    """Fill in from the model's only input what `--preprocess` leaves open.

    given: shapes of `--shape`, which close open dimensions.

    Raises:
        InputError: The model takes no pictures, contradicts the keys, or leaves too much open.
    """
    value = _picture_input(graph)
    name, dtype = value.name or "", value.dtype
    if dtype != ir.DataType.UINT8 and dtype not in _FLOATS:
        kind = "of unknown type" if dtype is None else str(dtype.name).lower()
        raise InputError(
            f"input {name!r} is {kind}, pictures fill float, float16, double or uint8: {_ELSEWHERE}"
        )
    shape = _dimensions(value, graph, given)
    layout = spec.layout or _layout(name, shape)
    channel, *sides = (shape[axis] for axis in _AXES[layout])
    color = _color(spec, name, channel)
    size = _size(spec, name, (sides[0], sides[1]))
    if dtype == ir.DataType.UINT8 and (spec.scale, spec.mean, spec.std) != (None, None, None):
        raise InputError(
            f"input {name!r} takes the pixels themselves (uint8): leave scale, mean and std out "
            "of --preprocess"
        )
    return Recipe(
        name,
        dtype.numpy(),
        layout,
        color,
        size,
        _cover(spec, size),
        spec.filter or "bilinear",
        spec.scale or 255.0,
        _per_channel("mean", spec.mean or (0.0,), color),
        _per_channel("std", spec.std or (1.0,), color),
    )


def _picture_input(graph: ir.Graph) -> ir.Value:
    inputs = true_inputs(graph)
    if len(inputs) != 1:
        names = ", ".join(value.name or "" for value in inputs) or "none"
        raise InputError(f"pictures fill one input, the model has {names}: {_ELSEWHERE}")
    return inputs[0]


def _dimensions(
    value: ir.Value, graph: ir.Graph, given: Mapping[str, Shape]
) -> tuple[int | None, ...]:
    """Declared or given dimensions of the input, None where it stays open."""
    rank = len(bind_inputs(graph, given)[value.name or ""])
    if rank != 4:
        raise InputError(
            f"input {value.name!r} has {rank} dimensions, pictures fill [N,C,H,W] or [N,H,W,C]: "
            f"{_ELSEWHERE}"
        )
    open_ = given.get(value.name or "", (None,) * rank)
    declared = (dimension(value, axis) for axis in range(rank))
    return tuple(d if d is not None else g for d, g in zip(declared, open_, strict=True))


def _layout(name: str, shape: tuple[int | None, ...]) -> Layout:
    fits: list[Layout] = [layout for layout, axes in _AXES.items() if shape[axes[0]] in (1, 3)]
    if len(fits) != 1:
        shown = "x".join("?" if size is None else str(size) for size in shape)
        raise InputError(
            f"input {name!r} ({shown}) does not tell where its 1 or 3 channels are: say layout=nchw "
            "or layout=nhwc in --preprocess"
        )
    return fits[0]


def _color(spec: Preprocessing, name: str, channels: int | None) -> Color:
    color = spec.color or ("gray" if channels == 1 else "rgb")
    made = 1 if color == "gray" else 3
    if channels is not None and channels != made:
        raise InputError(
            f"input {name!r} takes {channels} channel{'s' * (channels != 1)}, "
            f"pictures in color={color} have {made}"
        )
    return color


def _size(spec: Preprocessing, name: str, sides: tuple[int | None, int | None]) -> tuple[int, int]:
    height, width = spec.size or sides
    if height is None or width is None:
        raise InputError(
            f"input {name!r} leaves height or width open: say size=224 or size=HxW in --preprocess"
        )
    if any(have not in (None, want) for have, want in zip(sides, (height, width), strict=True)):
        takes = "x".join("?" if side is None else str(side) for side in sides)
        raise InputError(
            f"--preprocess makes pictures of {height}x{width}, input {name!r} takes {takes}: "
            "give size (and resize) that fit"
        )
    return height, width


def _cover(spec: Preprocessing, size: tuple[int, int]) -> tuple[int, int] | None:
    if spec.resize is None:
        return None if spec.crop is None else size
    if spec.resize < max(size):
        raise InputError(
            f"--preprocess: resize={spec.resize} is less than the {size[0]}x{size[1]} to be cut out"
        )
    return spec.resize, spec.resize


def _per_channel(key: str, numbers: tuple[float, ...], color: Color) -> Array:
    channels = 1 if color == "gray" else 3
    if len(numbers) not in (1, channels):
        raise InputError(f"--preprocess: {key} has {len(numbers)} numbers for 1 channel")
    return np.array(numbers * (channels // len(numbers)))
