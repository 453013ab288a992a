"""merge-branches: parallel linear branches that meet in an addition become one kernel."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import Result, body, build, check_same, has, listed, optimize, rewrite

from graphopt.graph.annotate import annotate
from graphopt.graph.fragment import changed_fragment
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.rewrites.base import Proposal
from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.driver import Verdict
from graphopt.rewrites.exact.fuse_affine import FuseConvAffine
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm
from graphopt.rewrites.exact.merge_branches import MergeBranches

MERGE = MergeBranches()
WEIGHTS = """float[4,4,3,3] w3, float[4,4,3,3] v3, float[4,4,1,1] w1, float[4,4,1,3] w13,
    float[4,4,3,1] w31, float[4,4,5,5] w5, float[4,1,3,3] d3, float[4,1,1,1] d1, float[4,2,3,3] g3,
    float[4] b, float[4] c, float[4] g, float[4] m, float[4] var, float[4,1,1] k"""
SAME = "pads=[1,1,1,1]"


def net(
    nodes: str,
    *,
    x: str = "2,4,7,6",
    y: str = "2,4,7,6",
    weights: str = WEIGHTS,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    text = f"net (float[{x}] x) => (float[{y}] y) <{weights}> {{ {nodes} }}"
    return build(text, opset=opset, ir_version=ir_version)


def merged(result: Result, *ops: str) -> None:
    assert result.ops == list(ops or ["Conv"])
    assert set(result.names) == {"merge-branches"}
    assert result.declined == ()


def test_repvgg_as_it_is_trained() -> None:
    """3x3 + 1x1 + identity, each with its own normalization, then the activation."""
    model = net(
        f"""p = Conv<{SAME}>(x, w3) p_n = BatchNormalization(p, g, b, m, var)
        q = Conv(x, w1) q_n = BatchNormalization(q, b, c, m, var)
        i = BatchNormalization(x, c, g, m, var)
        s = Add(p_n, q_n) t = Add(s, i) y = Relu(t)""",
        x="N,4,H,W",
        y="N,4,P,Q",
    )
    runs = [{"x": (1, 4, 5, 6)}, {"x": (3, 4, 8, 3)}]
    result = optimize(model, FuseConvBatchNorm(), MERGE, RemoveDead(), runs=runs)
    assert result.ops == ["Conv", "Relu"]
    assert result.names.count("merge-branches") == 2
    assert result.weight(0, 1).shape == (4, 4, 3, 3)
    assert [value.name for value in result.proto.graph.output] == ["y"]


def test_ungated_when_convolutions_vanish() -> None:
    """A target whose gate refuses everything still gets this one."""
    model = net(f"p = Conv<{SAME}>(x, w3) q = Conv(x, w1) y = Add(p, q)")
    assert rewrite(model, MERGE, gate=lambda *_: Verdict(False, "no")).ops == ["Conv"]


@pytest.mark.parametrize("add", ["Add(x, p)", "Add(p, x)"])
def test_the_input_itself_is_gated(add: str) -> None:
    model = net(f"p = Conv<{SAME}>(x, w3, b) y = {add}")
    merged(optimize(model, MERGE))
    refused = rewrite(model, MERGE, gate=lambda *_: Verdict(False, "measured slower"))
    assert refused.ops == ["Conv", "Add"]
    assert has(refused.reasons, "measured slower")
    assert rewrite(model, MergeBranches(gated=False), gate=lambda *_: Verdict(False)).ops == [
        "Conv"
    ]


@pytest.mark.parametrize(
    "branch",
    [
        "q = Conv(x, w1, c)",
        "q = Conv<dilations=[3,2]>(x, w1)",
        f"q = Conv<{SAME}>(x, v3)",
        "q = Conv<pads=[0,1,0,1]>(x, w13)",
        "q = Conv<pads=[1,0,1,0]>(x, w31, b)",
        "q = Conv<auto_pad=\"SAME_UPPER\">(x, w31)",
        "q = Conv<group=4>(x, d1, b)",
        f"q = Conv<group=4, {SAME}>(x, d3)",
        f"q = Conv<group=2, {SAME}>(x, g3, c)",
        "q = Mul(x, k)",
        "q = Mul(k, x)",
        "q = Add(x, k)",
        "q = Sub(x, k)",
        "q = Div(x, k)",
        "q = BatchNormalization(x, g, b, m, var)",
        f"q = AveragePool<kernel_shape=[3,3], {SAME}, count_include_pad=1>(x)",
        "q = AveragePool<kernel_shape=[1,3], pads=[0,1,0,1], count_include_pad=1>(x)",
    ],
)  # fmt: skip
def test_every_branch_beside_a_3x3(branch: str) -> None:
    model = net(f"{branch} p = Conv<{SAME}>(x, w3, b) y = Add(q, p)")
    result = optimize(model, MERGE)
    expected = ["Conv", "Sub"] if branch.startswith("q = Sub") else ["Conv"]
    expected = ["Conv", "Add"] if branch.startswith("q = Add") else expected
    assert result.ops == expected
    assert set(result.names) == {"merge-branches"}


def test_an_offset_beside_the_input_ends_in_the_bias() -> None:
    """Add(x, k) is part of the sum; what is left of it is the other fusion's."""
    model = net(f"q = Add(x, k) p = Conv<{SAME}>(x, w3, b) y = Add(q, p)")
    assert optimize(model, MERGE, FuseConvAffine()).ops == ["Conv"]


