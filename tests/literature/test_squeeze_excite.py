"""SENet's blocks, as exporters write them: what becomes of their layers, and that the gate holds.

Hu et al. 2018, "Squeeze-and-excitation networks".
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from block_runs import PRODUCTS, RESHAPING, measured, operators, optimized, reasons, saved, value_of
from onnx_text import build

from graphopt.planning.budget import Budget

SE = """net (float[N,3,{size}] x) => (float[N,4,A,B] y)
<float[16,3,3,3] w0, float[16] b0, float[8,16] w1, float[16,8] v1, float[8] b1, float[16,8] w2,
 float[8,16] v2, float[16] b2, float[8,16,1,1] c1, float[16,8,1,1] c2, float[4,16,1,1] w9>
{{ c = Conv<pads=[1,1,1,1]>(x, w0, b0) a = Relu(c) {block} y = Conv(m, w9) }}"""

GEMMS = "h = Gemm<transB=1>(f, w1, b1) r = Relu(h) k = Gemm<transB=1>(r, w2, b2)"
EXPORTS = {
    "torch: pool, view, Linear, view": (
        17,
        f"p = GlobalAveragePool(a) f = Reshape(p, flat) {GEMMS} s = Sigmoid(k)"
        " u = Reshape(s, back) m = Mul(a, u)",
    ),
    "torch: view of x.shape": (
        17,
        f"""sh = Shape(a) n = Gather(sh, zero) n1 = Unsqueeze(n, first)
        ch = Gather(sh, one_) ch1 = Unsqueeze(ch, first) to2 = Concat<axis=0>(n1, ch1)
        to4 = Concat<axis=0>(n1, ch1, one, one)
        p = GlobalAveragePool(a) f = Reshape(p, to2) {GEMMS} s = Sigmoid(k)
        u = Reshape(s, to4) m = Mul(a, u)""",
    ),
    "torch: expand_as": (
        17,
        f"""p = GlobalAveragePool(a) f = Flatten(p) {GEMMS} s = Sigmoid(k) u = Reshape(s, back)
        sh = Shape(a) e = Expand(u, sh) m = Mul(a, e)""",
    ),
    "torch: x.mean((2, 3)), [:, :, None, None]": (
        17,
        f"f = ReduceMean<axes=[2,3], keepdims=0>(a) {GEMMS} s = Sigmoid(k)"
        " u1 = Unsqueeze(s, two) u = Unsqueeze(u1, three) m = Mul(u, a)",
    ),
    "torch: view(b, c, -1).mean(2)": (
        17,
        f"v = Reshape(a, rows) f = ReduceMean<axes=[2], keepdims=0>(v) {GEMMS} s = Sigmoid(k)"
        " u = Unsqueeze(s, space) m = Mul(a, u)",
    ),
    "torch, the newer exporter": (
        18,
        """p = ReduceMean<keepdims=1, noop_with_empty_axes=0>(a, ends)
        f = Reshape<allowzero=1>(p, flat) h0 = MatMul(f, v1) h = Add(h0, b1) r = Relu(h)
        k0 = MatMul(r, v2) k = Add(k0, b2) s = Sigmoid(k)
        u = Reshape<allowzero=1>(s, back) m = Mul(a, u)""",
    ),
    "torch: Hardsigmoid": (
        17,
        f"p = GlobalAveragePool(a) f = Flatten(p) {GEMMS}"
        " s = HardSigmoid<alpha=0.16666667, beta=0.5>(k) u = Reshape(s, back) m = Mul(a, u)",
    ),
    "torch: relu6(x + 3) / 6": (
        17,
        f"p = GlobalAveragePool(a) f = Flatten(p) {GEMMS} k3 = Add(k, three_)"
        " k6 = Clip(k3, zero_, six_) s = Div(k6, six_) u = Reshape(s, back) m = Mul(a, u)",
    ),
    "torch: SiLU in between": (
        17,
        """p = GlobalAveragePool(a) f = Flatten(p) h = Gemm<transB=1>(f, w1, b1) g = Sigmoid(h)
        r = Mul(h, g) k = Gemm<transB=1>(r, w2, b2) s = Sigmoid(k) u = Unsqueeze(s, space)
        m = Mul(a, u)""",
    ),
    "Paddle: squeeze, Linear, unsqueeze": (
        13,
        """p = GlobalAveragePool(a) f = Squeeze(p, space) h0 = MatMul(f, v1) h = Add(h0, b1)
        r = Relu(h) k0 = MatMul(r, v2) k = Add(k0, b2) s = Sigmoid(k) u = Unsqueeze(s, space)
        m = Mul(a, u)""",
    ),
    "Paddle: 1x1 convolutions": (
        13,
        "p = GlobalAveragePool(a) h = Conv(p, c1, b1) r = Relu(h) k = Conv(r, c2, b2)"
        " s = HardSigmoid<alpha=0.2, beta=0.5>(k) m = Mul(a, s)",
    ),
}

INTEGERS = {
    "flat": [-1, 16], "back": [-1, 16, 1, 1], "rows": [0, 16, -1], "two": [2], "three": [3],
    "space": [2, 3], "ends": [-1, -2], "first": [0], "one": [1], "zero": 0, "one_": 1,
}  # fmt: skip
NUMBERS = {"three_": 3, "zero_": 0, "six_": 6}


def squeeze_excite(export: str, size: str = "12,12") -> onnx.ModelProto:
    opset, block = EXPORTS[export]
    text = SE.format(size=size, block=block)
    weights = {name: np.asarray(array, np.int64) for name, array in INTEGERS.items()}
    weights |= {name: np.asarray(number, np.float32) for name, number in NUMBERS.items()}
    model = build(text, opset=opset, weights=weights)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    return model


def check_only_convolutions(model: onnx.ModelProto, convolutions: int = 4) -> None:
    found = operators(model)
    assert not found.keys() & (RESHAPING | PRODUCTS), found
    assert found["Conv"] == convolutions
    assert found["GlobalAveragePool"] == 1
    assert found["Mul"] >= 1
    assert found["Sigmoid"] + found["HardSigmoid"] >= 1


@pytest.mark.parametrize("size", ["12,12", "H,W"])
@pytest.mark.parametrize("export", EXPORTS)
def test_squeeze_and_excite_on_an_npu_has_no_reshape_left(export: str, size: str) -> None:
    path = saved(squeeze_excite(export, size))
    shapes = {"x": (2, 3, 12, 12)}
    report, result = optimized(path, target="npu", shapes=shapes)
    check_only_convolutions(result)
    assert report.verification is not None
    again, unchanged = optimized(path.with_suffix(".opt.onnx"), target="npu", shapes=shapes)
    assert again.rewrites == ()
    assert len(unchanged.graph.node) == len(result.graph.node)


def test_paddle_blocks_are_left_as_they_are() -> None:
    report, result = optimized(saved(squeeze_excite("Paddle: 1x1 convolutions")))
    check_only_convolutions(result)
    assert "fc-to-conv" not in {entry.name for entry in report.rewrites}


@pytest.mark.parametrize("export", [name for name in EXPORTS if "1x1" not in name])
def test_squeeze_and_excite_on_a_cpu_is_as_measured(
    export: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(squeeze_excite(export))
    measured(monkeypatch, 1.25)
    report, result = optimized(path, bench=True)
    assert operators(result)["Gemm"] + operators(result)["MatMul"] == 2
    (reason,) = reasons(report, "fc-to-conv")
    assert reason == "not faster at batch 1: 1.25 of the time, measured"
    measured(monkeypatch, 0.9)
    check_only_convolutions(optimized(path, bench=True)[1])


def test_squeeze_and_excite_unmeasured_stays_and_says_so() -> None:
    report, _ = optimized(saved(squeeze_excite("torch: expand_as")))
    assert reasons(report, "fc-to-conv") == [
        "not measured (--no-bench), and it is not always faster"
    ]
    assert "drop-expand" in {entry.name for entry in report.rewrites}


def test_squeeze_and_excite_as_this_machine_measures() -> None:
    """Either it was taken, with a time that is not longer, or the reason is a measured one."""
    report, _ = optimized(saved(squeeze_excite("torch: pool, view, Linear, view")), bench=True)
    taken = [entry for entry in report.rewrites if entry.name == "fc-to-conv"]
    if taken:
        assert taken[0].after.latency_us is not None
    else:
        (reason,) = reasons(report, "fc-to-conv")
        assert reason.startswith("not faster at batch")
        assert reason.endswith("of the time, measured")


GATES: dict[str, dict[str, Any]] = {
    "as trained": {},
    "constant": {"w2": 0.0},
    "dead in between": {"b1": -1e3},
    "nearly closed": {"b2": -18.0},
    "nearly open": {"b2": 18.0},
    "of tiny numbers": {"w0": 1e-5, "b0": 0.0},
    "of one channel": {"w1": "first row"},
}


def gated(change: dict[str, Any]) -> onnx.ModelProto:
    """A 64-channel block, so that there are ranks that save something."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "w0": rng.standard_normal((64, 3, 3, 3)) / 5,
        "b0": rng.standard_normal(64) / 5,
        "w1": rng.standard_normal((32, 64)) / 4,
        "b1": rng.standard_normal(32) / 4,
        "w2": rng.standard_normal((64, 32)),
        "b2": rng.standard_normal(64),
        "w9": rng.standard_normal((8, 64, 1, 1)) / 8,
    }
    for name, how in change.items():
        if how == "first row":
            weights[name][1:] = 0
        elif name.startswith("b"):
            weights[name] += how
        else:
            weights[name] *= how
    arrays = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    return build(
        f"""net (float[N,3,8,8] x) => (float[N,8,8,8] y)
        {{ c = Conv<pads=[1,1,1,1]>(x, w0, b0) a = Relu(c) p = GlobalAveragePool(a)
           f = Flatten(p) {GEMMS} s = Sigmoid(k) u = Unsqueeze(s, space) m = Mul(a, u)
           y = Conv(m, w9) }}""",
        weights={**arrays, "space": np.array([2, 3])},
    )


