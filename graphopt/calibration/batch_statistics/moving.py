"""Rules of what moves, repeats, joins or averages channels."""

from __future__ import annotations

import math

import numpy as np

from graphopt.calibration.batch_statistics.step import ChannelMoments, Step
from graphopt.graph.constants import constant
from graphopt.graph.scope import attribute_float, attribute_int, attribute_ints

WITHIN_MAP = 0.5
"""Correlation of two positions of one channel that are averaged."""


def kept(step: Step) -> ChannelMoments | None:
    """Moments as they were. MaxPool and interpolation: an approximation (a maximum is larger)."""
    return step.operand(0)


def reshaped(step: Step) -> ChannelMoments | None:
    """Channels stay where axis 1 keeps its size; flattened to 2-D, each is repeated."""
    seen = step.operand(0)
    before, after = step.scope.shape(step.value(0)), step.scope.shape(step.output)
    if seen is None or before is None or after is None or before[0] != after[0] or len(after) < 2:
        return None
    if after[1] == before[1]:
        return seen
    positions = math.prod(before[2:])
    if len(after) != 2 or after[1] != before[1] * positions:
        return None
    return ChannelMoments(np.repeat(seen.mean, positions), np.repeat(seen.variance, positions))


def average_pool(step: Step) -> ChannelMoments | None:
    """The mean stays; n positions of correlation rho leave rho + (1 - rho) / n of the variance."""
    seen = step.operand(0)
    count = math.prod(attribute_ints(step.node, "kernel_shape") or ())
    return None if seen is None else _averaged(seen, count)


def global_average(step: Step) -> ChannelMoments | None:
    """As `average_pool`, over the whole map (also a ReduceMean over just the spatial axes)."""
    seen, shape = step.operand(0), step.scope.shape(step.value(0))
    after = step.scope.shape(step.output)
    if seen is None or shape is None or after is None or len(after) < 2:
        return None
    if after[:2] != shape[:2] or math.prod(after[2:]) != 1:
        return None
    return _averaged(seen, math.prod(shape[2:]))


def _averaged(seen: ChannelMoments, count: int) -> ChannelMoments:
    left = WITHIN_MAP + (1 - WITHIN_MAP) / max(count, 1)
    return ChannelMoments(seen.mean, left * seen.variance)


def concat(step: Step) -> ChannelMoments | None:
    """Along channels one after the other; None where a part is unknown."""
    rank = step.scope.rank(step.output) or 0
    axis = attribute_int(step.node, "axis", 1)
    parts = [step.operand(index) for index in range(len(step.node.inputs))]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or axis not in (1, 1 - rank):
        return None
    return ChannelMoments(
        np.concatenate([part.mean for part in found]),
        np.concatenate([part.variance for part in found]),
    )


def pad(step: Step) -> ChannelMoments | None:
    """Around the map nothing changes (an approximation); added channels are constant."""
    seen, rank = step.operand(0), step.scope.rank(step.output) or 0
    pads = attribute_ints(step.node, "pads")
    if pads is None:
        array = constant(step.value(1))
        pads = None if array is None else tuple(int(n) for n in array.reshape(-1))
    if seen is None or pads is None or len(pads) != 2 * rank or step.value(3) is not None:
        return None
    around = (pads[1], pads[1 + rank])
    if min(around) < 0:
        return None
    number = attribute_float(step.node, "value", 0.0)
    if step.value(2) is not None:
        array = constant(step.value(2))
        if array is None:
            return None
        number = float(array.reshape(-1)[0])
    return ChannelMoments(
        np.pad(seen.mean, around, constant_values=number), np.pad(seen.variance, around)
    )


def cut(step: Step) -> ChannelMoments | None:
    """A Slice or Resize of the map alone: the number of channels stays."""
    before, after = step.scope.shape(step.value(0)), step.scope.shape(step.output)
    same = before is not None and after is not None and before[:2] == after[:2]
    return step.operand(0) if same else None
