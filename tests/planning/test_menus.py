"""Thinning what is offered for a layer of a large network."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from graphopt.planning.menus import thinned


def candidates(count: int, seed: int = 0) -> list[SimpleNamespace]:
    rng = np.random.default_rng(seed)
    ratios = np.sort(rng.uniform(0.05, 0.97, count))
    return [SimpleNamespace(macs_ratio=r, error=0.5 * (1 - r) ** 2 + 1e-3) for r in ratios]


@pytest.mark.parametrize("most", [3, 8, 12])
def test_no_more_than_asked_for_and_all_along_the_menu(most: int) -> None:
    offered = candidates(60)
    kept = thinned(offered, most)
    assert most // 2 <= len(kept) <= most
    assert [offered.index(one) for one in kept] == sorted(offered.index(one) for one in kept)
    assert offered[0] in kept
    errors = np.log([one.error for one in kept])
    apart = np.log(offered[0].error / offered[-1].error) / most
    assert np.abs(np.diff(errors)).max() <= 2.5 * apart


def test_of_those_alike_the_cheapest_stays() -> None:
    offered = [SimpleNamespace(macs_ratio=m, error=e) for m, e in ((0.2, 0.1), (0.5, 0.0999))]
    far = [SimpleNamespace(macs_ratio=0.6 + i / 100, error=1e-3) for i in range(3)]
    kept = thinned([*offered, *far], 2)
    assert kept == [offered[0], far[0]]


def test_a_short_menu_is_left_as_it_is() -> None:
    offered = candidates(5)
    assert thinned(offered, 5) == offered


def test_what_has_no_finite_error_is_dropped() -> None:
    offered = [*candidates(4), SimpleNamespace(macs_ratio=0.01, error=math.inf)]
    assert thinned(offered, 12) == offered[:4]
