"""The way of a model through graphopt, top to bottom.

load -> settle on inputs -> exact rewrites to a fixpoint -> [price, search, apply a plan]
-> write to a temporary file -> prove *that file* -> (roll back and try again) -> rename -> report
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from graphopt._version import __version__
from graphopt.approximation import Approximation, Plan, approximate
from graphopt.assemble import Outcome, Trial, optimize_report
from graphopt.calibration.prepare import prepare
from graphopt.calibration.readers import load_metric
from graphopt.clock import Clock
from graphopt.cost.stopwatch import Stopwatch
from graphopt.cost.table import LatencyTable
from graphopt.densifying import check_windows, made_dense
from graphopt.destination import at_point, destination_of, output_paths, staged
from graphopt.errors import BudgetError, InputError, VerificationError
from graphopt.frontier import check_pareto, closer
from graphopt.graph.io import Source, load, session_source
from graphopt.graph.shapes import infer
from graphopt.job import Job
from graphopt.options import Options
from graphopt.planning.forced import respecting
from graphopt.planning.ranks import check_schemes, parse
from graphopt.progress import Progress, Silent
from graphopt.reporting.schema import OptimizeReport
from graphopt.resuming import check_resume, open_records
from graphopt.rewrites import all_rewrites
from graphopt.rewrites.approximate.scheme import Scheme
from graphopt.rewrites.base import Decline
from graphopt.rewrites.dense.changes import NAME as DENSE
from graphopt.rewrites.gate import MeasuredGate
from graphopt.rewrites.ledger import Applied, Key, Permit
from graphopt.rewriting import Rewritten, apply_plan, finished, rewrite_exactly
from graphopt.runtime import one_blas_thread, open_session
from graphopt.selection import select
from graphopt.timing import time_files
from graphopt.verification.blame import first_bad
from graphopt.verification.compare import Reference
from graphopt.verification.proof import Limits, Proof, exact_tolerance, prove

_MOST_ROLLBACKS = 20


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
        outcome = _write_what_holds(job)
        return optimize_report(
            job.source, job.options, job.inputs, job.infos, outcome, job.clock, command, job.records
        )


def _settle(path: Path, options: Options, progress: Progress) -> Job:
    clock = Clock()
    options.budget.check()
    check_resume(options)
    check_pareto(options)
    selection = select(options)
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
    metric = None if options.metric is None else load_metric(options.metric)
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
        Stopwatch(LatencyTable(), options.threads) if options.bench and options.verify else None,
        progress,
        clock,
        open_records(source, options, selection, inputs),
    )


def _check_ranks(options: Options) -> None:
    """Raise InputError for `--ranks` that cannot be read or makes no sense with other options."""
    if options.ranks is None:
        return
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


def _write_what_holds(job: Job) -> Outcome:
    """Rewrite, write, prove; on failure drop the change to blame and start over."""
    permit, rolled_back = Permit(), list[Decline]()
    while True:
        exact = _exact(job, permit)
        with job.clock.stage("plan"), one_blas_thread(factorizing=job.options.verify):
            found = approximate(job, exact, permit)
        done = _complete(job, exact, found.plan, permit)
        options = at_point(job.source.path, job.options, len(found.closer) + 1)
        with staged(job.source, done, options) as stage:
            trial = Trial(exact, done, found, None, (), tuple(rolled_back), job.limits)
            if not job.options.verify:
                return Outcome.of(trial, stage, options)
            job.progress.stage("Proving", 2 * len(job.inputs.split.held_out.batches))
            with job.clock.stage("verify"):
                proof = prove(job.reference, stage.path, job.limits)
            if proof.passed:
                job.progress.stage("Timing")
                with job.clock.stage("bench"):
                    latency = time_files(job.source, stage.path, job.inputs, job.options)
                slid = check_windows(job, done, stage.path)
                trial = replace(trial, proof=proof, latency=latency, slid=slid)
                with closer(job, exact, found, permit) as others:
                    return Outcome.of(trial, stage, options, others)
        culprit = _blame(job, exact, found, proof, permit)
        forced = _is_forced(done, culprit)
        if forced and job.limits != Limits(None):
            raise BudgetError(f"--ranks breaks a limit: {proof.reason}. Nothing was written")
        kept = forced or culprit.rewrite == DENSE  # asked for: neither is dropped quietly
        if kept or job.options.on_fail == "stop" or len(rolled_back) >= _MOST_ROLLBACKS:
            raise VerificationError(f"{proof.reason}; {culprit.reason}. Nothing was written")
        rolled_back.append(culprit)
        permit = Permit(permit.blocked | {_key(done, culprit)})


def _exact(job: Job, permit: Permit) -> Rewritten:
    job.progress.stage("Rewriting")
    gate = MeasuredGate(job.stopwatch)
    with job.clock.stage("rewrite"):
        done = rewrite_exactly(job.source.model, job.selection.exact, job.infos, gate, permit)
        return made_dense(job, done, gate, permit) if job.options.dense else done


def _complete(job: Job, exact: Rewritten, plan: Plan, permit: Permit) -> Rewritten:
    gate = MeasuredGate(job.stopwatch)
    return apply_plan(exact, plan, job.selection.exact, gate, permit)


def _blame(
    job: Job, exact: Rewritten, found: Approximation, proof: Proof, permit: Permit
) -> Decline:
    """The change without which the result would have passed.

    Raises:
        VerificationError: It fails without any change: the fault is not in a rewrite.
    """
    job.progress.stage("Looking for the change to blame")

    def passes(count: int) -> bool:
        few = Permit(permit.blocked, count)
        done = _complete(job, _exact(job, few), _plan_within(exact, found.plan, count), few)
        with session_source(finished(done, __version__)) as model:
            return prove(job.reference, model, job.limits).passed

    done = _complete(job, exact, found.plan, permit)
    index = first_bad(len(done.applied), passes)
    if index == 0:
        raise VerificationError(
            f"{proof.reason}, even with nothing rewritten: onnxruntime's own optimization, or an "
            "operator that draws random numbers. Nothing was written"
        )
    culprit = done.applied[index - 1]
    return Decline(
        culprit.name,
        culprit.site,
        f"{culprit.name} at {', '.join(culprit.site)} is to blame"
        if culprit.site
        else f"{culprit.name} is to blame",
    )


def _plan_within(exact: Rewritten, plan: Plan, count: int) -> Plan:
    """The part of a plan that may be applied when only `count` changes are allowed."""
    return plan if count >= len(exact.applied) else ()


def _is_forced(done: Rewritten, culprit: Decline) -> bool:
    """Whether the culprit is what `--ranks` asked for: that is not dropped quietly."""
    return bool(_applied(done, culprit).options.get("forced"))


def _key(done: Rewritten, culprit: Decline) -> Key:
    return _applied(done, culprit).key


def _applied(done: Rewritten, culprit: Decline) -> Applied:
    return next(
        change
        for change in done.applied
        if change.name == culprit.rewrite and change.site == culprit.site
    )
