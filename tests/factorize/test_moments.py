from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.factorize.moments import Moments, shrinkage, target

algebra = settings(deadline=None, max_examples=30, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 6)


def sampled(x, y, samples=0):
    """Moments of inputs [N, D] and wanted responses [N, O], by their definition."""
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    dx, dy = x - mean_x, y - mean_y
    count = len(x)
    return Moments(
        dx.T @ dx / count,
        dy.T @ dx / count,
        (dy**2).mean(axis=0),
        mean_x,
        mean_y,
        samples,
    )


def data(seed, size, outputs, count=40):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, size)) @ rng.standard_normal((size, size)) + 2
    weight = rng.standard_normal((outputs, size))
    return rng, x, weight


@algebra
@given(seed=seeds, size=sizes, outputs=sizes)
def test_the_error_is_that_of_the_best_answer_on_the_data(seed, size, outputs):
    rng, x, weight = data(seed, size, outputs)
    y = x @ weight.T + rng.standard_normal((len(x), outputs)) - 5
    moments = sampled(x, y)
    other = rng.standard_normal((outputs, size))
    answer = x @ other.T + moments.bias(other)
    np.testing.assert_allclose(answer.mean(axis=0), y.mean(axis=0), atol=1e-9)
    measured = np.sqrt(np.sum((y - answer) ** 2) / np.sum((y - y.mean(axis=0)) ** 2))
    assert moments.error(other) == pytest.approx(measured, rel=1e-9)
    worse = np.sum((y - answer - rng.standard_normal(outputs)) ** 2)
    assert worse > np.sum((y - answer) ** 2), "no other bias is better"


def test_a_constant_answer_costs_one_and_the_right_one_nothing():
    _, x, weight = data(0, 4, 3)
    moments = sampled(x, x @ weight.T + 7)
    assert moments.error(np.zeros((3, 4))) == 1
    assert moments.error(weight) < 1e-7
    np.testing.assert_allclose(moments.bias(weight), 7)


def test_what_wants_no_answer_has_no_error():
    silent = sampled(np.ones((5, 2)), np.ones((5, 3)))
    assert silent.error(np.ones((3, 2))) == 0


@algebra
@given(seed=seeds, size=sizes, outputs=sizes, bias=st.booleans())
def test_of_weight_is_the_identity_metric(seed, size, outputs, bias):
    rng = np.random.default_rng(seed)
    weight, other = rng.standard_normal((2, outputs, size))
    values = rng.standard_normal(outputs).astype(np.float32) if bias else None
    moments = Moments.of_weight(weight.astype(np.float32), values)
    weight = weight.astype(np.float32).astype(np.float64)
    assert moments.samples == 0
    expected = np.linalg.norm(weight - other) / np.linalg.norm(weight)
    assert moments.error(other) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(moments.bias(other), np.zeros(outputs) if not bias else values)
    assert target(weight, moments) is weight or np.array_equal(target(weight, moments), weight)
    assert moments.shrunk() is moments


@algebra
@given(seed=seeds, size=st.integers(2, 6), share=st.floats(0, 1))
def test_shrinking_moves_towards_the_diagonal(seed, size, share):
    _, x, weight = data(seed, size, 2)
    moments = sampled(x, x @ weight.T, samples=40)
    shrunk = moments.shrunk(share)
    off = ~np.eye(size, dtype=bool)
    np.testing.assert_allclose(shrunk.gram[off], (1 - share) * moments.gram[off], rtol=1e-12)
    added = np.diag(shrunk.gram) - np.diag(moments.gram)
    assert np.all(added > 0)
    np.testing.assert_allclose(added, 1e-6 * np.trace(moments.gram) / size, rtol=1e-3)
    for kept in ("cross", "energy", "mean_input", "mean_output", "samples"):
        assert getattr(shrunk, kept) is getattr(moments, kept)


