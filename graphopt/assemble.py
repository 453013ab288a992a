"""From the results of a run to its report: plain data out of graphs and arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt._version import __version__
from graphopt.calibration.prepare import Inputs
from graphopt.clock import Clock, peak_memory_bytes
from graphopt.cost.census import Tally
from graphopt.cost.table import cpu_model
from graphopt.cost.totals import ModelCost, model_cost
from graphopt.destination import Stage
from graphopt.graph.io import Source, digest, load
from graphopt.graph.shapes import TensorInfo
from graphopt.options import Options
from graphopt.planning.budget import Budget
from graphopt.reporting.schema import (
    AccuracyDrop,
    BudgetUsed,
    Cost,
    Declined,
    DenseMaps,
    DenseSize,
    Estimate,
    FrontierPoint,
    Latency,
    ModelFile,
    OptimizeReport,
    OutputCheck,
    RewriteEntry,
    Samples,
    Totals,
    Verification,
)
from graphopt.rewrites.base import Decline
from graphopt.rewrites.ledger import Applied
from graphopt.rewriting import Rewritten
from graphopt.verification.proof import Limits, Proof

if TYPE_CHECKING:  # their modules run models, which not every run does
    from graphopt.approximation import Approximation, Plan
    from graphopt.records import Records
    from graphopt.verification.windows import SlideCheck

_REPORTED = ("graphopt", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "scipy")


@dataclass(frozen=True)
class Trial:
    """One attempt at a result, as far as it got. found: None where nothing was to be approximated."""

    exact: Rewritten
    done: Rewritten
    found: Approximation | None
    proof: Proof | None
    latency: tuple[Latency, ...]
    rolled_back: tuple[Decline, ...]
    limits: Limits
    slid: tuple[SlideCheck, ...] = ()


@dataclass(frozen=True)
class Closer:
    """Models of `--pareto` short of the result, waiting to be committed; notes on those left out."""

    stages: tuple[Stage, ...] = ()
    points: tuple[FrontierPoint, ...] = ()
    notes: tuple[str, ...] = ()

    def and_also(self, stage: Stage, point: FrontierPoint) -> Closer:
        """With one more model."""
        return Closer((*self.stages, stage), (*self.points, point), self.notes)

    def without(self, note: str) -> Closer:
        """With a note on a model that is left out."""
        return Closer(self.stages, self.points, (*self.notes, note))


@dataclass(frozen=True)
class Outcome:
    """The attempt that held, with the facts about its file (read before it moves into place)."""

    trial: Trial
    file: ModelFile
    written: bool
    cost: ModelCost
    closer: Closer = Closer()

    @classmethod
    def of(cls, trial: Trial, stage: Stage, options: Options, closer: Closer = Closer()) -> Outcome:
        """Take the facts of a staged result and, unless this is a dry run, commit it and the others."""
        file, cost = _facts(stage, trial.done, options)
        if not options.dry_run:
            for one in (*closer.stages, stage):
                one.commit()
        return cls(trial, file, not options.dry_run, cost, closer)


def _facts(stage: Stage, done: Rewritten, options: Options) -> tuple[ModelFile, ModelCost]:
    result = load(stage.path)
    shown_as = options.output if options.dry_run else stage.destination
    return model_file(result, shown_as), model_cost(result.model, done.scope.infos)


def frontier_point(
    options: Options,
    inputs: Inputs,
    done: Rewritten,
    proof: Proof,
    latency: Iterable[Latency],
    stage: Stage,
    whole_us: float | None,
) -> FrontierPoint:
    """The facts about a staged model of `--pareto`."""
    file, cost = _facts(stage, done, options)
    return _point(file, cost, inputs, done, proof, latency, whole_us)


def _point(
    file: ModelFile,
    cost: ModelCost,
    inputs: Inputs,
    done: Rewritten,
    proof: Proof,
    latency: Iterable[Latency],
    whole_us: float | None,
) -> FrontierPoint:
    from graphopt.reporting.verdict import worst_check

    worst = worst_check(output_checks(proof))
    from graphopt.timing import with_prediction

    return FrontierPoint(
        file=file,
        after=totals(cost, file),
        latency=with_prediction(tuple(latency), done.applied, inputs.shapes, whole_us),
        error=None if worst is None else worst.relative_l2,
        metric_before=proof.metric_before,
        metric_after=proof.metric_after,
        approximated=sum(change.kind == "approximate" for change in done.applied),
    )


def model_file(source: Source, shown_as: Path | None = None) -> ModelFile:
    """The facts about a model file."""
    return ModelFile(
        path=str(shown_as or source.path),
        sha256=digest(source),
        bytes=source.bytes,
        ir_version=source.model.ir_version,
        opsets=dict(source.model.graph.opset_imports),
    )


def versions() -> dict[str, str]:
    """Versions of graphopt and the libraries it rests on."""
    found = {"graphopt": __version__}
    for name in _REPORTED[1:]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["cpu"] = cpu_model()
    return found


def totals(cost: ModelCost, file: ModelFile) -> Totals:
    """Totals of a model."""
    return Totals(
        nodes=cost.tally.nodes,
        parameters=cost.tally.parameters,
        weight_bytes=cost.tally.weight_bytes,
        file_bytes=file.bytes,
        macs=cost.tally.macs,
        peak_activation_bytes=cost.peak_activation_bytes,
        operators=dict(cost.operators),
    )


def declined(items: Iterable[Decline]) -> tuple[Declined, ...]:
    """Declined sites, as the report has them."""
    return tuple(Declined(item.rewrite, item.site, item.reason) for item in items)


def rewrite_entry(change: Applied) -> RewriteEntry:
    """One applied change, as the report has it."""
    return RewriteEntry(
        name=change.name,
        kind=change.kind,  # type: ignore[arg-type]
        site=change.site,
        options=dict(change.options),
        before=_cost(change.before, change.latency_before_us),
        after=_cost(change.after, change.latency_after_us),
        predicted_error=change.predicted_error if change.kind == "approximate" else None,
        measured_error=change.measured_error,
    )


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
        budget=BudgetUsed(
            budget.max_error,
            budget.max_drop,
            budget.speedup,
            None if found is None else found.bound_by,
        ),
        before=totals(before, original),
        after=totals(outcome.cost, outcome.file),
        latency=_latency(trial, inputs),
        rewrites=tuple(rewrite_entry(change) for change in trial.done.applied),
        declined=declined((*trial.done.declined, *(() if found is None else found.declined))),
        verification=None
        if trial.proof is None
        else verification_of(trial.proof, trial.limits, inputs, options, trial.rolled_back),
        available=()
        if found is None
        else tuple(Estimate(error, ratio) for error, ratio in found.available),
        notes=(
            *_notes(source, trial, outcome),
            *_notes_on_plan(options, found),
            *_already_dense(options, trial.done),
            *_few_stops(options, found),
            *outcome.closer.notes,
            *_notes_on_records(records),
        ),
        seconds=dict(clock.seconds),
        peak_memory_bytes=peak_memory_bytes(),
        frontier=_frontier(options, inputs, outcome),
        dense=_dense(trial),
    )


def _latency(trial: Trial, inputs: Inputs) -> tuple[Latency, ...]:
    if not trial.latency:
        return ()
    from graphopt.timing import with_prediction

    whole_us = None if trial.found is None else trial.found.whole_us
    return with_prediction(trial.latency, trial.done.applied, inputs.shapes, whole_us)


def _notes_on_records(records: Records | None) -> tuple[str, ...]:
    if records is None:
        return ()
    from graphopt.resuming import notes_on

    return notes_on(records)


def _frontier(options: Options, inputs: Inputs, outcome: Outcome) -> tuple[FrontierPoint, ...]:
    trial = outcome.trial
    if options.pareto is None or trial.proof is None or trial.found is None:
        return ()
    end = _point(
        outcome.file,
        outcome.cost,
        inputs,
        trial.done,
        trial.proof,
        trial.latency,
        trial.found.whole_us,
    )
    return (*outcome.closer.points, end)


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


def _already_dense(options: Options, done: Rewritten) -> list[str]:
    if not options.dense or done.dense is not None:
        return []
    return ["--dense: this network takes pictures of any size already, and nothing says for which"]


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


def _few_stops(options: Options, found: Approximation | None) -> list[str]:
    plans = 1 if found is None else len(found.closer) + 1
    if options.pareto is None or plans >= options.pareto:
        return []
    return [
        f"--pareto {options.pareto}: on the way to the budget there are only {plans} distinct models"
    ]


def verification_of(
    proof: Proof,
    limits: Limits,
    inputs: Inputs,
    options: Options,
    rolled_back: Iterable[Decline] = (),
) -> Verification:
    """A proof, as the report has it."""
    return Verification(
        passed=proof.passed,
        tolerance=limits.error,
        samples=samples(inputs),
        outputs=output_checks(proof),
        metric=_metric_name(options, proof),
        metric_before=proof.metric_before,
        metric_after=proof.metric_after,
        accuracy_drop=_accuracy_drop(proof),
        rolled_back=declined(rolled_back),
        own_noise=dict(proof.noisy),
    )


def samples(inputs: Inputs) -> Samples:
    """Where the inputs came from and how many there are."""
    held_out = inputs.split.held_out
    return Samples(
        source=held_out.source,
        description=held_out.description,
        fitting=inputs.split.fitting.samples,
        held_out=held_out.samples,
    )


def output_checks(proof: Proof) -> tuple[OutputCheck, ...]:
    """Every output at every level, as the report has it."""
    rows = []
    for check in proof.checks:
        distance = check.comparison.distances[check.name]
        dtype = check.comparison.dtypes[check.name]
        is_float = "float" in dtype
        rows.append(
            OutputCheck(
                name=check.name,
                level=check.level,
                dtype=dtype,
                max_abs=distance.max_abs if is_float else None,
                relative_l2=distance.relative_l2 if is_float else None,
                sqnr_db=distance.sqnr_db if is_float and math.isfinite(distance.sqnr_db) else None,
                cosine=distance.cosine if is_float else None,
                top1_agreement=distance.top1_agreement,
                mismatches=distance.mismatches,
                passed=check.passed,
            )
        )
    return tuple(rows)


def _cost(tally: Tally, latency_us: float | None) -> Cost:
    return Cost(tally.nodes, tally.parameters, tally.weight_bytes, tally.macs, latency_us)


def _accuracy_drop(proof: Proof) -> AccuracyDrop | None:
    found = proof.accuracy
    if found is None:
        return None
    return AccuracyDrop(found.counted, found.error, found.expected, found.expected_error)


def _metric_name(options: Options, proof: Proof) -> str | None:
    if proof.metric_before is None:
        return None
    return options.metric or "top1"


def _notes(source: Source, trial: Trial, outcome: Outcome) -> tuple[str, ...]:
    notes = []
    if not trial.done.applied:
        same = "graph and weights are" if source.has_external_data else "the result is"
        notes.append(f"nothing to do: {same} the input's, byte for byte")
    if outcome.file.ir_version != source.model.ir_version:
        notes.append(
            f"IR version raised from {source.model.ir_version} to {outcome.file.ir_version}: "
            "older files must list every initializer as an input, which blocks fusion"
        )
    if source.unknown_operator is not None:
        notes.append(f"not checked by the ONNX checker: {source.unknown_operator}")
    if trial.found is not None and trial.found.slower:
        notes.append("approximations fit the budget but are not measurably faster: none was taken")
    if trial.proof is not None:
        notes += [
            f"output {name!r} of the original differs from itself by {noise:.2g} between "
            "onnxruntime's optimization levels on these inputs: what was checked is that the result "
            "is no further off (give --data for a sharper proof)"
            for name, noise in trial.proof.noisy.items()
        ]
    overridable = _overridable(trial.done.model)
    if overridable:
        notes.append(
            f"{overridable} initializers are also graph inputs and can be overridden by a caller; "
            "they were kept (--freeze-initializers fuses them)"
        )
    return tuple(notes)


def _notes_on_plan(options: Options, found: Approximation | None) -> list[str]:
    if found is None:
        return []
    blind = _fitted_blindly(options.budget, found.plan, forced=options.ranks is not None)
    return [*blind, *_forced(options, found.plan)]


def _fitted_blindly(budget: Budget, plan: Plan, *, forced: bool = False) -> list[str]:
    """What a plan without data was fitted to and what data would buy; nothing if there were data."""
    moments = [c.candidate.workshop.moments[c.layer] for c, _ in plan]
    if (
        not (budget.given or forced)
        or not plan
        or any(part.samples for parts in moments for part in parts)
    ):
        return []
    known = sum(any(part.mean_input.any() for part in parts) for parts in moments)
    statistics = f" and batch statistics ({known} of {len(plan)} layers)" if known else " alone"
    return [
        f"no data to fit to: layers were fitted to their weights{statistics}; about 64 real samples "
        "(--data) usually keep more accuracy (CIFAR-10 VGG at 3x: 2.0 points lost by the weights alone, 1.3 "
        "with 64 images, 1.0 with 256; thin networks at 1.2x: 12-16 against 0.3-0.5)"
    ]


def _forced(options: Options, plan: Plan) -> list[str]:
    """What a designer should know of what `--ranks` asked for; nothing without it."""
    if options.ranks is None:
        return []
    limited = options.budget.max_error is not None or options.budget.max_drop is not None
    from graphopt.planning.forced import remarks

    free = "--ranks without --max-error or --max-drop: the error is measured, not limited"
    return [*(() if limited else (free,)), *remarks(tuple(choice for choice, _ in plan))]


def _overridable(model: ir.Model) -> int:
    return sum(value.is_initializer() for value in model.graph.inputs)