@pytest.mark.parametrize("order", ["a b c", "b c a", "c a b", "b a c"])
def test_acnet(order: str) -> None:
    """1x3 + 3x1 alone would take more multiplications: the square one must come in first."""
    a, b, c = order.split()
    model = net(
        f"""a = Conv<{SAME}>(x, w3) b = Conv<pads=[0,1,0,1]>(x, w13)
        c = Conv<pads=[1,0,1,0]>(x, w31, g) s = Add({a}, {b}) y = Add(s, {c})"""
    )
    model.graph.initializer[1].name = "unused"  # the text calls a value b, which is a weight too
    names = {"a": "A", "b": "B", "c": "C"}
    for node in model.graph.node:
        node.output[0] = names.get(node.output[0], node.output[0])
        for i, name in enumerate(node.input):
            if i == 0 or node.op_type == "Add":
                node.input[i] = names.get(name, name)
    merged(optimize(model, MERGE))


def test_what_would_cost_more() -> None:
    model = net("p = Conv<pads=[0,1,0,1]>(x, w13) q = Conv<pads=[1,0,1,0]>(x, w31) y = Add(p, q)")
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Conv", "Add"]
    assert has(result.reasons, "takes 144 multiplications a position, not 96")


def test_dense_beside_depthwise_costs_more() -> None:
    model = net(f"p = Conv(x, w1) q = Conv<group=4, {SAME}>(x, d3) y = Add(p, q)")
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Conv", "Add"]
    assert has(result.reasons, "takes 144 multiplications a position, not 52")


def test_depthwise_branches_stay_depthwise() -> None:
    """MobileOne: depthwise 3x3 + depthwise 1x1 + normalization."""
    model = net(
        f"""p = Conv<group=4, {SAME}>(x, d3, b) q = Conv<group=4>(x, d1)
        i = BatchNormalization(x, g, b, m, var) y = Sum(p, q, i)"""
    )
    result = optimize(model, MERGE)
    merged(result)
    assert result.weight(0, 1).shape == (4, 1, 3, 3)


@pytest.mark.parametrize(
    ("total", "ops"),
    [
        ("y = Sum(p, z, q)", ["Exp", "Conv", "Sum"]),
        ("s = Sum(z, q) y = Sum(s, p)", ["Exp", "Conv", "Sum"]),
        ("y = Sum(p, q)", ["Conv"]),
        ("s = Add(z, p) y = Add(s, q)", ["Exp", "Conv", "Add"]),
        ("s = Add(z, p) y = Sub(s, q)", ["Exp", "Conv", "Add"]),
        ("s = Sub(z, p) y = Sub(s, q)", ["Exp", "Conv", "Add"]),
        ("s = Sub(p, z) y = Sub(q, s)", ["Exp", "Conv", "Add"]),
        ("y = Sub(q, p)", ["Conv"]),
        ("s = Add(z, p) t = Sub(s, x) r = Add(t, z) y = Sub(r, q)", ["Exp", "Conv", "Add", "Add"]),
        ("s = Add(z, p) t = Add(q, z) y = Add(t, s)", ["Exp", "Conv", "Add", "Add"]),
    ],
)
def test_sums_with_other_terms_and_signs(total: str, ops: list[str]) -> None:
    z = "z = Exp(x)" if "z" in total else ""
    model = net(f"{z} p = Conv<{SAME}>(x, w3, b) q = Conv(x, w1, c) {total}")
    merged(optimize(model, MERGE), *ops)


