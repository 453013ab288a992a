"""Exact rewrites that leave alone what a designer asked for with `--ranks`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graphopt.graph.scope import Scope
from graphopt.rewrites.base import Decline, ExactRewrite, Finding, Proposal, WholeModelPass
from graphopt.rewrites.exact.compose_convs import ComposeConvs
from graphopt.rewrites.exact.compose_fcs import ComposeFcs
from graphopt.rewrites.exact.merge_branches import MergeBranches

MARK = "graphopt.forced"
"""Metadata of the nodes that stand for a named layer: the name of its output value."""

_JOINING = (ComposeConvs, ComposeFcs, MergeBranches)
"""Exact rewrites that could make one layer again of what was taken apart."""


@dataclass(frozen=True)
class Respecting(ExactRewrite):
    """An exact rewrite that passes marked nodes by."""

    inner: ExactRewrite

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the rewrite."""
        return self.inner.name

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """What the rewrite finds elsewhere; what it found there is declined."""
        for finding in self.inner.propose(scope):
            if isinstance(finding, Proposal) and any(
                MARK in node.metadata_props for node in finding.nodes
            ):
                yield Decline(finding.rewrite, finding.site, "it is as --ranks asked for it")
            else:
                yield finding


def respecting(
    rewrites: Sequence[ExactRewrite | WholeModelPass],
) -> tuple[ExactRewrite | WholeModelPass, ...]:
    """The rewrites, such that none undoes what was named, in this run or in an earlier one.

    A structure that saves nothing is a designer's choice, but dearer than the layer that it amounts
    to: composing would take it away.
    """
    return tuple(Respecting(r) if isinstance(r, _JOINING) else r for r in rewrites)
