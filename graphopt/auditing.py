"""`graphopt audit`: where a model spends its time, and what each rewrite would save there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from graphopt._version import __version__
from graphopt.assembly.facts import declined, model_file, rewrite_entry, totals, versions
from graphopt.calibration.prepare import prepare
from graphopt.cost.channel_block import channel_block
from graphopt.cost.counts import macs, node_parameters, node_weight_bytes
from graphopt.cost.stopwatch import Stopwatch
from graphopt.cost.table import LatencyTable
from graphopt.cost.totals import model_cost
from graphopt.errors import InputError
from graphopt.graph.constants import constant
from graphopt.graph.io import load
from graphopt.graph.scope import Scope, attribute_int, is_op, site_of
from graphopt.graph.shapes import infer
from graphopt.options import Options
from graphopt.planning.choices import context_of, time_candidate
from graphopt.planning.menus import layers_of, menus
from graphopt.planning.workshop import Candidate, Workshop, identity_moments
from graphopt.progress import Progress, Silent
from graphopt.reporting.schema import AuditReport, Cost, LayerAudit, Saving
from graphopt.rewrites.base import Decline
from graphopt.rewrites.gate import MeasuredGate
from graphopt.rewrites.ledger import Permit
from graphopt.rewrites.respecting import respecting
from graphopt.rewriting import Rewritten, rewrite_exactly
from graphopt.runtime import one_blas_thread
from graphopt.selection import select

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "DeformConv", "ConvInteger", "MatMulInteger")

_SHOWN_ERRORS = (0.05, 0.1, 0.2, 0.4)
"""The cheapest candidate below each of these weight errors is measured and shown."""


def audit(
    path: Path, options: Options | None = None, progress: Progress | None = None, command: str = ""
) -> AuditReport:
    """Say what a model costs and what could be saved; nothing is written.

    The layers are those of the exactly rewritten model. Latencies are of each layer alone with its
    activation, so they do not add up to the model's.

    Raises:
        InputError: The model or the options cannot be used as given.
    """
    options, progress = options or Options(), progress or Silent()
    with one_blas_thread(factorizing=True):
        return _audit(path, options, progress, command)


def _audit(path: Path, options: Options, progress: Progress, command: str) -> AuditReport:
    selection = select(options)
    progress.stage("Reading")
    source = load(path)
    if options.verify and source.unknown_operator is not None:
        raise InputError(f"{path} cannot be run ({source.unknown_operator}): use --no-bench")
    inputs = prepare(
        source.model,
        data=None,
        eval_data=None,
        given=options.shapes,
        seed=options.seed,
        runnable=options.verify,
    )
    infos = infer(source.model, inputs.shapes)
    stopwatch = Stopwatch(LatencyTable(), options.threads) if options.bench else None
    progress.stage("Rewriting")
    rewrites = respecting(selection.exact)
    exact = rewrite_exactly(source.model, rewrites, infos, MeasuredGate(stopwatch), Permit())
    scope = exact.scope
    layers, unfit = layers_of(scope, selection.approximate)
    metric = {layer.name: identity_moments(layer) for layer in layers}
    workshop = Workshop(metric, channel_block())
    progress.stage("Factorizing", len(layers))
    offered: dict[str, Sequence[Candidate]] = {}
    refused: list[Decline] = []
    for menu in menus(layers, selection.approximate, workshop):
        offered[menu.layer] = menu.candidates
        refused += menu.declined
        progress.step(menu.layer)
    nodes = [node for node in scope.graph if is_op(node, *_LAYERS) and node_parameters(node)]
    progress.stage("Measuring layers", len(nodes))
    rows = []
    for node in nodes:
        candidates = offered.get(node.outputs[0].name or "", ())
        rows.append(_layer(scope, node, candidates, stopwatch))
        progress.step(node.name or "")
    file = model_file(source)
    return AuditReport(
        tool=f"graphopt {__version__}",
        versions=versions(),
        command=command,
        input=file,
        threads=options.threads,
        totals=totals(model_cost(source.model, infos), file),
        layers=tuple(rows),
        exact=tuple(rewrite_entry(change) for change in exact.applied),
        declined=declined((*exact.declined, *unfit, *refused)),
        notes=_notes(options, exact),
    )


def _layer(
    scope: Scope, node: ir.Node, candidates: Sequence[Candidate], stopwatch: Stopwatch | None
) -> LayerAudit:
    shape = scope.shape(node.outputs[0])
    microseconds = None if stopwatch is None else stopwatch.alone(scope, context_of(scope, node))
    cost = Cost(
        nodes=1,
        parameters=node_parameters(node),
        weight_bytes=node_weight_bytes(node),
        macs=macs(node, scope.infos),
        latency_us=microseconds,
    )
    savings = [_saving(scope, node, candidate, cost, stopwatch) for candidate in _shown(candidates)]
    weight = constant(node.inputs[1])
    return LayerAudit(
        name=site_of(node)[0],
        op_type=node.op_type,
        output_shape=shape or (),
        cost=cost,
        savings=tuple(savings),
        weight_shape=() if weight is None else tuple(weight.shape),
        group=attribute_int(node, "group", 1),
    )


def _shown(candidates: Sequence[Candidate]) -> list[Candidate]:
    shown: list[Candidate] = []
    for limit in _SHOWN_ERRORS:
        within = [c for c in candidates if c.error <= limit]
        cheapest = min(within, key=lambda c: c.macs_ratio, default=None)
        if cheapest is not None and cheapest not in shown:
            shown.append(cheapest)
    return shown


def _saving(
    scope: Scope, node: ir.Node, candidate: Candidate, cost: Cost, stopwatch: Stopwatch | None
) -> Saving:
    timing = None if stopwatch is None else time_candidate(scope, node, candidate, stopwatch)
    return Saving(
        rewrite=candidate.rewrite,
        kind="approximate",
        options=dict(candidate.options),
        saved_macs=round(cost.macs * (1 - candidate.macs_ratio)),
        saved_parameters=round(cost.parameters * (1 - candidate.parameters_ratio)),
        predicted_error=candidate.error,
        latency_ratio=None if timing is None else timing.ratio,
    )


def _notes(options: Options, exact: Rewritten) -> tuple[str, ...]:
    notes = [
        "errors are of the layers' weights, not of the outputs: `optimize --data` measures those"
    ]
    if not options.bench:
        notes.append("nothing was timed (--no-bench)")
    if not exact.applied:
        notes.append("no exact rewrite applies")
    return tuple(notes)