def test_terms_that_are_broadcast() -> None:
    model = net(
        f"""z = GlobalAveragePool(x) s = Conv<{SAME}>(x, w3) t = Add(z, s) q = Conv(x, w1)
        y = Add(t, q)"""
    )
    merged(optimize(model, MERGE), "GlobalAveragePool", "Conv", "Add")


def test_a_product_by_a_single_channel_is_not_widened() -> None:
    model = net(
        "p = Conv(x, w) y = Add(p, x)", x="2,1,5,5", y="2,4,5,5", weights="float[4,1,1,1] w"
    )
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Add"]
    assert has(result.reasons, "differ in channels")


@pytest.mark.parametrize(
    ("conv3", "conv1"),
    [
        ("strides=[2,2], pads=[1,1,1,1]", "strides=[2,2]"),
        ("strides=[2,1], pads=[1,0,1,2]", "strides=[2,1]"),  # the 1x1 sits at the left edge
        ("pads=[2,2,0,0]", ""),
        ("pads=[0,0,0,0]", None),
        ("dilations=[2,2], pads=[2,2,2,2]", ""),
        ('auto_pad="SAME_LOWER"', ""),
        ('auto_pad="SAME_UPPER", strides=[2,2]', 'auto_pad="SAME_UPPER", strides=[2,2]'),
        ('auto_pad="SAME_LOWER", strides=[2,2]', 'auto_pad="SAME_LOWER", strides=[2,2]'),
    ],
)
def test_strides_pads_and_dilations(conv3: str, conv1: str | None) -> None:
    other = "AveragePool<kernel_shape=[3,3]>(x)" if conv1 is None else f"Conv<{conv1}>(x, w1)"
    other = other.replace("<>", "")
    model = net(f"p = Conv<{conv3}>(x, w3) q = {other} y = Add(p, q)", x="2,4,8,8", y="2,4,P,Q")
    merged(optimize(model, MERGE))


def test_the_attributes_of_auto_pad_stay_where_they_still_hold() -> None:
    model = net('p = Conv<auto_pad="SAME_UPPER">(x, w3) q = Conv(x, w1) y = Add(q, p)')
    (node,) = optimize(model, MERGE).proto.graph.node
    assert [a.s for a in node.attribute if a.name == "auto_pad"] == [b"SAME_UPPER"]


def test_same_padding_with_strides_on_an_open_size() -> None:
    same = 'auto_pad="SAME_UPPER", strides=[2,2]'
    model = net(
        f"p = Conv<{same}>(x, w3) q = Conv<{same}>(x, w1) y = Add(p, q)", x="1,4,H,W", y="1,4,P,Q"
    )
    result = optimize(model, MERGE, runs=[{"x": (1, 4, 8, 8)}, {"x": (1, 4, 7, 7)}])
    assert result.ops == ["Conv", "Conv", "Add"]
    assert has(result.reasons, "size of the input, which is open")


def test_strided_windows_that_agree_at_one_size_only() -> None:
    """Pads (0, 1) and (0, 0) give equally many outputs for even sizes only."""
    nodes = """p = Conv<strides=[2,2], pads=[0,0,1,1]>(x, w3) q = Conv<strides=[2,2]>(x, w1)
        y = Add(p, q)"""
    merged(optimize(net(nodes, x="1,4,8,8", y="1,4,4,4"), MERGE))
    opened = optimize(net(nodes, x="1,4,H,W", y="1,4,P,Q"), MERGE, runs=[{"x": (1, 4, 8, 8)}])
    assert opened.ops == ["Conv", "Conv", "Add"]
    assert has(opened.reasons, "pads of the branches do not agree")


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("Conv<strides=[2,2], pads=[1,1,1,1]>(x, w3)", "GlobalAveragePool(x)", None),
        (
            "Conv<pads=[1,1,1,1]>(x, w3)",
            "Conv<pads=[2,2,2,2], dilations=[2,2]>(x, v3)",
            "dilations",
        ),
        (
            "Conv<pads=[2,2,2,2], dilations=[2,2]>(x, w3)",
            "Conv<pads=[1,1,1,1]>(x, v3)",
            "dilations",
        ),
        ("Conv(x, w3)", "Conv<strides=[6,5]>(x, w1)", "strides|pads"),
    ],
)
def test_windows_that_do_not_fit(first: str, second: str, reason: str | None) -> None:
    model = net(f"p = {first} q = {second} y = Add(p, q)", y="2,4,P,Q")
    result = rewrite(model, MERGE)
    assert "Add" in result.ops
    assert result.names == []
    assert has(result.reasons, reason) if reason else result.declined == ()


