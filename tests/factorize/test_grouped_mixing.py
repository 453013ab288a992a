"""Pointwise factors that mix channels only inside equal parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.factorize.grouped_mixing import grouped_mixing, multiplied
from graphopt.factorize.leading import mixing
from graphopt.factorize.polish import polish_mixing


def posed(outputs, parts, width, taps, seed=0):
    """A weight [O, J, K] and the Gram matrix of correlated inputs of different scales."""
    rng = np.random.default_rng(seed)
    size = parts * width * taps
    root = rng.standard_normal((size, size)) * np.geomspace(1, 0.1, size)
    return rng.standard_normal((outputs, parts * width, taps)), root @ root.T / size


def error(weight, made, gram):
    missed = (weight - made).reshape(len(weight), -1)
    return float(np.sum((missed @ gram) * missed))


def factors(fit, rank):
    found = fit.fit.factors(rank)
    return fit.first(found.first), fit.second(found.second)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9)
)
def test_full_rank_is_exact_and_the_error_promised_is_right(outputs, parts, width, taps, seed):
    weight, gram = posed(outputs, parts, width, taps, seed)
    fit = grouped_mixing(weight, gram, parts)
    total = error(weight, np.zeros_like(weight), gram)
    assert fit.fit.full == width
    for rank in range(1, width + 1):
        first, second = factors(fit, rank)
        assert first.shape == (parts * rank, width)
        assert second.shape == (outputs, parts * rank, taps)
        missed = error(weight, multiplied(first, second, parts), gram)
        assert missed == pytest.approx(fit.fit.missed[rank], rel=1e-5, abs=1e-6 * total)
    assert missed <= 1e-6 * total


def test_one_part_is_the_mixing_scheme_itself():
    weight, gram = posed(6, 1, 8, 9)
    fit, plain = grouped_mixing(weight, gram, 1), mixing(weight, gram).factors(3)
    first, second = factors(fit, 3)
    np.testing.assert_array_equal(first, plain.first)
    np.testing.assert_array_equal(second, plain.second)


def test_parts_are_not_mixed():
    """What a part's first factor reads is that part alone."""
    weight, gram = posed(5, 3, 4, 2)
    first, second = factors(grouped_mixing(weight, gram, 3), 2)
    changed = first.copy()
    changed[2:4] = 0.0  # part 1
    difference = multiplied(first, second, 3) - multiplied(changed, second, 3)
    assert np.any(difference[:, 4:8])
    assert not np.any(difference[:, :4])
    assert not np.any(difference[:, 8:])


def test_weights_of_low_rank_in_every_part_are_found():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((3 * 2, 6)), rng.standard_normal((7, 3 * 2, 4))
    weight = multiplied(first, second, 3)
    _, gram = posed(7, 3, 6, 4)
    fit = grouped_mixing(weight, gram, 3)
    assert fit.fit.missed[2] <= 1e-8 * fit.fit.missed[0] < fit.fit.missed[1]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_better_than_parts_that_do_not_know_of_each_other(rank):
    weight, gram = posed(6, 3, 6, 4)
    fit = grouped_mixing(weight, gram, 3)
    apart = []
    for part in range(3):
        index = np.arange(part * 24, part * 24 + 24)
        own = mixing(weight[:, 6 * part : 6 * part + 6], gram[np.ix_(index, index)]).factors(rank)
        apart.append(np.einsum("ork,rj->ojk", own.second, own.first))
    alone = error(weight, np.concatenate(apart, axis=1), gram)
    assert fit.fit.missed[rank] < 0.99 * alone


@pytest.mark.parametrize("rank", [1, 3])
def test_polished_factors_are_no_worse(rank):
    weight, gram = posed(6, 2, 6, 4)
    fit = grouped_mixing(weight, gram, 2)
    found = polish_mixing(fit.fit, rank, fit.weight, fit.gram)
    made = multiplied(fit.first(found.factors.first), fit.second(found.factors.second), 2)
    assert error(weight, made, gram) == pytest.approx(found.missed, rel=1e-6)
    assert found.missed <= fit.fit.missed[rank]
