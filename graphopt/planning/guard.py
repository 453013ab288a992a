"""What the search asks of the outside: how good and how fast a model really is.

Planning knows nothing of verification; the pipeline hands it something that measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir


@dataclass(frozen=True)
class Measured:
    """Largest relative output error, and the fall of the metric where there is one.

    expected_drop: an estimate of the drop with less noise, where the metric allows one.
    """

    error: float
    drop: float | None
    expected_drop: float | None = None


class Guard(Protocol):
    """Measures candidate models against the original."""

    def fitting_error(self, model: ir.Model) -> float:
        """Relative output error on a few fitting inputs: for sensitivities."""

    def held_out(self, model: ir.Model) -> Measured:
        """Error and drop on the held-out inputs: what the budget is about."""

    def speedup(self, model: ir.Model) -> float:
        """Measured latency of the original / latency of the model."""
