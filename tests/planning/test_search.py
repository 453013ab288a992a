"""The search against brute force over all plans of small random menus."""

from __future__ import annotations

import random
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.planning.search import (
    _APART,
    _GRID,
    prefix,
    reaching,
    saved_us,
    sequence,
    squared_error,
    within,
)

algebra = settings(deadline=None, max_examples=150, derandomize=True)

entries = st.tuples(st.integers(1, 40).map(float), st.integers(1, 30).map(lambda n: n / 30))
tables = st.lists(st.lists(entries, min_size=1, max_size=5), min_size=1, max_size=4).map(
    lambda rows: {f"layer{i}": row for i, row in enumerate(rows)}
)


def every_plan(options):
    """All plans: for each layer one of its choices, or none."""
    for picks in product(*[(None, *option.choices) for option in options]):
        yield tuple(choice for choice in picks if choice is not None)


@algebra
@given(table=tables, multiplier=st.floats(0.01, 1e4))
def test_every_optimum_of_the_lagrangian_is_in_the_sequence(make_options, table, multiplier):
    options = make_options(table)

    def value(plan):
        return saved_us(plan) - multiplier * squared_error(plan)

    best = max(map(value, every_plan(options)))
    assert max(map(value, sequence(options))) == pytest.approx(best, rel=1e-9, abs=1e-9)


@algebra
@given(table=tables)
def test_no_plan_beats_one_of_the_sequence_in_both(make_options, table):
    """By more than the grid of the dynamic program, which rounds the error of every layer up."""
    options = make_options(table)
    grain = len(table) / _GRID
    for plan in sequence(options):
        for other in every_plan(options):
            cheaper = squared_error(other) < squared_error(plan) * (1 - 2 * grain) - 1e-12
            assert not (saved_us(other) > saved_us(plan) and cheaper)


@algebra
@given(table=tables)
def test_plans_save_ever_more(make_options, table):
    plans = sequence(make_options(table))
    assert plans[0] == ()
    assert all(saved_us(one) < saved_us(other) for one, other in pairwise(plans))
    fastest = sum(max(saved for saved, _ in row) for row in table.values())
    assert saved_us(plans[-1]) == pytest.approx(fastest)
    for plan in plans:
        assert [choice.layer for choice in plan] == sorted({choice.layer for choice in plan})


@algebra
@given(table=tables, wanted=st.floats(0.01, 3))
def test_near_any_error_the_sequence_has_the_best_plan(make_options, table, wanted):
    """Whatever squared error is allowed: as good as the best plan for a little less."""
    options = make_options(table)
    offered = [plan for plan in sequence(options) if squared_error(plan) <= wanted]
    less = wanted / _APART**2 * (1 - len(table) / _GRID)
    lowest = min(error for row in table.values() for _, error in row) ** 2
    if less < max(lowest, wanted / 50):
        return
    best = max(saved_us(plan) for plan in every_plan(options) if squared_error(plan) <= less)
    assert max(map(saved_us, offered)) >= best - 1e-9


@algebra
@given(table=tables, seed=st.integers(0, 99))
def test_the_order_of_the_menus_does_not_matter(make_options, table, seed):
    shuffle = random.Random(seed).sample
    other = {
        layer: shuffle(row, len(row)) for layer, row in shuffle(list(table.items()), len(table))
    }

    def shown(plans):
        return [(saved_us(plan), pytest.approx(squared_error(plan))) for plan in plans]

    assert shown(sequence(make_options(table))) == shown(sequence(make_options(other)))


def pairs(plan):
    return {choice.layer: (choice.saved_us, choice.error) for choice in plan}


def test_what_costs_nothing_comes_first(make_options):
    plans = sequence(
        make_options({"a": [(1.0, 0.0), (50.0, 0.1)], "b": [(90.0, 0.01)], "c": [(2.0, 0.0)]})
    )
    assert pairs(plans[1]) == {"c": (2.0, 0.0)}
    assert pairs(plans[2]) == {"a": (1.0, 0.0), "c": (2.0, 0.0)}


def test_a_worked_example(make_options):
    # Squared errors 1, 4, 9 save 10, 12, 30: the second lies below the line from the first
    # to the third, which the Lagrangian never takes; the knapsack does.
    plans = sequence(make_options({"a": [(12.0, 2.0), (30.0, 3.0), (10.0, 1.0), (9.0, 1.5)]}))
    assert [saved_us(plan) for plan in plans] == [0, 10, 12, 30]


def test_the_last_step_may_be_taken_back(make_options):
    # Half an error apart: b1 on its own, then a2 without b1, then both.
    plans = sequence(make_options({"a": [(20.0, 2.0)], "b": [(8.0, 1.0)]}))
    assert [pairs(plan) for plan in plans] == [
        {},
        {"b": (8.0, 1.0)},
        {"a": (20.0, 2.0)},
        {"a": (20.0, 2.0), "b": (8.0, 1.0)},
    ]


