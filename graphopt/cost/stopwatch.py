"""Measured latency of a candidate in place of the nodes it would replace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from graphopt.cost.facts import facts_of
from graphopt.cost.latency import QUICK, SURE, Effort, Timing, compare, compare_all, random_feeds
from graphopt.cost.table import LatencyTable, key_of
from graphopt.errors import GraphoptError
from graphopt.graph.fragment import changed_fragment, cut_out, fingerprint
from graphopt.graph.io import session_source
from graphopt.graph.scope import Scope
from graphopt.runtime import Feeds, open_session, run


@dataclass(frozen=True)
class Stopwatch:
    """Compares fragments of a model before and after a rewrite, through the table on disk."""

    table: LatencyTable
    threads: int = 1
    effort: Effort = QUICK

    @property
    def careful(self) -> Stopwatch:
        """One that takes its time, for the few answers that decide."""
        return replace(self, effort=SURE)

    def fragments(self, before: ir.Model, after: ir.Model) -> Timing | None:
        """Time two small models with the same fixed-shape inputs; None if they cannot be run.

        What the table knows is not timed again, unless a quick timing is all it has.
        """
        key = key_of(fingerprint(before), fingerprint(after), self.threads)
        known = self.table.get(key)
        if known is not None and (self.table.is_careful(key) or not self.effort.careful):
            return known
        try:
            with session_source(before) as a, session_source(after) as b:
                timing = compare(
                    open_session(a, threads=self.threads, timed=True),
                    open_session(b, threads=self.threads, timed=True),
                    _feeds(before),
                    self.effort,
                )
        except GraphoptError:
            return None
        facts = facts_of(before), facts_of(after)
        self.table.put(key, timing, *facts, careful=self.effort.careful)
        return timing

    def shares(self, scope: Scope, parts: Mapping[str, Collection[ir.Node]]) -> dict[str, Timing]:
        """Time the whole model (before) against parts of it on their own (after), interleaved.

        So `ratio` is a part's share of the model's time, whatever else the machine does meanwhile.
        Parts that cannot be cut out or run are left out.
        """
        cuts = cuts_of(scope, parts, self.threads)
        missing = {cut.key: cut.fragment for cut in cuts.values() if not self.table.get(cut.key)}
        if missing:
            self._time_against(scope, missing)
        return known_shares(self.table, cuts)

    def _time_against(self, scope: Scope, fragments: Mapping[str, ir.Model]) -> None:
        """Time the scope's model against each of the fragments, all in turn; remember it by key."""
        feeds = random_feeds(
            {
                value.name or "": (scope.shape(value) or (), value.dtype.numpy())
                for value in scope.graph.inputs
                if value.dtype is not None
            }
        )
        try:
            with session_source(scope.model) as source:
                whole = open_session(source, threads=self.threads, timed=True)
                run(whole, feeds)
        except GraphoptError:
            return
        parts = {}
        for key, fragment in fragments.items():
            try:
                with session_source(fragment) as source:
                    part = open_session(source, threads=self.threads, timed=True)
            except GraphoptError:
                continue
            parts[key] = _call(part, _feeds(fragment))
        timings = compare_all(_call(whole, feeds), list(parts.values()), self.effort)
        for key, timing in zip(parts, timings, strict=True):
            self.table.put(key, timing)

    def alone(self, scope: Scope, nodes: Collection[ir.Node]) -> float | None:
        """Median microseconds of nodes on their own; None if they cannot be cut out and run."""
        fragment = cut_or_none(scope, nodes)
        timing = None if fragment is None else self.fragments(fragment, fragment)
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


def cut_or_none(scope: Scope, nodes: Collection[ir.Node]) -> ir.Model | None:
    """The nodes as a model of their own, if the shapes of what they read are known."""
    try:
        return cut_out(scope, nodes)
    except ValueError:
        return None


@dataclass(frozen=True)
class Cut:
    """A part of a model on its own, and the key of its share of the model's time."""

    fragment: ir.Model
    key: str


def cuts_of(scope: Scope, parts: Mapping[str, Collection[ir.Node]], threads: int) -> dict[str, Cut]:
    """The parts that can be cut out. The key goes by the shapes that are bound."""
    shapes = [scope.shape(value) for value in scope.graph.inputs]
    whole = f"{fingerprint(scope.model)}{shapes}"
    return {
        name: Cut(fragment, key_of(whole, fingerprint(fragment), threads))
        for name, nodes in parts.items()
        if (fragment := cut_or_none(scope, nodes)) is not None
    }


def known_shares(table: LatencyTable, cuts: Mapping[str, Cut]) -> dict[str, Timing]:
    """What the table has of these shares."""
    known = {name: table.get(cut.key) for name, cut in cuts.items()}
    return {name: timing for name, timing in known.items() if timing is not None}


def _feeds(fragment: ir.Model) -> Feeds:
    return random_feeds(
        {
            value.name or "": (tuple(value.shape.numpy()), value.dtype.numpy())
            for value in fragment.graph.inputs
            if value.shape is not None and value.dtype is not None
        }
    )


def _call(session: Any, feeds: Feeds) -> Callable[[], object]:
    return lambda: run(session, feeds)
