"""Which inputs a run uses: the user's or drawn ones, in which shapes, and what is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.calibration.dataset import Dataset, Split, split
from graphopt.calibration.preprocessing import parse
from graphopt.calibration.readers import read, reads_pictures
from graphopt.calibration.synthetic import draw
from graphopt.errors import InputError
from graphopt.graph.io import session_source
from graphopt.graph.shapes import (
    Shape,
    bind_inputs,
    dimension,
    is_batch_dynamic,
    true_inputs,
)
from graphopt.runtime import Feeds, open_session, run

_SIZES = (224, 256, 320, 32, 64, 96, 128, 160, 192, 288, 384, 416, 448, 512, 640, 28, 16, 8)


@dataclass(frozen=True)
class Inputs:
    """shapes: of one sample (batch 1 where it is open). split: None when nothing is to be run."""

    shapes: dict[str, Shape]
    split: Split


def prepare(
    model: ir.Model,
    *,
    data: str | None,
    eval_data: str | None,
    given: Mapping[str, Shape],
    seed: int,
    runnable: bool,
    preprocess: str | None = None,
) -> Inputs:
    """Read the data (or draw inputs) and settle on concrete input shapes.

    preprocess: how pictures become arrays; only with a folder of pictures.

    Raises:
        InputError: Data or shapes that do not fit the model, or no shape that it accepts.
    """
    graph = model.graph
    names = {value.name for value in true_inputs(graph)}
    for name in given:
        if name not in names:
            known = ", ".join(sorted(n or "" for n in names))
            raise InputError(f"--shape names {name!r}, which is no input (inputs: {known})")
    preprocessing = None if preprocess is None else parse(preprocess)
    fitted, measured = (
        None if spec is None else read(spec, graph, preprocessing, given)
        for spec in (data, eval_data)
    )
    if preprocess is not None and not any(map(reads_pictures, filter(None, (data, eval_data)))):
        raise InputError(
            "--preprocess is for pictures: give a folder of them as --data or --eval-data"
        )
    if fitted is not None:
        parts = split(fitted, seed) if measured is None else Split(fitted, measured)
        return Inputs(_of_data(graph, fitted, given), parts)
    if measured is None:
        shapes = _accepted(model, given) if runnable else bind_inputs(graph, given)
        held_out = draw(graph, shapes, seed) if runnable else Dataset((), "synthetic", "")
        return Inputs(shapes, Split(Dataset((), "synthetic", ""), held_out))
    return Inputs(_of_data(graph, measured, given), Split(Dataset((), "data", ""), measured))


def _of_data(graph: ir.Graph, dataset: Dataset, given: Mapping[str, Shape]) -> dict[str, Shape]:
    first = dataset.batches[0]
    dynamic = is_batch_dynamic(graph)
    shapes = {
        name: (1, *array.shape[1:]) if dynamic and array.ndim else tuple(array.shape)
        for name, array in first.feeds.items()
    }
    return bind_inputs(graph, {**shapes, **given})


def _accepted(model: ir.Model, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """Bound shapes that the model runs with: picture sizes are tried out where they are open."""
    graph = model.graph
    fixed = all(
        value.name in given
        or (
            value.shape is not None
            and all(dimension(value, axis) is not None for axis in range(1, len(value.shape)))
        )
        for value in true_inputs(graph)
    )
    if fixed:
        return bind_inputs(graph, given)
    with session_source(model) as source:
        session = open_session(source, level="disable_all")
    last: InputError | None = None
    for size in _SIZES:
        shapes = bind_inputs(graph, given, size=size)
        try:
            run(session, _ones(graph, shapes))
        except InputError as error:
            last = error
        else:
            return shapes
    example = " ".join(f"--shape {value.name}:1x3x224x224" for value in true_inputs(graph))
    raise InputError(f"no input size was accepted, give one ({example}): {last}")


def _ones(graph: ir.Graph, shapes: Mapping[str, Shape]) -> Feeds:
    feeds = {}
    for value in true_inputs(graph):
        if value.dtype is None or value.dtype == ir.DataType.STRING:
            raise InputError(f"input {value.name!r} is not a numeric tensor: give --data")
        feeds[value.name or ""] = np.ones(shapes[value.name or ""], value.dtype.numpy())
    return feeds
