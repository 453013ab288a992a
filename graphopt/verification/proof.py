"""Whether a written file may stand in for the original: both onnxruntime levels, every output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import InputError, VerificationError
from graphopt.graph.scope import graphs
from graphopt.runtime import Level
from graphopt.verification.compare import Comparison, Reference
from graphopt.verification.expected_drop import Drop

LEVELS: tuple[Level, ...] = ("disable_all", "enable_all")

EXACT_TOLERANCE = 1e-4
"""Relative L2 error that float32 rounding may cause when nothing was approximated."""

_TOLERANCES = {ir.DataType.BFLOAT16: 4e-2, ir.DataType.FLOAT16: 5e-3}

_MISMATCHES = 1e-3
"""Share of integer, boolean or string elements that may differ (ties that rounding tips over)."""


_MOST_NOISE = 0.05
"""Relative distance of the original from itself past which its outputs prove nothing."""


def exact_tolerance(model: ir.Model) -> float:
    """The tolerance for exact rewrites: that of the coarsest float type the model computes in."""
    found = EXACT_TOLERANCE
    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.dtype in _TOLERANCES:
                found = max(found, _TOLERANCES[value.dtype])
    return found


@dataclass(frozen=True)
class Limits:
    """What a result must keep to. `error` None: not limited; `drop` None: no limit on the metric."""

    error: float | None
    drop: float | None = None


@dataclass(frozen=True)
class Check:
    """One output at one level: the distance, and whether it is within the limits."""

    name: str
    level: Level
    comparison: Comparison
    passed: bool


@dataclass(frozen=True)
class Proof:
    """The outcome at both levels. `reason` says what went wrong first, if something did.

    accuracy: the drop with its standard errors, where the metric is top-1 accuracy.
    noisy: outputs that were allowed twice the original's own noise, with that noise (see `prove`).
    """

    checks: tuple[Check, ...]
    passed: bool
    reason: str
    metric_before: float | None = None
    metric_after: float | None = None
    noisy: Mapping[str, float] = field(default_factory=dict)
    accuracy: Drop | None = None


def prove(reference: Reference, candidate: str | Path | bytes, limits: Limits) -> Proof:
    """Run a candidate at ORT_DISABLE_ALL and ORT_ENABLE_ALL against the reference.

    An output beyond the limit still passes when it is within twice the distance of the original
    from itself between the two levels: that much is rounding on these inputs, whoever computes it.
    An original that is far off from itself (it draws random numbers, say) cannot be proven with.
    """
    checks: list[Check] = []
    noisy: dict[str, float] = {}
    reason = ""
    last: Comparison | None = None
    for level in LEVELS:
        try:
            last = reference.compare(candidate, level)
        except (InputError, VerificationError) as error:
            return Proof(tuple(checks), False, str(error))
        for name in last.distances:
            wrong = _violation(last, name, limits)
            if wrong and 0 < (noise := reference.own_noise()[name]) <= _MOST_NOISE:
                allowed = max(limits.error or 0.0, 2 * noise)
                if not _violation(last, name, Limits(allowed)):
                    wrong, noisy[name] = "", noise
            checks.append(Check(name, level, last, not wrong))
            reason = reason or wrong
        drop = last.drop or 0.0
        if not reason and limits.drop is not None and not drop <= limits.drop:
            reason = f"the metric falls by {drop:.4f}, more than {limits.drop:g}"
    assert last is not None
    return Proof(
        checks=tuple(checks),
        passed=not reason,
        reason=reason,
        metric_before=last.metric_before,
        metric_after=last.metric_after,
        noisy=noisy,
        accuracy=last.accuracy,
    )


def _violation(comparison: Comparison, name: str, limits: Limits) -> str:
    distance = comparison.distances[name]
    if "float" not in comparison.dtypes[name]:
        share = distance.mismatches
        exact = limits.error is not None and limits.error <= max(_TOLERANCES.values())
        if exact and share > _MISMATCHES:
            return f"output {name!r}: {share:.2%} of its elements differ"
        return ""
    error = distance.relative_l2
    if limits.error is not None and not error <= limits.error:
        shown = "infinite" if math.isinf(error) else f"{error:.3g}"
        return f"output {name!r} is off by {shown}, more than {limits.error:g}"
    return ""
