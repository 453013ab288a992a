"""Figures that cost much to measure, under names that say what was measured.

Planning does not know where they are kept. A run that is given what an earlier one noted makes the
same decisions without measuring (and, for whole plans, without fitting) again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from graphopt.planning.search import Plan
    from graphopt.planning.workshop import Candidate

Figures = tuple[float | None, ...]


class Notebook(Protocol):
    """Remembers figures."""

    def get(self, key: str) -> Figures | None:
        """What was noted under a key."""

    def put(self, key: str, figures: Figures) -> None:
        """Note figures."""


def noted(
    notebook: Notebook | None, key: Callable[[], str], measure: Callable[[], Figures]
) -> Figures:
    """What was noted under the key, else what is measured now (and then noted)."""
    if notebook is None:
        return measure()
    name = key()
    figures = notebook.get(name)
    if figures is None:
        figures = measure()
        notebook.put(name, figures)
    return figures


def probe_key(candidate: Candidate) -> str:
    """The key of the output error with one candidate, fitted on its own, in place."""
    return f"alone {_described(candidate)}"


def plan_key(plan: Plan, fit: str) -> str:
    """The key of what a plan measures on the held-out inputs, fitted in a named way."""
    return f"plan, {fit}: {'; '.join(_described(choice.candidate) for choice in plan)}"


def _described(candidate: Candidate) -> str:
    return f"{candidate.layer.name!r} {candidate.rewrite} {candidate.ranks}"
