"""The latency that is reported: the original file against the written one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from graphopt.calibration.prepare import Inputs
from graphopt.calibration.synthetic import draw
from graphopt.cost.latency import THOROUGH, compare
from graphopt.graph.io import Source
from graphopt.graph.shapes import Shape, is_batch_dynamic, with_batch
from graphopt.options import Options
from graphopt.reporting.schema import Latency
from graphopt.runtime import open_session

BATCHES = (1, 8)
"""Batches an open batch dimension is timed at."""


def time_files(
    source: Source, result: Path, inputs: Inputs, options: Options
) -> tuple[Latency, ...]:
    """Time both files, interleaved, at ORT_ENABLE_ALL: batch 1 and 8 where the batch is open."""
    if not options.bench:
        return ()
    graph = source.model.graph
    if not is_batch_dynamic(graph):
        return (_time(source, result, inputs.shapes, options),)
    return tuple(
        _time(source, result, with_batch(graph, inputs.shapes, batch), options) for batch in BATCHES
    )


def _time(source: Source, result: Path, shapes: Mapping[str, Shape], options: Options) -> Latency:
    feeds = draw(source.model.graph, shapes, options.seed, batches=1).batches[0].feeds
    timing = compare(
        open_session(source.path, threads=options.threads, timed=True),
        open_session(result, threads=options.threads, timed=True),
        feeds,
        THOROUGH,
    )
    sizes = [shape[0] for shape in shapes.values() if shape]
    return Latency(
        batch=sizes[0] if sizes else 1,
        threads=options.threads,
        pairs=timing.pairs,
        before_us=timing.before_us,
        after_us=timing.after_us,
        ratio=timing.ratio,
        ratio_low=timing.ratio_low,
        ratio_high=timing.ratio_high,
        input_shapes={name: tuple(shape) for name, shape in shapes.items()},
    )