@pytest.mark.parametrize(
    ("first", "second", "taps"),
    [
        ('auto_pad="SAME_UPPER"', "pads=[0,1,0,0]", 3),
        ("pads=[0,1,0,0]", 'auto_pad="SAME_UPPER"', 3),
        ("dilations=[1,2], pads=[0,2,0,0]", "dilations=[1,2], pads=[0,0,0,2]", 3),
    ],
)
def test_kernels_side_by_side(first: str, second: str, taps: int) -> None:
    """Neither holds the other: the pair is wider than both, and no dearer than they were."""
    model = net(
        f"p = Conv<{first}>(x, v) q = Conv<{second}>(x, w, b) y = Add(p, q)",
        weights="float[4,4,1,2] v, float[4,4,1,2] w, float[4] b",
    )
    result = optimize(model, MERGE)
    merged(result)
    assert result.weight(0, 1).shape == (4, 4, 1, taps)


def test_the_dilation_of_a_single_tap_means_nothing() -> None:
    """Two 1x1 kernels side by side are one of two taps, one apart."""
    model = net(
        """p = Conv<dilations=[1,3], pads=[0,1,0,0]>(x, w1) q = Conv<pads=[0,0,0,1]>(x, v1)
        y = Add(p, q)""",
        weights="float[4,4,1,1] w1, float[4,4,1,1] v1",
        y="2,4,7,7",
    )
    result = optimize(model, MERGE)
    merged(result)
    assert result.weight(0, 1).shape == (4, 4, 1, 2)


def test_what_runs_at_another_size_does_not_count() -> None:
    """The 1x1 before the pooling runs at 42 positions, the merged kernel would at 49."""
    model = net(
        """h = Conv(x, w1) q = AveragePool<kernel_shape=[1,2], pads=[0,1,0,1], count_include_pad=1>(h)
        p = Conv<pads=[0,1,0,0]>(x, v1) y = Add(p, q)""",
        weights="float[4,4,1,1] w1, float[4,4,1,1] v1",
        y="2,4,7,7",
    )
    result = optimize(model, MERGE)
    assert result.names == []
    assert has(result.reasons, "takes 32 multiplications a position, not 16")


def test_taps_between_the_taps() -> None:
    """A 1x1 that reads where the dilated kernel has no tap."""
    model = net("p = Conv<pads=[1,1,3,3], dilations=[2,2]>(x, w3) q = Conv(x, w1) y = Add(p, q)")
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Conv", "Add"]
    assert has(result.reasons, "between one another's taps")


def test_an_output_of_another_size() -> None:
    """Broadcast over space: a map of 1x1 beside one of 5x4."""
    model = net(
        "p = Conv(x, w3) q = Conv(x, w) y = Add(p, q)",
        y="2,4,5,4",
        weights=WEIGHTS + ", float[4,4,7,6] w",
    )
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Conv", "Add"]
    assert has(result.reasons, "pads of the branches do not agree")


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (f"kernel_shape=[3,3], {SAME}", "leaves the padding out"),
        ('kernel_shape=[3,3], auto_pad="SAME_UPPER"', "auto_pad SAME_UPPER"),
        (
            f"kernel_shape=[3,3], {SAME}, count_include_pad=1, strides=[2,2], ceil_mode=1",
            "rounds its size up",
        ),
        ("kernel_shape=[5,5], pads=[2,2,2,2], count_include_pad=1", "multiplications"),
    ],
)
def test_average_pooling_that_is_no_kernel(pool: str, reason: str) -> None:
    stride = ", strides=[2,2]" if "strides" in pool else ""
    model = net(
        f"p = Conv<{SAME}{stride}>(x, w3) q = AveragePool<{pool}>(x) y = Add(p, q)",
        x="2,4,7,7",
        y="2,4,P,Q",
    )
    result = optimize(model, MERGE)
    assert "AveragePool" in result.ops
    assert has(result.reasons, reason)


@pytest.mark.parametrize("ceil", ["", ", ceil_mode=1"])
def test_average_pooling_that_is_one(ceil: str) -> None:
    pool = f"kernel_shape=[3,3], {SAME}, count_include_pad=1{ceil}"
    model = net(f"p = Conv<{SAME}>(x, w3) q = AveragePool<{pool}>(x) y = Add(p, q)")
    merged(optimize(model, MERGE))