@pytest.mark.parametrize("limit", [0.02, 0.2])
@pytest.mark.parametrize("gate", GATES)
def test_low_rank_never_breaks_the_gate(gate: str, limit: float) -> None:
    """Its layers may be factored; the Sigmoid and the product remain, and the budget holds."""
    path = saved(gated(GATES[gate]))
    rng = np.random.default_rng(1)
    pictures = rng.standard_normal((96, 3, 8, 8)) * rng.uniform(0.2, 2, (96, 1, 1, 1))
    np.savez("data.npz", x=pictures.astype(np.float32))
    report, result = optimized(path, data="data.npz", budget=Budget(max_error=limit))
    assert report.verification is not None
    assert all(check.relative_l2 <= limit for check in report.verification.outputs)
    found = operators(result)
    assert found["Sigmoid"] == found["Mul"] == 1
    made_by = {name: node for node in result.graph.node for name in node.output}
    product = next(node for node in result.graph.node if node.op_type == "Mul")
    opened = next(made_by[name] for name in product.input if made_by[name].op_type != "Relu")
    assert made_by[opened.input[0]].op_type == "Sigmoid"
    # The gate itself, on pictures that nothing was fitted to.
    x = rng.standard_normal((16, 3, 8, 8)).astype(np.float32)
    sigmoid = made_by[opened.input[0]].output[0]
    before, after = value_of(onnx.load(path), "s", x), value_of(result, sigmoid, x)
    assert np.isfinite(after).all()
    rounding = 1e-6 * np.sqrt(before.size)  # of the Sigmoid itself, which a closed gate is near
    assert np.linalg.norm(after - before) <= 2 * limit * np.linalg.norm(before) + rounding
    if gate == "as trained" and limit > 0.1:
        assert any(entry.kind == "approximate" for entry in report.rewrites)


