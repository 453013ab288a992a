from __future__ import annotations

import math
from dataclasses import replace

import pytest

from graphopt.reporting.html import render_html
from graphopt.reporting.scatter import HEIGHT, WIDTH, scatter


@pytest.fixture
def points(samples):
    return samples.pareto_report().frontier


def without(points, **changes):
    return [replace(point, **changes) for point in points]


def test_faster_is_further_left_and_worse_is_further_up(points):
    drawing = scatter(points)
    assert [dot.number for dot in drawing.dots] == [1, 2, 3]
    xs, ys = [dot.x for dot in drawing.dots], [dot.y for dot in drawing.dots]
    assert xs == sorted(xs, reverse=True)
    assert ys == sorted(ys, reverse=True)
    assert all(0 < x < WIDTH for x in xs)
    assert all(0 < y < HEIGHT for y in ys)


def test_axes_follow_what_was_measured(points):
    drawing = scatter(points)
    assert (drawing.x_name, drawing.y_name) == ("latency, batch 1", "fall of the metric")
    drawing = scatter(without(points, metric_after=None, latency=()))
    assert (drawing.x_name, drawing.y_name) == ("MACs", "output error")
    assert [text for _, text in drawing.y_marks] == ["0", "3.2%"]


def test_a_metric_that_rises_stays_inside(points):
    better = replace(points[0], metric_after=0.77)
    assert all(0 < dot.y < HEIGHT for dot in scatter([better, *points[1:]]).dots)


@pytest.mark.parametrize("error", [None, math.nan, math.inf])
def test_nothing_to_draw(points, error):
    assert scatter([]) is None
    assert scatter(points[:1]) is None
    assert scatter(without(points, metric_after=None, error=error)) is None


def test_all_alike(points, samples):
    alike = without(points, metric_after=points[0].metric_before)
    assert all(0 < dot.y < HEIGHT for dot in scatter(alike).dots)
    assert "<circle" in render_html(replace(samples.pareto_report(), frontier=tuple(alike)))
