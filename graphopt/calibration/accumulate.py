"""Streaming second moments: batches in, `Moments` out, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphopt.factorize.moments import Moments
from graphopt.runtime import Array

_BUFFER_BYTES = 1 << 23
_LEAST_ROWS = 512


@dataclass
class Accumulator:
    """Sums over patches x [n, D] and wanted responses y [n, O], kept in float64.

    Memory is D * D + O * D numbers and a buffer, whatever the number of samples. Everything is
    summed around the first batch's means (`shift_*`): a channel that is large but hardly varies
    keeps its moments.
    """

    inputs: int
    outputs: int
    count: int = 0
    samples: int = 0
    gram: Array = field(init=False)
    cross: Array = field(init=False)
    squares: Array = field(init=False)
    sum_inputs: Array = field(init=False)
    sum_outputs: Array = field(init=False)
    shift_inputs: Array = field(init=False)
    shift_outputs: Array = field(init=False)
    waiting: list[tuple[Array, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gram = np.zeros((self.inputs, self.inputs))
        self.cross = np.zeros((self.outputs, self.inputs))
        self.squares = np.zeros(self.outputs)
        self.sum_inputs = np.zeros(self.inputs)
        self.sum_outputs = np.zeros(self.outputs)

    def add(self, x: Array, y: Array, samples: int) -> None:
        """Take a batch into account; `samples` is the number of independent inputs in it."""
        self.samples += samples
        if len(x) == 0:
            return
        if self.count == 0:
            self.shift_inputs = x.mean(axis=0, dtype=np.float64).astype(np.float32)
            self.shift_outputs = y.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.count += len(x)
        x = np.ascontiguousarray(x - self.shift_inputs, np.float32)
        self.waiting.append((x, np.ascontiguousarray(y - self.shift_outputs, np.float32)))
        if sum(len(part) for part, _ in self.waiting) >= self._rows():
            self._flush()

    def _rows(self) -> int:
        """Rows to multiply at once: adding a product costs as much as a few hundred rows of it."""
        return max(_LEAST_ROWS, _BUFFER_BYTES // (4 * (self.inputs + self.outputs)))

    def _flush(self) -> None:
        if not self.waiting:
            return
        x, y = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting.clear()
        # Products of one buffer in float32 (twice as fast), sums over buffers in float64.
        self.gram += x.T @ x
        self.cross += y.T @ x
        self.squares += np.square(y, dtype=np.float64).sum(axis=0)
        self.sum_inputs += x.sum(axis=0, dtype=np.float64)
        self.sum_outputs += y.sum(axis=0, dtype=np.float64)

    def moments(self) -> Moments:
        """The centred moments of everything seen.

        Raises:
            ValueError: Nothing was seen.
        """
        if self.count == 0:
            raise ValueError("no samples")
        self._flush()
        mean_x, mean_y = self.sum_inputs / self.count, self.sum_outputs / self.count
        return Moments(
            gram=self.gram / self.count - np.outer(mean_x, mean_x),
            cross=self.cross / self.count - np.outer(mean_y, mean_x),
            energy=np.maximum(self.squares / self.count - mean_y**2, 0.0),
            mean_input=mean_x + self.shift_inputs,
            mean_output=mean_y + self.shift_outputs,
            samples=self.samples,
        )
