"""The headline: one sentence about a run that promises no more than was measured.

The terminal and the HTML report print the same `Verdict`, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from graphopt.reporting import units
from graphopt.reporting.schema import (
    AccuracyDrop,
    DenseMaps,
    DenseSize,
    Latency,
    ModelFile,
    OptimizeReport,
    OutputCheck,
    Verification,
)

Status = Literal["good", "caution", "bad"]


@dataclass(frozen=True)
class Verdict:
    """A run in one sentence: `speed`, then `savings`, then `error`, and what `proof` there is.

    `status` is "bad" where the verification failed, "caution" where something that a reader
    would take for granted was not shown (not verified, not faster, approximate on random inputs).
    """

    subject: str
    speed: str
    savings: tuple[str, ...]
    error: str | None
    proof: str
    status: Status

    @property
    def clauses(self) -> tuple[str, ...]:
        """Everything that is claimed, in reading order, without the proof."""
        return (self.speed, *self.savings, *((self.error,) if self.error else ()))

    @property
    def sentence(self) -> str:
        """The whole headline without the file names."""
        return f"{', '.join(self.clauses)} - {self.proof}"


def verdict(report: OptimizeReport) -> Verdict:
    """What the headline says about `report`."""
    return Verdict(
        subject=f"{file_name(report.input)} -> {_written(report)}",
        speed=_dense_speed(report)
        or (_speed(report.latency) if report.rewrites else "nothing to rewrite"),
        savings=_savings(report),
        error=error_phrase(report.verification) if report.verification else None,
        proof=proof_phrase(report.verification),
        status=_status(report),
    )


def file_name(model: ModelFile) -> str:
    """The last part of a model's path."""
    return units.clean(PurePath(model.path).name or model.path)


def speed_phrase(latency: Latency) -> str:
    """`2.31x faster (95% 2.25-2.38)`, or that it is not when the interval includes 1."""
    digits = 3 if 0.98 < latency.ratio < 1.02 else 2
    interval = speedup_interval(latency, digits)
    if latency.measurably_faster:
        return f"{units.times(latency.speedup, digits)} faster (95% {interval})"
    if latency.ratio_low > 1.0:
        low, high = (f"{bound:.{digits}f}" for bound in (latency.ratio_low, latency.ratio_high))
        return f"{units.times(latency.ratio, digits)} slower (95% {low}-{high})"
    return f"not measurably faster ({units.times(latency.speedup, digits)}, 95% {interval})"


def prediction_phrase(latency: Latency) -> str | None:
    """`2.25x predicted from the layers, 2.31x measured`, where there is a prediction."""
    if not latency.predicted_ratio:
        return None
    predicted = units.times(1 / latency.predicted_ratio)
    return f"{predicted} predicted from the layers, {units.times(latency.speedup)} measured"


def speedup_interval(latency: Latency, digits: int = 2) -> str:
    """The 95 % interval of before / after: `2.25-2.38`."""
    return f"{1 / latency.ratio_high:.{digits}f}-{1 / latency.ratio_low:.{digits}f}"


def error_phrase(verification: Verification) -> str:
    """How far the worst output moved, of what was allowed, and the metric where there is one."""
    return ", ".join((*_metric(verification), _output_error(verification)))


def proof_phrase(verification: Verification | None) -> str:
    """What the claim rests on: `verified on 512 held-out samples`, or that nothing was shown."""
    if verification is None:
        return "NOT VERIFIED"
    if not verification.passed:
        failed = [check for check in verification.outputs if not check.passed]
        where = f" at output {units.clean(failed[0].name)} ({failed[0].level})" if failed else ""
        return f"VERIFICATION FAILED{where}"
    samples = verification.samples
    if samples.source == "synthetic":
        inputs = units.plural(samples.held_out, "random input")
        return f"checked on {inputs}, so the error is only indicative"
    return f"verified on {units.plural(samples.held_out, 'held-out sample')}"


def worst_check(checks: Sequence[OutputCheck]) -> OutputCheck | None:
    """The check with the largest relative error; one that is not a number counts as worst."""
    measured = [check for check in checks if check.relative_l2 is not None]
    return max(measured, key=_badness, default=None)


def unequal_share(check: OutputCheck) -> str:
    """The share of unequal elements where it says something: floats all differ by rounding."""
    return units.percent(check.mismatches) if check.relative_l2 is None else units.MISSING


def metric_value(name: str | None, value: float | None) -> str:
    """A top-k accuracy in percent; any other metric as the plain number it is."""
    if value is not None and (name or "").startswith("top"):
        return units.rate(value)
    return units.MISSING if value is None else f"{value:.5g}"


