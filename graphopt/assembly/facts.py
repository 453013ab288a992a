"""Facts about files, changes and proofs, as the report has them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from graphopt._version import __version__
from graphopt.calibration.prepare import Inputs
from graphopt.cost.census import Tally
from graphopt.cost.table import cpu_model
from graphopt.cost.totals import ModelCost
from graphopt.graph.io import Source, digest
from graphopt.options import Options
from graphopt.reporting.schema import (
    AccuracyDrop,
    Cost,
    Declined,
    ModelFile,
    OutputCheck,
    RewriteEntry,
    Samples,
    Totals,
    Verification,
)
from graphopt.rewrites.base import Decline
from graphopt.rewrites.ledger import Applied
from graphopt.verification.proof import Limits, Proof

_REPORTED = ("graphopt", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "scipy")


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
