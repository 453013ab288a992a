"""Plans on the way to the last one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from graphopt.planning.frontier import stops


def plans_of(*saved):
    """The empty plan and plans that each save so much more than the one before."""
    choices = [SimpleNamespace(saved_us=one) for one in saved]
    return [tuple(choices[:count]) for count in range(len(saved) + 1)]


def savings(plans):
    return [sum(choice.saved_us for choice in plan) for plan in plans]


def test_even_plans_are_evenly_spaced():
    assert savings(stops(plans_of(*[1.0] * 12), 4)) == [3, 6, 9, 12]


def test_spacing_is_in_saved_time_not_in_plans():
    """A large saving in front: stops by count would all lie near the end."""
    plans = stops(plans_of(50.0, *[5.0] * 10), 4)
    assert savings(plans) == [50, 55, 75, 100]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("saved", [(100.0, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 100.0)])
def test_plans_are_distinct_as_long_as_there_are_enough(saved, count):
    found = savings(stops(plans_of(*saved), count))
    assert len(found) == count
    assert found == sorted(set(found))
    assert found[-1] == sum(saved)


def test_fewer_plans_than_stops():
    assert savings(stops(plans_of(1.0, 2.0), 5)) == [1, 3]
    assert stops(plans_of(), 3) == []
