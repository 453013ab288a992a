"""The hull of savings over costs, against its definition and scipy's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from graphopt.planning.hull import hull

algebra = settings(deadline=None, max_examples=150, derandomize=True)

costs = st.integers(0, 40).map(lambda n: n / 40)
options = st.lists(st.tuples(costs, st.integers(0, 50).map(float)), max_size=12)


@algebra
@given(table=options, price=st.floats(0.01, 1e4))
def test_at_every_price_the_best_option_is_on_the_hull(table, price):
    def value(option):
        return option[1] - price * option[0]

    best = max([0.0, *map(value, table)])
    assert max([0.0, *(value(table[i]) for i, _ in hull(table))]) == pytest.approx(best, abs=1e-9)


@algebra
@given(table=options)
def test_costs_and_savings_rise_and_gains_fall(table):
    found = hull(table)
    points = [(0.0, 0.0), *(table[i] for i, _ in found)]
    for (before, after), (_, gain) in zip(pairwise(points), found, strict=True):
        assert after[1] > before[1]
        assert after[0] >= before[0]
        if after[0] > before[0]:
            assert gain == pytest.approx((after[1] - before[1]) / (after[0] - before[0]))
    gains = [gain for _, gain in found]
    assert all(a > b for a, b in pairwise(gains))


def test_against_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.uniform(0.05, 1.0, (40, 2))
        corners = {tuple(points[i]) for i, _ in hull([tuple(p) for p in points])}
        # Everything below and to the right is inside once these corners are added.
        most = points[:, 1].max()
        around = np.vstack([points, [[0, 0], [2, 0], [2, most]]])
        upper = {tuple(p) for p in around[ConvexHull(around).vertices] if 0 < p[0] < 2 and p[1] > 0}
        assert upper == corners


def test_what_saves_nothing_is_not_on_it():
    assert hull([]) == []
    assert hull([(0.0, 0.0), (0.5, 0.0)]) == []
    assert [i for i, _ in hull([(0.0, 3.0), (0.1, 3.0)])] == [0]
