"""`--resume DIR`: what a run's statistics depend on, and the folder they are kept in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import scipy

from graphopt._version import __version__
from graphopt.calibration.dataset import Dataset
from graphopt.calibration.prepare import Inputs
from graphopt.cost.channel_block import channel_block
from graphopt.cost.table import machine
from graphopt.errors import InputError
from graphopt.graph.io import Source, digest
from graphopt.options import Options
from graphopt.records import Records, digest_of
from graphopt.runtime import Array, cores
from graphopt.selection import Selection

_FORMAT = 1


def check_resume(options: Options) -> None:
    """Raise InputError for a `--resume` of a run that gathers nothing."""
    if options.resume is not None and (options.data is None or not options.budget.given):
        raise InputError(
            "--resume needs --data and a budget (--max-error, --max-drop or --speedup): "
            "without them there is nothing to keep"
        )


def open_records(
    source: Source, options: Options, selection: Selection, inputs: Inputs
) -> Records | None:
    """The records in the folder of `--resume`; None without one.

    Raises:
        InputError: The folder belongs to another run or to something else, or cannot be written to.
    """
    if options.resume is None:
        return None
    rewrites = [rewrite.name for rewrite in (*selection.exact, *selection.approximate)]
    identity = {
        "graphopt's version": f"{__version__}, format {_FORMAT}",
        "model": digest(source),
        "fitting data": _digest(inputs.split.fitting),
        "held-out data": _digest(inputs.split.held_out),
        "input shapes": repr(sorted(inputs.shapes.items())),
        "metric": _metric(options),
        "seed": str(options.seed),
        "method": repr(options.method),
        "rewrites": repr((rewrites, options.target, options.freeze, options.grow, options.dense)),
        "libraries": f"numpy {np.__version__}, scipy {scipy.__version__}",
        "machine": f"{machine()}, {cores()} processors, blocks of {channel_block()}",
    }
    return Records.open(options.resume, identity)


def _digest(dataset: Dataset) -> str:
    """SHA-256 of all arrays with their names and shapes, in order."""
    total = hashlib.sha256(dataset.source.encode())
    for batch in dataset.batches:
        labels = {} if batch.labels is None else {"labels of the batch": batch.labels}
        for name, array in (*batch.feeds.items(), *labels.items()):
            total.update(f"{name!r} {array.dtype.str} {array.shape}".encode())
            total.update(_bytes(array))
    return total.hexdigest()


def _bytes(array: Array) -> bytes:
    return repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()


def _metric(options: Options) -> str:
    """What the metric is: its name and, as far as it can be read, the text of its file."""
    if options.metric is None:
        return "top1"
    file = Path(options.metric.rpartition(":")[0])
    text = file.read_bytes() if file.is_file() else b""
    return digest_of(f"{options.metric} {hashlib.sha256(text).hexdigest()}")
