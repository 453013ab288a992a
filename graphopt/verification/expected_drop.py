"""What a fall in accuracy is likely to be, with much less noise than counting hits.

On n labelled samples a drop is the difference of two counts that change where the two models
disagree: with 5 % disagreement on 1,000 samples its standard error is 0.7 points, more than most
budgets. Where they disagree, the original's own (calibrated) probabilities say how likely each
was right: the expected drop is the mean of p[original's class] - p[new class], the conditional
expectation of the count (Rao-Blackwell), zero where they agree. The probabilities are calibrated
by one temperature, fitted to the labels.
Source: Guo et al. 2017, "On calibration of modern neural networks" (temperature scaling).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from graphopt.runtime import Array

_TEMPERATURES = (0.1, 10.0)
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Drop:
    """A fall in accuracy (0.005 = half a point) as counted and as expected.

    error: standard error of the count. expected_error: standard error of the expectation.
    """

    counted: float
    error: float
    expected: float
    expected_error: float


@dataclass(frozen=True)
class Judge:
    """The original's classes and calibrated probabilities [N, classes] on labelled samples."""

    labels: Array
    winners: Array
    probabilities: Array

    @classmethod
    def of(cls, scores: Array, labels: Array) -> Judge:
        """From the original's output [N, classes]: probabilities, or scores before a softmax."""
        flat = scores.reshape(len(scores), -1).astype(np.float64)
        inside = flat.min() >= 0 and bool(np.allclose(flat.sum(axis=1), 1, atol=_SUM_TOLERANCE))
        logits = np.log(np.maximum(flat, 1e-12)) if inside else flat
        rows = np.arange(len(labels))
        known = (labels >= 0) & (labels < flat.shape[1])

        def surprise(temperature: float) -> float:
            chances = scipy.special.log_softmax(logits[known] / temperature, axis=1)
            return -float(chances[rows[: len(chances)], labels[known]].mean())

        temperature = 1.0
        if known.any():
            found = scipy.optimize.minimize_scalar(surprise, bounds=_TEMPERATURES, method="bounded")
            temperature = float(found.x)
        return cls(labels, flat.argmax(axis=1), scipy.special.softmax(logits / temperature, axis=1))

    def drop(self, winners: Array) -> Drop:
        """The drop of a model that answers these classes [N]."""
        rows = np.arange(len(winners))
        counted = (self.winners == self.labels).astype(float) - (winners == self.labels)
        chances = self.probabilities
        expected = chances[rows, self.winners] - chances[rows, winners]
        return Drop(*_mean(counted), *_mean(expected))


def _mean(values: Array) -> tuple[float, float]:
    """Mean and its standard error."""
    count = len(values)
    spread = float(values.std(ddof=1)) / float(np.sqrt(count)) if count > 1 else float("inf")
    return float(values.mean()), spread
