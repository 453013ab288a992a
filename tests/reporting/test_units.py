from __future__ import annotations

import math

import pytest

from graphopt.reporting import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (812, "812"),
        (9408, "9,408"),
        (12_345, "12.3 k"),
        (999_949, "1.00 M"),
        (1_234_567, "1.23 M"),
        (-60_800_000, "-60.8 M"),
        (4.1e9, "4.10 G"),
        (None, "-"),
    ],
)
def test_count(value, text):
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (4_560_000, "4.56 MB"), (None, "-")],
)
def test_size(value, text):
    assert units.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.42, "7.42 us"),
        (812.4, "812 us"),
        (999.7, "1.00 ms"),
        (1200.0, "1.20 ms"),
        (3_500_000.0, "3.50 s"),
        (math.nan, "-"),
        (None, "-"),
    ],
)
def test_micros(value, text):
    assert units.micros(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.04 s"), (12.34, "12.3 s"), (59.97, "1 min 0 s"), (125.2, "2 min 5 s")],
)
def test_seconds(value, text):
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0%"),
        (0.58, "58%"),
        (0.032, "3.2%"),
        (0.0995, "10%"),
        (0.0004, "0.04%"),
        (-0.41, "-41%"),
        (1.0, "100%"),
        (0.99999, "99.99%"),
        (1e-9, "<0.001%"),
        (None, "-"),
    ],
)
def test_percent(value, text):
    assert units.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.7632, "76.32%"), (1.0, "100%"), (0.99999, "99.99%"), (None, "-")]
)
def test_rate_says_100_only_when_it_is(value, text):
    assert units.rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.032, "3.2%"),
        (0.05, "5%"),
        (0.12, "12%"),
        (0.0012, "0.12%"),
        (2.1e-7, "2.1e-07"),
        (1e-4, "1e-04"),
        (0.0, "0"),
        (math.inf, "not finite"),
        (math.nan, "not finite"),
        (None, "-"),
    ],
)
def test_error(value, text):
    assert units.error(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(100, 42, "-58%"), (100, 104, "+4.0%"), (7, 7, "same"), (0, 3, "new"), (None, 3, "-")],
)
def test_change(before, after, text):
    assert units.change(before, after) == text


def test_signed_shows_both_signs():
    assert [units.signed(value) for value in (-12, 0, 5)] == ["-12", "0", "+5"]


@pytest.mark.parametrize("width", range(1, 30))
def test_shorten_never_exceeds_its_width(width):
    text = "/features/features.3/Conv"
    short = units.shorten(text, width)
    assert len(short) == min(width, len(text))
    if 5 <= width < len(text):
        assert (short[0], short[-1]) == ("/", "v")


def test_clean_leaves_no_control_characters():
    assert units.clean("a\x1b[31m\nb\u202ec é") == "a?[31m?b?c é"


def test_site_counts_what_it_does_not_show():
    assert units.site(("a", "b", "c", "d", "e")) == "a + b + c +2 more"
    assert units.site(("a",)) == "a"
    assert units.site(()) == "(model)"
    assert units.site(("",)) == "(unnamed)"


def test_options():
    values = {"rank": 32, "shrinkage": 0.05, "relu": True, "fit": "a\nb", "ridge": None}
    assert units.options(values) == "rank=32 shrinkage=0.05 relu=yes fit=a?b ridge=None"
