"""Decompositions are made once for all prices, and for one rank's weights no larger than that."""

from __future__ import annotations

from graphopt.rewrites.approximate.on_demand import OnDemand


def test_prices_are_made_for_all_at_once() -> None:
    made: list[int] = []
    fits = OnDemand(lambda most: [made.append(most)], top=6)
    for rank in (1, 4, 6):
        fits.for_prices(rank)
        fits.for_weights(rank)
    assert made == [6]


def test_weights_alone_take_no_more_than_their_rank() -> None:
    made: list[int] = []
    fits = OnDemand(lambda most: [made.append(most)], top=6)
    fits.for_weights(2)
    fits.for_weights(1)
    assert made == [2]
    fits.for_prices(1)
    assert made == [2]
    fits.for_prices(3)
    assert made == [2, 6]


def test_a_rank_beyond_what_is_on_offer_can_be_had() -> None:
    made: list[int] = []
    fits = OnDemand(lambda most: [made.append(most)], top=6)
    fits.for_prices(2)
    fits.for_weights(9)
    assert made == [6, 9]
