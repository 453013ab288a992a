"""What the changes promised, each on its own, beside what the whole model was measured at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graphopt.assembly.prediction import with_prediction
from graphopt.cost.census import Tally
from graphopt.reporting.schema import Latency
from graphopt.rewrites.ledger import Applied

SHAPES = {"x": (1, 3, 8, 8)}
AT_1 = Latency(1, 1, 9, 1000.0, 500.0, 0.5, 0.4, 0.6, SHAPES)
AT_8 = replace(AT_1, batch=8, before_us=8000.0, input_shapes={"x": (8, 3, 8, 8)})


def change(kind, before=None, after=None):
    return Applied(("k",), "k", kind, (), {}, Tally(), Tally(), 0.0, None, before, after)


@pytest.mark.parametrize(
    ("applied", "expected"),
    [
        ([change("approximate", 300.0, 100.0)], 0.8),
        ([change("approximate", 300.0, 100.0), change("approximate", 90.0, 40.0)], 0.75),
        ([change("approximate", 300.0, 100.0), change("exact", 70.0, 20.0)], 0.75),
        ([change("approximate", 300.0, 100.0), change("exact"), change("clean-up")], 0.8),
        ([change("exact", 300.0, 100.0)], None),
        ([change("approximate", 300.0, 100.0), change("approximate")], None),
        ([change("approximate", 2000.0, 900.0)], None),
        ([], None),
    ],
)
def test_the_original_less_what_the_changes_save(applied, expected):
    (found,) = with_prediction([AT_1], applied, SHAPES)
    assert found.predicted_ratio == (None if expected is None else pytest.approx(expected))
    assert replace(found, predicted_ratio=None) == AT_1


def test_of_the_time_that_the_changes_are_shares_of():
    """Not of what the original takes now, when the machine may be busier."""
    applied = [change("approximate", 300.0, 100.0)]
    (found,) = with_prediction([AT_1], applied, SHAPES, 800.0)
    assert found.predicted_ratio == pytest.approx(0.75)
    (found,) = with_prediction([AT_1], applied, SHAPES, 150.0)
    assert found.predicted_ratio is None


def test_only_at_the_shapes_the_changes_were_timed_at():
    applied = [change("approximate", 300.0, 100.0)]
    found = with_prediction([AT_1, AT_8], applied, SHAPES)
    assert [latency.predicted_ratio for latency in found] == [pytest.approx(0.8), None]
    assert with_prediction([], applied, SHAPES) == ()
