"""An attempt at a result, the one that held, and the facts about its file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.approximated import Approximation
from graphopt.assembly.facts import model_file, output_checks, totals
from graphopt.assembly.prediction import with_prediction
from graphopt.calibration.prepare import Inputs
from graphopt.cost.totals import ModelCost, model_cost
from graphopt.destination import Stage
from graphopt.graph.io import load
from graphopt.options import Options
from graphopt.reporting.schema import FrontierPoint, Latency, ModelFile
from graphopt.reporting.verdict import worst_check
from graphopt.rewrites.base import Decline
from graphopt.rewriting import Rewritten
from graphopt.verification.proof import Limits, Proof

if TYPE_CHECKING:  # its module runs models, which not every run does
    from graphopt.verification.windows import SlideCheck


@dataclass(frozen=True)
class Trial:
    """One attempt at a result, as far as it got."""

    exact: Rewritten
    done: Rewritten
    found: Approximation
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


def frontier_end(inputs: Inputs, outcome: Outcome, proof: Proof) -> FrontierPoint:
    """The facts about the result itself, the last model of `--pareto`."""
    trial, file, cost = outcome.trial, outcome.file, outcome.cost
    return _point(file, cost, inputs, trial.done, proof, trial.latency, trial.found.whole_us)


def _point(
    file: ModelFile,
    cost: ModelCost,
    inputs: Inputs,
    done: Rewritten,
    proof: Proof,
    latency: Iterable[Latency],
    whole_us: float | None,
) -> FrontierPoint:
    worst = worst_check(output_checks(proof))
    return FrontierPoint(
        file=file,
        after=totals(cost, file),
        latency=with_prediction(tuple(latency), done.applied, inputs.shapes, whole_us),
        error=None if worst is None else worst.relative_l2,
        metric_before=proof.metric_before,
        metric_after=proof.metric_after,
        approximated=sum(change.kind == "approximate" for change in done.applied),
    )
