"""Where the models of a frontier lie: error (or fall of the metric) against latency (or MACs)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.reporting import units
from graphopt.reporting.schema import FrontierPoint

WIDTH, HEIGHT = 600, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 20, 40


@dataclass(frozen=True)
class Dot:
    """One model: where its dot goes, and its number."""

    x: float
    y: float
    number: int


@dataclass(frozen=True)
class Scatter:
    """A drawing of `WIDTH` by `HEIGHT`: the dots, and (place, text) of the marks on each axis."""

    dots: tuple[Dot, ...]
    x_name: str
    y_name: str
    x_marks: tuple[tuple[float, str], ...]
    y_marks: tuple[tuple[float, str], ...]


def scatter(frontier: Sequence[FrontierPoint]) -> Scatter | None:
    """The drawing; None where there are not two points with finite figures."""
    timed = all(point.latency for point in frontier)
    rated = all(_drop(point) is not None for point in frontier)
    found = [
        (
            point.latency[0].after_us if timed else float(point.after.macs),
            _drop(point) if rated else point.error,
            number,
        )
        for number, point in enumerate(frontier, start=1)
    ]
    known = [(x, y, n) for x, y, n in found if y is not None and math.isfinite(x + y)]
    if len(known) < 2:
        return None
    right = max(x for x, _, _ in known) or 1.0
    low = min(0.0, *(y for _, y, _ in known))
    high = max(y for _, y, _ in known)
    high = high if high > low else low + 1.0

    def place_x(x: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * x / right

    def place_y(y: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (y - low) / (high - low)

    x_form = units.micros if timed else units.count
    y_form = units.difference if rated else units.error
    return Scatter(
        dots=tuple(Dot(place_x(x), place_y(y), number) for x, y, number in known),
        x_name=f"latency, batch {frontier[0].latency[0].batch}" if timed else "MACs",
        y_name="fall of the metric" if rated else "output error",
        x_marks=tuple((place_x(x), x_form(x)) for x in (0, right / 2, right)),
        y_marks=tuple((place_y(y), y_form(y)) for y in (low, high)),
    )


def _drop(point: FrontierPoint) -> float | None:
    if point.metric_before is None or point.metric_after is None:
        return None
    return point.metric_before - point.metric_after
