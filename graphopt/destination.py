"""Where the result goes, and how it gets there without anything half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from graphopt._version import __version__
from graphopt.errors import InputError
from graphopt.graph.io import Source, StagedModel, data_name
from graphopt.options import Options
from graphopt.rewriting import Rewritten, finished


@dataclass(frozen=True)
class Stage:
    """A result waiting to be proven: `path` can be run; `commit` makes it visible."""

    path: Path
    destination: Path
    staged: StagedModel

    def commit(self) -> None:
        """Rename into place."""
        self.staged.commit()


def output_path(path: Path, options: Options) -> Path:
    """Where the options put the result of a model, right or wrong."""
    return path if options.in_place else options.output or path.with_suffix(".opt.onnx")


def output_paths(path: Path, options: Options) -> tuple[Path, ...]:
    """All files that the options may have written for a model: one, or those of `--pareto`."""
    if options.pareto is None:
        return (output_path(path, options),)
    numbers = range(1, options.pareto + 1)
    return tuple(output_path(path, at_point(path, options, number)) for number in numbers)


def at_point(path: Path, options: Options, number: int) -> Options:
    """The options for one model of `--pareto`: `model.opt.onnx` becomes `model.opt.2.onnx`."""
    if options.pareto is None:
        return options
    whole = output_path(path, options)
    return replace(options, output=whole.with_name(f"{whole.stem}.{number}{whole.suffix}"))


def destination_of(source: Source, options: Options) -> Path:
    """The file to write: `--output`, the input itself with `--in-place`, else `NAME.opt.onnx`.

    Raises:
        InputError: It would overwrite the input or its external data unasked, is a folder, or its
            folder is missing or not writable.
    """
    path = source.path
    if options.output is not None and options.in_place:
        raise InputError("--output and --in-place contradict each other: give one of them")
    target = output_path(path, options)
    if target.is_dir():
        raise InputError(f"{target} is a folder: give a file name to write")
    if not options.in_place and target.exists() and target.samefile(path):
        raise InputError(f"{target} is the input: give another --output, or --in-place")
    weights = target.with_name(data_name(target))
    kept = () if options.in_place else source.external
    if weights.exists() and any(weights.samefile(file) for file in kept):
        raise InputError(f"{weights} holds the weights of the input: give another --output")
    if options.dry_run:
        return target
    folder = target.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {target}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {target}: no permission to write to {folder.resolve()}")
    return target


@contextmanager
def staged(source: Source, done: Rewritten, options: Options) -> Iterator[Stage]:
    """The result written beside its destination; gone afterwards unless committed.

    When nothing was changed the file is copied byte for byte.
    """
    target = destination_of(source, options)
    if options.dry_run:
        target = _scratch(target)
    model = finished(done, __version__)
    with StagedModel(model, target, external=source.has_external_data) as stage:
        if not done.applied and not source.has_external_data:
            shutil.copyfile(source.path, stage.path)
        yield Stage(stage.path, target, stage)


def _scratch(target: Path) -> Path:
    """A place that can be written to even where the destination's folder cannot."""
    import tempfile

    return Path(tempfile.gettempdir()) / target.name
