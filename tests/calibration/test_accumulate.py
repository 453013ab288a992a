"""Streaming moments against numpy on everything at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.calibration.accumulate import Accumulator


def at_once(x, y):
    """Means, centred Gram and cross moments and energy, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = x.mean(axis=0), y.mean(axis=0)
    cx, cy = x - mx, y - my
    return mx, my, cx.T @ cx / len(x), cy.T @ cx / len(x), (cy**2).mean(axis=0)


def of(x, y, cuts=()):
    accumulator = Accumulator(x.shape[1], y.shape[1])
    for a, b in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
        accumulator.add(a, b, samples=2)
    return accumulator


def check(moments, x, y, rtol=1e-5, atol=1e-5):
    fields = ("mean_input", "mean_output", "gram", "cross", "energy")
    for name, wanted in zip(fields, at_once(x, y), strict=True):
        found = getattr(moments, name)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol, err_msg=name)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 200),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    width=st.integers(1, 9),
    outputs=st.integers(1, 5),
    offset=st.sampled_from([0.0, 1.0, -20.0]),
)
def test_batches_add_up_to_everything_at_once(seed, count, cuts, width, outputs, offset):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((count, width)) @ rng.standard_normal((width, width))) + offset
    y = x @ rng.standard_normal((width, outputs)) + 0.1 * rng.standard_normal((count, outputs))
    x, y = x.astype(np.float32), y.astype(np.float32)
    cuts = sorted(min(cut, count) for cut in cuts)
    accumulator = of(x, y, cuts)
    check(accumulator.moments(), x, y, rtol=1e-4, atol=2e-4 * max(1.0, offset**2 / 10))
    assert accumulator.count == count
    assert accumulator.moments().samples == 2 * (len(cuts) + 1)


def test_sums_do_not_wear_out():
    """Sums in float32 would lose a thousandth of these."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.9, 1.1, (20_000, 3)).astype(np.float32)
    y = x[:, :2] * np.float32(7)
    check(of(x, y, range(100, 20_000, 100)).moments(), x, y, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("offset", [100.0, 3000.0])
def test_channels_far_from_zero_keep_their_moments(offset):
    """The moments around zero are `offset ** 2` times as large: float32 would leave only noise."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6000, 20)).astype(np.float32)
    x[:, :5] += np.float32(offset)
    x[:, 5] = offset  # never varies at all
    y = np.stack([x[:, 0] - x[:, 1], x[:, 7]], axis=1)
    moments = of(x, y, (1000, 3000)).moments()
    check(moments, x, y, rtol=1e-3, atol=1e-4)
    assert moments.gram[5, 5] == pytest.approx(0, abs=1e-9)
    assert np.linalg.eigvalsh(moments.shrunk().gram).min() > 0


def test_moments_are_symmetric_and_energies_not_negative():
    rng = np.random.default_rng(1)
    x = np.tile(rng.standard_normal(6).astype(np.float32), (50, 1))
    y = np.full((50, 2), 0.3, np.float32)
    moments = of(x, y, (7, 20)).moments()
    assert np.array_equal(moments.gram, moments.gram.T)
    assert np.all(moments.energy >= 0)
    np.testing.assert_allclose(moments.mean_input, x[0], rtol=1e-6)
    np.testing.assert_allclose(moments.mean_output, y[0], rtol=1e-6)


def test_memory_does_not_grow_with_the_batches():
    def numbers(accumulator):
        return sum(v.size for v in vars(accumulator).values() if isinstance(v, np.ndarray))

    rng = np.random.default_rng(0)
    accumulator, sizes = Accumulator(12, 5), set()
    for _ in range(50):
        x = rng.standard_normal((300, 12)).astype(np.float32)
        accumulator.add(x, x[:, :5], 1)
        sizes.add(numbers(accumulator))
        arrays = [v for v in vars(accumulator).values() if isinstance(v, np.ndarray)]
        assert all(v.base is None for v in arrays), "a view would keep a whole batch alive"
    assert len(sizes) == 1
    assert max(sizes) <= 12 * 12 + 5 * 12 + 4 * (12 + 5)


def test_what_is_added_is_not_changed():
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    Accumulator(3, 2).add(x, y, 1)
    assert np.all(x == 1)
    assert np.all(y == 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 4)).astype(dtype)
    check(of(x, x[:, :2], (11,)).moments(), x, x[:, :2])


def test_nothing_seen():
    accumulator = Accumulator(3, 2)
    accumulator.add(np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32), 1)
    with pytest.raises(ValueError, match="no samples"):
        accumulator.moments()