def _badness(check: OutputCheck) -> float:
    value = check.relative_l2
    return math.inf if value is None or math.isnan(value) else value


def _written(report: OptimizeReport) -> str:
    return file_name(report.output) if report.output else "(nothing written)"


def _speed(latencies: tuple[Latency, ...]) -> str:
    if not latencies:
        return "latency not measured"
    if len(latencies) == 1:
        return speed_phrase(latencies[0])
    return ", ".join(f"{speed_phrase(entry)} at batch {entry.batch}" for entry in latencies)


def _dense_speed(report: OptimizeReport) -> str | None:
    """What a dense network is for, and then the speed at the original size; None for others."""
    found = _largest(report.dense)
    if found is None or found.ratio is None:
        return None
    picture = "x".join(map(str, found.picture))
    gain = units.times(1 / found.ratio)
    windows = f"{found.windows} windows of {picture} pixels at {gain} the speed of separate crops"
    return f"{windows}; at the original size {_speed(report.latency)}"


def _largest(dense: DenseMaps | None) -> DenseSize | None:
    """The timed picture with the most windows."""
    timed = [size for size in dense.sizes if size.ratio is not None] if dense else []
    return max(timed, key=lambda size: size.windows, default=None)


def dense_title(dense: DenseMaps) -> str:
    """What the cells of a dense network are: `Dense: an answer for every 224x224 window, ...`."""
    window, stride = ("x".join(map(str, sizes)) for sizes in (dense.window, dense.stride))
    return f"Dense: an answer for every window of {window} pixels, {stride} pixels apart"


def dense_phrase(dense: DenseMaps) -> str:
    """Whether cells are what the original answers on their windows."""
    measured = "" if dense.sizes else ", by how much was not measured"
    if dense.inexact_because is not None:
        because = units.clean(dense.inexact_because)
        return f"cells see more than their windows, so their answers differ ({because}){measured}"
    return "nothing reaches beyond a window: every cell is the answer to its window"


def _savings(report: OptimizeReport) -> tuple[str, ...]:
    macs = _saving(report.before.macs, report.after.macs, "fewer MACs", "more MACs")
    size = _saving(report.before.file_bytes, report.after.file_bytes, "smaller", "larger")
    if not macs and report.before.nodes > report.after.nodes:
        macs = units.plural(report.before.nodes - report.after.nodes, "node") + " fewer"
    return tuple(phrase for phrase in (macs, size) if phrase)


def _saving(before: int, after: int, less: str, more: str) -> str:
    if before == after or before == 0:
        return ""
    return f"{units.percent(abs(after - before) / before)} {less if after < before else more}"


def _metric(verification: Verification) -> tuple[str, ...]:
    before, after = verification.metric_before, verification.metric_after
    if before is None or after is None:
        return ()
    name = verification.metric
    values = f"{metric_value(name, before)} -> {metric_value(name, after)}"
    return (f"{units.clean(name or 'metric')} {values}{_sureness(verification.accuracy_drop)}",)


def _sureness(drop: AccuracyDrop | None) -> str:
    """How sure a drop is: `(-0.20 ± 0.41 points, inside the noise; -0.12 expected)`."""
    if drop is None or (drop.counted == 0 and drop.expected == 0):
        return ""
    noise = 2 * drop.standard_error
    inside = ", inside the noise" if abs(drop.counted) <= noise else ""
    return (
        f" ({-100 * drop.counted:+.2f} ± {100 * drop.standard_error:.2f} points{inside}; "
        f"{-100 * drop.expected:+.2f} expected)"
    )


def _output_error(verification: Verification) -> str:
    worst = worst_check(verification.outputs)
    if worst is None:
        unequal = max((check.mismatches for check in verification.outputs), default=0.0)
        if unequal == 0:
            return "outputs identical"
        return f"{units.percent(unequal)} of output elements differ"
    if verification.tolerance is None:
        return f"error {units.error(worst.relative_l2)}"
    return (
        f"error {units.error(worst.relative_l2)} of {units.error(verification.tolerance)} allowed"
    )


def _status(report: OptimizeReport) -> Status:
    verification = report.verification
    if verification is not None and not verification.passed:
        return "bad"
    approximate = any(entry.kind == "approximate" for entry in report.rewrites)
    shown = verification is not None and not (
        approximate and verification.samples.source == "synthetic"
    )
    faster = bool(report.latency) and all(entry.measurably_faster for entry in report.latency)
    dense = _largest(report.dense)
    if dense is not None and dense.ratio_high is not None:
        faster = dense.ratio_high < 1
    return "good" if shown and (faster or not report.rewrites) else "caution"
