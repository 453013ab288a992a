"""Which rewrites may be applied, and what was: the state that rollback and blame work on.

A run of the driver is determined by the model, the rewrites and a `Permit`. To find the rewrite
that spoils a result, the driver is run again with the first half of the changes only; to drop one,
with its key blocked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphopt.cost.census import Tally
from graphopt.rewrites.base import OptionValue

Key = tuple[str, ...]


@dataclass(frozen=True)
class Permit:
    """What a run may do: everything but `blocked`, and at most `limit` changes."""

    blocked: frozenset[Key] = frozenset()
    limit: int | None = None


@dataclass(frozen=True)
class Applied:
    """One change that was made: what it took away and what stands there now."""

    key: Key
    name: str
    kind: str
    site: tuple[str, ...]
    options: Mapping[str, OptionValue]
    before: Tally
    after: Tally
    predicted_error: float = 0.0
    measured_error: float | None = None
    latency_before_us: float | None = None
    latency_after_us: float | None = None


@dataclass
class Ledger:
    """The changes of one run, in order."""

    permit: Permit = Permit()
    applied: list[Applied] = field(default_factory=list)

    def admits(self, key: Key) -> bool:
        """Whether the change with this key may be made now."""
        full = self.permit.limit is not None and len(self.applied) >= self.permit.limit
        return not full and key not in self.permit.blocked


def entry(
    key: Key,
    *,
    kind: str,
    site: tuple[str, ...],
    options: Mapping[str, OptionValue],
    before: Tally,
    after: Tally,
    predicted_error: float = 0.0,
    measured_error: float | None = None,
    latency_us: tuple[float, float] | None = None,
) -> Applied:
    """The ledger entry for a change. before, after: what went and what came."""
    return Applied(
        key=key,
        name=key[0],
        kind=kind,
        site=site,
        options=dict(options),
        before=before,
        after=after,
        predicted_error=predicted_error,
        measured_error=measured_error,
        latency_before_us=None if latency_us is None else latency_us[0],
        latency_after_us=None if latency_us is None else latency_us[1],
    )
