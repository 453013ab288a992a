"""What Network in Network, MobileNet and Inception-v3 are made of, as ONNX files, through graphopt.

Network in Network: Lin et al. 2014. ResNet shortcuts: He et al. 2016, section 3.3. Depthwise separable:
Howard et al. 2017, "MobileNets"; taken apart in both orders: Guo et al. 2018, "Network decoupling".
Inception-v3: Szegedy et al. 2016, "Rethinking the Inception architecture", sections 3.1 and 3.2.
SENet has a file of its own (test_squeeze_excite.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from block_runs import measured, operators, optimized, reasons, saved, value_of
from onnx_text import build

from graphopt.graph.scope import Scope
from graphopt.graph.shapes import bind_inputs, infer
from graphopt.planning.budget import Budget
from graphopt.planning.menus import layers_of
from graphopt.planning.workshop import Candidate, Workshop, identity_moments
from graphopt.rewrites import APPROXIMATE


def offered(model: onnx.ModelProto) -> dict[str, list[Candidate]]:
    """All candidates of every layer by its output, fitted to the weights alone; ranks in eights."""
    found = ir.from_proto(model)
    infos = infer(found, bind_inputs(found.graph, {}))
    layers, _ = layers_of(Scope(found, found.graph, infos), APPROXIMATE)
    workshop = Workshop({layer.name: identity_moments(layer) for layer in layers}, 8)
    return {layer.name: workshop.menu(layer, APPROXIMATE)[0] for layer in layers}


# --- Network in Network, projections, shortcuts -------------------------------------------------

CASCADE = """net (float[1,{i},10,10] x) => (float[1,{o},10,10] y)
<float[{m},{i},1,1] w1, float[{m}] b1, float[{n},{m},1,1] w2, float[{n}] b2, float[{o},{n},1,1] w3,
 float[{o}] b3>
{{ c1 = Conv(x, w1, b1) {one} c2 = Conv({r1}, w2, b2) {two} y = Conv({r2}, w3, b3) }}"""


def cascade(relu: tuple[bool, bool], channels: tuple[int, int, int, int]) -> onnx.ModelProto:
    """Three 1x1 convolutions (NiN's mlpconv has two behind a larger one), with Relu or without."""
    i, m, n, o = channels
    one, two = ("r1 = Relu(c1)", "r2 = Relu(c2)")
    return build(
        CASCADE.format(
            i=i, m=m, n=n, o=o,
            one=one if relu[0] else "", two=two if relu[1] else "",
            r1="r1" if relu[0] else "c1", r2="r2" if relu[1] else "c2",
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("relu", "left"),
    [((False, False), 1), ((True, False), 2), ((False, True), 2), ((True, True), 3)],
)
def test_cascades_of_1x1_are_composed_where_nothing_stands_between(
    relu: tuple[bool, bool], left: int
) -> None:
    report, result = optimized(saved(cascade(relu, (16, 64, 64, 16))))
    assert operators(result)["Conv"] == left
    assert operators(result)["Relu"] == sum(relu)
    weights = [16 * 64, 64 * 64, 64 * 16]
    assert report.before.macs == 100 * sum(weights)
    assert report.after.macs < report.before.macs or left == 3


@pytest.mark.parametrize(("ratio", "left"), [(1.2, 2), (0.8, 1)])
def test_a_narrow_cascade_is_composed_only_where_measured(
    monkeypatch: pytest.MonkeyPatch, ratio: float, left: int
) -> None:
    """64 -> 8 -> 16 -> 64 is 64 -> 8 -> 64, at 1,024 products a pixel, or 64 -> 64 at 4,096."""
    path = saved(cascade((False, False), (64, 8, 16, 64)))
    measured(monkeypatch, ratio)
    report, result = optimized(path, bench=True)
    assert operators(result)["Conv"] == left
    assert report.after.macs == 100 * (1024 if left == 2 else 4096)
    if left == 2:
        assert reasons(report, "compose-convs") == ["not faster: 1.20 of the time, measured"]


def shortcut(stride: int) -> onnx.ModelProto:
    size = -(-12 // stride)
    return build(
        f"""net (float[1,64,12,12] x) => (float[1,128,{size},{size}] y) <float[128,64,1,1] w>
        {{ y = Conv<strides=[{stride},{stride}]>(x, w) }}"""
    )


def test_a_shortcut_of_stride_2_is_pointwise_and_thin_where_it_is_small() -> None:
    """1x1 of stride 2: both thin layers run on a quarter of the pixels."""
    plain, strided = (offered(shortcut(stride))["y"] for stride in (1, 2))
    assert {c.rewrite for c in strided} == {"output-bottleneck"}
    assert [c.ranks for c in strided] == [c.ranks for c in plain]
    for candidate in strided:
        (rank,) = candidate.ranks
        assert candidate.macs_ratio == pytest.approx(rank * (64 + 128) / (64 * 128))
        ((first, second),) = candidate.rows
        assert first.carries.strides == (True, True)
        assert second.carries.strides == (False, False)


# --- depthwise separable ------------------------------------------------------------------------

SEPARABLE = {
    "depthwise, pointwise": """net (float[1,16,{s},{s}] x) => (float[1,24,{s},{s}] y)
    <float[16,1,3,3] d, float[24,16,1,1] p, float[24] b>
    {{ c = Conv<pads=[1,1,1,1], group=16>(x, d) y = Conv(c, p, b) }}""",
    "pointwise, depthwise": """net (float[1,24,{s},{s}] x) => (float[1,16,{s},{s}] y)
    <float[16,24,1,1] p, float[16,1,3,3] d, float[16] b>
    {{ c = Conv(x, p) y = Conv<pads=[1,1,1,1], group=16>(c, d, b) }}""",
}


@pytest.mark.parametrize("order", SEPARABLE)
class TestSeparable:
    def test_kept_or_composed_as_measured(
        self, order: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = saved(build(SEPARABLE[order].format(s=12)))
        measured(monkeypatch, 1.5)
        report, result = optimized(path, bench=True)
        assert operators(result)["Conv"] == 2
        assert reasons(report, "compose-convs") == ["not faster: 1.50 of the time, measured"]
        measured(monkeypatch, 0.7)
        report, result = optimized(path, bench=True)
        assert operators(result) == {"Conv": 1}
        outputs, inputs = (24, 16) if order.startswith("depthwise") else (16, 24)
        assert report.after.macs == outputs * inputs * 9 * 144
        assert report.after.macs > report.before.macs

    def test_as_this_machine_measures(self, order: str) -> None:
        report, _ = optimized(saved(build(SEPARABLE[order].format(s=12))), bench=True)
        taken = [entry for entry in report.rewrites if entry.name == "compose-convs"]
        assert len(taken) + len(reasons(report, "compose-convs")) == 1
        for entry in taken:
            assert entry.before.latency_us is not None
            assert entry.after.latency_us is not None

    def test_its_price(self, order: str) -> None:
        """9 products a channel and pixel for the depthwise half."""
        report, _ = optimized(saved(build(SEPARABLE[order].format(s=12))))
        assert report.before.macs == 144 * (16 * 9 + 16 * 24)
        assert report.before.parameters == 16 * 9 + 16 * 24 + (24 if order[0] == "d" else 16)


def dense(weight: Any, size: int = 12) -> onnx.ModelProto:
    outputs, inputs, *kernel = weight.shape
    pads = [k // 2 for k in kernel] * 2
    return build(
        f"""net (float[1,{inputs},{size},{size}] x) => (float[1,{outputs},{size},{size}] y)
        {{ y = Conv<pads={pads}>(x, w) }}""",
        weights={"w": np.asarray(weight, np.float32)},
    )


BOTH_ORDERS = {"decoupled", "decoupled-pointwise-first"}


def test_a_dense_layer_is_offered_in_both_orders() -> None:
    rng = np.random.default_rng(0)
    found = offered(dense(rng.standard_normal((32, 24, 3, 3))))["y"]
    by_name = {c.rewrite: c for c in found if c.ranks == (1,)}
    assert by_name.keys() >= BOTH_ORDERS
    first, other = (by_name[name] for name in sorted(BOTH_ORDERS))
    whole = 32 * 24 * 9
    assert first.macs_ratio == pytest.approx((24 * 9 + 24 * 32) / whole)
    assert other.macs_ratio == pytest.approx((24 * 32 + 32 * 9) / whole)


@pytest.mark.parametrize("order", ["DP", "PD"])
def test_what_was_separable_is_found_and_stays_apart(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense layer that is one product of a depthwise and a pointwise one, inside a small budget."""
    rng = np.random.default_rng(0)
    point, depth = rng.standard_normal((32, 24)), rng.standard_normal((32, 24, 3, 3))
    depth = depth[:1] if order == "DP" else depth[:, :1]
    path = saved(dense(point[:, :, None, None] * depth))
    name = "decoupled" if order == "DP" else "decoupled-pointwise-first"
    budget = Budget(max_error=1e-3)
    report, result = optimized(path, budget=budget)
    (made,) = [entry for entry in report.rewrites if entry.kind == "approximate"]
    assert (made.name, made.options) == (name, {"terms": 1})
    assert operators(result) == {"Conv": 2}
    groups = [next(a.i for a in n.attribute if a.name == "group")
              for n in result.graph.node if any(a.name == "group" for a in n.attribute)]  # fmt: skip
    assert groups == [24 if order == "DP" else 32]
    measured(monkeypatch, 0.5)  # even if one would be faster: it was taken apart on purpose
    again, kept = optimized(path.with_suffix(".opt.onnx"), bench=True)
    assert again.rewrites == ()
    assert operators(kept) == {"Conv": 2}


# --- Inception-v3 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "structures"),
    [
        (3, {"spatial": [(3, 1), (1, 3)], "spatial-transposed": [(1, 3), (3, 1)]}),
        (5, {"kernel-pair": [(3, 3)] * 2, "spatial": [(5, 1), (1, 5)]}),
        (7, {"kernel-pair": [(3, 3)] * 3, "spatial-transposed": [(1, 7), (7, 1)]}),
    ],
)
def test_large_kernels_are_offered_in_small_ones(
    kernel: int, structures: dict[str, list[tuple[int, int]]]
) -> None:
    rng = np.random.default_rng(0)
    found = offered(dense(rng.standard_normal((16, 16, kernel, kernel))))["y"]
    rows = {c.rewrite: c.rows for c in found}
    for name, kernels in structures.items():
        (row,) = rows[name]
        assert [stage.kernel for stage in row] == kernels


ASYMMETRIC = """net (float[N,16,H,W] x) => (float[N,{o},A,B] y)
<float[16,16,{a}] v, float[{o},16,{b}] w, float[{o}] c>
{{ m = Conv<pads={p}>(x, v) y = Conv<pads={q}>(m, w, c) }}"""


@pytest.mark.parametrize(("ratio", "left"), [(1.1, 2), (0.9, 1)])
@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize("size", [3, 7])
def test_a_row_and_a_column_go_back_into_a_square_where_measured(
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    rows_first: bool,
    ratio: float,
    left: int,
) -> None:
    """1 x k, k x 1 with padding as in Inception-v3: more products, half the nodes; borders included."""
    half = size // 2
    shapes = [(f"1,{size}", [0, half, 0, half]), (f"{size},1", [half, 0, half, 0])]
    (a, p), (b, q) = shapes if rows_first else shapes[::-1]
    path = saved(build(ASYMMETRIC.format(o=24, a=a, b=b, p=p, q=q)))
    measured(monkeypatch, ratio)
    report, result = optimized(path, bench=True, shapes={"x": (1, 16, 5, 6)})
    assert operators(result)["Conv"] == left
    if left == 1:
        assert report.after.macs > report.before.macs
        x = np.random.default_rng(0).standard_normal((2, 16, 8, 13)).astype(np.float32)
        before, after = (value_of(model, "y", x) for model in (onnx.load(path), result))
        assert np.linalg.norm(after - before) < 1e-5 * np.linalg.norm(before)
    else:
        assert reasons(report, "compose-convs") == [
            "not faster at batch 1: 1.10 of the time, measured"
        ]


def test_a_row_with_a_bias_before_a_padded_column_stays() -> None:
    """The column pads with zeros, not with the row's bias: no square does that."""
    model = build(
        """net (float[1,16,9,9] x) => (float[1,16,9,9] y)
        <float[16,16,1,3] v, float[16] c, float[16,16,3,1] w>
        { m = Conv<pads=[0,1,0,1]>(x, v, c) y = Conv<pads=[1,0,1,0]>(m, w) }"""
    )
    report, result = optimized(saved(model))
    assert operators(result) == {"Conv": 2}
    assert reasons(report, "compose-convs") == [
        "a bias before a padded convolution does not compose"
    ]
