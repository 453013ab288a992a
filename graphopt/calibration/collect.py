"""Gathers the moments of many layers in one pass over the fitting inputs.

The model is cut off behind the layers' inputs and run on the fitting samples; at sampled output
positions the input patches go into the layers' accumulators. Positions depend only on the seed, the
layer and the batch, so the same patches are seen again in a rewritten model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from zlib import crc32

import numpy as np
import onnx_ir as ir

from graphopt.calibration.accumulate import Accumulator
from graphopt.calibration.dataset import Dataset
from graphopt.calibration.patches import (
    Geometry,
    by_group,
    patches,
    positions,
    responses,
    sampled_patches,
)
from graphopt.calibration.walk import KEPT_BYTES, Values, Walk
from graphopt.graph.constants import constant
from graphopt.graph.views import deforms
from graphopt.progress import Progress
from graphopt.runtime import Array

Parts = list[Array] | None
"""What is added to the responses of every group, [n, O/g], or nothing."""

LEAST_PATCHES = 16384
PATCHES_PER_INPUT = 4
"""At least this many patches a layer, and this many per unfolded input."""


@dataclass(frozen=True)
class Probe:
    """Where and how to look at one layer.

    name: its output value. source: its input value. weight: [O, C/g * taps]; bias: [O] or None.
    patches: how many to look at. skip: the value that the response is added to, if any.
    """

    name: str
    source: str
    geometry: Geometry
    weight: Array
    bias: Array | None
    patches: int
    skip: str | None = None

    @classmethod
    def of(
        cls, name: str, source: str, geometry: Geometry, weight: Array, bias: Array | None
    ) -> Probe:
        """A probe that looks at as many patches as a regression on them wants."""
        patches = max(LEAST_PATCHES, PATCHES_PER_INPUT * int(weight.shape[1]))
        return cls(name, source, geometry, weight, bias, patches)

    def thinned(self, share: float) -> Probe:
        """The same at a share of the patches, but no fewer than two for every unfolded input."""
        fewer = max(round(share * self.patches), 2 * self.width)
        return replace(self, patches=min(fewer, self.patches))

    @property
    def width(self) -> int:
        """Unfolded inputs of one group, D."""
        return int(self.weight.shape[1])

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
    """What was seen: accumulators per group, and per batch the responses to ask for them again.

    skips: per batch what the responses were added to, where there is such a value.
    """

    accumulators: list[Accumulator]
    responses: list[list[Array]] = field(default_factory=list)
    skips: list[list[Array]] = field(default_factory=list)


@dataclass(frozen=True)
class Collector:
    """Looks at layers on a fixed set of inputs, with so many threads."""

    dataset: Dataset
    seed: int
    threads: int

    def original(
        self, model: ir.Model, probes: Sequence[Probe], progress: Progress
    ) -> dict[str, Sampled]:
        """Moments of the layers in the original model; keeps their responses."""
        found = {probe.name: Sampled(_accumulators(probe)) for probe in probes}

        def look(_index: int, size: int, probe: Probe, parts: list[Array], skip: Parts) -> None:
            sampled = found[probe.name]
            answers = probe.respond(parts)
            sampled.responses.append(answers)
            if skip is not None:
                sampled.skips.append(skip)
            for accumulator, x, y in zip(sampled.accumulators, parts, answers, strict=True):
                accumulator.add(x, y, size)

        self._look(self.walk(keep=False), model, probes, look, progress)
        return found

    def walk(self, *, keep: bool = True) -> Walk:
        """A new walk over the inputs; `keep` False where the model is only run once."""
        return Walk(self.dataset, self.threads, KEPT_BYTES if keep else 0)

    def rewritten(
        self,
        walk: Walk,
        model: ir.Model,
        probes: Sequence[Probe],
        originals: Mapping[str, Sampled],
        progress: Progress,
    ) -> dict[str, list[Accumulator]]:
        """Moments of what the layers see in a rewritten model against the wanted responses.

        A response is wanted as it was in the original; where it is added to a value (the probe's
        skip) that has changed, so that the sum is as it was: errors of one branch are made good by
        the other. walk: how far the model has been run already.
        Source: He et al. 2017, "Channel pruning for accelerating very deep neural networks",
        section 3.3 (residual branches).
        """
        found = {probe.name: _accumulators(probe) for probe in probes}

        def look(index: int, size: int, probe: Probe, parts: list[Array], skip: Parts) -> None:
            original = originals[probe.name]
            answers = original.responses[index]
            if skip is not None:
                before = original.skips[index]
                answers = [y + s - t for y, s, t in zip(answers, before, skip, strict=True)]
            for accumulator, x, y in zip(found[probe.name], parts, answers, strict=True):
                accumulator.add(x, y, size)

        self._look(walk, model, probes, look, progress)
        return found

    def _look(
        self,
        walk: Walk,
        model: ir.Model,
        probes: Sequence[Probe],
        look: Callable[[int, int, Probe, list[Array], Parts], None],
        progress: Progress,
    ) -> None:
        """Hand the sampled patches of every group to `look`, batch by batch.

        The next batch runs while the last one is looked at; layers are looked at side by side.
        Every layer sees its batches in order, so the sums do not depend on the number of threads.
        """
        names = {probe.source for probe in probes} | {p.skip for p in probes if p.skip is not None}
        sampling = _sampling(model, {probe.name for probe in probes})
        names |= {s for read in sampling.values() for s in read if isinstance(s, str)}
        values_of = walk.onto(model, sorted(names))
        batches = self.dataset.batches

        def one(index: int, probe: Probe, values: Mapping[str, Array]) -> None:
            x = values[probe.source]
            rng = np.random.default_rng([self.seed, crc32(probe.name.encode()), index])
            at = positions(probe.geometry, x.shape, -(-probe.patches // len(batches)), rng)
            if probe.name in sampling:
                offset, mask = (_array(read, values) for read in sampling[probe.name])
                assert offset is not None
                unfolded = sampled_patches(x, probe.geometry, at, offset, mask)
            else:
                unfolded = patches(x, probe.geometry, at)
            parts = by_group(unfolded, probe.geometry.group)
            skip = None
            if probe.skip is not None:
                skip = by_group(responses(values[probe.skip], at), probe.geometry.group)
            look(index, batches[index].size, probe, parts, skip)

        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(self.threads) as pool:
            following = ahead.submit(values_of, 0)
            for index in range(len(batches)):
                values = following.result()
                if index + 1 < len(batches):
                    following = ahead.submit(values_of, index + 1)
                list(pool.map(partial(one, index, values=values), probes))
                progress.step()


Read = Array | str | None
"""A constant, the name of a value, or nothing."""


def _sampling(model: ir.Model, layers: set[str]) -> dict[str, tuple[Read, Read]]:
    """Offsets and mask of those of the layers (by output value) that are a DeformConv in the model."""
    return {
        name: (_read(node, 2), _read(node, 4))
        for node in model.graph
        if deforms(node) and (name := node.outputs[0].name or "") in layers
    }


def _read(node: ir.Node, index: int) -> Read:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None and value.is_initializer() and value.const_value is not None:
        # Overridable or not: nothing is promised by it.
        return np.asarray(value.const_value.numpy())
    array = constant(value)
    return array if value is None or array is not None else value.name


def _array(read: Read, values: Values) -> Array | None:
    return values[read] if isinstance(read, str) else read


def _accumulators(probe: Probe) -> list[Accumulator]:
    outputs = len(probe.weight) // probe.geometry.group
    return [Accumulator(probe.width, outputs) for _ in range(probe.geometry.group)]
