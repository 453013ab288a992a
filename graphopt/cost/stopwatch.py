"""Measured latency of a candidate in place of the nodes it would replace."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.cost.facts import facts_of
from graphopt.cost.latency import QUICK, Effort, Timing, compare, random_feeds
from graphopt.cost.table import LatencyTable, key_of
from graphopt.errors import GraphoptError
from graphopt.graph.fragment import changed_fragment, cut_out, fingerprint
from graphopt.graph.io import session_source
from graphopt.graph.scope import Scope
from graphopt.runtime import open_session


@dataclass(frozen=True)
class Stopwatch:
    """Compares fragments of a model before and after a rewrite, through the table on disk."""

    table: LatencyTable
    threads: int = 1
    effort: Effort = QUICK

    def fragments(self, before: ir.Model, after: ir.Model) -> Timing | None:
        """Time two small models with the same fixed-shape inputs; None if they cannot be run."""
        key = key_of(fingerprint(before), fingerprint(after), self.threads)
        known = self.table.get(key)
        if known is not None:
            return known
        feeds = random_feeds(
            {
                v.name or "": (tuple(v.shape.numpy()), v.dtype.numpy())
                for v in before.graph.inputs
                if v.shape is not None and v.dtype is not None
            }
        )
        try:
            with session_source(before) as a, session_source(after) as b:
                timing = compare(
                    open_session(a, threads=self.threads),
                    open_session(b, threads=self.threads),
                    feeds,
                    self.effort,
                )
        except GraphoptError:
            return None
        self.table.put(key, timing, facts_of(before), facts_of(after))
        return timing

    def alone(self, scope: Scope, nodes: Collection[ir.Node]) -> float | None:
        """Median microseconds of nodes on their own; None if they cannot be cut out and run."""
        try:
            fragment = cut_out(scope, nodes)
        except ValueError:
            return None
        timing = self.fragments(fragment, fragment)
        return None if timing is None else min(timing.before_us, timing.after_us)

    def rewritten(
        self,
        scope: Scope,
        nodes: Collection[ir.Node],
        rewrite: Callable[[Scope], bool],
        *,
        batch: int | None = None,
    ) -> Timing | None:
        """Time `nodes` against what `rewrite` makes of them, in a fragment of their own.

        rewrite: changes the graph of the scope it is given; False if it finds nothing to change.
        None when the fragment cannot be cut out, changed or run.
        """
        pair = changed_fragment(scope, nodes, rewrite, batch=batch)
        return None if pair is None else self.fragments(*pair)
