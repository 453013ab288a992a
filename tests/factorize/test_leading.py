"""Input-side and output-side schemes: all ranks from one decomposition, in any metric."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.factorize.leading import mixing, separate
from graphopt.factorize.moments import Moments
from graphopt.factorize.reduced_rank import output_fit, two_sided

algebra = settings(deadline=None, max_examples=15, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 5)
FITS = {"mixing": mixing, "separate": separate}


def spd(seed, size):
    root = np.random.default_rng(seed).standard_normal((size, size))
    return (root * np.geomspace(1, 0.2, size)) @ root.T / size + 1e-2 * np.eye(size)


def problem(seed, outputs, size, taps, metric=True):
    weight = np.random.default_rng(seed).standard_normal((outputs, size, taps))
    return weight, spd(seed ^ 1, size * taps) if metric else np.eye(size * taps)


def composite(name, factors):
    """[O, J * K], straight from the equations in the docstrings."""
    equation = "ork,rj->ojk" if name == "mixing" else "otj,tjk->ojk"
    made = np.einsum(equation, factors.second, factors.first)
    return made.reshape(len(made), -1)


def in_metric(weight, gram):
    """Moments of an input with this metric and of the weight's own answers to it."""
    matrix = weight.reshape(len(weight), -1)
    cross, zeros = matrix @ gram, np.zeros
    energy = np.sum(cross * matrix, axis=1)
    return Moments(gram, cross, energy, zeros(matrix.shape[1]), zeros(len(matrix)), 0)


def relative(moments, missed):
    return np.sqrt(max(missed, 0.0) / moments.energy.sum())


@pytest.mark.parametrize("name", FITS)
@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_missed_is_the_error_measured(name, seed, outputs, size, taps):
    weight, gram = problem(seed, outputs, size, taps)
    fit, moments = FITS[name](weight, gram), in_metric(weight, gram)
    assert fit.full == (size if name == "mixing" else taps)
    for rank in range(1, fit.full + 1):
        measured = moments.error(composite(name, fit.factors(rank)))
        assert relative(moments, fit.missed[rank]) == pytest.approx(measured, rel=1e-6, abs=1e-6)
    assert relative(moments, fit.missed[0]) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("name", FITS)
@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_more_rank_is_never_worse_and_all_of_it_is_the_weight(name, seed, outputs, size, taps):
    weight, gram = problem(seed, outputs, size, taps)
    fit = FITS[name](weight, gram)
    assert np.all(np.diff(fit.missed) <= 0)
    assert fit.missed[-1] == 0
    made = composite(name, fit.factors(fit.full))
    np.testing.assert_allclose(made, weight.reshape(outputs, -1), atol=1e-9)


@pytest.mark.parametrize("name", FITS)
@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_the_second_factor_is_the_best_there_is(name, seed, outputs, size, taps):
    weight, gram = problem(seed, outputs, size, taps)
    fit, moments = FITS[name](weight, gram), in_metric(weight, gram)
    factors = fit.factors((fit.full + 1) // 2)
    least = moments.error(composite(name, factors))
    rng = np.random.default_rng(seed)
    for scale in (1e-1, 1e-2):
        moved = factors.second + scale * rng.standard_normal(factors.second.shape)
        other = type(factors)(factors.first, moved)
        assert moments.error(composite(name, other)) >= least - 1e-7


@pytest.mark.parametrize("name", FITS)
@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides, most=sides)
def test_what_is_made_for_the_lowest_ranks_is_the_same_for_them(
    name, seed, outputs, size, taps, most
):
    weight, gram = problem(seed, outputs, size, taps)
    whole = FITS[name](weight, gram)
    most = min(most, whole.full)
    part = FITS[name](weight, gram, most)
    assert part.full == whole.full
    scale = whole.missed[0]
    np.testing.assert_allclose(part.missed, whole.missed[: most + 1], atol=1e-9 * scale)
    np.testing.assert_allclose(part.importance, whole.importance)
    for rank in range(1, most + 1):
        np.testing.assert_allclose(
            composite(name, part.factors(rank)), composite(name, whole.factors(rank)), atol=1e-9
        )


@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_mixing_the_weight_alone_is_the_truncated_svd_of_the_stacked_taps(
    seed, outputs, size, taps
):
    weight, gram = problem(seed, outputs, size, taps, metric=False)
    singular = np.linalg.svd(np.moveaxis(weight, 2, 0).reshape(-1, size), compute_uv=False)
    fit, energy = mixing(weight, gram), np.sum(weight**2)
    for rank in range(size + 1):
        assert fit.missed[rank] / energy == pytest.approx(
            np.sum(singular[rank:] ** 2) / energy, abs=1e-8
        )


@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_separating_the_weight_alone_is_a_truncated_svd_of_every_channel(seed, outputs, size, taps):
    weight, gram = problem(seed, outputs, size, taps, metric=False)
    fit, energy = separate(weight, gram), np.sum(weight**2)
    values = [np.linalg.svd(weight[:, j], compute_uv=False) for j in range(size)]
    for rank in range(taps + 1):
        best = sum(np.sum(v[rank:] ** 2) for v in values)
        assert fit.missed[rank] / energy == pytest.approx(best / energy, abs=1e-8)


