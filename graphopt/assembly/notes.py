"""What a reader of the report should know besides its figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt.approximated import Approximation, Plan
from graphopt.assembly.outcome import Outcome, Trial
from graphopt.graph.io import Source
from graphopt.options import Options
from graphopt.planning.budget import Budget
from graphopt.verification.proof import Proof

if TYPE_CHECKING:
    from graphopt.records import Records


def notes(
    source: Source, options: Options, outcome: Outcome, records: Records | None
) -> tuple[str, ...]:
    """All of them, one a sentence or two."""
    trial = outcome.trial
    return (
        *_on_file(source, trial, outcome),
        *_on_proof(trial.proof),
        *_on_plan(options, trial.found),
        *_on_kind(options, trial),
        *outcome.closer.notes,
        *_on_records(records),
    )


def _on_file(source: Source, trial: Trial, outcome: Outcome) -> Iterator[str]:
    if not trial.done.applied:
        same = "graph and weights are" if source.has_external_data else "the result is"
        yield f"nothing to do: {same} the input's, byte for byte"
    if outcome.file.ir_version != source.model.ir_version:
        yield (
            f"IR version raised from {source.model.ir_version} to {outcome.file.ir_version}: "
            "older files must list every initializer as an input, which blocks fusion"
        )
    if source.unknown_operator is not None:
        yield f"not checked by the ONNX checker: {source.unknown_operator}"
    overridable = sum(value.is_initializer() for value in trial.done.model.graph.inputs)
    if overridable:
        yield (
            f"{overridable} initializers are also graph inputs and can be overridden by a caller; "
            "they were kept (--freeze-initializers fuses them)"
        )


def _on_proof(proof: Proof | None) -> Iterator[str]:
    if proof is None:
        return
    for name, noise in proof.noisy.items():
        yield (
            f"output {name!r} of the original differs from itself by {noise:.2g} between "
            "onnxruntime's optimization levels on these inputs: what was checked is that the result "
            "is no further off (give --data for a sharper proof)"
        )


def _on_plan(options: Options, found: Approximation) -> Iterator[str]:
    if found.slower:
        yield "approximations fit the budget but are not measurably faster: none was taken"
    yield from fitted_blindly(options.budget, found.plan, forced=options.ranks is not None)
    limited = options.budget.max_error is not None or options.budget.max_drop is not None
    if options.ranks is not None and not limited:
        yield "--ranks without --max-error or --max-drop: the error is measured, not limited"
    yield from found.remarks


def fitted_blindly(budget: Budget, plan: Plan, *, forced: bool = False) -> list[str]:
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


def _on_kind(options: Options, trial: Trial) -> Iterator[str]:
    """Of `--dense` and `--pareto`."""
    if options.dense and trial.done.dense is None:
        yield "--dense: this network takes pictures of any size already, and nothing says for which"
    plans = len(trial.found.closer) + 1
    if options.pareto is not None and plans < options.pareto:
        yield (
            f"--pareto {options.pareto}: on the way to the budget there are only {plans} distinct "
            "models"
        )


def _on_records(records: Records | None) -> Iterator[str]:
    if records is None:
        return
    if records.resumed:
        yield f"went on from the statistics in {records.folder}"
    yield from records.notes
