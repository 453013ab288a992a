"""`--dense`: the exactly rewritten network becomes fully convolutional, and its maps are measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from graphopt.cost.census import Census
from graphopt.graph.annotate import Annotations, annotate
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.job import Job
from graphopt.rewrites.dense.changes import NAME
from graphopt.rewrites.dense.make import is_sized, make_dense
from graphopt.rewrites.driver import Driver, Gate
from graphopt.rewrites.ledger import Ledger, Permit, entry
from graphopt.rewriting import Rewritten
from graphopt.runtime import cores
from graphopt.verification.proof import exact_tolerance
from graphopt.verification.windows import Slide, SlideCheck


def made_dense(job: Job, exact: Rewritten, gate: Gate, permit: Permit) -> Rewritten:
    """A network made dense, then exactly rewritten once more; as it is where the permit is used up.

    One that is dense already, and does not say for which window, gets no `dense` either.

    A stage of its own: shapes that held before it (and numbers computed from them) are inferred
    anew, and its change counts even where nothing but the sizes of the interface is opened.

    Raises:
        InputError: The network has no dense form.
    """
    ledger = Ledger(permit, list(exact.applied))
    if not ledger.admits((NAME,)):
        return exact
    clone, given = exact.model.clone(), job.options
    before = Census(clone, dict(exact.scope.infos)).take()
    sized = is_sized(clone.graph) or bool(given.shapes or given.data or given.eval_data)
    dense = make_dense(clone, job.inputs.shapes, sized=sized)
    if not dense.changed:
        return replace(exact, dense=dense if sized else None)
    annotations = _annotated(clone, exact)
    infos = infer(clone, job.inputs.shapes)
    driver = Driver(clone, infos, ledger, gate)
    after = driver.census.take()
    ledger.applied.append(
        entry(
            (NAME,),
            kind="exact",
            site=(),
            options={
                "window": "x".join(map(str, dense.window)),
                "stride": "x".join(map(str, dense.stride)),
            },
            before=before.without(after),
            after=after.without(before),
        )
    )
    driver.to_fixpoint(job.selection.exact)
    return Rewritten(
        clone,
        Scope(clone, clone.graph, infos),
        tuple(ledger.applied),
        tuple(driver.declined),
        annotations,
        dense,
    )


def _annotated(model: ir.Model, exact: Rewritten) -> Annotations:
    """Annotate anew; what is to be written: opened outputs, and no shape of the original size."""
    file = exact.annotations.declared
    inferred = {output.name: output.shape for output in exact.model.graph.outputs}
    declared: dict[str, tuple[ir.TypeProtocol | None, ir.Shape | None]] = {
        name: (kind, None) for name, (kind, _) in file.items()
    }
    for output in model.graph.outputs:
        name = output.name or ""
        kind, shape = file.get(name, (output.type, None))
        if output.shape is not None and output.shape != inferred.get(name):
            batch = shape[0] if shape is not None and len(shape) else output.shape[0]
            shape = ir.Shape([batch, *output.shape[1:]])
        declared[name] = (kind, shape)
    annotate(model)
    return Annotations(declared)


def check_windows(job: Job, done: Rewritten, path: Path) -> tuple[SlideCheck, ...]:
    """A dense file on larger pictures against the original on every window of them.

    Raises:
        VerificationError: A map is not of the size it should be; or its cells are off, though
            nothing pads and nothing was approximated.
    """
    dense = done.dense
    if dense is None:
        return ()
    exact = dense.inexact is None and all(change.kind != "approximate" for change in done.applied)
    slide = Slide(
        job.source.path,
        path,
        job.source.model.graph,
        dense,
        tolerance=exact_tolerance(job.source.model) if exact else None,
        seed=job.options.seed,
        threads=cores(),
        timed=job.options.threads if job.options.bench else None,
    )
    with job.clock.stage("windows"):
        return slide.checks(job.inputs.shapes, job.progress)
