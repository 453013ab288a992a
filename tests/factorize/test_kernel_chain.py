from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.factorize import kernel_chain
from graphopt.factorize.kernel_chain import fit_chain
from graphopt.factorize.kernel_pair import compose, fit

algebra = settings(deadline=None, max_examples=8, derandomize=True)


def spd(seed, size):
    """A well-conditioned metric in which the inputs are correlated and differ in scale."""
    root = np.random.default_rng(seed).standard_normal((size, size))
    return (root * np.geomspace(1, 0.1, size)) @ root.T / size + 1e-3 * np.eye(size)


def problem(seed, kernel=5, inputs=3, outputs=4):
    weight = np.random.default_rng(seed).standard_normal((outputs, inputs, kernel, kernel))
    return weight, spd(seed + 1, inputs * kernel * kernel)


def missed(weight, gram, factors):
    """tr(D G D^T) with the composite made anew."""
    total = factors[0]
    for factor in factors[1:]:
        total = compose(total, factor)
    difference = (weight - total).reshape(len(weight), -1)
    return float(np.trace(difference @ gram @ difference.T))


@algebra
@given(
    seed=st.integers(0, 10_000),
    kernel=st.sampled_from([5, 7]),
    middle=st.integers(1, 6),
    steps=st.sampled_from([0, 3]),
)
def test_what_is_reported_is_what_the_factors_make(seed, kernel, middle, steps):
    weight, gram = problem(seed, kernel)
    found = fit_chain(weight, gram, middle, rounds=2, steps=steps)
    length = (kernel - 1) // 2
    shapes = [(middle, 3, 3, 3), *[(middle, middle, 3, 3)] * (length - 2), (4, middle, 3, 3)]
    assert [factor.shape for factor in found.factors] == shapes
    total = found.factors[0]
    for factor in found.factors[1:]:
        total = compose(total, factor)
    np.testing.assert_allclose(found.composite, total, rtol=1e-9, atol=1e-12)
    assert found.missed == pytest.approx(missed(weight, gram, found.factors), rel=1e-9)


@pytest.mark.parametrize("kernel", [5, 7])
def test_the_gradient_is_that_of_the_objective(monkeypatch, kernel):
    caught = []

    def spy(function, start, **options):
        caught.append((function, start, options))
        return real(function, start, **options)

    real = kernel_chain.scipy.optimize.minimize
    monkeypatch.setattr(kernel_chain.scipy.optimize, "minimize", spy)
    weight, gram = problem(0, kernel)
    fit_chain(weight, gram, 2, rounds=1, steps=1)
    ((function, start, options),) = caught
    assert options["jac"] is True
    rng = np.random.default_rng(3)
    for point in (start, rng.standard_normal(start.size) / 3):
        value, gradient = function(point)
        assert value > 0
        for _ in range(5):
            direction = rng.standard_normal(start.size)
            direction /= np.linalg.norm(direction)
            step = 1e-5
            ahead, behind = (function(point + s * direction)[0] for s in (step, -step))
            assert gradient @ direction == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)


@algebra
@given(seed=st.integers(0, 10_000), kernel=st.sampled_from([5, 7]), middle=st.integers(1, 5))
def test_refinement_is_never_worse_than_its_start(seed, kernel, middle):
    weight, gram = problem(seed, kernel)
    start = fit_chain(weight, gram, middle, rounds=2, steps=0).missed
    for steps in (1, 8):
        later = fit_chain(weight, gram, middle, rounds=2, steps=steps).missed
        assert later <= start * (1 + 1e-7)


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("seed", range(3))
def test_refinement_pays(kernel, seed):
    weight, gram = problem(seed, kernel, inputs=4)
    start = fit_chain(weight, gram, 4, steps=0).missed
    assert fit_chain(weight, gram, 4, steps=30).missed < 0.8 * start


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("kernel", [5, 7])
def test_the_last_factor_is_the_best_behind_those_before_it(kernel, steps):
    weight, gram = problem(1, kernel)
    found = fit_chain(weight, gram, 3, rounds=2, steps=steps)
    rng = np.random.default_rng(0)
    *before, last = found.factors
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(5):
            moved = last + size * rng.standard_normal(last.shape)
            assert missed(weight, gram, [*before, moved]) > found.missed


def test_the_metric_of_the_inputs_beats_the_fit_to_the_weight():
    weight, gram = problem(2, inputs=4)
    pair = fit(weight, 4, rounds=10)
    blind = missed(weight, gram, [pair.first, pair.second])
    assert fit_chain(weight, gram, 4, steps=0).missed < 0.9 * blind


def test_the_weight_alone_is_the_identity_metric():
    weight, _ = problem(3)
    pair, found = fit(weight, 3, rounds=10), fit_chain(weight, np.eye(75), 3, rounds=10, steps=0)
    assert np.sqrt(found.missed) / np.linalg.norm(weight) == pytest.approx(pair.error, rel=1e-6)


@pytest.mark.parametrize(("kernel", "middle"), [(5, 8), (7, 16)])
def test_wide_enough_it_reproduces_any_weight(kernel, middle):
    weight, gram = problem(0, kernel, inputs=4)
    found = fit_chain(weight, gram, middle, rounds=30, steps=60)
    energy = float(np.trace(weight.reshape(4, -1) @ gram @ weight.reshape(4, -1).T))
    assert np.sqrt(found.missed / energy) < 1e-3


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("dead", ["weight", "metric", "both"])
def test_what_answers_nothing_is_fitted_without_an_error(kernel, dead):
    weight, gram = problem(0, kernel)
    if dead != "metric":
        weight[...] = 0
    if dead != "weight":
        gram[...] = 0
    found = fit_chain(weight, gram, 3)
    assert found.missed == 0
    assert all(np.all(np.isfinite(factor)) for factor in found.factors)


def test_the_same_problem_has_the_same_answer():
    one, other = (fit_chain(*problem(4), 3, steps=10) for _ in range(2))
    for first, second in zip(one.factors, other.factors, strict=True):
        np.testing.assert_array_equal(first, second)
