"""The loop around a result that has to hold: approximate, write, prove, drop what is to blame."""

from __future__ import annotations

from dataclasses import replace

from graphopt._version import __version__
from graphopt.approximated import Approximation, Plan
from graphopt.approximation import approximate
from graphopt.assembly.outcome import Outcome, Trial
from graphopt.densifying import check_windows
from graphopt.destination import at_point, staged
from graphopt.errors import BudgetError, VerificationError
from graphopt.exact_stage import exactly
from graphopt.frontier import closer
from graphopt.graph.io import session_source
from graphopt.job import Job
from graphopt.rewrites.base import Decline
from graphopt.rewrites.dense.changes import NAME as DENSE
from graphopt.rewrites.gate import MeasuredGate
from graphopt.rewrites.ledger import Applied, Key, Permit
from graphopt.rewriting import Rewritten, apply_plan, finished
from graphopt.runtime import one_blas_thread
from graphopt.timing import time_files
from graphopt.verification.blame import first_bad
from graphopt.verification.proof import Limits, Proof, prove

_MOST_ROLLBACKS = 20


def write_what_holds(job: Job) -> Outcome:
    """Rewrite, write, prove; on failure drop the change to blame and start over."""
    permit, rolled_back = Permit(), list[Decline]()
    while True:
        exact = exactly(job, permit)
        with job.clock.stage("plan"), one_blas_thread(factorizing=True):
            found = approximate(job, exact, permit)
        done = _complete(job, exact, found.plan, permit)
        options = at_point(job.source.path, job.options, len(found.closer) + 1)
        with staged(job.source, done, options) as stage:
            trial = Trial(exact, done, found, None, (), tuple(rolled_back), job.limits)
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
        done = _complete(job, exactly(job, few), _plan_within(exact, found.plan, count), few)
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
