"""Looking for the budget along a curve that is only roughly known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.planning.guided import Curve, curve, settle
from graphopt.planning.search import sequence

algebra = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def many(make_options, count):
    """The empty plan and so many more, each of one more layer, all of the same squared error."""
    plans = sequence(make_options({f"layer{i:03}": [(1000.0 - i, 0.1)] for i in range(count)}))
    assert [len(plan) for plan in plans] == list(range(count + 1))
    return plans


def reached(plans, used):
    return curve(plans, used).reach(1.0)


@algebra
@given(
    count=st.integers(1, 120),
    where=st.floats(0.02, 1.4),
    power=st.sampled_from([1.0, 2.0]),
)
def test_reach_of_a_smooth_curve(make_options, count, where, power):
    """Without noise: within the distance of two measured points of the truth, and not beyond it."""
    plans = many(make_options, count)
    true = where * count
    asked = []

    def measure(plan):
        asked.append(len(plan))
        return (len(plan) / true) ** power

    found = reached(plans, measure)
    apart = math.ceil(count / 12)
    wanted = min(int(true), count)
    assert wanted - apart <= found <= wanted + apart
    assert len(asked) <= 12
    assert asked == sorted(set(asked))
    assert asked[0] > 0


def test_reach_of_noisy_curves(make_options):
    """A drop that goes up and down by chance: the trend decides, not the first exception."""
    plans = many(make_options, 96)
    found = []
    for seed in range(60):
        noise = 0.15 * np.random.default_rng(seed).standard_normal(97)
        found.append(reached(plans, lambda plan, n=noise: len(plan) / 48 + n[len(plan)]))
    off = np.abs(np.array(found) - 48)
    assert np.mean(off) < 8
    assert np.max(off) <= 24
    assert abs(np.mean(found) - 48) < 5


def test_one_dip_does_not_move_the_crossing_much(make_options):
    plans = many(make_options, 96)

    def measure(plan):
        return 1.02 if len(plan) == 16 else len(plan) / 64

    assert 40 <= reached(plans, measure) <= 64


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_reach_where_nothing_can_be_measured(make_options, bad):
    plans = many(make_options, 24)
    assert reached(plans, lambda plan: bad) == 0
    found = reached(plans, lambda plan: 0.1 if len(plan) <= 12 else bad)
    assert 12 <= found <= 14


def test_reach_at_the_ends(make_options):
    plans = many(make_options, 7)
    assert reached(plans, lambda plan: 0.0) == 7
    assert reached(plans, lambda plan: -0.2) == 7, "a drop below zero is a gain"
    assert reached(plans, lambda plan: 1.0) == 7, "a limit that is met exactly is kept"
    assert reached(plans, lambda plan: 9.0) == 0
    assert reached([()], lambda plan: 0.0) == 0


def straight(count):
    """A curve that expects the budget to be used up half-way."""
    counts = np.arange(count + 1)
    return Curve(counts, 2 * counts / max(count, 1))


@algebra
@given(
    count=st.integers(1, 120),
    limit=st.floats(0, 1.2),
    power=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
)
def test_settle_finds_the_end_of_the_budget(make_options, count, limit, power):
    """Whatever the true curve looks like: to one part in 32 (and a step), in eight measurements."""
    plans, asked = many(make_options, count), []
    most = max((k for k in range(count + 1) if k <= limit * count), default=0)

    def used(plan):
        return (len(plan) / max(limit * count, 1e-6)) ** power

    def fits(plan):
        asked.append(len(plan))
        return len(plan) <= most

    found = settle(plans, straight(count), fits, used, used)
    assert found <= most
    assert found == 0 or found in asked
    assert len(asked) <= 8
    if power in (1.0, 2.0):
        assert found >= most - 2 - count // 16


@algebra
@given(count=st.integers(0, 60), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_settle_never_returns_what_does_not_fit(make_options, count, seed, share):
    rng, answers = random.Random(seed), {}
    plans = many(make_options, count)

    def fits(plan):
        return answers.setdefault(len(plan), rng.random() < share)

    found = settle(
        plans, straight(count), fits, lambda plan: rng.random() * 2, lambda plan: rng.random() * 2
    )
    assert 0 <= found <= count
    assert found == 0 or answers[found]


def test_a_plan_turned_down_by_chance_is_not_the_end(make_options):
    """The estimate says that 24 of 48 layers use up the budget; the count of hits says no at 24."""
    plans = many(make_options, 48)
    found = settle(
        plans,
        straight(48),
        lambda plan: len(plan) < 23,
        lambda plan: len(plan) / 22.9,
        lambda plan: len(plan) / 24,
    )
    assert 20 <= found < 23


@pytest.mark.parametrize("excess", [1.0, 2.0])
def test_a_count_that_goes_up_and_down_by_chance(make_options, excess):
    """The count is off by a fifth of the budget: most searches end near where its mean is used up."""
    plans, found = many(make_options, 96), []
    best = 48 / excess
    for seed in range(40):
        noise = 0.2 * np.random.default_rng(seed).standard_normal(97)
        asked = set()

        def counted(plan, noise=noise, asked=asked):
            asked.add(len(plan))
            return excess * len(plan) / 48 + noise[len(plan)]

        def fits(plan, counted=counted):
            return max(counted(plan), len(plan) / 48) <= 1

        found.append(
            settle(
                plans,
                straight(96),
                fits,
                lambda plan, counted=counted: max(counted(plan), len(plan) / 48),
                lambda plan: len(plan) / 48,
            )
        )
        assert found[-1] == 0 or fits(plans[found[-1]])
        assert len(asked) <= 8
    assert np.mean(found) >= 0.85 * best
    assert np.quantile(found, 0.1) >= 0.6 * best


def test_a_curve_that_is_too_careful_is_corrected(make_options):
    """Plans fitted as a whole use a third of what was expected."""
    plans, asked = many(make_options, 60), []

    def fits(plan):
        asked.append(len(plan))
        return len(plan) <= 90 // 2

    found = settle(
        plans, straight(60), fits, lambda plan: len(plan) / 45, lambda plan: len(plan) / 45
    )
    assert 43 <= found <= 45
    assert len(asked) <= 4


def test_settle_measures_no_more_than_it_may(make_options):
    plans, asked = many(make_options, 40), []

    def fits(plan):
        asked.append(len(plan))
        return len(plan) <= 13

    found = settle(plans, straight(40), fits, lambda p: len(p) / 30, lambda p: len(p) / 30, most=2)
    assert len(asked) <= 2
    assert found <= 13
