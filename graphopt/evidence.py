"""What is known of the layers before anything is chosen: their moments and the outputs' metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from graphopt.calibration.batch_statistics import recorded_moments, with_means
from graphopt.calibration.collect import Collector, Probe
from graphopt.calibration.dataset import Dataset
from graphopt.calibration.patches import Geometry
from graphopt.calibration.sensitivity import sensitivities
from graphopt.cost.channel_block import channel_block
from graphopt.factorize.moments import Moments
from graphopt.factorize.weighting import Weighting
from graphopt.graph.scope import Scope, follower, is_op
from graphopt.graph.shapes import is_batch_dynamic
from graphopt.job import Job
from graphopt.observing import kept_metrics, observe
from graphopt.planning.fitting import Fit, Refitter, polished
from graphopt.planning.workshop import Workshop, identity_moments, metric
from graphopt.records import Chapter
from graphopt.rewrites.approximate.layer import Layer
from graphopt.runtime import Array, cores, give_back_memory

FITTING_SAMPLES = 1024
"""Samples that moments are gathered from (512 leave a tenth more error, 64 a third)."""

GRADIENT_SAMPLES = 256
"""Samples that the metric of the outputs is gathered from."""

RESPONSE_BYTES = 1 << 29
"""Cap on the original responses that are kept, whatever the number of samples and layers."""

CAPTURED_BYTES = 1 << 28
"""Cap on the layer inputs of one batch; larger batches are run in parts."""


def gather(
    job: Job, scope: Scope, layers: Sequence[Layer], chapter: Chapter | None = None
) -> tuple[Workshop, Fit | None]:
    """The workshop for the layers, and how to fit a whole plan (None: layer by layer only).

    From the fitting data; from the weights alone without real data or a budget. What the chapter
    holds is not gathered again.
    """
    fitting = job.inputs.split.fitting.first(FITTING_SAMPLES)
    block, method = channel_block(), job.options.method
    fitted = fitting.source == "data" and fitting.batches and job.options.budget.given
    if not layers or not fitted:
        return Workshop(_without_data(job, scope, layers), block), None
    if not (method.activation_aware or method.asymmetric or method.output_metric):
        return Workshop({layer.name: identity_moments(layer) for layer in layers}, block), None
    fitting = _in_parts(fitting, scope, layers)
    probes = {
        layer.name: probe
        for layer, probe in zip(
            layers, _probes(scope, layers, residual=method.residual), strict=True
        )
    }
    collector = Collector(fitting, job.options.seed, cores())
    job.progress.stage("Gathering statistics", len(fitting.batches))
    found, seen = observe(collector, scope, probes, job.progress, chapter)
    give_back_memory()
    moments = {layer.name: metric(found.pop(layer.name), method) for layer in layers}
    weightings = _weightings(job, scope, layers, fitting, chapter) if method.output_metric else {}
    give_back_memory()
    workshop = Workshop(moments, block, weightings, method)
    if method.asymmetric:
        return workshop, Refitter(scope, collector, probes, seen, method.polish).fit
    return workshop, polished if method.polish else None


def _without_data(job: Job, scope: Scope, layers: Sequence[Layer]) -> Mapping[str, list[Moments]]:
    """The weights alone; inside a budget with what the file's batch statistics tell of the means."""
    alone = {layer.name: identity_moments(layer) for layer in layers}
    if not job.options.budget.given:
        return alone
    original = Scope(job.source.model, job.source.model.graph, job.infos)
    return with_means(layers, alone, recorded_moments(original, scope, layers))


def _weightings(
    job: Job, scope: Scope, layers: Sequence[Layer], fitting: Dataset, chapter: Chapter | None
) -> dict[str, tuple[Weighting, ...]]:
    """The metric of the outputs for every layer's response; none where there is no adjoint."""
    few = fitting.first(GRADIENT_SAMPLES)
    job.progress.stage("Gathering sensitivities", len(few.batches))

    def gathered() -> dict[str, Array]:
        found = sensitivities(
            scope,
            [layer.name for layer in layers],
            few,
            seed=job.options.seed,
            threads=cores(),
            progress=job.progress,
        )
        return {} if isinstance(found, str) else found

    found = kept_metrics([layer.name for layer in layers], gathered, chapter)
    if not found:
        return {}
    return {
        layer.name: tuple(
            Weighting.of(part) for part in _diagonal_blocks(found[layer.name], layer.group)
        )
        for layer in layers
    }


def _diagonal_blocks(metric: Array, count: int) -> list[Array]:
    size = len(metric) // count
    return [metric[i : i + size, i : i + size] for i in range(0, len(metric), size)]


def _probes(scope: Scope, layers: Sequence[Layer], *, residual: bool) -> list[Probe]:
    """Where to look at every layer, at so many patches that the responses stay within the cap."""
    probes = [_probe(layer) for layer in layers]
    if residual:
        probes = [
            replace(probe, skip=_skip(layer, scope))
            for probe, layer in zip(probes, layers, strict=True)
        ]
    wanted = sum(4 * p.patches * len(p.weight) * (1 if p.skip is None else 2) for p in probes)
    share = min(1.0, RESPONSE_BYTES / max(wanted, 1))
    return [probe.thinned(share) for probe in probes]


def geometry_of(layer: Layer) -> Geometry:
    """Which inputs of a layer each of its outputs sees."""
    return Geometry(
        layer.kernel,
        layer.strides,
        layer.dilations,
        layer.pads,
        layer.group,
        layer.transposed,
        layer.output_padding,
    )


def _probe(layer: Layer) -> Probe:
    source = layer.node.inputs[0]
    assert source is not None
    matrix = layer.weight.reshape(len(layer.weight), -1)
    return Probe.of(layer.name, source.name or "", geometry_of(layer), matrix, layer.bias)


def _skip(layer: Layer, scope: Scope) -> str | None:
    """The value of the same shape that the layer's response is added to, and to nothing else."""
    after = follower(scope, layer.node)
    if after is None or not is_op(after, "Add"):
        return None
    response = layer.node.outputs[0]
    others = [value for value in after.inputs if value is not response]
    if len(others) != 1 or others[0] is None or others[0].const_value is not None:
        return None
    same = scope.shape(others[0]) == scope.shape(response)
    return others[0].name if same and scope.rank(response) == len(layer.kernel) + 2 else None


def _in_parts(dataset: Dataset, scope: Scope, layers: Sequence[Layer]) -> Dataset:
    """The same samples in smaller batches, where the layers' inputs of a batch are too large."""
    if not is_batch_dynamic(scope.graph):
        return dataset
    sources = {value for layer in layers if (value := layer.node.inputs[0]) is not None}
    shapes = [shape for source in sources if (shape := scope.shape(source)) is not None]
    sample = sum(4 * int(np.prod(shape[1:], dtype=int)) for shape in shapes)
    return dataset.in_batches(max(1, CAPTURED_BYTES // max(sample, 1)))