@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_mixing_is_the_optimum_where_taps_are_uncorrelated_and_alike(seed, outputs, size, taps):
    # G = S (x) I: the truncated SVD of the stacked taps times S^(1/2) cannot be beaten.
    weight = np.random.default_rng(seed).standard_normal((outputs, size, taps))
    moment = spd(seed, size)
    fit = mixing(weight, np.kron(moment, np.eye(taps)))
    root = np.linalg.cholesky(moment)
    stacked = np.moveaxis(weight, 2, 0).reshape(-1, size) @ root
    singular = np.linalg.svd(stacked, compute_uv=False)
    for rank in range(size + 1):
        expected = np.sum(singular[rank:] ** 2) / np.sum(singular**2)
        assert fit.missed[rank] / fit.missed[0] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", FITS)
def test_the_metric_beats_the_weight_alone(name):
    weight, _ = problem(0, 12, 8, 9)
    root = np.random.default_rng(5).standard_normal((72, 72)) * np.geomspace(1, 0.02, 72)
    gram = root @ root.T
    fit, moments = FITS[name](weight, gram), in_metric(weight, gram)
    blind = FITS[name](weight, np.eye(72))
    for rank in range(1, fit.full):
        aware = moments.error(composite(name, fit.factors(rank)))
        assert aware < moments.error(composite(name, blind.factors(rank)))


@pytest.mark.parametrize("name", FITS)
def test_dead_inputs_make_no_large_factors(name):
    weight, gram = problem(0, 12, 8, 9)
    alive = np.repeat(np.arange(8) >= 3, 9)
    gram = gram * np.outer(alive, alive)
    for metric in (gram, 0 * gram, 1e-12 * gram):
        fit = FITS[name](weight, metric)
        for rank in (1, 4, fit.full):
            factors = fit.factors(rank)
            np.testing.assert_allclose(np.linalg.norm(factors.first, axis=-1), 1)
            assert np.abs(factors.second).max() < 100
    full = FITS[name](weight, gram)
    made = composite(name, full.factors(full.full))
    np.testing.assert_allclose(made, weight.reshape(12, -1), atol=1e-4)


@algebra
@given(seed=seeds, outputs=sides, size=st.integers(1, 9))
def test_output_missed_is_the_error_measured(seed, outputs, size):
    weight = np.random.default_rng(seed).standard_normal((outputs, size))
    gram = spd(seed, size)
    fit, moments = output_fit(weight, gram), in_metric(weight, gram)
    for rank in range(outputs + 1):
        reduce, expand = fit.factors(rank)
        assert (reduce.shape, expand.shape) == ((rank, size), (outputs, rank))
        measured = moments.error(expand @ reduce)
        assert relative(moments, fit.missed[rank]) == pytest.approx(measured, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(expand @ reduce, weight, atol=1e-12)
    assert np.all(np.diff(fit.missed) <= 0)


@algebra
@given(seed=seeds, outputs=sides, size=st.integers(1, 9), metric=st.booleans())
def test_output_is_the_truncated_svd_in_the_metric(seed, outputs, size, metric):
    weight = np.random.default_rng(seed).standard_normal((outputs, size))
    gram = spd(seed, size) if metric else np.eye(size)
    singular = np.linalg.svd(weight @ np.linalg.cholesky(gram), compute_uv=False)
    fit, energy = output_fit(weight, gram), np.sum(singular**2)
    for rank in range(outputs + 1):
        best = np.sum(singular[rank:] ** 2) / energy
        assert fit.missed[rank] / energy == pytest.approx(best, abs=1e-9)


@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_two_sided_pays_for_both_sides(seed, outputs, size, taps):
    weight, gram = problem(seed, outputs, size, taps)
    base, moments = mixing(weight, gram), in_metric(weight, gram)
    for inner in range(1, size + 1):
        fit = two_sided(base, inner)
        assert np.all(np.diff(fit.missed) <= 0)
        assert np.all(fit.missed >= base.missed[inner])
        assert fit.missed[outputs] == base.missed[inner]
        for outer in range(1, outputs + 1):
            reduce, core, expand = fit.factors(outer)
            assert reduce.shape == (inner, size)
            assert core.shape == (outer, inner, taps)
            made = np.einsum("os,srk,rj->ojk", expand, core, reduce).reshape(outputs, -1)
            measured = moments.error(made)
            assert relative(moments, fit.missed[outer]) == pytest.approx(
                measured, rel=1e-6, abs=1e-6
            )
    np.testing.assert_allclose(made, weight.reshape(outputs, -1), atol=1e-9)


@algebra
@given(seed=seeds, outputs=sides, size=sides, taps=sides)
def test_two_sided_output_directions_are_the_best_behind_the_input_side(seed, outputs, size, taps):
    weight, gram = problem(seed, outputs, size, taps)
    base = mixing(weight, gram)
    inner = (size + 1) // 2
    kept = composite("mixing", base.factors(inner))
    behind, alone = two_sided(base, inner), output_fit(kept, gram)
    np.testing.assert_allclose(
        behind.missed - base.missed[inner], alone.missed, atol=1e-7 * base.missed[0]
    )