@pytest.mark.parametrize("samples", [1, 16, 256])
def test_fewer_samples_shrink_more(samples):
    _, x, weight = data(0, 4, 2)
    moments = sampled(x, x @ weight.T, samples)
    np.testing.assert_array_equal(moments.shrunk().gram, moments.shrunk(shrinkage(samples)).gram)
    assert 0 < shrinkage(2 * samples) < shrinkage(samples) < 1


def test_what_is_known_of_shrinkage():
    # DESIGN.md 4: 16 images want a third to two thirds, 256 about a tenth, 1,024 next to nothing.
    assert 1 / 3 <= shrinkage(16) <= 2 / 3 + 0.01
    assert shrinkage(256) == pytest.approx(0.1, abs=0.02)
    assert shrinkage(1024) < 0.05


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_samples_still_make_a_metric(count):
    _, x, weight = data(0, 8, 2, count=count)
    moments = sampled(x, x @ weight.T, samples=count).shrunk()
    if count > 1:
        np.linalg.cholesky(moments.gram)
    assert np.all(np.linalg.eigvalsh(moments.gram) > 0)


@algebra
@given(seed=seeds, size=sizes, outputs=sizes)
def test_the_target_undoes_what_was_done_to_the_input(seed, size, outputs):
    rng, x, weight = data(seed, size, outputs)
    orthogonal, _ = np.linalg.qr(rng.standard_normal((size, size)))
    distortion = orthogonal * rng.uniform(0.5, 2, size)
    moments = sampled(x @ distortion.T + 1, x @ weight.T)
    wanted = target(weight, moments, ridge=1e-13)
    undone = weight @ np.linalg.inv(distortion)
    assert moments.error(undone) < 1e-6
    assert moments.error(wanted) < 1e-4
    by_default = target(weight, moments)
    assert moments.error(by_default) <= moments.error(weight) + 1e-9


@algebra
@given(seed=seeds, size=st.integers(2, 6), outputs=sizes)
def test_the_target_is_the_best_there_is_where_a_channel_is_lost(seed, size, outputs):
    rng, x, weight = data(seed, size, outputs)
    seen = x.copy()
    seen[:, 0] = rng.standard_normal(len(x))  # noise: what was there cannot be had back
    moments = sampled(seen, x @ weight.T)
    best, *_ = np.linalg.lstsq(seen - seen.mean(axis=0), x @ weight.T, rcond=None)
    least = moments.error(best.T)
    wanted = target(weight, moments, ridge=1e-12)
    assert moments.error(wanted) == pytest.approx(least, rel=1e-4, abs=1e-5)
    assert moments.error(target(weight, moments)) >= least - 1e-9


@algebra
@given(seed=seeds, size=sizes, outputs=sizes)
def test_no_residual_no_change(seed, size, outputs):
    _, x, weight = data(seed, size, outputs)
    gram = sampled(x, x).gram
    moments = Moments(gram, weight @ gram, np.ones(outputs), np.zeros(size), np.zeros(outputs), 40)
    np.testing.assert_array_equal(target(weight, moments), weight)
    np.testing.assert_allclose(target(weight, sampled(x, x @ weight.T)), weight, atol=1e-8)


def test_more_ridge_stays_closer_to_the_weight():
    _, x, weight = data(1, 5, 3)
    moments = sampled(x * 1.5, x @ weight.T)
    moved = [np.linalg.norm(target(weight, moments, r) - weight) for r in (1e-6, 1e-2, 1, 1e3)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.01 * moved[0]


def test_a_dead_input_leaves_the_target_finite():
    _, x, weight = data(2, 4, 3)
    seen = x.copy()
    seen[:, 1:3] = 0
    wanted = target(weight, sampled(seen, x @ weight.T))
    np.testing.assert_array_equal(wanted[:, 1:3], weight[:, 1:3])
    assert np.all(np.isfinite(target(weight, sampled(0 * x, x @ weight.T))))
