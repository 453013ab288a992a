"""Gathers the moments of many layers in one pass over the fitting inputs.

The model is cut off behind the layers' inputs and run on the fitting samples; at sampled output
positions the input patches go into the layers' accumulators. Positions depend only on the seed, the
layer and the batch, so the same patches are seen again in a rewritten model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from graphopt.calibration.accumulate import Accumulator
from graphopt.calibration.dataset import Dataset
from graphopt.calibration.patches import Geometry, by_group, patches, positions
from graphopt.graph.io import session_source
from graphopt.progress import Progress
from graphopt.runtime import Array, open_session, run

LEAST_PATCHES = 16384
PATCHES_PER_INPUT = 4
"""At least this many patches a layer, and this many per unfolded input."""


@dataclass(frozen=True)
class Probe:
    """Where and how to look at one layer.

    name: its output value. source: its input value. weight: [O, C/g * taps]; bias: [O] or None.
    """

    name: str
    source: str
    geometry: Geometry
    weight: Array
    bias: Array | None

    @property
    def width(self) -> int:
        """Unfolded inputs of one group, D."""
        return int(self.weight.shape[1])

    def wanted(self) -> int:
        """How many patches to look at."""
        return max(LEAST_PATCHES, PATCHES_PER_INPUT * self.width)

    def respond(self, parts: Sequence[Array]) -> list[Array]:
        """The layer's responses [n, O/g] to the patches [n, D] of every group."""
        weights = np.split(self.weight.astype(np.float32), self.geometry.group)
        found = [part @ weight.T for part, weight in zip(parts, weights, strict=True)]
        if self.bias is not None:
            biases = np.split(self.bias.astype(np.float32), self.geometry.group)
            found = [y + b for y, b in zip(found, biases, strict=True)]
        return found


@dataclass
class Sampled:
    """What was seen: accumulators per group, and the responses per batch to ask for them again."""

    accumulators: list[Accumulator]
    responses: list[list[Array]] = field(default_factory=list)


@dataclass(frozen=True)
class Collector:
    """Looks at layers on a fixed set of inputs. threads: of onnxruntime."""

    dataset: Dataset
    seed: int
    threads: int

    def original(
        self, model: ir.Model, probes: Sequence[Probe], progress: Progress
    ) -> dict[str, Sampled]:
        """Moments of the layers in the original model; keeps their responses."""
        found = {probe.name: Sampled(_accumulators(probe)) for probe in probes}
        for _, batch_size, probe, parts in self._seen(model, probes, progress):
            sampled = found[probe.name]
            answers = probe.respond(parts)
            sampled.responses.append(answers)
            for accumulator, x, y in zip(sampled.accumulators, parts, answers, strict=True):
                accumulator.add(x, y, batch_size)
        return found

    def rewritten(
        self,
        model: ir.Model,
        probes: Sequence[Probe],
        originals: Mapping[str, Sampled],
        progress: Progress,
    ) -> dict[str, list[Accumulator]]:
        """Moments of what the layers see in a rewritten model against the original responses."""
        found = {probe.name: _accumulators(probe) for probe in probes}
        for index, batch_size, probe, parts in self._seen(model, probes, progress):
            answers = originals[probe.name].responses[index]
            for accumulator, x, y in zip(found[probe.name], parts, answers, strict=True):
                accumulator.add(x, y, batch_size)
        return found

    def _seen(
        self, model: ir.Model, probes: Sequence[Probe], progress: Progress
    ) -> Iterator[tuple[int, int, Probe, list[Array]]]:
        """Batch by batch and layer by layer: the sampled patches of every group."""
        fed = {value.name for value in model.graph.inputs}
        names = sorted({probe.source for probe in probes} - fed)
        batches = len(self.dataset.batches)
        session = None
        if names:
            with session_source(_cut_off(model, names)) as source:
                session = open_session(source, threads=self.threads)
        for index, batch in enumerate(self.dataset.batches):
            values = dict(batch.feeds)
            if session is not None:
                wanted = {item.name for item in session.get_inputs()}
                feeds = {name: array for name, array in batch.feeds.items() if name in wanted}
                values |= dict(zip(names, run(session, feeds, names), strict=True))
            for probe in probes:
                x = values[probe.source]
                rng = np.random.default_rng([self.seed, crc32(probe.name.encode()), index])
                at = positions(probe.geometry, x.shape, -(-probe.wanted() // batches), rng)
                whole = _patches_by_group(x, probe.geometry, at)
                yield index, batch.size, probe, whole
            progress.step()


def _patches_by_group(x: Array, geometry: Geometry, at: Array) -> list[Array]:
    return by_group(patches(x, geometry, at), geometry.group)


def _accumulators(probe: Probe) -> list[Accumulator]:
    outputs = len(probe.weight) // probe.geometry.group
    return [Accumulator(probe.width, outputs) for _ in range(probe.geometry.group)]


def _cut_off(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone that computes just the named values."""
    clone = model.clone()
    values = {v.name: v for node in clone.graph for v in node.outputs if v.name}
    clone.graph.outputs.clear()
    for name in names:
        value = values[name]
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        clone.graph.outputs.append(value)
    common_passes.RemoveUnusedNodesPass()(clone)
    return clone
