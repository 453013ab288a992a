"""A model of latency, fitted to the timings in the table: for what has not been measured.

A roofline-like sum: every small model costs a constant, something per operator, and its
multiply-accumulates and bytes at the rates of the kernels that run them. The rates are fitted by
non-negative least squares of the *relative* error of single times and, weighed more, of the ratios
between a layer and its candidates: those are measured in turn, and so hold on a busy machine.

onnxruntime's convolutions work on blocks of channels, up to four blocks of outputs at a time: so
channels count rounded up to the block, and every started set of four costs something as well.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from graphopt.cost.facts import Facts, NodeFacts
from graphopt.cost.table import Sample
from graphopt.runtime import Array

FEATURES = (
    "models",
    "nodes",
    "direct",
    "direct sets",
    "kernel rows",
    "pointwise",
    "pointwise sets",
    "few inputs",
    "depthwise",
    "unblocked",
    "grouped",
    "product",
    "product weights",
    "weights",
    "elementwise",
    "boundary",
)
"""What is counted: models, nodes and kernel rows by number, the last four and `product weights` in
bytes, the rest in multiply-accumulates of one kind of kernel."""

LEAST_SAMPLES = 20
"""Fewer timings than this make no model."""

_SET = 4
"""Blocks of output channels that one kernel call works on."""

_RATIO_WEIGHT = 2.0
"""Of the error of a ratio, beside that of a single time."""


@dataclass(frozen=True)
class CostModel:
    """Microseconds per unit of every feature, at onnxruntime's channel block."""

    rates: tuple[float, ...]
    block: int

    def predict(self, facts: Facts) -> float:
        """Microseconds of a small model."""
        return float(features(facts, self.block) @ np.asarray(self.rates))


def fit(samples: Sequence[Sample], block: int) -> CostModel | None:
    """The model of what was measured; None from too few timings. block: onnxruntime's channels."""
    if len(samples) < LEAST_SAMPLES:
        return None
    times = defaultdict(list)
    for sample in samples:
        times[sample.before].append(sample.timing.before_us)
    layers = {facts: float(np.median(found)) for facts, found in times.items()}
    rows = [features(facts, block) / time for facts, time in layers.items()]
    wanted = [1.0] * len(rows)
    pairs = [s for s in samples if s.before != s.after]
    before = np.array([features(s.before, block) for s in pairs]).reshape(-1, len(FEATURES))
    after = np.array([features(s.after, block) for s in pairs]).reshape(-1, len(FEATURES))
    ratios = np.array([s.timing.ratio for s in pairs])
    scale = (ratios * [layers[s.before] for s in pairs])[:, None]
    rows += [*(after / scale), *(_RATIO_WEIGHT * (after - ratios[:, None] * before) / scale)]
    wanted += [1.0] * len(pairs) + [0.0] * len(pairs)
    rates = _non_negative(np.array(rows), np.array(wanted))
    return CostModel(tuple(map(float, rates)), block)


def _non_negative(rows: Array, wanted: Array) -> Array:
    norms = np.linalg.norm(rows, axis=0)
    norms[norms == 0] = 1.0
    found: Array = scipy.optimize.nnls(rows / norms, wanted)[0]
    rates: Array = found / norms
    return rates


def features(facts: Facts, block: int) -> Array:
    """The features [len(FEATURES)] of a small model, summed over its nodes."""
    counts = dict.fromkeys(FEATURES, 0.0)
    counts["models"] = 1.0
    for node in facts:
        counts["nodes"] += 1
        _count(node, block, counts)
    if facts:
        counts["boundary"] = 4.0 * (math.prod(facts[0].source) + math.prod(facts[-1].result))
    return np.array(list(counts.values()))


def _count(node: NodeFacts, block: int, counts: dict[str, float]) -> None:
    if not node.weight:
        counts["elementwise"] += 4.0 * (math.prod(node.source) + math.prod(node.result))
    elif len(node.weight) == 2:
        counts["product"] += math.prod(node.result) * node.weight[1]
        counts["product weights"] += 4.0 * math.prod(node.weight)
    else:
        counts["weights"] += 4.0 * math.prod(node.weight)
        _count_convolution(node, block, counts)


def _count_convolution(node: NodeFacts, block: int, counts: dict[str, float]) -> None:
    outputs, inputs, taps = node.weight[0], node.weight[1], math.prod(node.weight[2:])
    pixels = node.result[0] * math.prod(node.result[2:])
    if node.op != "Conv":
        counts["unblocked"] += math.prod(node.source) * math.prod(node.weight[1:])
    elif _depthwise(node):
        counts["depthwise"] += pixels * _up(outputs, block) * taps
    elif not _blocked(node, block):
        # Group by group, each a product of its own: slower by far than as many channels at once.
        counts["unblocked" if node.group == 1 else "grouped"] += pixels * outputs * inputs * taps
    elif inputs < block:
        counts["few inputs"] += pixels * _up(outputs, block) * inputs * taps
    else:
        kind = "pointwise" if taps == 1 else "direct"
        blocks = _up(outputs // node.group, block) // block
        sets = -(-blocks // _SET)
        one_block = node.group * pixels * block * _up(inputs, block) * taps
        counts[kind] += blocks * one_block
        counts[f"{kind} sets"] += sets * one_block
        if taps > 1:  # a kernel call works on one row of one row of taps
            counts["kernel rows"] += sets * one_block / block**2 / node.result[-1] / node.weight[-1]


def _depthwise(node: NodeFacts) -> bool:
    """Whether onnxruntime has a kernel for it: one output a channel, channels in fours, 2-D."""
    fits = len(node.weight) == 4 and node.group % 4 == 0
    return fits and node.weight[1] == 1 and node.weight[0] == node.group > 1


def _blocked(node: NodeFacts, block: int) -> bool:
    """Whether onnxruntime runs a convolution in blocked layout (few inputs: reads it plain)."""
    outputs, inputs = node.weight[0] // node.group, node.weight[1]
    if len(node.weight) != 4:
        return False
    if node.group > 1:
        return inputs % block == 0 and outputs % block == 0
    return inputs < block or inputs % 4 == 0


def _up(channels: int, block: int) -> int:
    return -(-channels // block) * block
