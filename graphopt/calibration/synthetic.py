"""Inputs drawn at random from a model's own input types and shapes, for when there are no data.

They show that two models agree; they say little about how far an approximation is off on real
inputs, and must never be fitted to (measured: worse than no data at all).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.calibration.dataset import Batch, Dataset
from graphopt.errors import InputError
from graphopt.graph.constants import constant
from graphopt.graph.scope import attribute_int, is_op
from graphopt.graph.shapes import Shape, is_batch_dynamic, true_inputs, with_batch
from graphopt.runtime import Array

_SEVERAL = 3
_CELLS = 14


def draw(graph: ir.Graph, shapes: Mapping[str, Shape], seed: int, batches: int = 4) -> Dataset:
    """Random batches: normal floats, valid indices, fair booleans.

    Where the batch is open, every other batch has three samples, so that both kinds are tried.
    Every other batch of pictures is coarse (one normal number per 1/14 of the side): networks that
    look for structure answer white noise with nothing but rounding errors.

    Raises:
        InputError: An input type that cannot be drawn (strings, sequences).
    """
    rng = np.random.default_rng(seed)
    dynamic = is_batch_dynamic(graph)
    made = []
    for index in range(batches):
        sizes = with_batch(graph, shapes, _SEVERAL) if dynamic and index % 2 else dict(shapes)
        feeds = {
            v.name or "": _draw(v, sizes[v.name or ""], rng, coarse=bool(index % 2))
            for v in true_inputs(graph)
        }
        made.append(Batch(feeds))
    return Dataset(tuple(made), "synthetic", "drawn at random from the inputs' types and shapes")


def _draw(value: ir.Value, shape: Shape, rng: np.random.Generator, *, coarse: bool) -> Array:
    dtype = value.dtype
    if not isinstance(value.type, ir.TensorType) or dtype is None or dtype == ir.DataType.STRING:
        raise InputError(f"input {value.name!r} is not a numeric tensor: give --data")
    if dtype == ir.DataType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_integer():
        return rng.integers(0, _index_limit(value), shape).astype(dtype.numpy())
    if coarse and len(shape) == 4 and min(shape[2:]) >= 2 * _CELLS:
        height, width = shape[2:]
        tile = np.ones((-(-height // _CELLS), -(-width // _CELLS)))
        cells = rng.standard_normal((*shape[:2], _CELLS, _CELLS))
        return np.kron(cells, tile)[:, :, :height, :width].astype(dtype.numpy())
    return rng.standard_normal(shape).astype(dtype.numpy())


def _index_limit(value: ir.Value) -> int:
    """One more than the largest integer every consumer can take: table sizes where it indexes."""
    limits = [2 if value.dtype != ir.DataType.UINT8 else 256]
    for node, index in value.uses():
        if is_op(node, "Gather") and index == 1:
            table = constant(node.inputs[0])
            if table is not None:
                limits.append(int(table.shape[attribute_int(node, "axis", 0)]))
    return limits[0] if len(limits) == 1 else min(limits[1:])
