"""Plans on the way to the last one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from graphopt.planning.frontier import stops


def steps_of(*saved):
    """Steps of layers named a, b, ... or of the layer given, with what is saved in it then."""
    items = [one if isinstance(one, tuple) else (f"l{i}", one) for i, one in enumerate(saved)]
    return [SimpleNamespace(choice=SimpleNamespace(layer=n, saved_us=s)) for n, s in items]


def savings(plans):
    return [sum(choice.saved_us for choice in plan) for plan in plans]


def test_even_steps_are_evenly_spaced():
    assert savings(stops(steps_of(*[1.0] * 12), 4)) == [3, 6, 9, 12]


def test_spacing_is_in_saved_time_not_in_steps():
    """One large step in front: stops by count would all lie near the end."""
    plans = stops(steps_of(50.0, *[5.0] * 10), 4)
    assert savings(plans) == [50, 55, 75, 100]


def test_later_steps_of_a_layer_replace_earlier_ones():
    plans = stops(steps_of(("a", 10.0), ("b", 10.0), ("a", 30.0), ("b", 30.0)), 2)
    assert savings(plans) == [20, 60]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("saved", [(100.0, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 100.0)])
def test_plans_are_distinct_as_long_as_there_are_enough(saved, count):
    found = savings(stops(steps_of(*saved), count))
    assert len(found) == count
    assert found == sorted(set(found))
    assert found[-1] == sum(saved)


def test_fewer_steps_than_stops():
    assert savings(stops(steps_of(1.0, 2.0), 5)) == [1, 3]
    assert stops([], 3) == []