def test_dilated_average_pooling() -> None:
    window = "dilations=[2,2], pads=[2,2,2,2]"
    model = net(
        f"""p = Conv<{window}>(x, w3) y = Add(p, q)
        q = AveragePool<kernel_shape=[3,3], {window}, count_include_pad=1>(x)""",
        opset=19,
    )
    model.graph.node.insert(1, model.graph.node.pop(2))
    merged(optimize(model, MERGE))


@pytest.mark.parametrize(
    "branch",
    [
        "h = Conv(x, w1, b) q = Conv<pads=[1,1,1,1]>(h, v3)",
        "h = Conv(x, w1, b) q = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(h)",
        "h = Mul(x, k) i = Add(h, k) q = Conv<pads=[1,1,1,1]>(i, v3)",
    ],
)
def test_a_bias_before_a_padded_kernel(branch: str) -> None:
    model = net(f"{branch} p = Conv<{SAME}>(x, w3) y = Add(p, q)")
    result = optimize(model, MERGE)
    assert result.names == []
    assert has(result.reasons, "bias before a padded kernel")


@pytest.mark.parametrize(
    "branch",
    [
        "h = Conv(x, w1) q = Conv<pads=[1,1,1,1]>(h, v3, b)",
        "h = Conv(x, w1) a = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(h)"
        " q = BatchNormalization(a, g, b, m, var)",
        "h = Conv<pads=[1,1,1,1]>(x, v3, b) q = Conv(h, w1, c)",
        "h = Conv<group=2, pads=[1,1,1,1]>(x, g3, b) i = Mul(h, k) q = Add(i, k)",
        "h = AveragePool<kernel_shape=[3,1], pads=[1,0,1,0], count_include_pad=1>(x)"
        " q = Conv<group=4>(h, d1)",
    ],
)
def test_branches_of_several_operators(branch: str) -> None:
    """Diverse branch block: 1x1 - 3x3 and 1x1 - average - normalization beside a 3x3."""
    model = net(f"{branch} p = Conv<{SAME}>(x, w3) y = Add(p, q)")
    result = optimize(model, MERGE, FuseConvAffine(), tolerance=1e-5)
    assert result.ops == ["Conv"]


def test_a_bias_before_a_kernel_without_padding() -> None:
    model = net(
        "h = Conv(x, w1, b) q = AveragePool<kernel_shape=[3,3]>(h) p = Conv(x, w3) y = Add(p, q)",
        y="2,4,5,4",
    )
    merged(optimize(model, MERGE))


def test_two_kernels_in_a_row() -> None:
    model = net(
        f"h = Conv<{SAME}>(x, w3) q = Conv<{SAME}>(h, v3) p = Conv<pads=[2,2,2,2]>(x, w5) y = Add(p, q)"
    )
    result = optimize(model, MERGE)
    assert result.names == []
    assert has(result.reasons, "two kernels follow one another")


def test_low_rank_adapter() -> None:
    """x W + s (x A) B on a value of rank 3."""
    model = build(
        """net (float[N,5,8] x) => (float[N,5,6] y)
        <float[8,6] w, float[8,2] a, float[2,6] b, float s>
        { p = MatMul(x, w) h = MatMul(x, a) q = MatMul(h, b) t = Mul(q, s) y = Add(p, t) }"""
    )
    merged(optimize(model, MERGE, runs=[{"x": (1, 5, 8)}, {"x": (3, 5, 8)}]), "MatMul")


