"""Fits in a metric of the outputs: some directions of a response matter more than others.

Minimising tr(M (W - W~) G (W - W~)^T), M = R^T R, is the unweighted problem for R W, with its
solution multiplied by R^-1 from the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Weighting:
    """root: R [O, O]; inverse: R^-1."""

    root: Array
    inverse: Array

    @classmethod
    def of(cls, metric: Array, shrinkage: float = 0.05) -> Weighting:
        """From M [O, O], moved towards a multiple of the identity so that nothing is free."""
        size = len(metric)
        mean = float(np.trace(metric)) / size
        if mean <= 0:
            return cls(np.eye(size), np.eye(size))
        regular = (1 - shrinkage) * metric / mean + shrinkage * np.eye(size)
        values, vectors = scipy.linalg.eigh((regular + regular.T) / 2, check_finite=False)
        roots = np.sqrt(np.maximum(values, shrinkage / 2))
        return cls((vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T)
