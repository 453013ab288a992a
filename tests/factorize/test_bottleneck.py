from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.factorize.bottleneck import InputSpectrum, spectrum_values, tail_error

algebra = settings(deadline=None, max_examples=40, derandomize=True)


@st.composite
def weights(draw):
    """Convolution weights [O, C, *kernel] of 1-D to 3-D kernels, some with a decaying spectrum."""
    outputs, inputs = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.standard_normal((outputs, inputs, *kernel))
    decay = draw(st.sampled_from([0.0, 1.0, 5.0]))
    fading = np.exp(-decay * np.arange(inputs)).reshape(1, -1, *(1,) * len(kernel))
    return weight * fading * 10.0 ** draw(st.integers(-8, 8))


def composed(factors):
    """What a 1x1 convolution and the one behind it make: sum over r of B[o, r, u] A[r, c]."""
    reduce = factors.reduce.reshape(factors.reduce.shape[:2])
    return np.einsum("or...,rc->oc...", factors.expand, reduce)


def distance(exact, other):
    return float(np.linalg.norm(exact - other) / np.linalg.norm(exact))


@algebra
@given(weight=weights())
def test_full_rank_reproduces_the_weight(weight):
    spectrum = InputSpectrum.of(weight)
    factors = spectrum.factors(len(spectrum.values))
    assert distance(weight, composed(factors)) < 1e-12
    assert spectrum.error(len(spectrum.values)) == 0


@algebra
@given(weight=weights(), data=st.data())
def test_factors_have_the_shapes_of_two_convolutions(weight, data):
    spectrum = InputSpectrum.of(weight)
    rank = data.draw(st.integers(1, len(spectrum.values)))
    factors = spectrum.factors(rank)
    ones = (1,) * (weight.ndim - 2)
    assert factors.reduce.shape == (rank, weight.shape[1], *ones)
    assert factors.expand.shape == (weight.shape[0], rank, *weight.shape[2:])


@algebra
@given(weight=weights())
def test_reported_error_is_the_error_of_the_factors_at_every_rank(weight):
    spectrum = InputSpectrum.of(weight)
    for rank in range(1, len(spectrum.values) + 1):
        measured = distance(weight, composed(spectrum.factors(rank)))
        assert spectrum.error(rank) == pytest.approx(measured, rel=1e-6, abs=1e-12)
        assert tail_error(spectrum.values, rank) == spectrum.error(rank)


@algebra
@given(weight=weights())
def test_error_is_that_of_the_truncated_svd_and_falls_with_the_rank(weight):
    # The unfolding written out again, and numpy's SVD: Eckart & Young's optimum.
    matrix = np.stack([weight[:, c].ravel() for c in range(weight.shape[1])])
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    spectrum = InputSpectrum.of(weight)
    errors = [spectrum.error(rank) for rank in range(len(values) + 1)]
    for rank, error in enumerate(errors):
        truncated = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert error == pytest.approx(distance(matrix, truncated), rel=1e-6, abs=1e-12)
    assert errors[0] == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(errors))


@algebra
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 7), dtype=st.sampled_from("efd"))
def test_a_weight_of_low_rank_is_recognised(seed, rank, dtype):
    rng = np.random.default_rng(seed)
    weight = np.einsum(
        "oruv,rc->ocuv", rng.standard_normal((6, rank, 3, 3)), rng.standard_normal((rank, 8))
    ).astype(dtype)
    rounding = {"e": 2e-3, "f": 1e-6, "d": 1e-12}[dtype]
    spectrum = InputSpectrum.of(weight)
    assert spectrum.error(rank) < rounding
    assert spectrum.error(rank - 1) > 100 * spectrum.error(rank)
    # The cheap spectrum, from the Gram matrix, is exact to 1e-8 of the largest value only.
    assert tail_error(spectrum_values(weight), rank) < max(rounding, 1e-6)


@algebra
@given(weight=weights())
def test_cheap_spectrum_agrees_with_the_decomposition(weight):
    values = InputSpectrum.of(weight).values
    cheap = spectrum_values(weight)
    assert np.all(np.diff(cheap) <= 0)
    np.testing.assert_allclose(cheap[: len(values)], values, rtol=1e-6, atol=1e-7 * values[0])
    assert np.all(cheap[len(values) :] <= 1e-7 * values[0])


def test_a_rank_beyond_the_largest_gives_the_largest():
    weight = np.random.default_rng(0).standard_normal((1, 12, 3))  # rank at most 3
    factors = InputSpectrum.of(weight).factors(8)
    assert factors.reduce.shape == (3, 12, 1)
    assert factors.expand.shape == (1, 3, 3)
    assert distance(weight, composed(factors)) < 1e-12


def test_the_factors_share_the_scale():
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)) * 1e6
    factors = InputSpectrum.of(weight).factors(8)
    assert np.linalg.norm(factors.reduce) == pytest.approx(np.linalg.norm(factors.expand))


def test_a_weight_of_zeros_has_no_error():
    weight = np.zeros((4, 4, 3, 3), np.float32)
    spectrum = InputSpectrum.of(weight)
    assert [spectrum.error(rank) for rank in range(5)] == [0] * 5
    assert tail_error(spectrum_values(weight), 1) == 0
    assert not np.any(composed(spectrum.factors(2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(bad):
    weight = np.ones((2, 2, 3, 3))
    weight[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="infs or NaNs"):
        InputSpectrum.of(weight)


def test_the_input_is_left_alone():
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3))
    kept = weight.copy()
    InputSpectrum.of(weight).factors(2)
    spectrum_values(weight)
    np.testing.assert_array_equal(weight, kept)