def test_factors_on_both_branches_are_kept() -> None:
    """Two products of rank 1 cost less than the full matrix."""
    model = build(
        """net (float[5,8] x) => (float[5,6] y) <float[8,1] a, float[1,6] b, float[8,1] c, float[1,6] d>
        { h = MatMul(x, a) p = MatMul(h, b) i = MatMul(x, c) q = MatMul(i, d) y = Add(p, q) }"""
    )
    result = optimize(model, MERGE)
    assert len(result.ops) == 5
    assert has(result.reasons, "takes 48 multiplications a position, not 28")


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
@pytest.mark.parametrize(
    ("nodes", "ops"),
    [
        ("p = Gemm<transB=1, alpha=0.5>(x, w, c) q = Gemm(x, v, c) y = Add(p, q)", ["Gemm"]),
        ("p = MatMul(x, v) q = MatMul(x, u) y = Sub(p, q)", ["MatMul"]),
        ("p = MatMul(x, v) q = Mul(x, c) y = Add(p, q)", ["MatMul"]),
        ("p = MatMul(x, v) y = Add(x, p)", ["MatMul"]),
        ("p = Gemm<beta=2.0>(x, v, c) y = Sub(x, p)", ["Gemm"]),
        ("p = Gemm(x, v, zero) q = MatMul(x, u) y = Add(q, p)", ["Gemm"]),
    ],
)
def test_fully_connected(nodes: str, ops: list[str], opset: int) -> None:
    model = build(
        f"""net (float[3,4] x) => (float[3,4] y) <float[4,4] w, float[4,4] v, float[4,4] u, float[4] c>
        {{ {nodes} }}""",
        opset=opset,
        weights={"zero": np.zeros(4, np.float32)},
    )
    merged(optimize(model, MERGE), *ops)


def test_a_bias_has_no_place_in_a_matmul_of_rank_three() -> None:
    model = build(
        """net (float[2,3,4] x) => (float[2,3,4] y) <float[4,4] w, float[4,4] v, float[4] k>
        { a = Add(x, k) p = MatMul(a, w) q = MatMul(x, v) y = Add(p, q) }"""
    )
    result = optimize(model, MERGE)
    assert len(result.ops) == 4
    assert has(result.reasons, "no place for a bias")


def test_a_scale_along_another_axis() -> None:
    """6 columns and 4 rows: only the position in the shape tells the axes apart."""
    model = net(
        f"p = Conv<{SAME}>(x, w3) q = Mul(x, t) y = Add(p, q)",
        x="2,4,4,4", y="2,4,4,4", weights=WEIGHTS + ", float[4] t",
    )  # fmt: skip
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Mul", "Add"]
    assert has(result.reasons, "another axis")


def test_training_mode() -> None:
    model = net(
        f"p = Conv<{SAME}>(x, w3) y = Add(p, q) q = BatchNormalization<training_mode=1>(x, g, b, m, var)"
    )
    model.graph.node.insert(1, model.graph.node.pop(2))
    result = rewrite(model, MERGE)
    assert result.names == []
    assert has(result.reasons, "training mode")


@pytest.mark.parametrize("extra", ["float[2,4,7,6] p", "float[2,4,7,6] q", "float[2,4,7,6] z"])
def test_a_branch_that_is_needed_elsewhere(extra: str) -> None:
    z = "z = Exp(q)" if "z" in extra else ""
    model = build(
        f"""net (float[2,4,7,6] x) => (float[2,4,7,6] y, {extra})
        <{WEIGHTS}> {{ p = Conv<{SAME}>(x, w3) q = Conv(x, w1) {z} y = Add(p, q) }}"""
    )
    result = optimize(model, MERGE)
    assert result.ops.count("Conv") == 2
    assert has(result.reasons, "needed elsewhere")


def test_a_partial_sum_that_is_an_output() -> None:
    model = build(
        f"""net (float[2,4,7,6] x) => (float[2,4,7,6] y, float[2,4,7,6] s)
        <{WEIGHTS}> {{ p = Conv<{SAME}>(x, w3) q = Conv(x, w1) z = Exp(x) s = Add(p, z)
        y = Add(s, q) }}"""
    )
    result = optimize(model, MERGE)
    assert result.names == []


def test_one_value_twice() -> None:
    model = net(f"p = Conv<{SAME}>(x, w3) y = Add(p, p)")
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Add"]


def test_a_shared_weight() -> None:
    """Both branches and a third convolution read one initializer."""
    model = build(
        f"""net (float[2,4,7,6] x) => (float[2,4,7,6] y, float[2,4,7,6] z)
        <{WEIGHTS}> {{ p = Conv<{SAME}>(x, w3) q = Conv<{SAME}>(x, w3, b) z = Conv<{SAME}>(x, w3)
        y = Add(p, q) }}"""
    )
    merged(optimize(model, MERGE), "Conv", "Conv")


@pytest.mark.parametrize("name", ["w1", "w3"])
def test_a_weight_that_can_be_overridden(name: str) -> None:
    model = listed(net(f"p = Conv<{SAME}>(x, w3) q = Conv(x, w1) y = Add(p, q)"), name)
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Conv", "Add"]
    assert has(result.reasons, "overridden")


