"""From the results of a run to its report: plain data out of graphs and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graphopt._version import __version__
from graphopt.assembly.facts import (
    declined,
    model_file,
    rewrite_entry,
    totals,
    verification_of,
    versions,
)
from graphopt.assembly.notes import notes
from graphopt.assembly.outcome import Outcome, Trial, frontier_end
from graphopt.assembly.prediction import with_prediction
from graphopt.calibration.prepare import Inputs
from graphopt.clock import Clock, peak_memory_bytes
from graphopt.cost.totals import model_cost
from graphopt.graph.io import Source
from graphopt.graph.shapes import TensorInfo
from graphopt.options import Options
from graphopt.reporting.schema import (
    BudgetUsed,
    DenseMaps,
    DenseSize,
    Estimate,
    FrontierPoint,
    OptimizeReport,
)

if TYPE_CHECKING:
    from graphopt.records import Records
    from graphopt.verification.windows import SlideCheck


def optimize_report(
    source: Source,
    options: Options,
    inputs: Inputs,
    infos: Mapping[str, TensorInfo],
    outcome: Outcome,
    clock: Clock,
    command: str,
    records: Records | None = None,
) -> OptimizeReport:
    """The report of a run."""
    trial, found = outcome.trial, outcome.trial.found
    original = model_file(source)
    before = model_cost(source.model, infos)
    budget = options.budget
    return OptimizeReport(
        tool=f"graphopt {__version__}",
        versions=versions(),
        command=command,
        input=original,
        output=outcome.file if outcome.written else None,
        target=options.target,
        seed=options.seed,
        budget=BudgetUsed(budget.max_error, budget.max_drop, budget.speedup, found.bound_by),
        before=totals(before, original),
        after=totals(outcome.cost, outcome.file),
        latency=with_prediction(trial.latency, trial.done.applied, inputs.shapes, found.whole_us),
        rewrites=tuple(rewrite_entry(change) for change in trial.done.applied),
        declined=declined((*trial.done.declined, *found.declined)),
        verification=None
        if trial.proof is None
        else verification_of(trial.proof, trial.limits, inputs, options, trial.rolled_back),
        available=tuple(Estimate(error, ratio) for error, ratio in found.available),
        notes=notes(source, options, outcome, records),
        seconds=dict(clock.seconds),
        peak_memory_bytes=peak_memory_bytes(),
        frontier=_frontier(options, inputs, outcome),
        dense=_dense(trial),
    )


def _frontier(options: Options, inputs: Inputs, outcome: Outcome) -> tuple[FrontierPoint, ...]:
    if options.pareto is None or outcome.trial.proof is None:
        return ()
    return (*outcome.closer.points, frontier_end(inputs, outcome, outcome.trial.proof))


def _dense(trial: Trial) -> DenseMaps | None:
    found = trial.done.dense
    if found is None:
        return None
    return DenseMaps(
        input=found.picture,
        window=found.window,
        stride=found.stride,
        exact=found.inexact is None,
        inexact_because=found.inexact,
        sizes=tuple(_dense_size(check) for check in trial.slid),
    )


def _dense_size(check: SlideCheck) -> DenseSize:
    timing = check.timing
    one_by_one = None if timing is None else timing.before_us * check.windows
    return DenseSize(
        picture=check.picture,
        maps=dict(check.maps),
        windows=check.windows,
        relative_l2=check.relative_l2,
        worst_window=check.worst_window,
        top1_agreement=check.top1_agreement,
        pass_us=None if timing is None else timing.after_us,
        crops_us=one_by_one,
        ratio=None if timing is None else timing.ratio / check.windows,
        ratio_low=None if timing is None else timing.ratio_low / check.windows,
        ratio_high=None if timing is None else timing.ratio_high / check.windows,
    )
