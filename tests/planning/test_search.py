"""The search against brute force over all plans of small random menus."""

from __future__ import annotations

import random
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.planning.search import plan_of, prefix, reaching, sequence, within

algebra = settings(deadline=None, max_examples=150, derandomize=True)

entries = st.tuples(st.integers(1, 40).map(float), st.integers(1, 30).map(lambda n: n / 30))
tables = st.lists(st.lists(entries, min_size=1, max_size=5), min_size=1, max_size=4).map(
    lambda rows: {f"layer{i}": row for i, row in enumerate(rows)}
)


def saved(plan):
    return sum(choice.saved_us for choice in plan)


def squared_error(plan):
    return sum(choice.error**2 for choice in plan)


def every_plan(options):
    """All plans: for each layer one of its choices, or none."""
    for picks in product(*[(None, *option.choices) for option in options]):
        yield tuple(choice for choice in picks if choice is not None)


def prefixes(steps):
    return [plan_of(steps[:count]) for count in range(len(steps) + 1)]


@algebra
@given(table=tables)
def test_every_prefix_is_an_optimum_of_the_lagrangian(make_options, table):
    options = make_options(table)
    steps = sequence(options)
    for count, plan in enumerate(prefixes(steps)):
        # Any multiplier between the last step's gain and the next one's makes this plan the best.
        around = [step.gain for step in steps[max(count - 1, 0) : count + 1]]
        multiplier = sum(around) / len(around) if around else 1.0
        best = max(saved(p) - multiplier * squared_error(p) for p in every_plan(options))
        value = saved(plan) - multiplier * squared_error(plan)
        assert value == pytest.approx(best, rel=1e-9, abs=1e-9)


@algebra
@given(table=tables, multiplier=st.floats(0.01, 1e4))
def test_every_optimum_of_the_lagrangian_is_a_prefix(make_options, table, multiplier):
    options = make_options(table)

    def value(plan):
        return saved(plan) - multiplier * squared_error(plan)

    best = max(map(value, every_plan(options)))
    assert max(map(value, prefixes(sequence(options)))) == pytest.approx(best, rel=1e-9, abs=1e-9)


@algebra
@given(table=tables)
def test_no_plan_beats_a_prefix_in_both(make_options, table):
    options = make_options(table)
    for plan in prefixes(sequence(options)):
        for other in every_plan(options):
            cheaper = squared_error(other) < squared_error(plan) - 1e-12
            assert not (saved(other) > saved(plan) and cheaper)


@algebra
@given(table=tables)
def test_steps_get_more_aggressive_and_less_worthwhile(make_options, table):
    steps = sequence(make_options(table))
    assert all(one.gain >= other.gain for one, other in pairwise(steps))
    for layer in table:
        own = [step for step in steps if step.choice.layer == layer]
        assert own, "the fastest choice of a layer is always on its hull"
        assert own[-1].choice.saved_us == max(value for value, _ in table[layer])
        for one, other in pairwise(own):
            assert one.gain > other.gain
            assert one.choice.saved_us < other.choice.saved_us
            assert one.choice.error < other.choice.error


@algebra
@given(table=tables, seed=st.integers(0, 99))
def test_the_order_of_the_menus_does_not_matter(make_options, table, seed):
    shuffle = random.Random(seed).sample
    other = {
        layer: shuffle(row, len(row)) for layer, row in shuffle(list(table.items()), len(table))
    }

    def shown(found):
        return [(step.choice.layer, step.choice.saved_us, step.choice.error) for step in found]

    assert shown(sequence(make_options(table))) == shown(sequence(make_options(other)))


def test_what_costs_nothing_comes_first(make_options):
    steps = sequence(
        make_options({"a": [(1.0, 0.0), (50.0, 0.1)], "b": [(90.0, 0.01)], "c": [(2.0, 0.0)]})
    )
    assert [(s.choice.layer, s.choice.error) for s in steps[:2]] == [("c", 0.0), ("a", 0.0)]


def test_a_worked_example(make_options):
    # Squared errors 1, 4, 9 save 10, 12, 30: the second lies below the line from the first
    # to the third and is never chosen.
    steps = sequence(make_options({"a": [(12.0, 2.0), (30.0, 3.0), (10.0, 1.0), (9.0, 1.5)]}))
    assert [(s.choice.saved_us, s.gain) for s in steps] == [(10.0, 10.0), (30.0, 2.5)]


def test_a_plan_has_one_choice_per_layer(make_options):
    steps = sequence(make_options({"a": [(10.0, 0.1), (15.0, 0.4)], "b": [(8.0, 0.1)]}))
    assert [s.choice.layer for s in steps] == ["a", "b", "a"]
    plan = plan_of(steps)
    assert [(c.layer, c.saved_us) for c in plan] == [("a", 15.0), ("b", 8.0)]
    assert plan_of(()) == ()