@pytest.mark.parametrize("hidden", ["Identity(w1)", "Cast<to=1>(half)", "Reshape(w31f, s)"])
def test_weights_behind_other_nodes(hidden: str) -> None:
    model = net(
        f"v = {hidden} p = Conv<{SAME}>(x, w3) q = Conv(x, v) y = Add(p, q)",
        weights=WEIGHTS + ", float16[4,4,1,1] half, float[16] w31f",
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4, 4, 1, 1]), "s"))
    result = optimize(model, MERGE, RemoveDead())
    assert result.ops == ["Conv"]


def test_weights_in_constant_nodes_of_an_old_file() -> None:
    model = net(f"p = Conv<{SAME}>(x, w3) q = Conv(x, w1, b) y = Add(p, q)", opset=7, ir_version=3)
    listed(model)
    for tensor in list(model.graph.initializer):
        node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(0, node)
    del model.graph.initializer[:]
    del model.graph.input[1:]
    result = optimize(model, MERGE, RemoveDead())
    assert [op for op in result.ops if op != "Constant"] == ["Conv"]


def test_generated_weights_stay_generated() -> None:
    text = """net (float[1,256,3,3] x) => (float[1,256,3,3] y) <int64[4] s, int64[4] t>
        {{ v = ConstantOfShape<value = float[1] {{0.02}}>(s)
          w = ConstantOfShape<value = float[1] {{0.01}}>(s)
          u = ConstantOfShape<value = float[1] {{0.01}}>(t)
          p = Conv<pads=[1,1,1,1]>(x, w) q = {} y = Add(p, q) }}"""
    shapes = {"s": np.array([256, 256, 3, 3]), "t": np.array([256, 256, 1, 1])}
    same = optimize(
        build(text.format("Conv<pads=[1,1,1,1]>(x, v)"), weights=shapes), MERGE, RemoveDead()
    )
    assert same.ops.count("Conv") == 1
    assert len(same.proto.SerializeToString()) < 2000
    for other in ("Conv(x, u)", "Identity(x)"):
        model = build(
            text.format(other).replace("q = Identity(x)", "q = Mul(x, x)"), weights=shapes
        )
        if "Identity" in other:
            model = build(text.format("Exp(x)").replace("Add(p, q)", "Add(p, x)"), weights=shapes)
        result = optimize(model, MERGE, RemoveDead())
        assert "Add" in result.ops
        assert has(result.reasons, "would have to be stored")


@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 5e-3), ("float", 1e-6)])
def test_types(kind: str, tolerance: float) -> None:
    model = build(
        f"""net ({kind}[2,4,7,6] x) => ({kind}[2,4,7,6] y)
        <{kind}[4,4,3,3] w, {kind}[4,4,1,1] v, {kind}[4] b>
        {{ p = Conv<{SAME}>(x, w) q = Conv(x, v, b) s = Add(p, q) y = Add(s, x) }}"""
    )
    result = optimize(model, MERGE, tolerance=tolerance)
    merged(result)
    assert result.weight(0, 1).dtype == model_dtype(model)


def model_dtype(model: onnx.ModelProto) -> object:
    return onnx.numpy_helper.to_array(model.graph.initializer[0]).dtype


def test_double() -> None:
    """onnxruntime convolves no doubles; it multiplies matrices of them."""
    model = build(
        """net (double[3,4] x) => (double[3,4] y) <double[4,4] w, double[4,4] v>
        { p = MatMul(x, w) q = MatMul(x, v) y = Add(p, q) }"""
    )
    merged(optimize(model, MERGE, tolerance=1e-14), "MatMul")


def test_integers() -> None:
    model = build(
        """net (int32[3,4] x) => (int32[3,4] y) <int32[4,4] w, int32[4,4] v>
        { p = MatMul(x, w) q = MatMul(x, v) y = Add(p, q) }"""
    )
    result = optimize(model, MERGE)
    assert len(result.ops) == 3
    assert has(result.reasons, "type int32")


def test_too_large_for_half_precision() -> None:
    model = build(
        """net (float16[1,1,4,4] x) => (float16[1,1,4,4] y) <float16[1,1,1,1] w, float16[1,1,1,1] v>
        { p = Conv(x, w) q = Conv(x, v) y = Add(p, q) }""",
        weights={name: np.full((1, 1, 1, 1), 4e4, np.float16) for name in "wv"},
    )
    result = rewrite(model, MERGE)
    assert result.names == []
    assert has(result.reasons, "too large for float16")


