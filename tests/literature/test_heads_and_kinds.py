"""What is said of layers that have nothing to gain, and which kinds of layers an audit tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import build

from graphopt import Options, audit, optimize
from graphopt.planning.budget import Budget
from graphopt.reporting.groups import group_layers
from graphopt.selection import select

COUNT = Options(bench=False, verify=False)

HEADS = """net (float[1,32,9,9] x) => (float[1,1,A,B] y, float[1,8,C,D] z, float[1,2,E,F] v)
<float[32,32,3,3] w0, float[1,32,1,1] w1, float[8,32,1,1] w2, float[2,16,1,1] w3>
{ c = Conv(x, w0) r = Relu(c) y = Conv(r, w1) z = Conv(r, w2) v = Conv<group=2>(r, w3) }"""


@pytest.fixture
def heads(folder: Path) -> Path:
    model = build(HEADS)
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.save(model, folder / "heads.onnx")
    return folder / "heads.onnx"


def test_a_projection_to_one_channel_is_left_alone_and_says_so(heads: Path) -> None:
    report = optimize(heads, Options(bench=False, budget=Budget(max_error=0.3)))
    found = {entry.site: (entry.name, entry.reason) for entry in report.declined}
    assert found["y",] == ("low-rank", "1 output channel: nothing to gain")
    assert found["v",] == ("low-rank", "1 output channel a group: nothing to gain")
    assert found["z",][1] == "32 -> 8 channels: no rank saves multiplications"
    result = onnx.load(heads.with_suffix(".opt.onnx"))
    kept = {tensor.name for tensor in result.graph.initializer}
    assert {"w1", "w2", "w3"} <= kept


def test_audit_says_so_too(heads: Path) -> None:
    reasons = {entry.site: entry.reason for entry in audit(heads, COUNT).declined}
    assert reasons["y",] == "1 output channel: nothing to gain"


def test_a_layer_that_the_chosen_schemes_do_not_take_is_no_silence(heads: Path) -> None:
    report = audit(heads, Options(bench=False, verify=False, passes=("spatial", "kernel-pair")))
    reasons = {entry.site: entry.reason for entry in report.declined}
    assert reasons["y",] == (
        "the kernel is not wider than one along two axes; the kernel is not 5x5 or 7x7"
    )


def test_shortcuts_of_stride_2_count_as_pointwise(folder: Path) -> None:
    model = build(
        """net (float[1,64,8,8] x) => (float[1,128,4,4] y)
        <float[128,64,1,1] s, float[64,64,3,3] a, float[64,1,3,3] d, float[128,64,1,1] p>
        { c = Conv<pads=[1,1,1,1]>(x, a) r = Relu(c)
          e = Conv<pads=[1,1,1,1], strides=[2,2], group=64>(r, d) f = Relu(e) g = Conv(f, p)
          h = Conv<strides=[2,2]>(x, s) y = Add(g, h) }"""
    )
    onnx.save(model, folder / "shortcut.onnx")
    report = audit(folder / "shortcut.onnx", COUNT)
    kinds = {group.kind: (group.layers, group.macs) for group in group_layers(report.layers)}
    assert kinds == {
        "3x3": (1, 64 * 64 * 9 * 64),
        "pointwise": (2, 2 * 128 * 64 * 16),
        "depthwise 3x3": (1, 64 * 9 * 16),
    }


def test_more_multiplications_are_for_the_cpu_that_is_measured() -> None:
    dearer = {}
    for target in ("ort-cpu", "npu"):
        found = select(Options(target=target)).exact
        dearer[target] = next(r.dearer for r in found if r.name == "compose-convs")
    assert dearer == {"ort-cpu": True, "npu": False}


@pytest.mark.parametrize("order", ["decoupled", "decoupled-pointwise-first"])
def test_both_orders_are_fitted_to_data(folder: Path, order: str) -> None:
    """Also where the metric of the outputs is known, which one of them cannot take in."""
    rng = np.random.default_rng(0)
    depth = rng.standard_normal((1, 24, 3, 3) if order == "decoupled" else (32, 1, 3, 3))
    dense = rng.standard_normal((32, 24, 1, 1)) * depth
    dense += 0.02 * rng.standard_normal(dense.shape)
    model = build(
        """net (float[N,24,9,9] x) => (float[N,5] y) <float[32] b, float[32,5] v>
        { c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)
          y = Gemm(f, v) }""",
        weights={"w": (dense / 15).astype(np.float32)},
    )
    onnx.save(model, folder / "dense.onnx")
    np.savez("data.npz", x=rng.standard_normal((128, 24, 9, 9)).astype(np.float32))
    options = Options(
        bench=False, data="data.npz", budget=Budget(max_error=0.2), passes=(order,)
    )  # fmt: skip
    report = optimize(folder / "dense.onnx", options)
    (made,) = [entry for entry in report.rewrites if entry.kind == "approximate"]
    assert (made.name, made.options) == (order, {"terms": 1})
    assert made.measured_error is not None
    assert made.measured_error < 0.1
    assert report.verification is not None
    assert report.verification.passed
