"""Better first factors for the leading-coordinates schemes: a descent in the exact metric.

`leading` chooses the first factor as if taps (for `separate`: channels) were uncorrelated, then
regresses the second in the exact metric. Here the first factor moves too. The second is eliminated
(variable projection): of a first factor only the error left by the best second one counts, and
by the envelope theorem its gradient is the one at that second factor held fixed. So an evaluation
costs R D^2, not O D^2, and nothing is spent on following two factors that lean on each other.

What the best second factor can reach depends on the span of the first one's rows only, so the
first factor is the start plus a combination of the coordinates left out, X. With coordinates of
unit variance and sigma_r^2 the response through one, the error's curvature along X[r, j] is close
to 2 (sigma_r^2 - sigma_j^2): in units of its square root L-BFGS is done in 5 to 10 steps,
further than 100 steps on both factors together.
Source: Golub & Pereyra 1973, "The differentiation of pseudo-inverses and nonlinear least squares
problems whose variables separate".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy

from graphopt.factorize.leading import LeadingFactors, LeadingFit, unit_rows

Array = np.ndarray[Any, Any]

_FEWEST_STEPS = 3
_WORK = 1.5e10
"""Multiplications after which no more than the fewest steps are taken (two seconds or so)."""
_NEARLY_TIED = 0.1
"""Least curvature, in units of sigma_r^2, between coordinates kept and left out."""
_RIDGE = 1e-10
_WORTHWHILE = 1e-10
"""Less of the response's energy gained than this is rounding: the start is returned."""


@dataclass(frozen=True)
class Polished:
    """factors: never worse than the fit's own. missed: their squared response error."""

    factors: LeadingFactors
    missed: float


def polish_mixing(
    fit: LeadingFit, rank: int, weight: Array, gram: Array, steps: int | None = None
) -> Polished:
    """Better factors than those of a `mixing` fit of this weight [O, J, K] and gram [J K, J K].

    Args:
        fit: The fit to start from.
        rank: Rank of the factors.
        weight: The weight that was fitted.
        gram: The metric that it was fitted in.
        steps: Most L-BFGS steps; by default as many as their cost allows.
    """
    return _polished(fit, rank, MixingProblem(weight, gram), steps)


def polish_separate(
    fit: LeadingFit, rank: int, weight: Array, gram: Array, steps: int | None = None
) -> Polished:
    """Better factors than those of a `separate` fit; arguments as in `polish_mixing`."""
    return _polished(fit, rank, SeparateProblem(weight, gram), steps)


@dataclass(frozen=True)
class Evaluation:
    """second: [F, O]. value: the objective, with a trace of ridge; missed: without."""

    first: Array
    second: Array
    value: float
    missed: float
    gradient: Array


class Problem(ABC):
    """The response error as a function of the first factor alone.

    weight: [O, J, K]. gram: [J, K, J, K]. cross: [J, K, O], of the inputs with the response.
    energy: of the response. most_steps: after which hardly anything is gained.
    """

    most_steps: ClassVar[int]

    def __init__(self, weight: Array, gram: Array) -> None:
        """Of a weight [O, J, K] in a metric [J K, J K]."""
        outputs, size, taps = weight.shape
        flat = weight.reshape(outputs, -1)
        seen = flat @ gram
        self.energy = float(np.sum(seen * flat))
        self.cross = np.ascontiguousarray(seen.T).reshape(size, taps, outputs)
        self.gram = gram.reshape(size, taps, size, taps)
        self._ridge: float | None = None

    @abstractmethod
    def _moved(self, first: Array) -> tuple[Array, Array, Array]:
        """Features = first x. Moments of features with inputs, with themselves, with the response.

        The first in any layout; [F, F]; [F, O], F features.
        """

    @abstractmethod
    def _gradient(self, moved: Array, inner: Array, best: Array) -> Array:
        """d/d first of <inner, features' moments> / 2 - <best, features' cross moments>."""

    @abstractmethod
    def second(self, best: Array, rank: int) -> Array:
        """The second factor in its own layout from [F, O]."""

    def at(self, first: Array) -> Evaluation:
        """The best second factor behind this first one, and what it leaves."""
        moved, normal, cross = self._moved(first)
        best = self._best(normal, cross)
        explained = float(np.sum(best * cross))
        ridge = (self._ridge or 0.0) * float(np.sum(best**2))
        return Evaluation(
            first=first,
            second=best,
            value=self.energy - explained,
            missed=self.energy - explained - ridge,
            gradient=2 * self._gradient(moved, best @ best.T, best),
        )

    def _best(self, normal: Array, cross: Array) -> Array:
        regular = (normal + normal.T) / 2
        if self._ridge is None:  # one for all first factors, or the gradient would not be right
            self._ridge = _RIDGE * float(np.trace(regular)) / len(regular) + 1e-300
        regular[np.diag_indices_from(regular)] += self._ridge
        solved: Array = scipy.linalg.solve(regular, cross, assume_a="pos", check_finite=False)
        return solved

    def cost(self, rank: int, features: int) -> float:
        """Multiplications of one evaluation, roughly."""
        size, taps, outputs = self.cross.shape
        moved = rank * (size * taps) ** 2 + 2.0 * rank * features * size * taps
        return moved + features**2 * (3.0 * outputs + features / 3)


