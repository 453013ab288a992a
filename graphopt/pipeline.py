"""The way of a model through graphopt, top to bottom.

load -> settle on inputs -> exact rewrites to a fixpoint -> [price, search, apply a plan]
-> write to a temporary file -> prove *that file* -> (roll back and try again) -> rename -> report

What is in brackets, and the proof, is in `proving`; all that runs models is imported only where a
run asks for it, because it takes longer to import than a small model to rewrite.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.approximated import Approximation
from graphopt.assembly.outcome import Outcome, Trial
from graphopt.assembly.report import optimize_report
from graphopt.calibration.prepare import prepare
from graphopt.clock import Clock
from graphopt.destination import at_point, destination_of, output_paths, staged
from graphopt.errors import InputError
from graphopt.exact_stage import exactly
from graphopt.graph.io import Source, load
from graphopt.graph.shapes import infer
from graphopt.job import Job
from graphopt.options import Options
from graphopt.progress import Progress, Silent
from graphopt.reporting.schema import OptimizeReport
from graphopt.rewrites.ledger import Permit
from graphopt.rewrites.respecting import respecting
from graphopt.runtime import one_blas_thread, open_session
from graphopt.selection import select
from graphopt.verification.compare import Reference
from graphopt.verification.proof import Limits, exact_tolerance

if TYPE_CHECKING:
    from graphopt.calibration.prepare import Inputs
    from graphopt.cost.stopwatch import Stopwatch
    from graphopt.records import Records
    from graphopt.selection import Selection


def optimize(
    path: Path, options: Options | None = None, progress: Progress | None = None, command: str = ""
) -> OptimizeReport:
    """Optimize a model file; write the result (unless `dry_run`) and say what was done.

    Raises:
        InputError: The model, the data or the options cannot be used as given.
        VerificationError: The result is not what the original computes; nothing was written.
        BudgetError: The budget cannot be met; nothing was written.
    """
    with one_blas_thread():
        job = _settle(path, options or Options(), progress or Silent())
        if job.options.verify:
            from graphopt.proving import write_what_holds

            outcome = write_what_holds(job)
        else:
            outcome = _write_unproven(job)
        return optimize_report(
            job.source, job.options, job.inputs, job.infos, outcome, job.clock, command, job.records
        )


def _settle(path: Path, options: Options, progress: Progress) -> Job:
    clock = Clock()
    options.budget.check()
    _check_folders(options)
    selection = select(options, approximate=options.verify)
    selection = replace(selection, exact=respecting(selection.exact))
    _check_ranks(options)
    progress.stage("Reading")
    with clock.stage("read"):
        source = load(path)
        for target in output_paths(path, options):
            destination_of(source, options if options.in_place else replace(options, output=target))
        if options.verify and source.unknown_operator is not None:
            raise InputError(
                f"{path} cannot be verified ({source.unknown_operator}): use --no-verify"
            )
        if options.verify:
            _check_runs(path)
        inputs = prepare(
            source.model,
            data=options.data,
            eval_data=options.eval_data,
            given=options.shapes,
            seed=options.seed,
            runnable=options.verify,
            preprocess=options.preprocess,
        )
        infos = infer(source.model, inputs.shapes)
    metric = None
    if options.metric is not None:
        from graphopt.calibration.readers import load_metric

        metric = load_metric(options.metric)
    reference = Reference(
        path, inputs.split.held_out, options.threads, metric, progress, maps=options.dense
    )
    if options.budget.max_drop is not None and not reference.has_metric:
        raise InputError("--max-drop needs data with labels, or --metric file.py:function")
    if options.budget.given and not options.verify:
        raise InputError("a budget is a promise that has to be measured: drop --no-verify")
    if options.budget.speedup is not None and not options.bench:
        raise InputError("--speedup is a promise that has to be measured: drop --no-bench")
    if options.verify:
        reference.check()
    return Job(
        source,
        options,
        selection,
        inputs,
        infos,
        reference,
        _limits(source, options),
        _stopwatch(options),
        progress,
        clock,
        _records(source, options, selection, inputs),
    )


def _stopwatch(options: Options) -> Stopwatch | None:
    if not (options.bench and options.verify):
        return None
    from graphopt.cost.stopwatch import Stopwatch
    from graphopt.cost.table import LatencyTable

    return Stopwatch(LatencyTable(), options.threads)


def _records(
    source: Source, options: Options, selection: Selection, inputs: Inputs
) -> Records | None:
    if options.resume is None:
        return None
    from graphopt.resuming import open_records

    return open_records(source, options, selection, inputs)


def _check_folders(options: Options) -> None:
    """Raise InputError for a `--resume` or `--pareto` that makes no sense with other options."""
    if options.resume is not None:
        from graphopt.resuming import check_resume

        check_resume(options)
    if options.pareto is not None:
        from graphopt.frontier import check_pareto

        check_pareto(options)


def _check_ranks(options: Options) -> None:
    """Raise InputError for `--ranks` that cannot be read or makes no sense with other options."""
    if options.ranks is None:
        return
    from graphopt.planning.ranks import check_schemes, parse
    from graphopt.rewrites import all_rewrites
    from graphopt.rewrites.approximate.scheme import Scheme

    schemes = [rewrite.name for rewrite in all_rewrites() if isinstance(rewrite, Scheme)]
    check_schemes(parse(options.ranks), schemes)
    if not options.verify:
        raise InputError("--ranks approximates, which has to be measured: drop --no-verify")
    if options.pareto is not None:
        raise InputError("--pareto shows what a search finds, but --ranks leaves nothing to find")


def _check_runs(path: Path) -> None:
    try:
        open_session(path, level="disable_all")
    except InputError as error:
        raise InputError(f"{error} (optimize it unverified with --no-verify)") from error


def _limits(source: Source, options: Options) -> Limits:
    budget = options.budget
    tolerance = exact_tolerance(source.model)
    if budget.max_error is not None:
        return Limits(max(budget.max_error, tolerance), budget.max_drop)
    free = budget.given or options.ranks is not None
    return Limits(None if free else tolerance, budget.max_drop)


def _write_unproven(job: Job) -> Outcome:
    """Rewrite exactly and write. A result that is not run is not approximated either."""
    done = exactly(job, Permit())
    options = at_point(job.source.path, job.options, 1)
    with staged(job.source, done, options) as stage:
        return Outcome.of(
            Trial(done, done, Approximation(), None, (), (), job.limits), stage, options
        )
