"""The same share of the multiplications for every layer: the baseline of the benchmarks."""

from __future__ import annotations

from types import SimpleNamespace

from graphopt.planning.choices import Choice, Options
from graphopt.planning.uniform import uniform


def options(layer, *entries):
    """(macs ratio, error) of every choice."""
    return Options(
        layer,
        tuple(Choice(layer, SimpleNamespace(macs_ratio=m), 1.0, e, None) for m, e in entries),
    )


def ratios(plan):
    return {choice.layer: choice.candidate.macs_ratio for choice in plan}


def test_layers_go_down_together():
    plans = uniform(
        [
            options("a", (0.9, 0.01), (0.5, 0.1), (0.2, 0.3)),
            options("b", (0.88, 0.9), (0.48, 0.99), (0.19, 1.0)),
        ]
    )
    assert [ratios(plan) for plan in plans[::2]] == [
        {},
        {"a": 0.9, "b": 0.88},
        {"a": 0.5, "b": 0.48},
        {"a": 0.2, "b": 0.19},
    ]


def test_of_equal_shares_the_better_scheme_is_taken():
    plans = uniform([options("a", (0.5, 0.3), (0.48, 0.1))])
    assert ratios(plans[-1]) == {"a": 0.48}


def test_nothing_on_offer():
    assert uniform([]) == [()]
