"""The exact stage of a run: the rewrites to a fixpoint and, with `--dense`, what follows from it."""

from __future__ import annotations

from graphopt.job import Job
from graphopt.rewrites.gate import MeasuredGate
from graphopt.rewrites.ledger import Permit
from graphopt.rewriting import Rewritten, rewrite_exactly


def exactly(job: Job, permit: Permit) -> Rewritten:
    """The model of a run, rewritten as far as the permit allows without approximating it."""
    job.progress.stage("Rewriting")
    gate = MeasuredGate(job.stopwatch)
    with job.clock.stage("rewrite"):
        done = rewrite_exactly(job.source.model, job.selection.exact, job.infos, gate, permit)
        if not job.options.dense:
            return done
        from graphopt.densifying import made_dense

        return made_dense(job, done, gate, permit)