def _modules(torch: Any) -> dict[str, Any]:
    nn = torch.nn

    class Block(nn.Module):
        """The block of the paper's reference implementation, in three ways of writing it."""

        def __init__(self, way: str) -> None:
            super().__init__()
            self.way = way
            self.conv = nn.Conv2d(3, 16, 3, padding=1)
            self.pool = nn.AdaptiveAvgPool2d(1)
            gate = nn.Hardsigmoid() if way == "mean" else nn.Sigmoid()
            self.fc = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), gate)
            self.last = nn.Conv2d(16, 4, 1)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.conv(x))
            b, c, _, _ = x.size()
            if self.way == "view":
                x = x * self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
            elif self.way == "expand_as":
                x = x * self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1).expand_as(x)
            else:
                x = x * self.fc(x.mean((2, 3)))[:, :, None, None]
            return self.last(x)

    return {way: Block(way) for way in ("view", "expand_as", "mean")}


@pytest.mark.slow
@pytest.mark.parametrize("open_batch", [False, True])
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("way", ["view", "expand_as", "mean"])
def test_torch_exports_have_no_reshape_left_on_an_npu(
    folder: Path, way: str, dynamo: bool, open_batch: bool
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (torch==2.13.0)")
    torch.manual_seed(0)
    module, x = _modules(torch)[way].eval(), torch.randn(2, 3, 12, 12)
    path = folder / "se.onnx"
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    if open_batch and dynamo:
        names["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif open_batch:
        names["dynamic_axes"] = {"x": {0: "batch"}, "y": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), str(path), dynamo=dynamo, **names)
    _, result = optimized(path, target="npu", shapes={"x": (2, 3, 12, 12)})
    check_only_convolutions(result)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ort-cpu", "npu"])
def test_paddle_in_the_zoo(folder: Path, target: str) -> None:
    """The text detector of PP-OCRv3 has eight blocks, of 1x1 convolutions as Paddle writes them."""
    zoo = os.environ.get("GRAPHOPT_ZOO")
    if zoo is None:
        pytest.skip("GRAPHOPT_ZOO is not set: it names the folder of the zoo's networks and data")
    path = folder / "det.onnx"
    path.write_bytes((Path(zoo) / "models" / "ppocrv3_det.onnx").read_bytes())
    shapes = {"x": (1, 3, 64, 64)}
    _, result = optimized(path, target=target, verify=False, shapes=shapes)
    found = operators(result)
    assert found["GlobalAveragePool"] == found["HardSigmoid"] == found["Mul"] == 8
    assert not found.keys() & (RESHAPING | PRODUCTS)
