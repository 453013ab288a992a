"""A seeded share of the fuzzing: the same networks at every run."""

from __future__ import annotations

import pytest

from fuzz.graphs import THEMES
from fuzz.hunt import Hunt, batch

NETWORKS = 16
"""For each theme, in `make test`: about a tenth of a second each."""

MANY = 100


@pytest.mark.parametrize("theme", THEMES)
def test_what_holds_for_every_network(theme: str) -> None:
    hold(theme, 1, NETWORKS)


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
def test_what_holds_for_many_networks(theme: str) -> None:
    hold(theme, 2, MANY)


def hold(theme: str, seed: int, count: int) -> None:
    """Every property holds for so many networks of a theme; most of them can be run."""
    found = Hunt()
    failure = batch(found, seed, theme, count)
    assert failure is None, f"{failure.message}\n{failure.case!r}"
    assert found.graphs >= count
    assert found.skipped.total() <= 0.2 * count, found.skipped
