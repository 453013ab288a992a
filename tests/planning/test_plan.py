"""From a budget to a plan, with a guard whose answers are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from graphopt.errors import BudgetError, InputError
from graphopt.planning import plan as module
from graphopt.planning.budget import Budget
from graphopt.planning.guard import Measured
from graphopt.planning.plan import choose, exceeded
from graphopt.planning.search import sequence
from graphopt.progress import Silent

TABLE = {
    "a": [(20.0, 0.01), (30.0, 0.04)],
    "b": [(15.0, 0.02), (18.0, 0.06)],
    "c": [(10.0, 0.03)],
}
"""Most worthwhile first: a1, b1, c, a2, b2."""

TOTAL = 100.0


class FakeGuard:
    """Errors add up in squares, time is saved in sums; `models` are what plans were built into."""

    def __init__(self, drop=lambda error: None, exact=0.0):
        self.drop, self.exact = drop, exact
        self.asked = []

    def _sums(self, model):
        error = math.sqrt(sum(candidate.error**2 for candidate in model))
        return error, sum(candidate.saved for candidate in model)

    def fitting_error(self, model):
        raise AssertionError("the plan is about held-out inputs")

    def held_out(self, model):
        self.asked.append(("held_out", tuple(c.saved for c in model)))
        error, _ = self._sums(model)
        return Measured(error, self.drop(error))

    def speedup(self, model):
        self.asked.append(("speedup", tuple(c.saved for c in model)))
        _, saved = self._sums(model)
        return TOTAL / (TOTAL - self.exact - saved)


@pytest.fixture
def chosen(monkeypatch, make_options):
    """chosen(budget, guard) -> (saved per layer, what ended the search)."""
    monkeypatch.setattr(module, "with_candidates", lambda scope, picks: picks)

    def run(budget, guard=None, table=TABLE, refit=None):
        found = choose(
            SimpleNamespace(),
            sequence(make_options(table)),
            budget,
            guard or FakeGuard(),
            Silent(),
            refit,
        )
        assert [r.saved for r in found.realised] == [c.saved_us for c in found.plan]
        return {c.layer: c.saved_us for c in found.plan}, found.bound_by

    return run


FIRST_TWO = {"a": 20.0, "b": 15.0}
FIRST_THREE = {"a": 20.0, "b": 15.0, "c": 10.0}
ALL = {"a": 30.0, "b": 18.0, "c": 10.0}


def test_max_error(chosen):
    assert chosen(Budget(max_error=0.023)) == (FIRST_TWO, "max_error")
    assert chosen(Budget(max_error=0.005)) == ({}, "max_error")
    assert chosen(Budget(max_error=0.9)) == (ALL, None)


def test_max_drop(chosen):
    guard = FakeGuard(drop=lambda error: error / 10)
    assert chosen(Budget(max_drop=0.0023), guard) == (FIRST_TWO, "max_drop")
    assert chosen(Budget(max_drop=0.9), guard) == (ALL, None)


def test_a_limit_that_is_met_exactly_is_kept(chosen):
    assert chosen(Budget(max_error=0.01), table={"a": [(1.0, 0.01)]}) == ({"a": 1.0}, None)
    guard = FakeGuard(drop=lambda error: 0.25)
    assert chosen(Budget(max_drop=0.25), guard, {"a": [(1.0, 0.01)]}) == ({"a": 1.0}, None)


@pytest.mark.parametrize(
    ("max_error", "max_drop", "expected"),
    [
        (0.023, 0.5, (FIRST_TWO, "max_error")),
        (0.5, 0.0023, (FIRST_TWO, "max_drop")),
        (0.023, 0.0038, (FIRST_TWO, "max_error")),
        (0.038, 0.0023, (FIRST_TWO, "max_drop")),
        (0.5, 0.5, (ALL, None)),
    ],
)
def test_of_two_limits_the_one_that_binds_is_named(chosen, max_error, max_drop, expected):
    guard = FakeGuard(drop=lambda error: error / 10)
    assert chosen(Budget(max_error=max_error, max_drop=max_drop), guard) == expected


def test_a_speed_up_is_reached_with_the_least_error(chosen):
    assert chosen(Budget(speedup=TOTAL / (TOTAL - 34))) == (FIRST_TWO, "speedup")
    assert chosen(Budget(speedup=TOTAL / (TOTAL - 36))) == (FIRST_THREE, "speedup")
    assert chosen(Budget(speedup=TOTAL / (TOTAL - 58))) == (ALL, "speedup")


def test_a_speed_up_that_exact_rewrites_reach_costs_nothing(chosen):
    assert chosen(Budget(speedup=1.2), FakeGuard(exact=30.0)) == ({}, "speedup")
    assert chosen(Budget(speedup=1.2, max_error=0.5), FakeGuard(exact=30.0)) == ({}, "speedup")


def test_a_speed_up_out_of_reach(chosen):
    guard = FakeGuard()
    with pytest.raises(BudgetError, match=r"3x cannot be reached: 2\.38x is the most") as raised:
        chosen(Budget(speedup=3.0), guard)
    assert raised.value.exit_code == 4
    assert guard.asked == [("speedup", (30.0, 18.0, 10.0))], "one measurement is enough to tell"


def test_a_speed_up_out_of_reach_with_nothing_on_offer(chosen):
    with pytest.raises(BudgetError, match=r"1\.00x is the most"):
        chosen(Budget(speedup=2.0), table={})


@pytest.mark.parametrize("limit", [{"max_error": 0.038}, {"max_drop": 0.0038}])
def test_a_speed_up_with_a_limit_stops_at_whichever_binds(chosen, limit):
    def run(speedup):
        guard = FakeGuard(drop=lambda error: error / 10)
        return chosen(Budget(speedup=speedup, **limit), guard)

    assert run(TOTAL / (TOTAL - 34)) == (FIRST_TWO, "speedup")
    assert run(5.0) == (FIRST_THREE, next(iter(limit)))


class Refit:
    """Fits plans as a whole: errors become `factor` times those of the layers' own fits."""

    def __init__(self, factor=0.5):
        self.factor, self.asked = factor, []

    def __call__(self, plan):
        self.asked.append(tuple(c.saved_us for c in plan))
        own = [choice.candidate.realised for choice in plan]
        return [SimpleNamespace(saved=r.saved, error=r.error * self.factor) for r in own]