class MixingProblem(Problem):
    """First [R, J], shared by the taps: features (r, k)."""

    most_steps = 12

    def _moved(self, first: Array) -> tuple[Array, Array, Array]:
        size, taps, outputs = self.cross.shape
        count = len(first) * taps
        moved = (first @ self.gram.reshape(size, -1)).reshape(-1, taps, size, taps)
        moved = np.ascontiguousarray(moved.transpose(0, 1, 3, 2))  # [R, K, K', J]
        normal = (moved.reshape(-1, size) @ first.T).reshape(count, taps, -1)
        cross = (first @ self.cross.reshape(size, -1)).reshape(count, outputs)
        return moved, normal.transpose(0, 2, 1).reshape(count, count), cross

    def _gradient(self, moved: Array, inner: Array, best: Array) -> Array:
        size, taps, _ = self.cross.shape
        rank = len(moved)
        by_tap = inner.reshape(rank, taps, rank, taps).transpose(0, 2, 3, 1).reshape(rank, -1)
        gradient: Array = by_tap @ moved.reshape(-1, size)
        gradient -= best.reshape(rank, -1) @ self.cross.reshape(size, -1).T
        return gradient

    def second(self, best: Array, rank: int) -> Array:
        """[O, R, K]."""
        return np.ascontiguousarray(best.T).reshape(best.shape[1], rank, -1)


class SeparateProblem(Problem):
    """First [T, J, K], every channel its own: features (j, t)."""

    most_steps = 25

    def _moved(self, first: Array) -> tuple[Array, Array, Array]:
        size, taps, outputs = self.cross.shape
        own = np.ascontiguousarray(first.transpose(1, 0, 2))  # [J, T, K]
        count = size * len(first)
        moved = (own @ self.gram.reshape(size, taps, -1)).reshape(count, size, taps)
        moved = np.ascontiguousarray(moved.transpose(1, 0, 2))  # [J', (J T), K']
        normal = (moved @ own.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(count, count)
        return moved, normal, (own @ self.cross).reshape(count, outputs)

    def _gradient(self, moved: Array, inner: Array, best: Array) -> Array:
        size, _, outputs = self.cross.shape
        gradient: Array = inner.reshape(size, -1, len(inner)) @ moved
        gradient -= best.reshape(size, -1, outputs) @ self.cross.transpose(0, 2, 1)
        return gradient.transpose(1, 0, 2)

    def second(self, best: Array, rank: int) -> Array:
        """[O, T, J]."""
        size = len(self.cross)
        return np.ascontiguousarray(best.reshape(size, rank, -1).transpose(2, 1, 0))


def _polished(fit: LeadingFit, rank: int, problem: Problem, steps: int | None) -> Polished:
    start = fit.factors(rank)
    if not 0 < rank < fit.full or problem.energy <= 0:
        return Polished(start, float(fit.missed[rank]))
    if steps is None:
        work = problem.cost(rank, rank * fit.step)
        steps = int(np.clip(_WORK / work, _FEWEST_STEPS, problem.most_steps))
    before, best = _descended(fit, rank, problem, steps)
    if not best.missed < before.missed - _WORTHWHILE * problem.energy:
        return Polished(start, float(fit.missed[rank]))
    second = problem.second(best.second, rank)
    return Polished(unit_rows(best.first, second), max(best.missed, 0.0))


def _descended(
    fit: LeadingFit, rank: int, problem: Problem, steps: int
) -> tuple[Evaluation, Evaluation]:
    """The start, and the best of so many steps of L-BFGS over X."""
    before = best = problem.at(fit.basis[:rank])
    kept, rest = _channels(fit.basis[:rank]), _channels(fit.basis[rank:])
    scale = _scale(fit.importance[..., :rank], fit.importance[..., rank:], problem.energy)

    def first(vector: Array) -> Array:
        made = kept + (vector.reshape(scale.shape) * scale) @ rest
        return np.swapaxes(made, 0, 1) if made.ndim == 3 else made

    def value_and_gradient(vector: Array) -> tuple[float, Array]:
        nonlocal best
        found = problem.at(first(vector)) if np.any(vector) else before
        if found.missed < best.missed:
            best = found
        back = (_channels(found.gradient) @ np.swapaxes(rest, -1, -2)) * scale
        return found.value / problem.energy, back.ravel() / problem.energy

    scipy.optimize.minimize(
        value_and_gradient,
        np.zeros(scale.size),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 10, "ftol": 1e-7},
    )
    return before, best


def _channels(rows: Array) -> Array:
    """Rows [T, J, K] of `separate` with the channel first; rows [R, J] as they are."""
    return np.swapaxes(rows, 0, 1) if rows.ndim == 3 else rows


def _scale(kept: Array, rest: Array, energy: float) -> Array:
    """Units of X: one over the square root of the curvature of the error over the energy."""
    floor = _NEARLY_TIED * kept[..., :, None] + 1e-6 * energy
    curvature = np.maximum(kept[..., :, None] - rest[..., None, :], floor)
    scale: Array = np.sqrt(energy / (2 * curvature))
    return scale
