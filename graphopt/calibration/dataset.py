"""Inputs to fit on and to prove with: batches of samples, split so that proof never sees fitting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.runtime import Array


@dataclass(frozen=True)
class Batch:
    """One feed of the model. labels: class indices [size], if the data carry them."""

    feeds: dict[str, Array]
    labels: Array | None = None

    @property
    def size(self) -> int:
        """Samples in the batch: the first axis of its first array."""
        first = next(iter(self.feeds.values()), np.zeros(1))
        return int(first.shape[0]) if first.ndim else 1

    def parts(self, most: int) -> Iterator[Batch]:
        """The batch in pieces of at most `most` samples."""
        for start in range(0, self.size, most):
            piece = slice(start, start + most)
            labels = None if self.labels is None else self.labels[piece]
            yield Batch({name: array[piece] for name, array in self.feeds.items()}, labels)


@dataclass(frozen=True)
class Dataset:
    """Batches and where they came from. `source` "synthetic" means drawn at random."""

    batches: tuple[Batch, ...]
    source: Literal["synthetic", "data"]
    description: str

    @property
    def samples(self) -> int:
        """Samples over all batches."""
        return sum(batch.size for batch in self.batches)

    @property
    def labelled(self) -> bool:
        """Whether every batch has labels."""
        return bool(self.batches) and all(batch.labels is not None for batch in self.batches)

    def first(self, samples: int) -> Dataset:
        """The first batches that together have at least this many samples."""
        kept, count = [], 0
        for batch in self.batches:
            if count >= samples:
                break
            kept.append(batch)
            count += batch.size
        return Dataset(tuple(kept), self.source, self.description)

    def in_batches(self, most: int) -> Dataset:
        """The same samples in batches of at most this many (along the first axis of all arrays)."""
        parts = tuple(part for batch in self.batches for part in batch.parts(most))
        return Dataset(parts, self.source, self.description)


@dataclass(frozen=True)
class Split:
    """Disjoint parts: what may be fitted to, and what results are measured on."""

    fitting: Dataset
    held_out: Dataset


def split(dataset: Dataset, seed: int, share: float = 0.5) -> Split:
    """Shuffle the batches with a seed and hold out a share of them (at least one).

    A single batch is held out whole: nothing is left to fit on.
    """
    order = np.random.default_rng(seed).permutation(len(dataset.batches))
    count = min(max(1, round(share * len(order))), len(order))
    held, rest = sorted(order[:count]), sorted(order[count:])
    return Split(fitting=_pick(dataset, rest), held_out=_pick(dataset, held))


def _pick(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    batches = tuple(dataset.batches[i] for i in indices)
    return Dataset(batches, dataset.source, dataset.description)
