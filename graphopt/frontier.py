"""`--pareto N`: beside the result that the budget allows, models that stay closer to the original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from graphopt.approximated import Approximation
from graphopt.assembly.outcome import Closer, frontier_point
from graphopt.destination import at_point, staged
from graphopt.errors import InputError
from graphopt.job import Job
from graphopt.options import Options
from graphopt.rewrites.gate import MeasuredGate
from graphopt.rewrites.ledger import Permit
from graphopt.rewriting import Rewritten, apply_plan
from graphopt.timing import time_files
from graphopt.verification.proof import prove

_MOST = 100


def check_pareto(options: Options) -> None:
    """Raise InputError for a `--pareto` that makes no sense with the other options."""
    if options.pareto is None:
        return
    if not 2 <= options.pareto <= _MOST:
        raise InputError(f"--pareto {options.pareto} is not a number of models from 2 to {_MOST}")
    if options.budget.max_error is None and options.budget.max_drop is None:
        raise InputError("--pareto needs --max-error or --max-drop: how far the models may go")
    if options.in_place:
        raise InputError("--pareto writes several models: give --output instead of --in-place")


@contextmanager
def closer(
    job: Job, exact: Rewritten, approximation: Approximation, permit: Permit
) -> Iterator[Closer]:
    """The models of the plans on the way: written, proven and timed, closest first, not yet in place.

    One that does not keep to the limits is left out. What is not committed inside is gone after.
    """
    found, plans = Closer(), approximation.closer
    with ExitStack() as stack:
        for number, plan in enumerate(plans, start=1):
            options = at_point(job.source.path, job.options, number)
            gate = MeasuredGate(job.stopwatch)
            done = apply_plan(exact, plan, job.selection.exact, gate, permit)
            stage = stack.enter_context(staged(job.source, done, options))
            job.progress.stage(f"Proving model {number} of {len(plans) + 1}")
            with job.clock.stage("verify"):
                proof = prove(job.reference, stage.path, job.limits)
            if not proof.passed:
                stage.staged.discard()
                found = found.without(f"{stage.destination.name} was left out: {proof.reason}")
                continue
            job.progress.stage(f"Timing model {number} of {len(plans) + 1}")
            with job.clock.stage("bench"):
                latency = time_files(job.source, stage.path, job.inputs, job.options)
            point = frontier_point(
                options, job.inputs, done, proof, latency, stage, approximation.whole_us
            )
            found = found.and_also(stage, point)
        yield found
