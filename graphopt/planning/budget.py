"""What the user allows a result to cost in fidelity, or wants it to gain in speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graphopt.errors import InputError

Limit = Literal["max_error", "max_drop", "speedup"]


@dataclass(frozen=True)
class Budget:
    """Limits of the search; None where the user gave none.

    max_error: relative L2 error of every float output over the held-out inputs.
    max_drop: how far the metric may fall (0.005 = half a point).
    speedup: original latency / result latency to reach, with the least error.
    """

    max_error: float | None = None
    max_drop: float | None = None
    speedup: float | None = None

    @property
    def given(self) -> bool:
        """Whether the user allowed any approximation."""
        return (self.max_error, self.max_drop, self.speedup) != (None, None, None)

    def check(self) -> None:
        """Raise InputError for limits that make no sense."""
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise InputError(f"--max-error {self.max_error:g} is not between 0 and 1 (5 % is 0.05)")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise InputError(
                f"--max-drop {self.max_drop:g} is not between 0 and 1 (half a point is 0.005)"
            )
        if self.speedup is not None and not self.speedup > 1:
            raise InputError(f"--speedup {self.speedup:g} is not above 1 (twice as fast is 2)")
