"""Pointwise before depthwise, output by output: the error is what is claimed, and the best nearby."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.factorize import by_output as module
from graphopt.factorize.by_output import by_output, evaluated


def problem(outputs=6, size=7, taps=9, seed=0, spread=0.05):
    """A weight [O, J, K] and a metric of correlated channels and taps of different scales."""
    rng = np.random.default_rng(seed)
    count = size * taps
    root = rng.standard_normal((count, count)) * np.geomspace(1, spread, count)
    return rng.standard_normal((outputs, size, taps)), root @ root.T / count


def error(weight, gram, composite):
    difference = (weight - composite).reshape(len(weight), -1)
    return float(np.sum((difference @ gram) * difference))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    outputs=st.integers(1, 5),
    size=st.integers(1, 6),
    taps=st.integers(2, 9),
    terms=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_claimed_errors_are_those_of_the_factors(outputs, size, taps, terms, seed):
    weight, gram = problem(outputs, size, taps, seed)
    terms = min(terms, size, taps)
    fit = by_output(weight, gram, terms)
    energy = error(weight, gram, 0)
    for found in (fit.factors(terms), fit.polished(terms, steps=3)):
        assert found.first.shape == (outputs, terms, size)
        assert found.second.shape == (outputs, terms, taps)
        np.testing.assert_allclose(np.linalg.norm(found.first, axis=2), 1)
        measured = error(weight, gram, found.composite)
        assert found.missed == pytest.approx(measured, rel=1e-6, abs=1e-9 * energy)
        if terms == min(size, taps):
            assert measured < 1e-9 * energy


def test_without_a_metric_it_is_the_singular_value_decomposition():
    weight, _ = problem()
    fit = by_output(weight, np.eye(63), 4)
    values = np.linalg.svd(weight, compute_uv=False)
    for terms in range(1, 5):
        assert fit.factors(terms).missed == pytest.approx(np.sum(values[:, terms:] ** 2))
        assert fit.polished(terms).missed == pytest.approx(np.sum(values[:, terms:] ** 2))


def test_in_a_product_of_metrics_it_is_the_best_there_is():
    rng = np.random.default_rng(3)
    channels, taps = rng.standard_normal((7, 7)), rng.standard_normal((9, 9))
    gram = np.kron(channels @ channels.T, taps @ taps.T)
    weight, _ = problem()
    fit = by_output(weight, gram, 3)
    moved = np.einsum("ji,ojk,kl->oil", channels, weight, taps)
    values = np.linalg.svd(moved, compute_uv=False)
    assert fit.factors(3).missed == pytest.approx(np.sum(values[:, 3:] ** 2), rel=1e-5)
    np.testing.assert_allclose(fit.strength, values[:, :3], rtol=1e-5)


def test_behind_the_start_no_taps_are_better():
    weight, gram = problem()
    found = by_output(weight, gram, 2).factors(2)
    rng = np.random.default_rng(1)
    for _ in range(20):
        other = found.second + 0.01 * rng.standard_normal(found.second.shape)
        assert error(weight, gram, np.einsum("otj,otk->ojk", found.first, other)) > found.missed


def test_the_polish_goes_down_and_stops_where_nothing_is_better():
    weight, gram = problem()
    fit = by_output(weight, gram, 2)
    start, found = fit.factors(2), fit.polished(2, steps=200)
    assert found.missed < 0.7 * start.missed
    rng = np.random.default_rng(1)
    for _ in range(20):
        first = found.first + 1e-3 * rng.standard_normal(found.first.shape)
        assert evaluated(fit, first)[0].missed > 0.9999 * found.missed


def test_the_gradient_is_that_of_the_objective():
    weight, gram = problem()
    fit = by_output(weight, gram, 2)
    at = fit.start + 0.1
    direction = np.random.default_rng(2).standard_normal(at.shape)
    step = 1e-6
    ahead, back = (evaluated(fit, at + s * direction)[0].missed for s in (step, -step))
    gradient = evaluated(fit, at)[1]
    assert np.sum(gradient * direction) == pytest.approx((ahead - back) / (2 * step), rel=1e-5)


def test_chunks_change_nothing(monkeypatch):
    weight, gram = problem()
    whole = by_output(weight, gram, 2).factors(2)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    parts = by_output(weight, gram, 2).factors(2)
    np.testing.assert_allclose(parts.composite, whole.composite, atol=1e-12)


@pytest.mark.parametrize("what", ["channel", "output", "everything"])
def test_what_answers_nothing_does_no_harm(what):
    weight, gram = problem()
    if what == "channel":
        gram = gram.reshape(7, 9, 7, 9).copy()
        gram[2] = gram[:, :, 2] = 0
        gram = gram.reshape(63, 63)
    else:
        weight[1 if what == "output" else slice(None)] = 0
    fit = by_output(weight, gram, 2)
    for found in (fit.factors(2), fit.polished(2)):
        assert np.isfinite(found.composite).all()
        assert found.missed == pytest.approx(error(weight, gram, found.composite), abs=1e-9)