@algebra
@given(table=tables, budget=st.floats(0, 3))
def test_within_a_monotone_budget_nothing_shorter_is_better(make_options, table, budget):
    plans = sequence(make_options(table))
    asked = []

    def fits(plan):
        asked.append(plan)
        return squared_error(plan) <= budget

    found = within(plans, fits, "max_error")
    assert squared_error(found.plan) <= budget
    rising = all(squared_error(one) <= squared_error(other) for one, other in pairwise(plans))
    if rising:
        assert saved_us(found.plan) == max(
            saved_us(plan) for plan in plans if squared_error(plan) <= budget
        )
    everything = squared_error(plans[-1]) <= budget
    assert found.bound_by == (None if everything else "max_error")
    if everything:
        assert found.plan == plans[-1]
    assert len(asked) <= 1 + len(plans).bit_length() + 8


@algebra
@given(table=tables, seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_within_never_returns_what_does_not_fit(make_options, table, seed, share):
    # Measured errors need not be monotone, nor additive: anything may happen.
    rng, answers = random.Random(seed), {}

    def fits(plan):
        return answers.setdefault(plan, rng.random() < share)

    found = within(sequence(make_options(table)), fits, "max_drop")
    assert not found.plan or answers[found.plan]
    assert found.bound_by in (None, "max_drop")


def test_single_choices_beyond_a_plan_that_does_not_fit_are_tried(make_options):
    # b seems worth the most per error and spoils every plan; the others still fit.
    plans = sequence(
        make_options({"a": [(9.0, 0.1)], "b": [(99.0, 0.1)], "c": [(5.0, 0.1)], "d": [(1.0, 0.1)]})
    )
    assert list(pairs(plans[1])) == ["b"]

    def fits(plan):
        return "b" not in pairs(plan)

    found = within(plans, fits, "max_error")
    assert list(pairs(found.plan)) == ["a", "c", "d"]
    assert found.bound_by == "max_error"


def test_within_of_nothing():
    found = within([()], lambda plan: False, "max_error")
    assert (found.plan, found.bound_by) == ((), None)


@algebra
@given(table=tables, wanted=st.floats(0, 120))
def test_reaching_goes_no_further_than_needed(make_options, table, wanted):
    plans = sequence(make_options(table))
    found = reaching(plans, lambda plan: saved_us(plan) >= wanted)
    nearest = next((plan for plan in plans if saved_us(plan) >= wanted), None)
    assert (None if found is None else found[-1]) == nearest


@algebra
@given(table=tables, seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_reaching_never_returns_what_is_too_slow(make_options, table, seed, share):
    rng, answers = random.Random(seed), {}

    def fast(plan):
        return answers.setdefault(plan, rng.random() < share)

    found = reaching(sequence(make_options(table)), fast)
    assert found is None or answers[found[-1]]


def test_reaching_takes_nothing_when_nothing_is_needed(make_options):
    plans = sequence(make_options({"a": [(9.0, 0.1)], "b": [(5.0, 0.1)]}))
    assert reaching(plans, lambda plan: True) == ((),)
    assert reaching([()], lambda plan: True) == ((),)
    assert reaching([()], lambda plan: False) is None


def test_the_number_of_measurements_is_bounded(make_options):
    table = {f"layer{i:02}": [(1.0 + i, 0.5)] for i in range(60)}
    asked = []
    found = within(sequence(make_options(table)), asked.append, "max_error")
    assert found.plan == ()
    assert len(asked) <= 1 + 6 + 8  # all, a bisection of 60, and eight single choices


def many(make_options, count):
    """The empty plan and so many more, each of one more layer, all of the same squared error."""
    plans = sequence(make_options({f"layer{i:03}": [(1000.0 - i, 0.1)] for i in range(count)}))
    assert [len(plan) for plan in plans] == list(range(count + 1))
    return plans


@algebra
@given(count=st.integers(0, 60), limit=st.integers(0, 60))
def test_prefix_against_brute_force(make_options, count, limit):
    plans = many(make_options, count)
    asked = []

    def fits(plan):
        asked.append(len(plan))
        return len(plan) <= limit

    assert prefix(plans, fits) == min(count, limit)
    assert len(set(asked)) == len(asked), "no plan is asked for twice"
    assert 0 not in asked, "the plan of nothing is free"


@algebra
@given(count=st.integers(0, 40), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_prefix_never_returns_what_does_not_fit(make_options, count, seed, share):
    rng, answers = random.Random(seed), {}
    plans = many(make_options, count)
    found = prefix(plans, lambda plan: answers.setdefault(len(plan), rng.random() < share))
    assert 0 <= found <= count
    assert found == 0 or answers[found]


def test_single_choices_are_as_many_as_allowed(make_options):
    plans, asked = many(make_options, 30), []

    def fits(plan):
        asked.append(plan)
        return False

    assert within(plans, fits, "max_error", known=0, tries=3).plan == ()
    assert [len(plan) for plan in asked] == [1, 1, 1]
