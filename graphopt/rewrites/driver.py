"""Applies exact rewrites and clean-up until nothing changes any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.cost.census import Census, Snapshot, Tally
from graphopt.graph.edit import forget_names
from graphopt.graph.scope import Scope, bodies, graphs, scopes
from graphopt.graph.shapes import TensorInfo
from graphopt.rewrites.base import Decline, ExactRewrite, Proposal, WholeModelPass
from graphopt.rewrites.ledger import Ledger, entry

if TYPE_CHECKING:
    from graphopt.cost.latency import Timing

Gate = Callable[[ExactRewrite, Proposal, Scope], "Verdict"]

_MOST_ROUNDS = 50


@dataclass(frozen=True)
class Verdict:
    """Whether a gated proposal is worth taking, with the reason if not and the timing if there is one."""

    accepted: bool
    reason: str = ""
    timing: Timing | None = None


def always(_: ExactRewrite, __: Proposal, ___: Scope) -> Verdict:
    """The gate of a target that takes every exact rewrite."""
    return Verdict(True)


@dataclass
class Driver:
    """One model being rewritten.

    infos: concrete shapes of the main graph's values by name; grows with the model.
    gate: asked before a gated proposal is applied.
    """

    model: ir.Model
    infos: dict[str, TensorInfo]
    ledger: Ledger
    gate: Gate = always
    declined: list[Decline] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.census = Census(self.model, self.infos)
        self._before: Snapshot | None = self.census.take()
        self._state: object = None
        self._scopes: list[Scope] | None = None  # None, all three: it may no longer be so

    def to_fixpoint(self, rewrites: Sequence[ExactRewrite | WholeModelPass]) -> None:
        """Apply the rewrites in order, again and again, until a whole round changes nothing.

        `declined` then holds what the last round left alone, and why.
        """
        ordered = sorted(rewrites, key=lambda r: isinstance(r, WholeModelPass) and r.late)
        for _ in range(_MOST_ROUNDS):
            self.declined = []
            changed = False
            for rewrite in ordered:
                if isinstance(rewrite, WholeModelPass):
                    changed |= not (rewrite.late and changed) and self._pass(rewrite)
                else:
                    changed |= self._sweep(rewrite)
            if not changed:
                return

    def _pass(self, rewrite: WholeModelPass) -> bool:
        key = (rewrite.name,)
        if not self.ledger.admits(key):
            return False
        before, state = self._taken(), self._state or _state(self.model)
        options = rewrite.run(self.model)
        self._state = _state(self.model)
        if self._state == state:
            return False
        self._before = self._scopes = None
        forget_names(self.model)
        after = self._taken()
        self.ledger.applied.append(
            entry(
                key,
                kind=rewrite.kind,
                site=(),
                options=options,
                before=before.without(after),
                after=after.without(before),
            )
        )
        return True

    def apply(self, proposal: Proposal, scope: Scope) -> tuple[Tally, Tally]:
        """Make a change to a scope of the model; returns what went and what came."""
        scope.journal.clear()
        proposal.apply()
        self._before = self._state = None
        if any(bodies(node) for change in scope.journal for node in change.nodes):
            self._scopes = None
        return self.census.changed(scope)

    def _taken(self) -> Snapshot:
        """The model as it is; after one change is before the next."""
        if self._before is None:
            self._before = self.census.take()
        return self._before

    def _sweep(self, rewrite: ExactRewrite) -> bool:
        changed = False
        if self._scopes is None:
            self._scopes = list(scopes(self.model, self.infos))
        for scope in self._scopes:
            for finding in rewrite.propose(scope):
                if isinstance(finding, Decline):
                    self.declined.append(finding)
                elif _stands(finding) and self.ledger.admits(finding.key):
                    changed |= self._take(rewrite, finding, scope)
        return changed

    def _take(self, rewrite: ExactRewrite, proposal: Proposal, scope: Scope) -> bool:
        site, timing = proposal.site, None
        if proposal.gated:
            verdict = self.gate(rewrite, proposal, scope)
            if not verdict.accepted:
                self.declined.append(Decline(rewrite.name, site, verdict.reason))
                return False
            timing = verdict.timing
        key = proposal.key
        before, after = self.apply(proposal, scope)
        self.ledger.applied.append(
            entry(
                key,
                kind=rewrite.kind,
                site=site,
                options=proposal.options,
                before=before,
                after=after,
                latency_us=None if timing is None else (timing.before_us, timing.after_us),
            )
        )
        return True


def _stands(proposal: Proposal) -> bool:
    """Whether no proposal applied meanwhile has removed what this one is about."""
    return all(node.graph is not None for node in proposal.nodes)


def _state(model: ir.Model) -> object:
    """What counts as a change, cheap to compare (weights by identity).

    Attributes do not: libraries drop some that have their default value anyway.
    """
    state = []
    for graph in graphs(model):
        weights = [(name, id(value.const_value)) for name, value in graph.initializers.items()]
        state.append((_nodes(graph), weights, _names(graph.inputs), _names(graph.outputs)))
    functions = {
        name: (_nodes(function.all_nodes()), _names(function.outputs))
        for name, function in model.functions.items()
    }
    return model.ir_version, state, functions


def _nodes(nodes: Iterable[ir.Node]) -> list[object]:
    return [(n.domain, n.op_type, _names(n.inputs), _names(n.outputs)) for n in nodes]


def _names(values: Iterable[ir.Value | None]) -> list[str | None]:
    return [None if value is None else value.name for value in values]
