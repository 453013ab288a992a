"""Measures candidate models for the planner: error, drop and speed, against the original."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graphopt.cost.latency import Effort, compare
from graphopt.errors import InputError, VerificationError
from graphopt.graph.io import session_source
from graphopt.planning.guard import Measured
from graphopt.runtime import Feeds, open_session
from graphopt.verification.compare import Reference
from graphopt.verification.trials import Trials

_EFFORT = Effort(seconds=1.0, least=15, most=101)


@dataclass(frozen=True)
class ReferenceGuard:
    """The planner's guard, on references that run the original.

    fitting: on a few samples, for sensitivities. held_out: what the budget is about. timing: one feed.
    """

    original: Path
    fitting: Trials
    evaluation: Reference
    timing: Feeds
    threads: int

    def fitting_error(self, model: ir.Model) -> float:
        """Relative output error on the fitting samples; infinite if it does not even run."""
        try:
            return self.fitting.error(model)
        except (InputError, VerificationError):
            return math.inf

    def held_out(self, model: ir.Model) -> Measured:
        """Error and drop on the held-out samples; infinite if it does not even run."""
        try:
            with session_source(model) as source:
                comparison = self.evaluation.compare(source)
        except (InputError, VerificationError):
            return Measured(math.inf, math.inf, math.inf)
        expected = None if comparison.accuracy is None else comparison.accuracy.expected
        return Measured(comparison.error, comparison.drop, expected)

    def speedup(self, model: ir.Model) -> float:
        """Median of original / model latency, interleaved."""
        with session_source(model) as source:
            timing = compare(
                open_session(self.original, threads=self.threads, timed=True),
                open_session(source, threads=self.threads, timed=True),
                self.timing,
                _EFFORT,
            )
        return 1 / timing.ratio
