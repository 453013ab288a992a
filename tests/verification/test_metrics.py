"""Running sums against numpy at once."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.verification.metrics import OutputDistance, is_float, top1

numbers = st.floats(-1e6, 1e6, width=32)
splits = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@st.composite
def pairs(draw):
    """Two float arrays [N, classes] and a way to cut N into batches."""
    sizes = draw(splits)
    shape = (sum(sizes), draw(st.integers(2, 5)))
    made = [draw(hnp.arrays(np.float32, shape, elements=numbers)) for _ in range(2)]
    if draw(st.booleans()):
        made[1] = made[0]
    return made[0], made[1], np.cumsum(sizes)[:-1]


def accumulated(y, z, cuts) -> OutputDistance:
    distance = OutputDistance()
    for one, two in zip(np.split(y, cuts), np.split(z, cuts), strict=True):
        distance.add(one, two)
    return distance


@given(pairs())
def test_batches_add_up_to_numpy_at_once(case):
    y, z, cuts = case
    found = accumulated(y, z, cuts)
    a, b = y.astype(np.float64), z.astype(np.float64)
    noise, norm = np.sum((a - b) ** 2), np.sum(a**2)
    if norm:
        assert found.relative_l2 == pytest.approx(math.sqrt(noise / norm), rel=1e-9)
    else:
        assert found.relative_l2 == (math.inf if noise else 0.0)
    if noise and norm:
        assert found.sqnr_db == pytest.approx(10 * np.log10(norm / noise), abs=1e-6)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    if norm and np.sum(b**2):
        assert found.cosine == pytest.approx(np.sum(a * b) / lengths, abs=1e-9)
    else:
        assert found.cosine is None
    assert found.max_abs == np.abs(a - b).max()
    assert found.mismatches == np.mean(y != z)
    assert found.top1_agreement == np.mean(y.argmax(1) == z.argmax(1))


@given(pairs())
def test_the_cuts_do_not_matter(case):
    y, z, cuts = case
    one, many = accumulated(y, z, []), accumulated(y, z, cuts)
    assert many.relative_l2 == pytest.approx(one.relative_l2, rel=1e-12)
    assert many.max_abs == one.max_abs
    assert many.mismatches == one.mismatches
    assert many.top1_agreement == one.top1_agreement


@given(pairs(), st.floats(0.01, 100))
def test_the_relative_error_does_not_depend_on_the_scale(case, factor):
    y, z, cuts = case
    a, b = y.astype(np.float64), z.astype(np.float64)
    scaled = accumulated(a * factor, b * factor, cuts).relative_l2
    assert scaled == pytest.approx(accumulated(a, b, cuts).relative_l2, rel=1e-9)


def test_equal_outputs_are_at_no_distance():
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = accumulated(y, y.copy(), [])
    assert (found.relative_l2, found.max_abs, found.mismatches) == (0, 0, 0)
    assert found.sqnr_db == math.inf
    assert found.cosine == pytest.approx(1)


def test_a_difference_from_nothing_is_infinite():
    found = accumulated(np.zeros((2, 3)), np.ones((2, 3)), [])
    assert found.relative_l2 == math.inf
    assert found.sqnr_db == -math.inf


def test_half_precision_does_not_overflow():
    y = np.full((4, 1000), 60000, np.float16)
    assert accumulated(y, y - np.float16(32), []).relative_l2 == pytest.approx(32 / 60000, rel=1e-3)


def test_integers_count_mismatches_only():
    found = accumulated(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 5]]), [])
    assert (found.mismatches, found.relative_l2, found.top1_agreement) == (0.25, 0.0, None)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 2\) instead of \(2, 3\)"):
        OutputDistance().add(np.zeros((2, 3)), np.zeros((3, 2)))


def test_no_elements_at_all():
    found = accumulated(np.zeros((0, 3)), np.zeros((0, 3)), [])
    assert (found.relative_l2, found.max_abs, found.mismatches) == (0, 0, 0)


@pytest.mark.parametrize(
    ("shape", "classifies"),
    [((5, 3), True), ((5, 3, 1, 1), True), ((5, 1), False), ((5,), False), ((5, 3, 2, 2), False)],
)
def test_what_counts_as_a_classification(shape, classifies):
    scores = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = top1(scores)
    assert (found is not None) == classifies
    if classifies:
        assert np.array_equal(found, scores.reshape(5, 3).argmax(1))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("f2", True),
        ("f4", True),
        ("f8", True),
        (ml_dtypes.bfloat16, True),
        ("i8", False),
        ("?", False),
    ],
)
def test_what_counts_as_a_float(dtype, expected):
    assert is_float(np.zeros(3, dtype)) == expected


def test_integers_are_no_classification():
    assert top1(np.zeros((5, 3), int)) is None
