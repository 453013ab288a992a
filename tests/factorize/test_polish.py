"""Polished factors: never worse, honest about their error, and nothing to gain where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.factorize.leading import mixing, separate
from graphopt.factorize.polish import (
    MixingProblem,
    SeparateProblem,
    polish_mixing,
    polish_separate,
)

algebra = settings(deadline=None, max_examples=15, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 5)
KINDS = {
    "mixing": (mixing, polish_mixing, MixingProblem, "ork,rj->ojk"),
    "separate": (separate, polish_separate, SeparateProblem, "otj,tjk->ojk"),
}


def spd(seed, size):
    root = np.random.default_rng(seed).standard_normal((size, size))
    return (root * np.geomspace(1, 0.2, size)) @ root.T / size + 1e-2 * np.eye(size)


def problem(seed, outputs, size, taps):
    weight = np.random.default_rng(seed).standard_normal((outputs, size, taps))
    return weight, spd(seed ^ 1, size * taps)


def missed(kind, factors, weight, gram):
    made = np.einsum(KINDS[kind][3], factors.second, factors.first)
    difference = (weight - made).reshape(len(weight), -1)
    return np.sum((difference @ gram) * difference)


def energy(weight, gram):
    flat = weight.reshape(len(weight), -1)
    return np.sum((flat @ gram) * flat)


@pytest.mark.parametrize("kind", KINDS)
@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_never_worse_and_the_error_reported_is_the_error_measured(kind, seed, outputs, size, taps):
    decompose, polish, *_ = KINDS[kind]
    weight, gram = problem(seed, outputs, size, taps)
    fit, total = decompose(weight, gram), energy(weight, gram)
    for rank in range(1, fit.full + 1):
        start = fit.factors(rank)
        found = polish(fit, rank, weight, gram)
        assert found.factors.first.shape == start.first.shape
        assert found.factors.second.shape == start.second.shape
        np.testing.assert_allclose(np.linalg.norm(found.factors.first, axis=-1), 1)
        measured = missed(kind, found.factors, weight, gram)
        assert measured <= missed(kind, start, weight, gram) + 1e-12 * total
        assert found.missed == pytest.approx(measured, abs=1e-8 * total)


@pytest.mark.parametrize("kind", KINDS)
@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_full_rank_is_exact_still(kind, seed, outputs, size, taps):
    decompose, polish, *_ = KINDS[kind]
    weight, gram = problem(seed, outputs, size, taps)
    fit = decompose(weight, gram)
    found = polish(fit, fit.full, weight, gram)
    assert found.missed == 0
    assert missed(kind, found.factors, weight, gram) < 1e-15 * energy(weight, gram)


@pytest.mark.parametrize("kind", KINDS)
@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides, rank=sides)
def test_the_gradient_is_that_of_finite_differences(kind, seed, outputs, size, taps, rank):
    posed = KINDS[kind][2](*problem(seed, outputs, size, taps))
    rng = np.random.default_rng(seed)
    if kind == "mixing":
        first = rng.standard_normal((min(rank, size), size))
    else:
        first = rng.standard_normal((min(rank, taps), size, taps))
    wrong = scipy.optimize.check_grad(
        lambda x: posed.at(x.reshape(first.shape)).value,
        lambda x: posed.at(x.reshape(first.shape)).gradient.ravel(),
        first.ravel(),
    )
    assert wrong < 1e-4 * posed.energy


@pytest.mark.parametrize("kind", KINDS)
@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_nothing_is_changed_where_the_closed_form_is_the_optimum(kind, seed, outputs, size, taps):
    # mixing: taps uncorrelated and alike; separate: channels uncorrelated.
    decompose, polish, *_ = KINDS[kind]
    weight, _ = problem(seed, outputs, size, taps)
    if kind == "mixing":
        gram = np.kron(spd(seed, size), np.eye(taps))
    else:
        gram = np.kron(np.eye(size), spd(seed, taps))
    fit = decompose(weight, gram)
    for rank in range(1, fit.full + 1):
        start, found = fit.factors(rank), polish(fit, rank, weight, gram)
        assert found.missed == pytest.approx(fit.missed[rank], abs=1e-8 * energy(weight, gram))
        one = np.einsum(KINDS[kind][3], start.second, start.first)
        other = np.einsum(KINDS[kind][3], found.factors.second, found.factors.first)
        np.testing.assert_allclose(one, other, atol=1e-4)


def smooth(size, taps):
    """Moments of a smooth picture: neighbouring taps see almost the same, channels are related."""
    near = 0.9 ** np.abs(np.subtract.outer(np.arange(taps), np.arange(taps)))
    related = spd(3, size)
    noise = spd(4, size * taps)
    return np.kron(related, near) + 0.1 * noise


@pytest.mark.parametrize(("kind", "rank"), [("mixing", 3), ("mixing", 6), ("separate", 2)])
def test_correlated_taps_leave_something_to_gain(kind, rank):
    decompose, polish, *_ = KINDS[kind]
    weight, gram = np.random.default_rng(0).standard_normal((16, 12, 9)), smooth(12, 9)
    fit = decompose(weight, gram)
    found = polish(fit, rank, weight, gram)
    assert found.missed < 0.97 * fit.missed[rank]
    assert polish(fit, rank, weight, gram).missed == found.missed
    # hardly anything is left to gain
    longer = polish(fit, rank, weight, gram, steps=200)
    assert longer.missed > 0.97 * found.missed
    np.testing.assert_array_equal(
        polish(fit, rank, weight, gram).factors.second, found.factors.second
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dead_inputs_make_no_large_factors(kind):
    decompose, polish, *_ = KINDS[kind]
    weight, gram = problem(0, 12, 8, 9)
    alive = np.repeat(np.arange(8) >= 3, 9)
    gram = gram * np.outer(alive, alive)
    for metric in (gram, 0 * gram, 1e-12 * gram):
        fit = decompose(weight, metric)
        for rank in (1, 4, fit.full):
            found = polish(fit, rank, weight, metric)
            assert np.abs(found.factors.second).max() < 100
            assert found.missed <= fit.missed[rank]
    fit = decompose(weight, gram)
    assert polish(fit, 3, weight, gram).missed < fit.missed[3]


def test_a_weight_that_answers_nothing_stays_as_it_is():
    fit = mixing(np.zeros((4, 3, 9)), spd(0, 27))
    found = polish_mixing(fit, 2, np.zeros((4, 3, 9)), spd(0, 27))
    assert found.missed == 0
    assert not np.any(found.factors.second)
