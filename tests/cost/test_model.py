"""The model of latency finds the law behind times that follow one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from graphopt.cost.facts import NodeFacts
from graphopt.cost.latency import Timing
from graphopt.cost.model import FEATURES, LEAST_SAMPLES, features, fit
from graphopt.cost.recall import predicted
from graphopt.cost.table import Sample

BLOCK = 8


def conv(inputs, outputs, kernel=(3, 3), size=16, group=1):
    source, result = (1, inputs, size, size), (1, outputs, size, size)
    return NodeFacts("Conv", source, (outputs, inputs // group, *kernel), result, group)


def counted(*nodes):
    found = dict(zip(FEATURES, features(nodes, BLOCK), strict=True))
    return {name: value for name, value in found.items() if value}


def law(facts):
    """20 us a model, 1 us a node, 50 MACs a nanosecond direct and 25 pointwise."""
    found = counted(*facts)
    macs = found.get("direct", 0) / 50e3 + found.get("pointwise", 0) / 25e3
    return 20 + found["nodes"] + macs


def samples(count, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        inputs, outputs, rank = (8 * int(n) for n in rng.integers(1, 17, 3))
        size = int(rng.choice([4, 8, 16, 32]))
        before = (conv(inputs, outputs, size=size),)
        after = (conv(inputs, rank, (1, 1), size), conv(rank, outputs, size=size))
        slow = math.exp(noise * rng.standard_normal())  # a busy machine slows both
        ratio = law(after) / law(before)
        made.append(Sample(before, after, replace(predicted(slow * law(before), 1), ratio=ratio)))
    return made


def test_what_is_counted():
    node = conv(16, 40)
    assert counted(node) == {
        "models": 1,
        "nodes": 1,
        "direct": 256 * 40 * 16 * 9,
        "direct sets": 256 * 2 * 8 * 16 * 9,  # five blocks of outputs: two sets of four
        "kernel rows": 16 * 2 * 2 * 3,  # rows, sets, blocks of inputs, rows of taps
        "weights": 4 * 40 * 16 * 9,
        "boundary": 4 * 256 * (16 + 40),
    }
    assert counted(node, NodeFacts("Relu", node.result, (), node.result))["elementwise"] == (
        4 * 256 * 2 * 40
    )


@pytest.mark.parametrize(
    ("node", "kind", "macs"),
    [
        (conv(16, 33), "direct", 256 * 40 * 16 * 9),  # outputs rounded up to blocks
        (conv(12, 8), "direct", 256 * 8 * 16 * 9),
        (conv(16, 8, (1, 1)), "pointwise", 256 * 8 * 16),
        (conv(3, 8), "few inputs", 256 * 8 * 3 * 9),
        (conv(9, 8), "unblocked", 256 * 8 * 9 * 9),
        (conv(12, 12, group=12), "depthwise", 256 * 16 * 9),
        (conv(32, 32, group=2), "direct", 256 * 2 * 16 * 16 * 9),
        (conv(24, 24, group=2), "grouped", 256 * 24 * 12 * 9),
        (conv(8, 16, group=8), "grouped", 256 * 16 * 9),  # two outputs a channel
        (conv(10, 10, group=10), "grouped", 256 * 10 * 9),  # not in fours
        (NodeFacts("Conv", (1, 8, 9), (8, 1, 3), (1, 8, 7), 8), "grouped", 7 * 8 * 3),
        (NodeFacts("Conv", (1, 8, 9), (8, 8, 3), (1, 8, 7)), "unblocked", 7 * 8 * 8 * 3),
        (NodeFacts("Gemm", (4, 8), (5, 8), (4, 5)), "product", 4 * 8 * 5),
        (
            NodeFacts("ConvTranspose", (1, 8, 4, 4), (8, 6, 2, 2), (1, 6, 8, 8)),
            "unblocked",
            8 * 16 * 6 * 4,
        ),
    ],
)
def test_kernels_are_told_apart(node, kind, macs):
    kinds = {"direct", "pointwise", "few inputs", "unblocked", "grouped", "depthwise", "product"}
    assert {name: n for name, n in counted(node).items() if name in kinds} == {kind: macs}


def test_the_law_is_found():
    model = fit(samples(60), BLOCK)
    assert min(model.rates) >= 0
    for sample in samples(40, seed=1):
        assert model.predict(sample.before) == pytest.approx(law(sample.before), rel=0.05)
        assert model.predict(sample.after) == pytest.approx(law(sample.after), rel=0.05)


def test_ratios_hold_on_a_busy_machine():
    model = fit(samples(120, noise=0.3), BLOCK)
    off = [
        model.predict(s.after) / model.predict(s.before) / s.timing.ratio - 1
        for s in samples(60, seed=1)
    ]
    assert np.median(np.abs(off)) < 0.05


def test_too_few_timings_make_no_model():
    assert fit(samples(LEAST_SAMPLES - 1), BLOCK) is None
    assert fit(samples(LEAST_SAMPLES), BLOCK) is not None


def test_times_without_candidates_make_a_model_too():
    alone = [Sample(s.before, s.before, Timing(law(s.before), 1, 1, 1, 1, 9)) for s in samples(30)]
    model = fit(alone, BLOCK)
    assert model.predict(alone[0].before) == pytest.approx(law(alone[0].before), rel=0.1)


def test_one_table_makes_one_model():
    assert fit(samples(50), BLOCK) == fit(samples(50), BLOCK)
