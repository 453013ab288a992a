"""Adding and composing convolutions as arrays, against a convolution written out tap by tap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt.factorize.kernels import Form, Kernel, Window, diagonal, regroup

algebra = settings(deadline=None, max_examples=60, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
windows = st.builds(
    Window, st.integers(1, 4), st.integers(1, 2), st.integers(0, 3), st.integers(0, 3)
)
groups = st.sampled_from([1, 2, 3, 6])


def convolve(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    """x: [6, *sizes] -> [O, *sizes]."""
    form, axes = kernel.form, len(kernel.form.windows)
    padded = np.pad(x, [(0, 0), *((w.before, w.after) for w in form.windows)])
    sizes = [
        w.outputs(n, s) for w, n, s in zip(form.windows, x.shape[1:], form.strides, strict=True)
    ]
    out = np.zeros((form.outputs, *sizes)) + kernel.bias.reshape(-1, *[1] * axes)
    per_in, per_out = form.inputs // form.group, form.outputs // form.group
    for tap in np.ndindex(*form.shape[2:]):
        at = [
            slice(j * w.dilation, j * w.dilation + (n - 1) * s + 1, s)
            for j, w, n, s in zip(tap, form.windows, sizes, form.strides, strict=True)
        ]
        for o in range(form.outputs):
            first = o // per_out * per_in
            seen = padded[(slice(first, first + per_in), *at)]
            out[o] += np.tensordot(kernel.weight[(o, slice(None), *tap)], seen, axes=1)
    return out


def kernel(
    seed: int, window: tuple[Window, ...], group: int, strides: tuple[int, ...], bias: bool = True
) -> Kernel:
    rng = np.random.default_rng(seed)
    form = Form(6, 6, group, strides, window)
    return Kernel(form, rng.normal(size=form.shape), rng.normal(size=6) * bias)


def picture(seed: int, axes: int, size: int = 9) -> np.ndarray:
    return np.random.default_rng(seed + 1).normal(size=(6, *[size] * axes))


@algebra
@given(seeds, windows, st.integers(1, 3))
def test_the_size_of_an_output(seed: int, window: Window, stride: int) -> None:
    size = 12
    span = window.dilation * (window.taps - 1) + 1
    starts = range(0, size + window.before + window.after - span + 1, stride)
    assert window.outputs(size, stride) == len(starts)
    assert window.outputs(size, 1) == size + window.growth


@algebra
@given(seeds, groups, groups, st.data())
def test_the_sum_of_two(seed: int, one: int, other: int, data: st.DataObject) -> None:
    """Windows of every place: whatever can be joined gives the sum of both outputs."""
    axes = data.draw(st.integers(1, 2))
    strides = tuple(data.draw(st.integers(1, 2)) for _ in range(axes))
    size = data.draw(st.sampled_from([None, 9, 10]))
    pairs = [data.draw(agreeing(stride, size)) for stride in strides]
    a = kernel(seed, tuple(first for first, _ in pairs), one, strides)
    b = kernel(seed + 5, tuple(second for _, second in pairs), other, strides)
    form = a.form.join(b.form, [size] * axes)
    assume(not isinstance(form, str))
    x = picture(seed, axes, size or 11)
    whole = a.plus(b, form, (1, -1))
    assert whole.weight.shape == form.shape
    np.testing.assert_allclose(convolve(whole, x), convolve(a, x) - convolve(b, x), atol=1e-10)


@st.composite
def agreeing(draw: st.DrawFn, stride: int, size: int | None) -> tuple[Window, Window]:
    """Two windows that often have equally long outputs."""
    first, taps = draw(windows), draw(st.integers(1, 4))
    dilation = first.dilation if first.taps > 1 else draw(st.integers(1, 2))
    before = draw(st.integers(0, 3))
    after = (
        first.growth + dilation * (taps - 1) - before + draw(st.integers(0, int(size is not None)))
    )
    return first, Window(taps, dilation, before, max(after, 0))


@algebra
@given(
    seeds, st.lists(windows, min_size=1, max_size=2), groups, groups, st.booleans(), st.booleans()
)
def test_one_after_the_other(
    seed: int, shape: list[Window], one: int, other: int, pointwise_first: bool, bias: bool
) -> None:
    axes = len(shape)
    ones, strides = (1,) * axes, (2,) * axes
    point = kernel(seed, (Window(),) * axes, one, ones, bias=bias)
    spatial = kernel(seed + 9, tuple(shape), other, strides)
    first, second = (point, spatial) if pointwise_first else (spatial, point)
    whole = first.then(second)
    padded = any(w.before or w.after for w in shape)
    if pointwise_first and bias and padded:
        assert whole == "a bias before a padded kernel"
        return
    assert isinstance(whole, Kernel)
    assert whole.form == first.form.then(second.form)
    x = picture(seed, axes)
    np.testing.assert_allclose(convolve(whole, x), convolve(second, convolve(first, x)), atol=1e-10)


@algebra
@given(seeds, st.sampled_from([(6, 3), (6, 2), (6, 1), (2, 1), (3, 1), (3, 3)]))
def test_fewer_groups_compute_the_same(seed: int, change: tuple[int, int]) -> None:
    group, target = change
    before = kernel(seed, (Window(3, 1, 1, 1),), group, (1,))
    form = Form(6, 6, target, (1,), before.form.windows)
    after = Kernel(form, regroup(before.weight, group, target), before.bias)
    x = picture(seed, 1)
    np.testing.assert_allclose(convolve(after, x), convolve(before, x), atol=1e-12)


def test_a_diagonal_scales_channels() -> None:
    scale = np.arange(6.0)
    x = picture(0, 2)
    np.testing.assert_allclose(convolve(diagonal(scale, 2), x), scale.reshape(-1, 1, 1) * x)


def test_fully_connected_layers_have_no_axes() -> None:
    rng = np.random.default_rng(0)
    form = Form(6, 6, 1, (), ())
    a, b = (Kernel(form, rng.normal(size=(6, 6)), rng.normal(size=6)) for _ in range(2))
    whole = a.then(b)
    assert isinstance(whole, Kernel)
    np.testing.assert_allclose(whole.weight, b.weight @ a.weight)
    np.testing.assert_allclose(whole.bias, b.weight @ a.bias + b.bias)
    np.testing.assert_allclose(a.plus(b, form).weight, a.weight + b.weight)


@pytest.mark.parametrize(
    ("one", "other", "size", "reason"),
    [
        (Window(3, 1, 1, 1), Window(3, 2, 2, 2), None, "different dilations"),
        (Window(3, 2, 1, 3), Window(1, 1, 0, 0), None, "between one another's taps"),
        (Window(3, 1, 1, 1), Window(1, 1, 0, 1), None, "pads of the branches"),
        (Window(3, 1, 1, 0), Window(1, 1, 0, 0), 9, "pads of the branches"),
    ],
)
def test_windows_that_cannot_be_joined(
    one: Window, other: Window, size: int | None, reason: str
) -> None:
    found = one.join(other, 2, size)
    assert isinstance(found, str)
    assert reason in found


def test_a_smaller_kernel_lies_where_the_pads_say() -> None:
    large, small = Window(5, 2, 4, 4), Window(3, 2, 4, 0)
    assert large.join(small, 1, None) == large
    assert small.place(large) == slice(0, 3)
    assert Window(1, 1, 0, 0).place(large) == slice(2, 3)


def test_equal_numbers_stay_one_number() -> None:
    """Two generated weights of 4 GB together are still generated."""
    form = Form(2**15, 2**15, 1, (1,), (Window(),))
    weight = np.broadcast_to(np.float32(0.5), form.shape)
    made = Kernel(form, weight, np.zeros(2**15))
    whole = made.plus(made, form, (1, 1))
    assert not any(whole.weight.strides)
    assert whole.weight.flat[0] == 1.0