def test_a_better_fit_goes_further(chosen):
    assert chosen(Budget(max_error=0.02)) == ({"a": 20.0}, "max_error")
    assert chosen(Budget(max_error=0.02), refit=Refit(0.5)) == (FIRST_THREE, "max_error")
    assert chosen(Budget(max_error=0.05), refit=Refit(0.5)) == (ALL, None)
    guard = FakeGuard(drop=lambda error: error / 10)
    assert chosen(Budget(max_drop=0.002), guard, refit=Refit(0.5)) == (FIRST_THREE, "max_drop")


def test_a_worse_fit_is_not_trusted(chosen):
    """What only the layers' own fits would keep to is refused: the refitted plan is what counts."""
    assert chosen(Budget(max_error=0.023), refit=Refit(3.0)) == ({}, "max_error")
    assert chosen(Budget(max_error=0.035), refit=Refit(3.0)) == ({"a": 20.0}, "max_error")


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("error", [0.005, 0.01, 0.023, 0.05, 0.1])
def test_with_a_refit_the_longest_prefix_that_fits_is_found(chosen, factor, error):
    plans = [{}, {"a": 20.0}, FIRST_TWO, FIRST_THREE, FIRST_THREE | {"a": 30.0}, ALL]
    squares = [0, 1, 5, 14, 29, 61]
    best = max(i for i, s in enumerate(squares) if factor * math.sqrt(s) / 100 <= error)
    plan, bound_by = chosen(Budget(max_error=error), refit=Refit(factor))
    assert sum(plan.values()) >= sum(plans[best].values())
    assert bound_by == (None if best == 5 else "max_error")
    if best == 5:
        assert plan == ALL


def test_every_plan_is_refitted_once(chosen):
    refit, guard = Refit(0.7), FakeGuard()
    chosen(Budget(max_error=0.03, speedup=5.0), guard, refit=refit)
    assert len(set(refit.asked)) == len(refit.asked)
    assert refit.asked


def test_a_speed_up_is_measured_without_a_refit_for_every_try(chosen):
    refit = Refit()
    assert chosen(Budget(speedup=TOTAL / (TOTAL - 36)), refit=refit) == (FIRST_THREE, "speedup")
    assert refit.asked == [(20.0, 15.0, 10.0)]


