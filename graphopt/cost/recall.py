"""Latencies without measuring: what the table knows, else what its timings let expect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from graphopt.cost.channel_block import channel_block
from graphopt.cost.facts import facts_of
from graphopt.cost.latency import Timing
from graphopt.cost.model import CostModel, fit
from graphopt.cost.stopwatch import cuts_of, known_shares
from graphopt.cost.table import LatencyTable, key_of
from graphopt.graph.fragment import changed_fragment, fingerprint
from graphopt.graph.scope import Scope


@dataclass(frozen=True)
class Recall:
    """Answers like a Stopwatch, from the table on disk alone."""

    table: LatencyTable
    threads: int = 1

    @property
    def careful(self) -> None:
        """Nobody: what is known is all there is."""
        return

    @cached_property
    def model(self) -> CostModel | None:
        """Fitted to the table as it is when first asked for, so that a run has but one."""
        return fit(self.table.samples(self.threads), channel_block())

    def shares(self, scope: Scope, parts: Mapping[str, Collection[ir.Node]]) -> dict[str, Timing]:
        """The parts' shares of the whole model's time that the table knows."""
        return known_shares(self.table, cuts_of(scope, parts, self.threads))

    def rewritten(
        self,
        scope: Scope,
        nodes: Collection[ir.Node],
        rewrite: Callable[[Scope], bool],
        *,
        batch: int | None = None,
    ) -> Timing | None:
        """The timing in the table, else a predicted one (of 0 pairs), else None.

        rewrite: as for `Stopwatch.rewritten`.
        """
        pair = changed_fragment(scope, nodes, rewrite, batch=batch)
        if pair is None:
            return None
        before, after = pair
        known = self.table.get(key_of(fingerprint(before), fingerprint(after), self.threads))
        if known is not None or self.model is None:
            return known
        facts = facts_of(before), facts_of(after)
        if facts[0] is None or facts[1] is None:
            return None
        times = self.model.predict(facts[0]), self.model.predict(facts[1])
        return predicted(*times) if min(times) > 0 else None


def predicted(before_us: float, after_us: float) -> Timing:
    """A timing that nobody took."""
    ratio = after_us / before_us
    return Timing(before_us, after_us, ratio, ratio, ratio, pairs=0)
