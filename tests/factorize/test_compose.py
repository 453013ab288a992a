from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt.factorize.compose import (
    Window,
    borders_agree,
    cancellation,
    compose_bias,
    compose_kernels,
    compose_windows,
    rounded,
    swap_channels,
)

algebra = settings(deadline=None, max_examples=60, derandomize=True)
small = st.integers(1, 3)
padding = st.integers(0, 3)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def correlate(x, weight, window, group=1):
    """A 1-D convolution as the operator defines it: x [C, size], weight [O, C/g, k] -> [O, size']."""
    begin, end = window.pads
    padded = np.pad(x, ((0, 0), (begin, end)))
    (k,), (s,), (d,) = window.kernel, window.strides, window.dilations
    size = (padded.shape[1] - window.spans[0] - 1) // s + 1
    outputs, inputs = weight.shape[0] // group, weight.shape[1]
    y = np.zeros((weight.shape[0], size))
    for o in range(weight.shape[0]):
        part = padded[o // outputs * inputs :][:inputs]
        for p in range(size):
            y[o, p] = np.sum(part[:, p * s : p * s + d * (k - 1) + 1 : d] * weight[o])
    return y


@st.composite
def windows(draw, pads=padding):
    return Window((draw(small),), (draw(small),), (draw(small),), (draw(pads), draw(pads)))


@algebra
@given(first=windows(), second=windows(pads=st.just(0)), size=st.integers(9, 14))
def test_without_pads_in_between(first, second, size):
    w1, w2, x = normal(1, 4, 2, *first.kernel), normal(2, 3, 4, *second.kernel), normal(3, 2, size)
    middle = correlate(x, w1, first)
    assume(middle.shape[1] > second.spans[0])
    bias = normal(4, 4)
    want = correlate(middle + bias[:, None], w2, second)
    weight = compose_kernels(w1, w2, (1, 1), (first, second))
    got = correlate(x, weight, compose_windows(first, second))
    got = got + compose_bias(bias, None, w2, 1)[:, None]
    np.testing.assert_allclose(got, want, atol=1e-12)


@settings(algebra, max_examples=300)
@given(first=windows(), second=windows(), size=st.integers(5, 12))
def test_borders_agree_exactly_where_it_says_so(first, second, size):
    """Where it says no, there is a size at which the values at the border differ."""

    def difference(size):
        w1, w2 = normal(1, 3, 2, *first.kernel), normal(2, 3, 3, *second.kernel)
        x = normal(3, 2, size)
        want = correlate(correlate(x, w1, first), w2, second)
        weight = compose_kernels(w1, w2, (1, 1), (first, second))
        got = correlate(x, weight, compose_windows(first, second))
        assert got.shape == want.shape
        return np.max(np.abs(got - want), initial=0.0)

    longest = first.spans[0] + first.strides[0] * second.spans[0]
    if borders_agree(first, second):
        assert difference(size + longest) < 1e-12
    else:
        sizes = range(longest + 1, longest + 1 + 2 * first.strides[0] * second.strides[0])
        reads_border = any(difference(n) > 1e-9 for n in sizes)
        # A stride may step over the border, or a hole of the second lie on it.
        assert reads_border or max(first.strides[0], *second.strides, *second.dilations) > 1


def test_a_common_dilation_is_found():
    dense = Window.plain((1, 1))
    wide = Window((3, 2), (1, 2), (2, 3), (0, 0, 0, 0))
    assert compose_windows(dense, wide) == wide
    both = compose_windows(wide, Window((3, 2), (1, 1), (4, 1), (1, 2, 3, 4)))
    assert both.dilations == (2, 1)  # taps at 0 2 4 and 0 4 8; at 0 3 and 0 2
    assert both.kernel == (7, 6)
    assert both.pads == (1, 4, 3, 8)


def direct_groups(first, second, groups):
    """W[o, c] = sum of W2[o, m] W1[m, c] over the m that connect them, as dense matrices."""

    def dense(weight, group, inputs):
        out = np.zeros((weight.shape[0], inputs))
        rows, cols = weight.shape[0] // group, weight.shape[1]
        for o in range(weight.shape[0]):
            out[o, o // rows * cols :][:cols] = weight[o, :, 0]
        return out

    one = dense(first, groups[0], first.shape[1] * groups[0])
    return dense(second, groups[1], len(first)) @ one


@algebra
@given(
    groups=st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 3, 4, 6, 12])),
    wide=small,
)
def test_groups_become_their_greatest_common_divisor(groups, wide):
    first, second = (
        normal(1, 12 * wide, 12 // groups[0], 1),
        normal(2, 12, 12 * wide // groups[1], 1),
    )
    whole = direct_groups(first, second, groups)
    plain = Window.plain((1,))
    weight = compose_kernels(first, second, groups, (plain, plain))
    g = math.gcd(*groups)
    assert weight.shape == (12, 12 // g, 1)
    for block in range(g):
        rows = slice(block * 12 // g, (block + 1) * 12 // g)
        np.testing.assert_allclose(weight[rows, :, 0], whole[rows, rows], atol=1e-12)
        whole[rows, rows] = 0
    np.testing.assert_array_equal(whole, 0)  # nothing lies outside the blocks


def test_bias_by_group():
    weight, first, last = normal(1, 6, 2, 3), normal(2, 4), normal(3, 6)
    carried = compose_bias(first, last, weight, 2)
    summed = weight.sum(axis=2)
    want = np.concatenate([summed[:3] @ first[:2], summed[3:] @ first[2:]]) + last
    np.testing.assert_allclose(carried, want)
    assert compose_bias(None, None, weight, 2) is None
    np.testing.assert_array_equal(compose_bias(None, last, weight, 2), last)


def test_repeated_numbers_stay_repeated_where_they_are():
    plain = Window.plain((1,))
    first = np.broadcast_to(np.float32(0.5), (1 << 14, 1 << 14, 1))
    second = np.broadcast_to(np.float32(0.25), (1 << 14, 1 << 14, 1))
    weight = compose_kernels(first, second, (1, 1), (plain, plain))
    assert weight.shape == first.shape
    assert not any(weight.strides)
    assert weight.flat[0] == 0.125 * (1 << 14)
    wide = Window.plain((2,))
    two = np.broadcast_to(np.float32(1), (2, 2, 2))
    overlapping = compose_kernels(two, two, (1, 1), (wide, wide))
    np.testing.assert_array_equal(overlapping, np.broadcast_to([2.0, 4.0, 2.0], (2, 2, 3)))


@pytest.mark.parametrize(
    ("first", "second", "groups", "want"),
    [
        ((4, 1, 1), (4, 2, 1), (4, 2), np.ones((4, 2, 1))),
        ((4, 2, 1), (3, 4, 1), (2, 1), np.full((3, 4, 1), 2.0)),
    ],
)
def test_repeated_numbers_in_groups_that_differ(first, second, groups, want):
    """Fewer channels in between connect an output with an input than the second one reads."""
    plain = Window.plain((1,))
    one, two = (np.broadcast_to(np.float32(1), shape) for shape in (first, second))
    np.testing.assert_array_equal(compose_kernels(one, two, groups, (plain, plain)), want)


def test_cancellation():
    first, second = normal(1, 64, 8), normal(2, 8, 64)
    assert 4 < cancellation(first, second, second @ first) < 16
    assert cancellation(first, second, np.zeros((8, 8))) == np.inf
    assert cancellation(np.zeros((64, 8)), second, np.zeros((8, 8))) == 1.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounded(dtype):
    array = normal(1, 3, 4)
    np.testing.assert_array_equal(rounded(array, dtype), array.astype(dtype))
    repeated = rounded(np.broadcast_to(np.float64(1e300), (1 << 15, 1 << 15)), dtype)
    assert repeated.dtype == dtype
    assert not any(repeated.strides)
    assert np.isinf(repeated.flat[0]) == (dtype is not np.float64)


@algebra
@given(group=small, inputs=small, outputs=small)
def test_swapping_channels_twice(group, inputs, outputs):
    weight = normal(1, group * inputs, outputs, 2)
    swapped = swap_channels(weight, group)
    assert swapped.shape == (group * outputs, inputs, 2)
    np.testing.assert_array_equal(swap_channels(swapped, group), weight)
    np.testing.assert_array_equal(swapped[-1, 0], weight[-inputs, -1])