def test_fewer_steps_for_a_speed_up_are_measured_before_they_are_taken(chosen):
    """Errors that cancel: all of it is within the limit, the part that is fast enough is not."""

    class Cancelling(FakeGuard):
        def held_out(self, model):
            super().held_out(model)
            return Measured(0.9 if len(model) == 2 else 0.001, None)

    budget = Budget(max_error=0.1, speedup=TOTAL / (TOTAL - 34))
    assert chosen(budget, Cancelling()) == (ALL, None)
    plan, bound_by = chosen(budget, Cancelling(), refit=Refit())
    assert (len(plan), bound_by) in ((3, None), (1, "max_error"))


def test_of_two_limits_the_one_that_binds_is_named_with_a_refit(chosen):
    guard = FakeGuard(drop=lambda error: error / 10)
    for limits, name in (((0.01, 0.5), "max_error"), ((0.5, 0.001), "max_drop")):
        budget = Budget(max_error=limits[0], max_drop=limits[1])
        plan, bound_by = chosen(budget, guard, refit=Refit(0.4))
        assert (plan, bound_by) == (FIRST_TWO, name)


def test_nothing_on_offer_to_refit(chosen):
    assert chosen(Budget(max_error=0.1), table={}, refit=Refit()) == ({}, None)


def test_nothing_on_offer(chosen):
    assert chosen(Budget(max_error=0.1), table={}) == ({}, None)


@pytest.mark.parametrize("refit", [None, Refit(0.999)])
@pytest.mark.parametrize("budget", [Budget(max_error=0.038), Budget(speedup=1.3)])
def test_no_plan_is_measured_twice_and_the_answer_is_always_the_same(chosen, budget, refit):
    guards = FakeGuard(), FakeGuard()
    assert chosen(budget, guards[0], refit=refit) == chosen(budget, guards[1], refit=refit)
    assert guards[0].asked == guards[1].asked
    # With a refit a plan is measured as it was first fitted, and as it was refitted.
    often = max(guards[0].asked.count(question) for question in guards[0].asked)
    assert often <= (1 if refit is None else 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_cannot_be_measured_does_not_fit(chosen, bad):
    for refit in (None, Refit()):
        guard = FakeGuard(drop=lambda error: bad)
        assert chosen(Budget(max_drop=0.5), guard, refit=refit) == ({}, "max_drop")
    assert exceeded(Budget(max_error=0.5), Measured(bad, None)) == "max_error"
    assert exceeded(Budget(max_drop=0.5), Measured(0.0, bad)) == "max_drop"
    assert exceeded(Budget(max_error=0.5), Measured(0.0, bad)) is None


def test_progress_is_told(monkeypatch, make_options):
    monkeypatch.setattr(module, "with_candidates", lambda scope, picks: picks)
    told = []
    watcher = SimpleNamespace(
        stage=lambda name, steps=None: told.append(name), step=lambda what="": told.append(what)
    )
    budget = Budget(max_error=0.5, speedup=2.0)
    choose(SimpleNamespace(), sequence(make_options(TABLE)), budget, FakeGuard(), watcher)
    assert told[0] == "Searching the budget"
    assert "3 layers, error 0.0781" in told
    assert "3 layers, 2.38x" in told


@pytest.mark.parametrize(
    ("limits", "given"),
    [({}, False), ({"max_error": 0.0}, True), ({"max_drop": 0.0}, True), ({"speedup": 2.0}, True)],
)
def test_whether_a_budget_is_given(limits, given):
    budget = Budget(**limits)
    budget.check()
    assert budget.given is given


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_error": 5.0}, "--max-error 5 is not between 0 and 1"),
        ({"max_error": -0.1}, "--max-error"),
        ({"max_error": math.nan}, "--max-error"),
        ({"max_drop": 1.0}, "--max-drop 1 is not between 0 and 1"),
        ({"max_drop": math.nan}, "--max-drop"),
        ({"speedup": 1.0}, "--speedup 1 is not above 1"),
        ({"speedup": math.nan}, "--speedup"),
    ],
)
def test_limits_that_make_no_sense(limits, message):
    with pytest.raises(InputError, match=message):
        Budget(**limits).check()


def test_a_drop_counts_as_counted_and_as_expected():
    budget = Budget(max_drop=0.005)
    assert exceeded(budget, Measured(0.1, 0.001, 0.004)) is None
    assert exceeded(budget, Measured(0.1, 0.001, 0.006)) == "max_drop", "luck is not taken"
    assert exceeded(budget, Measured(0.1, 0.006, 0.004)) == "max_drop"
    assert exceeded(budget, Measured(0.1, 0.001, math.nan)) == "max_drop"
