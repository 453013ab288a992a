"""How far two outputs are apart, accumulated over batches in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphopt.runtime import Array


@dataclass
class OutputDistance:
    """Running sums of the distance between a reference output y and another one y'.

    Feed it batch by batch with `add`; read the figures at any time.
    """

    squared_error: float = 0.0
    squared_norm: float = 0.0
    squared_other: float = 0.0
    inner: float = 0.0
    max_abs: float = 0.0
    unequal: int = 0
    elements: int = 0
    same_class: int = 0
    classified: int = 0

    def add(self, reference: Array, other: Array) -> None:
        """Take one more batch into account.

        Raises:
            ValueError: The shapes differ.
        """
        if reference.shape != other.shape:
            raise ValueError(f"shape {other.shape} instead of {reference.shape}")
        self.elements += reference.size
        self.unequal += int(np.count_nonzero(reference != other))
        if not is_float(reference):
            return
        y, z = (a.astype(np.float64).ravel() for a in (reference, other))
        difference = z - y
        self.squared_error += float(difference @ difference)
        self.squared_norm += float(y @ y)
        self.squared_other += float(z @ z)
        self.inner += float(y @ z)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))
        a, b = top1(reference), top1(other)
        if a is not None and b is not None:
            self.same_class += int(np.count_nonzero(a == b))
            self.classified += len(a)

    @property
    def relative_l2(self) -> float:
        """||y - y'|| / ||y|| over everything seen; 0 when both are zero."""
        if self.squared_norm == 0:
            return 0.0 if self.squared_error == 0 else math.inf
        return math.sqrt(self.squared_error / self.squared_norm)

    @property
    def sqnr_db(self) -> float:
        """Signal to noise ratio in decibels; infinite when there is no difference."""
        if self.squared_error == 0:
            return math.inf
        if self.squared_norm == 0:
            return -math.inf
        return 10 * math.log10(self.squared_norm / self.squared_error)

    @property
    def cosine(self) -> float | None:
        """Cosine similarity, None when one side is zero."""
        product = math.sqrt(self.squared_norm * self.squared_other)
        return self.inner / product if product else None

    @property
    def top1_agreement(self) -> float | None:
        """Share of samples with the same largest class, None if the output is no classification."""
        return self.same_class / self.classified if self.classified else None

    @property
    def mismatches(self) -> float:
        """Share of elements that are not equal."""
        return self.unequal / self.elements if self.elements else 0.0


def is_float(array: Array) -> bool:
    """Whether an array holds floating-point numbers (bfloat16 included)."""
    return array.dtype.kind == "f" or "float" in str(array.dtype)


def top1(scores: Array) -> Array | None:
    """Index of the largest class per sample [N] of scores [N, classes] or [N, classes, 1, 1]."""
    if not is_float(scores) or scores.size == 0 or scores.ndim < 2 or scores.shape[1] < 2:
        return None
    if any(size != 1 for size in scores.shape[2:]):
        return None
    winners: Array = scores.reshape(scores.shape[0], -1).astype(np.float32).argmax(axis=1)
    return winners
