"""Bisection over changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graphopt.verification.blame import first_bad

cases = st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(cases)
def test_finds_the_first_bad_change(case):
    count, bad = case
    asked: list[int] = []

    def passes(k: int) -> bool:
        asked.append(k)
        return k < bad

    assert first_bad(count, passes) == bad
    assert len(asked) <= count.bit_length() + 1
    assert all(0 <= k < count for k in asked)


@given(st.integers(0, 200))
def test_blames_nothing_when_nothing_fails_too(count):
    assert first_bad(count, lambda k: False) == 0


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_always_names_a_step_from_passing_to_failing(outcomes):
    """Even where passing is not monotone: the change named turns a pass into a failure."""
    results = [True, *outcomes[:-1], False]
    found = first_bad(len(outcomes), lambda k: results[k])
    assert results[found - 1]
    assert not results[found]
