"""Fitting and held-out parts never share a sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.calibration.dataset import Batch, Dataset, split

sizes = st.lists(st.integers(1, 5), min_size=1, max_size=30)
seeds = st.integers(0, 2**32)


def numbered(sizes: list[int]) -> Dataset:
    """Batches of these sizes whose samples are numbered through."""
    parts = np.split(np.arange(sum(sizes), dtype=np.float32), np.cumsum(sizes)[:-1])
    return Dataset(tuple(Batch({"x": part}) for part in parts), "data", "numbered")


def samples(dataset: Dataset) -> list[float]:
    return [float(x) for batch in dataset.batches for x in batch.feeds["x"]]


@given(sizes, seeds, st.floats(0.1, 0.9))
def test_the_parts_are_disjoint_and_together_everything(sizes, seed, share):
    whole = numbered(sizes)
    parts = split(whole, seed, share)
    fitting, held_out = samples(parts.fitting), samples(parts.held_out)
    assert not set(fitting) & set(held_out)
    assert sorted(fitting + held_out) == samples(whole)
    assert parts.held_out.batches
    assert parts.fitting.samples + parts.held_out.samples == whole.samples


@given(sizes, seeds)
def test_the_seed_decides(sizes, seed):
    once, again = (samples(split(numbered(sizes), seed).held_out) for _ in range(2))
    assert once == again


def test_other_seeds_hold_out_other_batches():
    held = {tuple(samples(split(numbered([1] * 20), seed).held_out)) for seed in range(10)}
    assert len(held) == 10


@given(st.integers(2, 40), seeds, st.floats(0.1, 0.9))
def test_the_share(count, seed, share):
    parts = split(numbered([1] * count), seed, share)
    assert parts.held_out.samples == max(1, round(share * count))


def test_a_single_batch_is_held_out():
    parts = split(numbered([7]), 0)
    assert (parts.fitting.samples, parts.held_out.samples) == (0, 7)


@given(sizes, st.integers(1, 100))
def test_the_first_samples_are_whole_batches_and_no_more_than_needed(sizes, wanted):
    whole = numbered(sizes)
    first = whole.first(wanted)
    assert samples(first) == samples(whole)[: first.samples]
    assert first.samples >= min(wanted, whole.samples)
    assert first.samples - first.batches[-1].size < wanted


def test_both_parts_say_where_they_come_from():
    parts = split(numbered([1, 1]), 0)
    assert {part.description for part in (parts.fitting, parts.held_out)} == {"numbered"}


@pytest.mark.parametrize(("labels", "expected"), [((1, 1), True), ((1, 0), False), ((), False)])
def test_labelled_means_every_batch(labels, expected):
    batches = [Batch({"x": np.zeros(2)}, np.zeros(2, int) if label else None) for label in labels]
    assert Dataset(tuple(batches), "data", "").labelled == expected
