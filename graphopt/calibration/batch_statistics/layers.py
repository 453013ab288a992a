"""The moments a layer is fitted in without data: its weight, and the means the file itself knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from graphopt.calibration.batch_statistics.propagate import channel_moments
from graphopt.calibration.batch_statistics.step import ChannelMoments
from graphopt.factorize.moments import Moments
from graphopt.graph.scope import Scope
from graphopt.rewrites.approximate.layer import Layer
from graphopt.runtime import Array


def recorded_moments(
    original: Scope, rewritten: Scope, layers: Sequence[Layer]
) -> dict[str, ChannelMoments]:
    """What the layers of a rewritten model see, by layer name, where batch statistics tell.

    The statistics stand in the original model, and fused layers keep the names of the values behind
    them; the pass over the rewritten model profits from constants folded since.
    """
    known = channel_moments(rewritten, channel_moments(original))
    found = {}
    for layer in layers:
        source = layer.node.inputs[0]
        seen = None if source is None else known.get(source.name or "")
        masked = layer.deformable and len(layer.node.inputs) > 4  # by a factor that nobody knows
        if seen is not None and not masked and len(seen.mean) == layer.inputs * layer.group:
            found[layer.name] = seen
    return found


def with_means(
    layers: Sequence[Layer],
    moments: Mapping[str, Sequence[Moments]],
    seen: Mapping[str, ChannelMoments],
) -> dict[str, list[Moments]]:
    """Moments of fits to the weights alone, with the means of what the layers see where known.

    The metric stays the identity, so the factors stay what they were; the bias then makes up for
    what they lose on average: b + (W - W~) m. Nearly all that statistics of single channels can
    tell lies there: no metric made of their variances fitted better on all networks, since
    what matters in the real one is how channels vary *together* (docs/design.md has the figures).
    """
    return {
        layer.name: (
            _with_mean(layer, moments[layer.name], seen[layer.name].mean)
            if layer.name in seen
            else list(moments[layer.name])
        )
        for layer in layers
    }


def _with_mean(layer: Layer, parts: Sequence[Moments], mean: Array) -> list[Moments]:
    found = []
    for part, channels in zip(parts, np.split(mean, layer.group), strict=True):
        inputs = np.repeat(channels, layer.taps) / layer.spread  # each tap meets a share of outputs
        outputs = part.mean_output + part.cross @ inputs
        found.append(replace(part, mean_input=inputs, mean_output=outputs))
    return found