@algebra
@given(table=tables, budget=st.floats(0, 3))
def test_within_a_monotone_budget_nothing_shorter_is_better(make_options, table, budget):
    steps = sequence(make_options(table))
    asked = []

    def fits(plan):
        asked.append(plan)
        return squared_error(plan) <= budget

    found = within(steps, fits, "max_error")
    assert squared_error(found.plan) <= budget
    assert saved(found.plan) >= max(
        saved(plan) for plan in prefixes(steps) if squared_error(plan) <= budget
    )
    everything = squared_error(plan_of(steps)) <= budget
    assert found.bound_by == (None if everything else "max_error")
    if everything:
        assert found.plan == plan_of(steps)
    assert len(asked) <= 1 + len(steps).bit_length() + 8


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


def test_single_steps_beyond_one_that_does_not_fit_are_tried(make_options):
    # b is worth the most per error and does not fit at all; c and d still do.
    steps = sequence(
        make_options({"a": [(9.0, 0.1)], "b": [(99.0, 0.4)], "c": [(5.0, 0.1)], "d": [(1.0, 0.05)]})
    )
    assert [s.choice.layer for s in steps] == ["a", "b", "c", "d"]
    found = within(steps, lambda plan: squared_error(plan) <= 0.03, "max_error")
    assert [c.layer for c in found.plan] == ["a", "c", "d"]
    assert found.bound_by == "max_error"


def test_within_of_nothing(make_options):
    found = within([], lambda plan: False, "max_error")
    assert (found.steps, found.bound_by) == ((), None)


@algebra
@given(table=tables, wanted=st.floats(0, 120))
def test_reaching_takes_no_step_too_many(make_options, table, wanted):
    steps = sequence(make_options(table))
    found = reaching(steps, lambda plan: saved(plan) >= wanted)
    shortest = next((p for p in prefixes(steps) if saved(p) >= wanted), None)
    assert (None if found is None else plan_of(found)) == shortest


@algebra
@given(table=tables, seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_reaching_never_returns_what_is_too_slow(make_options, table, seed, share):
    rng, answers = random.Random(seed), {}

    def fast(plan):
        return answers.setdefault(plan, rng.random() < share)

    found = reaching(sequence(make_options(table)), fast)
    assert found is None or answers[plan_of(found)]


def test_reaching_takes_nothing_when_nothing_is_needed(make_options):
    steps = sequence(make_options({"a": [(9.0, 0.1)], "b": [(5.0, 0.1)]}))
    assert reaching(steps, lambda plan: True) == ()
    assert reaching([], lambda plan: True) == ()
    assert reaching([], lambda plan: False) is None


def test_the_number_of_measurements_is_bounded(make_options):
    table = {f"layer{i:02}": [(1.0 + i, 0.5)] for i in range(60)}
    asked = []
    found = within(sequence(make_options(table)), asked.append, "max_error")
    assert found.plan == ()
    assert len(asked) <= 1 + 6 + 8  # all, a bisection of 60, and eight single steps


def many(make_options, count):
    """As many steps, one a layer, all of the same squared error: plans differ in length."""
    steps = sequence(make_options({f"layer{i:03}": [(1000.0 - i, 0.1)] for i in range(count)}))
    assert len(steps) == count
    return steps


@algebra
@given(count=st.integers(0, 60), limit=st.integers(0, 60))
def test_prefix_against_brute_force(make_options, count, limit):
    steps = many(make_options, count)
    asked = []

    def fits(plan):
        asked.append(len(plan))
        return len(plan) <= limit

    assert prefix(steps, fits) == min(count, limit)
    assert len(set(asked)) == len(asked), "no plan is asked for twice"
    assert 0 not in asked, "the plan of nothing is free"


@algebra
@given(count=st.integers(0, 40), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_prefix_never_returns_what_does_not_fit(make_options, count, seed, share):
    rng, answers = random.Random(seed), {}
    steps = many(make_options, count)
    found = prefix(steps, lambda plan: answers.setdefault(len(plan), rng.random() < share))
    assert 0 <= found <= count
    assert found == 0 or answers[found]


def test_single_steps_are_as_many_as_allowed(make_options):
    steps, asked = many(make_options, 30), []

    def fits(plan):
        asked.append(plan)
        return False

    assert within(steps, fits, "max_error", known=0, tries=3).plan == ()
    assert [len(plan) for plan in asked] == [1, 1, 1]
