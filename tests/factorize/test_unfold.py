from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.factorize.unfold import fold_inputs, relative_error, unfold_inputs

algebra = settings(deadline=None, max_examples=40, derandomize=True)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda channels: st.lists(st.integers(1, 4), min_size=1, max_size=3).map(
        lambda kernel: (*channels, *kernel)
    )
)


@algebra
@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_fold_undoes_unfold(shape, seed):
    weight = np.random.default_rng(seed).standard_normal(shape)
    matrix = unfold_inputs(weight)
    assert matrix.shape == (shape[1], weight.size // shape[1])
    np.testing.assert_array_equal(fold_inputs(matrix, shape[0], shape[2:]), weight)


def test_a_row_holds_all_that_one_input_channel_is_multiplied_with():
    weight = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    matrix = unfold_inputs(weight)
    assert matrix.dtype == np.float64
    for channel in range(3):
        np.testing.assert_array_equal(matrix[channel], weight[:, channel].ravel())


@pytest.mark.parametrize(
    ("exact", "other", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0),
        ([3.0, 4.0], [3.0, 3.0], 0.2),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [1.0, 0.0], math.inf),
    ],
)
def test_relative_error(exact, other, error):
    assert relative_error(np.array(exact), np.array(other)) == pytest.approx(error)


def test_relative_error_of_float16_is_not_computed_in_float16():
    large = np.full((64, 64), 100, np.float16)  # the sum of its squares is 4e7, above 65504
    assert relative_error(large, large * 0.5) == pytest.approx(0.5)
    small = np.full((4, 4), 1e-4, np.float16)  # and here it is 1.6e-7, a subnormal
    assert relative_error(small, small.astype(np.float64) * 0.5) == pytest.approx(0.5)
