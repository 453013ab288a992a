"""Reading the inputs a user gives: an .npz, a folder of them or of pictures, or a Python function.

Everything is checked against the model's inputs here, so that nothing fails half-way later.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.calibration.batching import cuts
from graphopt.calibration.dataset import Batch, Dataset
from graphopt.calibration.picture_folder import find_pictures
from graphopt.calibration.picture_recipe import settle
from graphopt.calibration.pictures import read_pictures
from graphopt.calibration.preprocessing import Preprocessing
from graphopt.errors import InputError
from graphopt.graph.shapes import Shape, dimension, true_inputs
from graphopt.runtime import Array, first_line

LABELS = "labels"


def read(
    spec: str,
    graph: ir.Graph,
    preprocessing: Preprocessing | None = None,
    given: Mapping[str, Shape] | None = None,
) -> Dataset:
    """Read `--data`: `file.npz`, a folder of .npz files or of pictures, or `file.py:function`.

    Pictures are prepared as `preprocessing` says for the model's input, of which `given` may
    close open dimensions; their subfolders are classes. Elsewhere both are unused.

    Arrays are named like the model's inputs, first axis = sample; `labels` (unless an input has
    that name) holds class indices. A function yields `{input: array}` batches, or is an
    onnxruntime `CalibrationDataReader`.

    Raises:
        InputError: Nothing there, or names, shapes or types that do not fit the model's inputs.
    """
    if not spec:
        raise InputError("the data have no name: give an .npz, a folder, or file.py:function")
    if ".py:" in spec:
        batches = _from_function(spec, graph)
    else:
        path = Path(spec)
        pictures = find_pictures(path) if path.is_dir() else None
        if pictures is not None:
            recipe = settle(preprocessing or Preprocessing(), graph, given or {})
            return read_pictures(spec, pictures, recipe, graph)
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{spec} has no .npz files and no pictures in it")
        batches = (batch for file in files for batch in _from_npz(file, graph))
    found = tuple(batches)
    if not found:
        raise InputError(f"{spec} gives no samples")
    return Dataset(found, "data", spec)


def reads_pictures(spec: str) -> bool:
    """Whether `--data` names a folder of pictures."""
    path = Path(spec)
    return ".py:" not in spec and path.is_dir() and find_pictures(path) is not None


def load_function(spec: str) -> Any:
    """The object that `file.py:name` names.

    Raises:
        InputError: No such file or name, or the file fails to import.
    """
    file, colon, name = spec.rpartition(":")
    if not colon:
        raise InputError(f"{spec!r} is not of the form file.py:function")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{file}: no such file (expected file.py:function)")
    module_name = f"graphopt_user_{path.stem}"
    found = importlib.util.spec_from_file_location(module_name, path)
    if found is None or found.loader is None:
        raise InputError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{file} fails to import: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not hasattr(module, name):
        raise InputError(f"{file} has no function {name!r}")
    return getattr(module, name)


def load_metric(spec: str) -> Any:
    """The function that `--metric` names.

    Raises:
        InputError: As for `load_function`, or it cannot be called.
    """
    metric = load_function(spec)
    if not callable(metric):
        raise InputError(f"{spec} is not a function")
    return metric


def _from_function(spec: str, graph: ir.Graph) -> Iterator[Batch]:
    function = load_function(spec)
    try:
        made = function() if callable(function) else function
        for index, item in enumerate(_items(made)):
            yield _batch(item, graph, f"{spec}, batch {index}")
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec} raised {type(error).__name__}: {first_line(error)}") from error


def _items(made: Any) -> Iterator[Any]:
    """Batches of an iterable, or of a CalibrationDataReader (get_next until None)."""
    if hasattr(made, "get_next"):
        return iter(made.get_next, None)
    items: Iterator[Any] = iter(made)
    return items


def _from_npz(path: Path, graph: ir.Graph) -> Iterator[Batch]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz file, or is truncated: write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as pack:
            arrays = {name: pack[name] for name in pack.files}
    except Exception as error:
        raise InputError(f"{path} is not a readable .npz file: {first_line(error)}") from error
    whole = _batch(arrays, graph, str(path), any_batch=True)
    counts = {array.shape[0] for array in whole.feeds.values() if array.ndim}
    if whole.labels is not None:
        counts.add(len(whole.labels))
    if len(counts) != 1:
        raise InputError(f"{path}: the arrays differ in their number of samples {sorted(counts)}")
    for part in cuts(counts.pop(), graph, str(path)):
        labels = None if whole.labels is None else whole.labels[part]
        yield Batch({name: array[part] for name, array in whole.feeds.items()}, labels)


def _batch(item: Any, graph: ir.Graph, where: str, *, any_batch: bool = False) -> Batch:
    """Check one mapping of arrays against the model's inputs.

    any_batch: the first axis runs over all samples and will be cut into batches later.
    """
    if not isinstance(item, Mapping):
        raise InputError(f"{where} is a {type(item).__name__}, not a dict of input name to array")
    inputs = {value.name or "": value for value in true_inputs(graph)}
    missing = sorted(inputs.keys() - item.keys())
    if missing:
        have = ", ".join(map(str, item)) or "nothing"
        raise InputError(f"{where} has no array for input {missing[0]!r} (it has {have})")
    unknown = sorted(str(name) for name in item if name not in inputs and name != LABELS)
    if unknown:
        raise InputError(
            f"{where} has {unknown[0]!r}, which is no input (inputs: {', '.join(inputs)})"
        )
    feeds = {
        name: _fitting(np.asarray(item[name]), value, where, any_batch=any_batch)
        for name, value in inputs.items()
    }
    labels = None
    if LABELS in item and LABELS not in inputs:
        labels = np.asarray(item[LABELS]).reshape(-1)
        if labels.dtype.kind not in "iu":
            raise InputError(f"{where}: labels are {labels.dtype}, not class indices")
    batch = Batch(feeds, labels)
    if labels is not None and not any_batch and len(labels) != batch.size:
        raise InputError(f"{where}: {len(labels)} labels for {batch.size} samples")
    return batch


def _fitting(array: Array, value: ir.Value, where: str, *, any_batch: bool) -> Array:
    expected = value.dtype
    if expected is not None and expected != ir.DataType.STRING:
        wanted = expected.numpy()
        if array.dtype != wanted:
            raise InputError(
                f"{where}: {value.name!r} is {array.dtype}, the input takes {wanted}: convert it"
            )
    if value.shape is None:
        return array
    start = 1 if any_batch else 0
    fits = array.ndim == len(value.shape) and all(
        dimension(value, axis) in (None, array.shape[axis]) for axis in range(start, array.ndim)
    )
    if not fits:
        wanted_shape = "x".join(str(d) for d in value.shape)
        got = "x".join(map(str, array.shape)) or "a scalar"
        raise InputError(f"{where}: {value.name!r} is {got}, the input takes {wanted_shape}")
    return array
