"""Timing without a clock: calls of known cost, and the interval's coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from graphopt.cost import latency
from graphopt.cost.latency import (
    QUICK,
    THOROUGH,
    Effort,
    compare_all,
    compare_calls,
    median_interval,
    random_feeds,
)


@pytest.mark.parametrize("count", [9, 15, 31, 101])
@pytest.mark.parametrize("draw", ["normal", "lognormal", "cauchy", "bimodal"])
def test_the_interval_covers_the_median_as_often_as_it_says(count, draw):
    rng = np.random.default_rng(count)
    trials = 2000
    if draw == "bimodal":  # a machine that is now and then disturbed
        samples = rng.normal(1, 0.01, (trials, count)) + 5 * (rng.random((trials, count)) < 0.3)
        # The median of the mixture: a quantile of the undisturbed part.
        median = 1 + 0.01 * 0.5659488219328630
    else:
        samples = {
            "normal": rng.standard_normal,
            "lognormal": lambda size: rng.lognormal(0, 1, size),
            "cauchy": rng.standard_cauchy,
        }[draw]((trials, count))
        median = 1.0 if draw == "lognormal" else 0.0
    bounds = np.array([median_interval(row) for row in samples])
    covered = np.mean((bounds[:, 0] <= median) & (median <= bounds[:, 2]))
    # Coverage is discrete, so at least 95 %; three standard deviations of 2,000 draws are 1.5 %.
    assert 0.935 <= covered <= 0.995


@pytest.mark.parametrize("count", range(6, 202, 5))
def test_the_interval_is_the_narrowest_that_covers_enough(count):
    low, middle, high = median_interval(np.arange(count))
    assert middle == (count - 1) / 2
    assert low + high == count - 1  # symmetric order statistics
    # P(low <= median <= high) = P(at least low + 1 and at most high of n fall below the median)
    below = binom(count, 0.5)
    coverage = below.cdf(high) - below.cdf(low)
    assert coverage >= 0.95
    narrower = below.cdf(high - 1) - below.cdf(low + 1)
    assert narrower < 0.95


@settings(deadline=None, max_examples=50, derandomize=True)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_the_interval_encloses_the_median_of_the_sample_in_any_order(values, seed):
    array = np.array(values)
    low, middle, high = median_interval(array)
    assert min(values) <= low <= middle <= high <= max(values)
    shuffled = np.random.default_rng(seed).permutation(array)
    assert median_interval(shuffled) == (low, middle, high)


def test_more_confidence_is_wider():
    values = np.arange(101.0)
    widths = [
        median_interval(values, c)[2] - median_interval(values, c)[0] for c in (0.5, 0.9, 0.99)
    ]
    assert widths == sorted(set(widths))


class Clock:
    """Stands in for the `time` module: only what calls `spend` passes."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def perf_counter(self):
        return self.now

    def call(self, name, seconds, drift=0.0):
        def spend():
            self.calls.append(name)
            self.now += seconds * (1 + drift * self.now)

        return spend


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    return made


@pytest.mark.parametrize(("before", "after"), [(1e-3, 5e-4), (2e-4, 3e-4), (1e-5, 1e-5)])
@pytest.mark.parametrize("effort", [QUICK, THOROUGH])
def test_calls_of_known_cost(clock, before, after, effort):
    timing = compare_calls(clock.call("a", before), clock.call("b", after), effort)
    assert timing.before_us == pytest.approx(before * 1e6)
    assert timing.after_us == pytest.approx(after * 1e6)
    assert timing.ratio == pytest.approx(after / before)
    assert timing.ratio_low == pytest.approx(timing.ratio_high)
    assert effort.least <= timing.pairs <= effort.most


@pytest.mark.parametrize(
    ("seconds", "pairs"), [(1e-1, 11), (1e-2, 50), (1e-3, 101), (5.0, 11), (1e-6, 101)]
)
def test_the_effort_bounds_the_pairs(clock, seconds, pairs):
    effort = Effort(seconds=1.0, least=11, most=101)
    timing = compare_calls(clock.call("a", seconds), clock.call("b", seconds), effort)
    assert timing.pairs == pytest.approx(pairs, abs=1)
    assert effort.least <= timing.pairs <= effort.most


def test_pairs_are_interleaved_in_turning_order_after_a_warm_up(clock):
    compare_calls(clock.call("a", 1.0), clock.call("b", 1.0), Effort(1.0, least=4, most=4))
    assert "".join(clock.calls) == "aabb" + "ab" + "ba" + "ab" + "ba"


def test_short_calls_are_repeated(clock):
    timing = compare_calls(clock.call("a", 1e-6), clock.call("b", 2e-6), Effort(1.0, 4, 4))
    assert "".join(clock.calls).startswith("aabb" + "a" * 100 + "b" * 100)
    assert clock.calls.count("a") == clock.calls.count("b") == 2 + 4 * 100
    assert timing.after_us == pytest.approx(2.0)


def test_a_drifting_clock_favours_neither(clock):
    # Everything gets slower all the time; the two cost the same.
    before, after = clock.call("a", 1e-3, drift=5.0), clock.call("b", 1e-3, drift=5.0)
    timing = compare_calls(before, after, Effort(1.0, 50, 50))
    assert timing.ratio == pytest.approx(1, abs=1e-4)
    assert timing.ratio_low < 1 < timing.ratio_high


def test_one_call_against_several_all_in_turn(clock):
    calls = [clock.call(name, seconds) for name, seconds in (("b", 0.5), ("c", 0.25))]
    timings = compare_all(clock.call("a", 1.0), calls, Effort(1.0, least=2, most=2))
    assert "".join(clock.calls) == "aabbcc" + "abc" + "cba"
    assert [timing.ratio for timing in timings] == [0.5, 0.25]
    assert [timing.before_us for timing in timings] == [1e6, 1e6]


def test_random_feeds_are_seeded_and_of_the_right_type():
    shapes = {"x": ((2, 3), np.float32), "h": ((4,), np.float16), "i": ((5,), np.int64)}
    one, other = random_feeds(shapes), random_feeds(shapes)
    assert {n: (a.shape, a.dtype) for n, a in one.items()} == {
        n: (s, np.dtype(d)) for n, (s, d) in shapes.items()
    }
    assert np.any(one["x"])
    assert not np.any(one["i"])  # an index that is valid everywhere
    for name in shapes:
        np.testing.assert_array_equal(one[name], other[name])
    assert np.any(random_feeds(shapes, seed=1)["x"] != one["x"])
