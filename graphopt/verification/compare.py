"""Runs a model against the original on the same inputs and says how far its outputs are off.

The original runs once, at ORT_DISABLE_ALL, and its outputs are kept (up to a cap) because a search
compares many candidates with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.calibration.dataset import Batch, Dataset
from graphopt.errors import InputError, VerificationError
from graphopt.progress import Progress, Silent
from graphopt.runtime import Array, Level, first_line, open_session, run
from graphopt.verification.expected_drop import Drop, Judge
from graphopt.verification.metrics import OutputDistance, top1

Metric = Callable[[Mapping[str, Array], Mapping[str, Array]], float]

Answers = Callable[[int, Sequence[Array]], Sequence[Array]]
"""What a model answers to the batch of a number; told what the original does."""

_KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Comparison:
    """Distances per output name, and the metric of both models where there is one.

    accuracy: the drop with its standard errors, where the metric is top-1 accuracy.
    """

    distances: Mapping[str, OutputDistance]
    dtypes: Mapping[str, str]
    metric_before: float | None = None
    metric_after: float | None = None
    accuracy: Drop | None = None

    @property
    def error(self) -> float:
        """The largest relative L2 error over the float outputs; 0 without any."""
        floats = [d for n, d in self.distances.items() if "float" in self.dtypes[n]]
        return max((d.relative_l2 for d in floats), default=0.0)

    @property
    def drop(self) -> float | None:
        """How far the metric fell (0.005 = half a point), None without a metric."""
        if self.metric_before is None or self.metric_after is None:
            return None
        return self.metric_before - self.metric_after


@dataclass
class Reference:
    """The original model with inputs, ready to be compared with.

    metric: `metric(outputs, batch) -> float`, averaged over samples; None uses top-1 accuracy of
    the first classifying output if the data carry labels. maps: results may be dense: maps of one
    cell [N, C, 1, 1] where the original has [N, C].
    """

    model: str | Path | bytes
    dataset: Dataset
    threads: int = 1
    metric: Metric | None = None
    progress: Progress = field(default_factory=Silent)
    maps: bool = False
    _session: Any = None
    _own_noise: Mapping[str, float] | None = None
    _judge: Judge | None = None
    _kept: dict[int, list[Array]] = field(default_factory=dict)
    _kept_bytes: int = 0

    def check(self) -> None:
        """Run the original on every batch: what is wrong with it or the inputs is said at once.

        Raises:
            InputError: It does not run on the inputs, or the metric cannot be taken.
            VerificationError: An output is no tensor, or not finite.
        """
        self.progress.stage("Running the original", len(self.dataset.batches))
        for batch, arrays in self.outputs():
            outputs = dict(zip(self.names, arrays, strict=True))
            for name, array in outputs.items():
                _check_reference(name, array)
            if self.has_metric:
                try:
                    self._score(outputs, batch)
                except VerificationError as error:
                    raise InputError(str(error)) from error

    @property
    def names(self) -> list[str]:
        """Names of the outputs, in the model's order."""
        return [output.name for output in self.session.get_outputs()]

    @property
    def has_metric(self) -> bool:
        """Whether results have a metric."""
        return self.metric is not None or self.dataset.labelled

    def compare(self, model: str | Path | bytes, level: Level = "enable_all") -> Comparison:
        """Run `model` at an optimization level on all batches and compare.

        Raises:
            InputError: onnxruntime cannot load or run the model.
            VerificationError: Outputs are missing, of another shape, or not finite.
        """
        session = open_session(model, level=level, threads=self.threads)
        batches = self.dataset.batches
        return self.judge(
            [output.name for output in session.get_outputs()],
            lambda index, _: run(session, batches[index].feeds),
        )

    def judge(self, names: Sequence[str], answers: Answers) -> Comparison:
        """Compare another model's answers, with its outputs' names, for all batches in order.

        Raises:
            VerificationError: Outputs are missing, of another shape, or not finite.
        """
        if names != self.names:
            raise VerificationError("the outputs are not named as the original's")
        distances = {name: OutputDistance() for name in names}
        dtypes: dict[str, str] = {}
        scores, samples = np.zeros(2), 0
        winners: list[Array] = []
        for index, (batch, expected) in enumerate(self.outputs()):
            found = answers(index, expected)
            if self.maps:
                found = [_of_one_cell(z, y) for y, z in zip(expected, found, strict=True)]
            for name, y, z in zip(names, expected, found, strict=True):
                _check_comparable(name, y, z)
                dtypes[name] = str(y.dtype)
                try:
                    distances[name].add(y, z)
                except ValueError as error:
                    raise VerificationError(f"output {name!r} has {error}") from error
            if self.has_metric:
                before, after = (
                    self._score(dict(zip(names, arrays, strict=True)), batch)
                    for arrays in (expected, found)
                )
                scores += np.array([before, after]) * batch.size
                samples += batch.size
                if self.metric is None:
                    winners += [w for w in map(top1, found) if w is not None][:1]
        if not samples:
            return Comparison(distances, dtypes)
        drop = self._judged().drop(np.concatenate(winners)) if winners else None
        before, after = (float(score) for score in scores / samples)
        return Comparison(distances, dtypes, before, after, drop)

    def _judged(self) -> Judge:
        """The original's answers on all samples, for drops in accuracy."""
        if self._judge is None:
            scores, labels = [], []
            for batch, arrays in self.outputs():
                scores.append(next(array for array in arrays if top1(array) is not None))
                labels.append(batch.labels)
            self._judge = Judge.of(np.concatenate(scores), np.concatenate(labels))  # type: ignore[arg-type]
        return self._judge

    def own_noise(self) -> Mapping[str, float]:
        """Relative L2 distance of the original from itself between the two optimization levels.

        Where it is large, the outputs for these inputs are lost in rounding errors.
        """
        if self._own_noise is None:
            itself = self.compare(self.model, "enable_all")
            self._own_noise = {name: d.relative_l2 for name, d in itself.distances.items()}
        return self._own_noise

    @property
    def session(self) -> Any:
        """The original at ORT_DISABLE_ALL, opened when first needed."""
        if self._session is None:
            self._session = open_session(self.model, level="disable_all", threads=self.threads)
        return self._session

    def outputs(self) -> Iterator[tuple[Batch, list[Array]]]:
        """Every batch with the original's outputs."""
        for index, batch in enumerate(self.dataset.batches):
            arrays = self._kept.get(index)
            if arrays is None:
                arrays = run(self.session, batch.feeds)
                size = sum(getattr(array, "nbytes", 0) for array in arrays)
                if self._kept_bytes + size <= _KEPT_BYTES:
                    self._kept[index] = arrays
                    self._kept_bytes += size
            self.progress.step()
            yield batch, arrays

    def _score(self, outputs: Mapping[str, Array], batch: Batch) -> float:
        if self.metric is not None:
            extra = {} if batch.labels is None else {"labels": batch.labels}
            try:
                score = float(self.metric(outputs, {**batch.feeds, **extra}))
            except Exception as error:
                raise VerificationError(
                    f"the metric raised {type(error).__name__}: {first_line(error)}"
                ) from error
            if not math.isfinite(score):
                raise VerificationError(f"the metric is {score}, not a finite number")
            return score
        for array in outputs.values():
            winners = top1(array)
            if winners is not None and batch.labels is not None:
                return float(np.mean(winners == batch.labels))
        raise VerificationError(
            "the data carry labels, but no output is a classification: leave them out, or give "
            "--metric file.py:function"
        )


def _of_one_cell(array: Any, reference: Any) -> Any:
    """A map of one cell in the original's shape; anything else as it is."""
    if not isinstance(array, np.ndarray) or not isinstance(reference, np.ndarray):
        return array
    rank = reference.ndim
    if array.shape[:rank] == reference.shape and set(array.shape[rank:]) == {1}:
        return array.reshape(reference.shape)
    return array


def _check_comparable(name: str, reference: Any, other: Any) -> None:
    _check_reference(name, reference)
    if not isinstance(other, np.ndarray):
        raise VerificationError(f"the result's output {name!r} is not a tensor")
    if not _finite(other):
        raise VerificationError(f"the result's output {name!r} is NaN or infinite")


def _check_reference(name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise VerificationError(
            f"output {name!r} is not a tensor and cannot be compared: use --no-verify"
        )
    if not _finite(array):
        raise VerificationError(
            f"the original's output {name!r} is NaN or infinite on these inputs: "
            "give real ones with --data"
        )


def _finite(array: Array) -> bool:
    return array.dtype.kind not in "fc" or bool(np.all(np.isfinite(array)))
