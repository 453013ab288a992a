"""`graphopt verify` and `graphopt bench`: two model files against each other."""

from __future__ import annotations

from pathlib import Path

from graphopt.assembly.facts import verification_of
from graphopt.calibration.prepare import Inputs, prepare
from graphopt.calibration.readers import load_metric
from graphopt.errors import InputError, VerificationError
from graphopt.graph.io import Source, load
from graphopt.graph.shapes import dimension, true_inputs
from graphopt.options import Options
from graphopt.progress import Progress, Silent
from graphopt.reporting.schema import Latency, Verification
from graphopt.timing import time_files
from graphopt.verification.compare import Reference
from graphopt.verification.proof import LEVELS, Limits, exact_tolerance, prove


def verify(
    original: Path,
    other: Path,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Whether `other` computes what `original` does, at both onnxruntime levels.

    The limit is the budget's `max_error` (default: what float rounding explains) and `max_drop`.
    All data given count as held out.

    Raises:
        InputError: A file or the data cannot be used, or the two differ in their inputs or outputs.
        VerificationError: Outputs are not finite, or of other shapes: there is no distance to tell.
    """
    options, progress = options or Options(), progress or Silent()
    options.budget.check()
    source, inputs = _both(original, other, options)
    metric = None if options.metric is None else load_metric(options.metric)
    held_out = inputs.split.held_out
    reference = Reference(original, held_out, options.threads, metric, progress, maps=True)
    if options.budget.max_drop is not None and not reference.has_metric:
        raise InputError("--max-drop needs data with labels, or --metric file.py:function")
    error = options.budget.max_error
    limits = Limits(
        exact_tolerance(source.model) if error is None else error, options.budget.max_drop
    )
    reference.check()
    progress.stage("Comparing", 2 * len(held_out.batches))
    proof = prove(reference, other, limits)
    if {check.level for check in proof.checks} != set(LEVELS):
        raise VerificationError(f"{other} cannot be compared: {proof.reason}")
    return verification_of(proof, limits, inputs, options)


def bench(original: Path, other: Path, options: Options | None = None) -> tuple[Latency, ...]:
    """Time two files, interleaved: batch 1 and 8 where the batch is open.

    Raises:
        InputError: A file cannot be used, or the two differ in their inputs or outputs.
    """
    options = options or Options()
    source, inputs = _both(original, other, options)
    return time_files(source, other, inputs, options)


def _both(original: Path, other: Path, options: Options) -> tuple[Source, Inputs]:
    first, second = load(original), load(other)
    for what, a, b in (
        ("inputs", true_inputs(first.model.graph), true_inputs(second.model.graph)),
        ("outputs", first.model.graph.outputs, second.model.graph.outputs),
    ):
        names = [[value.name for value in values] for values in (a, b)]
        if names[0] != names[1]:
            raise InputError(f"the two models differ in their {what}: {names[0]} and {names[1]}")
    pairs = zip(true_inputs(first.model.graph), true_inputs(second.model.graph), strict=True)
    for one, two in pairs:
        sizes = [[dimension(v, i) for i in range(len(v.shape or ()))] for v in (one, two)]
        if len(sizes[0]) == len(sizes[1]) and any(
            None not in pair and pair[0] != pair[1] for pair in zip(*sizes, strict=True)
        ):
            raise InputError(f"the two models take input {one.name!r} in different shapes")
    inputs = prepare(
        first.model,
        data=None,
        eval_data=options.eval_data or options.data,
        given=options.shapes,
        seed=options.seed,
        runnable=True,
        preprocess=options.preprocess,
    )
    return first, inputs