@pytest.mark.parametrize("spatial", [1, 3])
def test_one_and_three_dimensions(spatial: int) -> None:
    size, ones, threes = ([str(n)] * spatial for n in (5, 1, 3))
    pads = ",".join(["1"] * 2 * spatial)
    model = build(
        f"""net (float[2,4,{",".join(size)}] x) => (float[2,4,{",".join(size)}] y)
        <float[4,4,{",".join(threes)}] w, float[4,2,{",".join(ones)}] v, float[4] b>
        {{ p = Conv<pads=[{pads}]>(x, w, b) q = Conv<group=2>(x, v) s = Add(p, q) y = Add(s, x) }}"""
    )
    merged(optimize(model, MERGE))


@pytest.mark.parametrize("opset", [7, 8, 10, 11, 13, 18, 22])
def test_opsets(opset: int) -> None:
    model = net(
        f"""p = Conv<{SAME}>(x, w3) q = Conv(x, w1, b) s = Add(p, q)
        i = BatchNormalization(x, g, b, m, var) t = Add(s, i)
        a = AveragePool<kernel_shape=[3,3], {SAME}, count_include_pad=1>(x) y = Add(t, a)""",
        opset=opset,
    )
    merged(optimize(model, MERGE))


def test_inside_a_body_with_a_captured_input() -> None:
    model = build(
        f"""net (bool cond, float[2,4,7,6] x) => (float[2,4,7,6] y) <{WEIGHTS}>
        {{ h = Relu(x) y = If (cond) <
            then_branch = g1 () => (float[2,4,7,6] t)
              {{ p = Conv<{SAME}>(h, w3) q = Conv(h, w1) s = Add(p, q) t = Add(s, h) }},
            else_branch = g2 () => (float[2,4,7,6] e) {{ e = Identity(h) }}> }}"""
    )
    for cond in (False, True):
        result = optimize(model, MERGE, feeds={"cond": np.asarray(cond)})
        inside = body(result.proto, "If", "then_branch")
        assert [node.op_type for node in inside.node] == ["Conv"]


def test_a_branch_that_a_body_reads() -> None:
    model = build(
        f"""net (bool cond, float[2,4,7,6] x) => (float[2,4,7,6] y, float[2,4,7,6] z) <{WEIGHTS}>
        {{ p = Conv<{SAME}>(x, w3) q = Conv(x, w1) y = Add(p, q) z = If (cond) <
            then_branch = g1 () => (float[2,4,7,6] t) {{ t = Relu(q) }},
            else_branch = g2 () => (float[2,4,7,6] e) {{ e = Identity(x) }}> }}"""
    )
    result = optimize(model, MERGE, feeds={"cond": np.asarray(True)})
    assert result.names == []
    assert has(result.reasons, "needed elsewhere")


def test_a_residual_addition_is_none_of_its_business() -> None:
    model = net(f"p = Conv<{SAME}>(x, w3) r = Relu(p) q = Conv<{SAME}>(r, v3) y = Add(q, x)")
    result = optimize(model, MERGE)
    assert result.names == []
    assert result.declined == ()


def test_the_names_of_nodes_and_outputs() -> None:
    model = net(f"p = Conv<{SAME}>(x, w3) q = Conv(x, w1) y = Add(p, q)")
    model.graph.node[0].name = "large"
    result = optimize(model, MERGE)
    (node,) = result.proto.graph.node
    assert (node.name, list(node.output)) == ("large", ["y"])
    assert result.applied[0].options == {"kernel": "3x3"}
    assert result.applied[0].site == ("large", "q", "y")


def test_the_gate_finds_it_again_in_a_fragment() -> None:
    model = ir.from_proto(
        net(f"z = Exp(x) p = Conv<{SAME}>(x, w3) s = Add(z, p) t = Add(s, x) y = Relu(t)")
    )
    infos = infer(model, {"x": (2, 4, 7, 6)})
    annotate(model)
    scope = Scope(model, model.graph, infos)
    (proposal,) = MERGE.propose(scope)
    assert isinstance(proposal, Proposal)
    assert proposal.gated

    def again(fragment: Scope) -> bool:
        (found,) = MERGE.propose(fragment)
        assert isinstance(found, Proposal)
        found.apply()
        return True

    pair = changed_fragment(scope, proposal.nodes, again)
    assert pair is not None
    before, after = (ir.to_proto(part) for part in pair)
    check_same(before, after)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Add"]
