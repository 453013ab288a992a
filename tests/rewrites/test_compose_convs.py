"""compose-convs: which pairs become one convolution, at which price, and what the borders forbid."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import DOUBLE, body, build, check_same, has, listed, optimize, rewrite

from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.driver import Verdict
from graphopt.rewrites.exact.compose_convs import ComposeConvs

COMPOSE = ComposeConvs()
CHEAPER = ComposeConvs(dearer=False)
NOTHING_MEASURED = "the gate was asked"


def refuse(*_: object) -> Verdict:
    """A gate that finds nothing faster."""
    return Verdict(False, NOTHING_MEASURED)


def unexpected(*_: object) -> Verdict:
    """A gate that must not be asked."""
    raise AssertionError(NOTHING_MEASURED)


def pair(
    first: str,
    second: str,
    w1: str,
    w2: str,
    *,
    x: str = "2,3,9,9",
    ops: tuple[str, str] = ("Conv", "Conv"),
    bias: tuple[str, str] = ("", ""),
    kind: str = "float",
    opset: int = 17,
) -> onnx.ModelProto:
    """x -> first -> second -> y, with the attributes of each; bias: "b1", "b2" or none."""
    rank = x.count(",") + 1
    y = ",".join("NCDHW"[:rank]) if rank == 5 else ",".join(["N", "C", "H", "W"][:rank])
    declared = ""
    for name, weight, op, node in zip(("b1", "b2"), (w1, w2), ops, (first, second), strict=True):
        group = int(node.split("group=")[1].split(",")[0]) if "group=" in node else 1
        sizes = [int(n) for n in weight.split(",")]
        out = sizes[1] * group if op == "ConvTranspose" else sizes[0]
        declared += f", {kind}[{out}] {name}"
    model = build(
        f"""net ({kind}[{x}] x) => ({kind}[{y}] y) <{kind}[{w1}] w1, {kind}[{w2}] w2{declared}>
        {{ c = {ops[0]}<{first}>(x, w1{", b1" if bias[0] else ""})
           y = {ops[1]}<{second}>(c, w2{", b2" if bias[1] else ""}) }}""".replace("<>", ""),
        opset=opset,
    )
    used = {name for node in model.graph.node for name in node.input}
    for tensor in list(model.graph.initializer):
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)
    return model


def attributes(model: onnx.ModelProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[0].attribute}


BOTH = ("b1", "b2")


@pytest.mark.parametrize("bias", [("", ""), ("", "b2"), ("b1", ""), BOTH])
@pytest.mark.parametrize(
    ("first", "second", "w1", "w2", "kernel"),
    [
        ("", "", "8,3,1,1", "4,8,1,1", [1, 1]),
        ("", "", "16,3,1,1", "4,16,3,3", [3, 3]),
        ("pads=[1,1,1,1]", "", "16,3,3,3", "8,16,1,1", [3, 3]),
        ("pads=[2,0,1,3], strides=[2,1]", "", "16,3,3,2", "4,16,1,1", [3, 2]),
        ("pads=[0,2,0,1]", "", "30,3,1,3", "4,30,3,1", [3, 3]),
        ("pads=[2,2,2,2]", "strides=[2,2]", "9,3,3,3", "3,9,2,2", [4, 4]),
        ("", "dilations=[2,2]", "16,3,1,1", "4,16,3,3", [3, 3]),
        ("strides=[2,2]", "strides=[1,2]", "16,3,1,1", "4,16,2,2", [2, 2]),
        ("strides=[2,2]", "strides=[2,2]", "24,3,2,2", "4,24,1,1", [2, 2]),
        ("dilations=[2,2]", "dilations=[2,2]", "9,3,2,2", "2,9,2,2", [3, 3]),
    ],
)
def test_unpadded_second(
    first: str, second: str, w1: str, w2: str, kernel: list[int], bias: tuple[str, str]
) -> None:
    result = optimize(pair(first, second, w1, w2, bias=bias), COMPOSE, tolerance=1e-6)
    assert result.ops == ["Conv"]
    assert result.names == ["compose-convs"]
    assert result.declined == ()
    assert attributes(result.proto)["kernel_shape"] == kernel
    assert len(result.proto.graph.node[0].input) == (3 if any(bias) else 2)


@pytest.mark.parametrize(
    ("first", "second", "w1", "w2"),
    [
        ("", "pads=[1,1,1,1]", "16,3,1,1", "8,16,3,3"),
        ("", "pads=[2,0,1,1], strides=[2,1]", "16,3,1,1", "8,16,3,3"),
        ("strides=[2,2]", "pads=[1,2,2,1]", "32,3,1,1", "4,32,3,3"),
        ("strides=[2,3]", "pads=[1,2,2,1], strides=[2,1]", "32,3,1,1", "4,32,3,2"),
        ("pads=[1,1,1,1]", "pads=[1,1,1,1]", "16,3,1,1", "4,16,3,3"),
        ("pads=[0,1,0,1]", "pads=[1,0,1,0]", "30,3,1,3", "4,30,3,1"),  # Inception's, unbiased
        ("pads=[1,0,1,0]", "pads=[0,1,0,1]", "30,3,3,1", "4,30,1,3"),
        ("pads=[2,2,2,2]", "pads=[1,0,0,1]", "20,3,3,3", "2,20,2,2"),  # a full convolution
        ("pads=[1,1,2,2], strides=[2,2]", "pads=[1,0,0,1]", "99,1,3,3", "1,99,2,2"),
    ],
)
@pytest.mark.parametrize("size", [8, 9, 10, 11])
def test_padded_second_behind_one_that_gives_zeros(
    first: str, second: str, w1: str, w2: str, size: int
) -> None:
    x = f"2,{w1.split(',')[1]},{size},{size}"
    model = pair(first, second, w1, w2, x=x, bias=("", "b2"))
    result = optimize(model, COMPOSE, tolerance=1e-6)
    assert result.ops == ["Conv"]
    assert result.declined == ()


@pytest.mark.parametrize(
    ("first", "second", "w1", "w2"),
    [
        ("pads=[1,1,1,1]", "pads=[1,1,1,1]", "16,3,3,3", "2,16,2,2"),
        ("", "pads=[0,0,0,1]", "16,3,2,2", "2,16,2,2"),
        ("pads=[1,2,2,2]", "pads=[1,0,0,0]", "16,3,3,3", "2,16,2,2"),
        ("pads=[2,2,1,2]", "pads=[0,0,1,0]", "16,3,3,3", "2,16,2,2"),
        ("pads=[0,1,0,1]", "pads=[1,1,1,1]", "16,3,1,3", "2,16,3,3"),
    ],
)
def test_padded_second_behind_one_that_does_not(first: str, second: str, w1: str, w2: str) -> None:
    result = optimize(pair(first, second, w1, w2), COMPOSE)
    assert result.ops == ["Conv", "Conv"]
    assert has(result.reasons, "pads with zeros where the first one computes something else")


def test_bias_before_a_padded_convolution() -> None:
    """What the second one pads with is 0, not the first one's bias."""
    model = pair("", "pads=[1,1,1,1]", "16,3,1,1", "4,16,3,3", bias=BOTH)
    result = optimize(model, COMPOSE)
    assert result.ops == ["Conv", "Conv"]
    assert has(result.reasons, "^a bias before a padded convolution does not compose$")


def test_a_bias_of_zeros_is_none() -> None:
    model = build(
        """net (float[2,3,9,9] x) => (float[2,4,9,9] y) <float[16,3,1,1] w1, float[4,16,3,3] w2>
        { c = Conv(x, w1, zero) y = Conv<pads=[1,1,1,1]>(c, w2) }""",
        weights={"zero": np.zeros(16, np.float32)},
    )
    result = optimize(model, COMPOSE)
    assert result.ops == ["Conv"]
    assert len(result.proto.graph.node[0].input) == 2


LOW_RANK = pytest.mark.parametrize(
    ("first", "second", "w1", "w2"),
    [
        ("", "pads=[1,1,1,1]", "4,16,1,1", "16,4,3,3"),  # input bottleneck
        ("pads=[1,1,1,1]", "", "4,16,3,3", "16,4,1,1"),  # output bottleneck
        ("pads=[1,0,1,0]", "pads=[0,1,0,1]", "8,16,3,1", "16,8,1,3"),  # spatial
        ("pads=[2,2,2,2]", "", "16,16,3,3", "16,16,3,3"),  # kernel pair
        ("pads=[1,1,1,1], group=16", "", "16,1,3,3", "16,16,1,1"),  # decoupled
        ("", "pads=[1,1,1,1], group=16", "16,16,1,1", "16,1,3,3"),
    ],
)


@LOW_RANK
def test_what_low_rank_factors_are_made_for_stays(
    first: str, second: str, w1: str, w2: str
) -> None:
    result = optimize(pair(first, second, w1, w2, x="1,16,9,9"), CHEAPER)
    assert result.ops == ["Conv", "Conv"]
    assert has(result.reasons, "^composed it would cost [0-9,]+ MACs instead of [0-9,]+$")


@LOW_RANK
def test_more_multiplications_only_where_measured(
    first: str, second: str, w1: str, w2: str
) -> None:
    model = pair(first, second, w1, w2, x="1,16,9,9")
    kept = rewrite(model, COMPOSE, gate=refuse)
    assert kept.ops == ["Conv", "Conv"]
    assert kept.reasons == [NOTHING_MEASURED]
    assert optimize(model, COMPOSE).ops == ["Conv"]


@LOW_RANK
@pytest.mark.parametrize("marked", [(0,), (1,), (0, 1)])
def test_what_an_approximation_took_apart_stays_apart(
    first: str, second: str, w1: str, w2: str, marked: tuple[int, ...]
) -> None:
    model = pair(first, second, w1, w2, x="1,16,9,9")
    for index in marked:
        mark_as_approximate(model, index)
    result = rewrite(model, COMPOSE, gate=unexpected)
    assert result.ops == ["Conv", "Conv"]
    expected = [] if len(marked) == 2 else [r"MACs instead of"]
    assert len(result.reasons) == len(expected)
    assert all(has(result.reasons, pattern) for pattern in expected)


@pytest.mark.parametrize(("size", "measured"), [(27, True), (28, False)])
def test_a_million_more_is_not_measured(size: int, measured: bool) -> None:
    """64 -> 8 -> 32 costs 768 products a pixel, 64 -> 32 costs 2,048."""
    model = pair("", "", "8,64,1,1", "32,8,1,1", x=f"1,64,{size},{size}")
    more = size**2 * (2048 - 768)
    assert (more < 1_000_000) == measured
    result = rewrite(model, COMPOSE, gate=refuse if measured else unexpected)
    assert result.ops == ["Conv", "Conv"]
    assert has(result.reasons, NOTHING_MEASURED if measured else "MACs instead of")


def test_weights_may_grow_by_a_little_where_measured() -> None:
    """Fewer multiplications behind the stride, but more weights: 1,024 bytes for 640."""
    little = pair("", "strides=[4,4]", "4,8,1,1", "8,4,2,2", x="1,8,8,8")
    assert rewrite(little, COMPOSE, gate=refuse).reasons == [NOTHING_MEASURED]
    assert optimize(little, COMPOSE).ops == ["Conv"]
    assert rewrite(little, ComposeConvs(grow=True), gate=unexpected).ops == ["Conv"]


def test_the_reason_counts_with_the_real_sizes() -> None:
    """9 x 9 pixels: 81 (3 16 + 16 4 9) before, the 7 x 7 of the second without pads."""
    result = optimize(pair("", "", "2,3,1,1", "4,2,3,3", x="1,3,9,9"), CHEAPER)
    before, after = 81 * 6 + 49 * 72, 49 * 108
    assert result.reasons == [f"composed it would cost {after:,} MACs instead of {before:,}"]


def test_stride_counts() -> None:
    """Behind the stride of the second one, a quarter of the pixels of the first one are left."""
    text = ("64,128,1,1", "128,64,2,2")
    dense = optimize(pair("", "", *text, x="1,128,8,8"), CHEAPER)
    assert has(dense.reasons, "MACs instead")
    strided = pair("", "strides=[4,4]", *text, x="1,128,8,8")
    assert has(rewrite(strided, COMPOSE).reasons, "would take 262,144 bytes instead of 163,840")
    assert optimize(strided, ComposeConvs(grow=True)).ops == ["Conv"]


@pytest.mark.parametrize(
    ("groups", "w1", "w2", "group"),
    [
        ((2, 2), "8,2,1,1", "4,4,2,2", 2),
        ((4, 2), "16,1,1,1", "2,8,2,2", 2),
        ((2, 4), "40,2,1,1", "4,10,1,1", 2),
        ((4, 4), "16,1,2,2", "4,4,1,1", 4),
        ((1, 4), "64,4,1,1", "4,16,1,1", 1),
        ((4, 1), "96,1,1,1", "2,96,1,1", 1),
        ((2, 3), "60,2,1,1", "3,20,1,1", 1),
    ],
)
def test_groups(groups: tuple[int, int], w1: str, w2: str, group: int) -> None:
    model = pair(f"group={groups[0]}", f"group={groups[1]}", w1, w2, x="2,4,5,5", bias=BOTH)
    result = optimize(model, COMPOSE, tolerance=1e-6)
    assert result.ops == ["Conv"]
    assert attributes(result.proto)["group"] == group


def test_depthwise_then_depthwise() -> None:
    model = pair("group=4, pads=[1,1,1,1]", "group=4", "4,1,3,3", "4,1,1,1", x="2,4,7,7", bias=BOTH)
    assert attributes(optimize(model, COMPOSE).proto)["group"] == 4


@pytest.mark.parametrize(
    ("x", "first", "second", "w1", "w2"),
    [
        ("2,3,11", "strides=[2]", "", "16,3,1", "4,16,3"),
        ("2,3,11", "", "pads=[1,2], dilations=[2]", "16,3,1", "4,16,3"),
        ("1,2,5,6,7", "", "pads=[1,0,1,0,1,0]", "20,2,1,1,1", "2,20,3,1,2"),
        ("1,2,5,6,7", "pads=[1,0,1,0,1,0]", "strides=[1,2,1]", "20,2,3,2,1", "2,20,1,1,1"),
    ],
)
def test_one_and_three_dimensions(x: str, first: str, second: str, w1: str, w2: str) -> None:
    result = optimize(pair(first, second, w1, w2, x=x, bias=("", "b2")), COMPOSE)
    assert result.ops == ["Conv"]


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", ["1,1", "2,2"])
def test_auto_pad(mode: str, strides: str, size: int) -> None:
    second = f'auto_pad="{mode}", strides=[{strides}], kernel_shape=[2,2]'
    model = pair('auto_pad="SAME_UPPER"', second, "40,3,1,1", "2,40,2,2", x=f"1,3,{size},{size}")
    assert optimize(model, COMPOSE).ops == ["Conv"]


def test_auto_pad_on_an_open_size() -> None:
    model = pair('auto_pad="SAME_UPPER", strides=[2,2]', "", "40,3,3,3", "2,40,1,1", x="1,3,H,W")
    result = optimize(model, COMPOSE, runs=[{"x": (1, 3, 8, 8)}, {"x": (1, 3, 9, 11)}])
    assert result.ops == ["Conv", "Conv"]
    assert has(result.reasons, "auto_pad with strides depends on the size")


def test_open_batch_and_size() -> None:
    model = pair("strides=[2,2]", "pads=[1,1,1,1]", "32,3,1,1", "4,32,3,3", x="N,3,H,W")
    runs = [{"x": (n, 3, h, w)} for n, h, w in ((1, 8, 8), (3, 9, 10), (2, 11, 7))]
    assert optimize(model, COMPOSE, runs=runs).ops == ["Conv"]


def test_chain_of_three() -> None:
    model = build(
        """net (float[1,3,9,9] x) => (float[1,4,7,7] y)
        <float[16,3,1,1] w1, float[16,16,1,1] w2, float[4,16,3,3] w3, float[16] b1, float[16] b2>
        { c = Conv(x, w1, b1) d = Conv(c, w2, b2) y = Conv(d, w3) }"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops == ["Conv"]
    assert result.proto.graph.node[0].output[0] == "y"


def test_the_clear_case_is_not_measured_and_the_close_one_is() -> None:
    clear = pair("", "", "16,3,1,1", "4,16,3,3")
    assert rewrite(clear, COMPOSE, gate=refuse).ops == ["Conv"]
    # 1x1 convolutions: 8 4 + 4 8 = 64 products a pixel, and 8 8 of the one.
    even = pair("", "", "4,8,1,1", "8,4,1,1", x="1,8,5,5")
    result = rewrite(even, COMPOSE, gate=refuse)
    assert result.ops == ["Conv", "Conv"]
    assert result.reasons == [NOTHING_MEASURED]
    assert optimize(even, COMPOSE).ops == ["Conv"]


def test_weight_shared_with_another_node() -> None:
    model = build(
        """net (float[1,3,6,6] x) => (float[1,4,4,4] y, float[1,16,6,6] z)
        <float[16,3,1,1] w1, float[4,16,3,3] w2>
        { c = Conv(x, w1) y = Conv(c, w2) r = Relu(x) z = Conv(r, w1) }"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops == ["Conv", "Relu", "Conv"]
    assert "w1" in {tensor.name for tensor in result.proto.graph.initializer}
    assert "w2" not in {tensor.name for tensor in result.proto.graph.initializer}


def test_one_weight_for_both() -> None:
    model = build(
        """net (float[1,3,6,6] x) => (float[1,3,6,6] y) <float[3,3,1,1] w>
        { c = Conv(x, w) y = Conv(c, w) }"""
    )
    assert optimize(model, COMPOSE).ops == ["Conv"]


@pytest.mark.parametrize("z", ["z = Relu(c)", "z = Identity(c)"])
def test_output_in_between_is_used_twice(z: str) -> None:
    model = build(
        f"""net (float[1,3,6,6] x) => (float[1,4,4,4] y, float[1,16,6,6] z)
        <float[16,3,1,1] w1, float[4,16,3,3] w2> {{ c = Conv(x, w1) y = Conv(c, w2) {z} }}"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops.count("Conv") == 2
    assert has(result.reasons, "needed elsewhere too")


def test_output_in_between_is_a_graph_output() -> None:
    model = build(
        """net (float[1,3,6,6] x) => (float[1,4,4,4] y, float[1,16,6,6] c)
        <float[16,3,1,1] w1, float[4,16,3,3] w2> { c = Conv(x, w1) y = Conv(c, w2) }"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops == ["Conv", "Conv"]
    assert has(result.reasons, "needed elsewhere too")


def test_something_non_linear_in_between_is_no_site() -> None:
    model = build(
        """net (float[1,3,6,6] x) => (float[1,4,4,4] y) <float[16,3,1,1] w1, float[4,16,3,3] w2>
        { c = Conv(x, w1) r = Relu(c) y = Conv(r, w2) }"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops == ["Conv", "Relu", "Conv"]
    assert result.declined == ()


def test_output_used_as_a_weight_is_no_site() -> None:
    model = build(
        """net (float[1,3,6,6] x, float[1,4,9,9] v) => (float[1,1,4,4] y) <float[4,3,1,1] w1>
        { c = Conv(x, w1) y = Conv(v, c) }"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops == ["Conv", "Conv"]
    assert result.declined == ()


@pytest.mark.parametrize(
    "hidden",
    [
        "k = Identity(w)",
        f"h = Constant<value = float[8,3,1,1] {{{', '.join(['0.5'] * 24)}}}>() k = Identity(h)",
        "k = Cast<to=1>(d)",
        "k = CastLike(d, w)",
        "k = Unsqueeze(s, axes)",
    ],
)
def test_hidden_weights(hidden: str) -> None:
    model = build(
        f"""net (float[1,3,6,6] x) => (float[1,4,4,4] y)
        <float[8,3,1,1] w, float[8,3] s, double[8,3,1,1] d, float[4,8,3,3] w2>
        {{ {hidden} c = Conv(x, k) y = Conv(c, w2) }}""",
        weights={"axes": np.array([2, 3])},
    )
    assert optimize(model, COMPOSE, RemoveDead()).ops == ["Conv"]


@pytest.mark.parametrize("name", ["w1", "b1", "w2"])
def test_overridable_weight(name: str) -> None:
    model = listed(pair("", "", "16,3,1,1", "4,16,3,3", bias=BOTH), name)
    result = optimize(model, COMPOSE)
    assert result.ops == ["Conv", "Conv"]
    assert has(result.reasons, "can be overridden by a caller")


def test_weight_from_the_input() -> None:
    model = build(
        """net (float[1,3,6,6] x, float[4,16,3,3] w2) => (float[1,4,4,4] y) <float[16,3,1,1] w1>
        { c = Conv(x, w1) y = Conv(c, w2) }"""
    )
    assert has(optimize(model, COMPOSE).reasons, "the weight is a graph input")


def test_generated_weights_stay_generated() -> None:
    model = build(
        """net (float[1,64,5,5] x) => (float[1,64,5,5] y) <int64[4] s, int64[4] t>
        { w1 = ConstantOfShape<value = float[1] {0.25}>(s)
          w2 = ConstantOfShape<value = float[1] {0.01}>(t)
          c = Conv(x, w1) y = Conv<pads=[1,1,1,1]>(c, w2) }""",
        weights={"s": np.array([64, 64, 1, 1]), "t": np.array([64, 64, 3, 3])},
    )
    result = optimize(model, COMPOSE, RemoveDead())
    assert sorted(result.ops) == ["ConstantOfShape", "Conv"]
    assert len(result.proto.SerializeToString()) < 1000


def test_generated_weights_are_not_stored() -> None:
    """Two 3x3 of one number make a 5x5 of several, which the file would have to hold."""
    model = build(
        """net (float[1,3,9,9] x) => (float[1,3,5,5] y) <int64[4] s, int64[4] t>
        { w1 = ConstantOfShape<value = float[1] {0.25}>(s)
          w2 = ConstantOfShape<value = float[1] {0.01}>(t)
          c = Conv(x, w1) y = Conv(c, w2) }""",
        weights={"s": np.array([64, 3, 3, 3]), "t": np.array([3, 64, 3, 3])},
    )
    result = optimize(model, COMPOSE)
    assert result.ops.count("Conv") == 2
    assert has(result.reasons, "would take 900 bytes instead of 64")


def test_weights_that_cancel_each_other() -> None:
    """What the original computes is rounding noise; nothing reproduces that."""
    mixed = np.ones((4, 16, 1, 1), np.float32)
    mixed[:, ::2] = -1
    model = build(
        """net (float[1,3,6,6] x) => (float[1,4,6,6] y)
        { c = Conv(x, w1) y = Conv(c, w2) }""",
        weights={"w1": np.full((16, 3, 1, 1), 0.3, np.float32), "w2": mixed},
    )
    result = rewrite(model, COMPOSE)
    assert result.ops == ["Conv", "Conv"]
    assert has(result.reasons, "cancel each other")


def test_zero_weights() -> None:
    model = build(
        """net (float[1,3,6,6] x) => (float[1,4,6,6] y) <float[4,16,1,1] w2, float[4] b>
        { c = Conv(x, w1) y = Conv(c, w2, b) }""",
        weights={"w1": np.zeros((16, 3, 1, 1), np.float32)},
    )
    assert optimize(model, COMPOSE).ops == ["Conv"]


def test_half_precision_that_would_overflow() -> None:
    large = np.full((16, 3, 1, 1), 200, np.float16)
    model = build(
        """net (float16[1,3,6,6] x) => (float16[1,4,6,6] y) { c = Conv(x, w1) y = Conv(c, w2) }""",
        weights={"w1": large, "w2": np.full((4, 16, 1, 1), 200, np.float16)},
    )
    result = rewrite(model, COMPOSE)
    assert result.ops == ["Conv", "Conv"]
    assert has(result.reasons, "too large for float16")


@pytest.mark.parametrize("opset", [7, 11, 22])
@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 5e-3), ("float", 1e-6)])
def test_types_and_opsets(kind: str, tolerance: float, opset: int) -> None:
    model = pair("", "", "16,3,1,1", "4,16,3,3", bias=BOTH, kind=kind, opset=opset)
    result = optimize(model, COMPOSE, tolerance=tolerance)
    assert result.ops == ["Conv"]


def test_double() -> None:
    """onnxruntime's CPU has no such convolution: compared with the float one."""
    double = rewrite(pair("", "", "16,3,1,1", "4,16,3,3", bias=BOTH, kind="double"), COMPOSE)
    single = rewrite(pair("", "", "16,3,1,1", "4,16,3,3", bias=BOTH), COMPOSE)
    assert {t.data_type for t in double.proto.graph.initializer} == {DOUBLE}
    for index in (1, 2):
        np.testing.assert_allclose(
            double.weight(0, index), single.weight(0, index), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose_then_pointwise(group: int) -> None:
    attribute = f"group={group}, strides=[2,2], pads=[1,0,1,1], output_padding=[1,1]"
    model = pair(
        attribute,
        "",
        f"4,{32 // group},3,3",
        "2,32,1,1",
        x="2,4,5,5",
        ops=("ConvTranspose", "Conv"),
        bias=BOTH,
    )
    result = optimize(model, COMPOSE, tolerance=1e-6)
    assert result.ops == ["ConvTranspose"]
    assert attributes(result.proto)["output_padding"] == [1, 1]


@pytest.mark.parametrize("groups", [(1, 1), (2, 2), (2, 4), (4, 2)])
def test_pointwise_then_conv_transpose(groups: tuple[int, int]) -> None:
    model = pair(
        f"group={groups[0]}",
        f"group={groups[1]}, strides=[2,2], pads=[1,0,1,1], dilations=[1,2]",
        f"64,{4 // groups[0]},1,1",
        f"64,{4 // groups[1]},3,2",
        x="2,4,5,5",
        ops=("Conv", "ConvTranspose"),
        bias=("", "b2"),
    )
    assert optimize(model, COMPOSE, tolerance=1e-6).ops == ["ConvTranspose"]


def test_bias_before_a_conv_transpose() -> None:
    model = pair(
        "", "", "64,4,1,1", "64,4,3,3", x="2,4,5,5", ops=("Conv", "ConvTranspose"), bias=BOTH
    )
    result = optimize(model, COMPOSE)
    assert result.ops == ["Conv", "ConvTranspose"]
    assert has(result.reasons, "a bias before a transposed convolution")


@pytest.mark.parametrize(
    ("ops", "second", "w2"),
    [
        (("ConvTranspose", "Conv"), "", "2,32,3,3"),
        (("ConvTranspose", "Conv"), "strides=[2,2]", "2,32,1,1"),
        (("ConvTranspose", "Conv"), "pads=[1,1,1,1]", "2,32,1,1"),
        (("ConvTranspose", "ConvTranspose"), "", "32,2,1,1"),
    ],
)
def test_other_transposed_pairs_are_no_site(ops: tuple[str, str], second: str, w2: str) -> None:
    result = optimize(pair("", second, "4,32,3,3", w2, x="1,4,5,5", ops=ops), COMPOSE)
    assert result.ops == list(ops)
    assert result.declined == ()


def test_conv_transpose_pairs_of_low_rank_stay() -> None:
    model = pair("", "", "16,4,3,3", "16,4,1,1", x="1,16,5,5", ops=("ConvTranspose", "Conv"))
    assert has(optimize(model, CHEAPER).reasons, "MACs instead of")
    assert rewrite(model, COMPOSE, gate=refuse).reasons == [NOTHING_MEASURED]


def test_inside_a_body() -> None:
    """No sizes are known there; without pads the map in between is not the smaller one."""
    model = build(
        """net (float[1,3,6,6] x, bool cond) => (float[1,4,4,4] y)
        <float[16,3,1,1] w1, float[4,16,3,3] w2, float[4,3,3,3] w3>
        { y = If(cond) <
            then_branch = a () => (float[1,4,4,4] t) { c = Conv(x, w1) t = Conv(c, w2) },
            else_branch = b () => (float[1,4,4,4] e) { e = Conv(x, w3) }> }"""
    )
    result = optimize(model, COMPOSE, feeds={"cond": np.asarray(True)})
    assert [node.op_type for node in body(result.proto, "If", "then_branch").node] == ["Conv"]


def test_inside_a_body_with_pads() -> None:
    model = build(
        """net (float[1,3,6,6] x, bool cond) => (float[1,4,6,6] y)
        <float[16,3,1,1] w1, float[4,16,3,3] w2, float[4,3,1,1] w3>
        { y = If(cond) <
            then_branch = a () => (float[1,4,6,6] t)
              { c = Conv(x, w1) t = Conv<pads=[1,1,1,1]>(c, w2) },
            else_branch = b () => (float[1,4,6,6] e) { e = Conv(x, w3) }> }"""
    )
    result = optimize(model, COMPOSE, feeds={"cond": np.asarray(True)})
    assert has(result.reasons, "the size of the map in between is unknown")


def test_first_one_outside_the_body() -> None:
    model = build(
        """net (float[1,3,6,6] x, bool cond) => (float[1,4,4,4] y)
        <float[16,3,1,1] w1, float[4,16,3,3] w2, float[4,3,3,3] w3>
        { c = Conv(x, w1) y = If(cond) <
            then_branch = a () => (float[1,4,4,4] t) { t = Conv(c, w2) },
            else_branch = b () => (float[1,4,4,4] e) { e = Conv(x, w3) }> }"""
    )
    result = optimize(model, COMPOSE, feeds={"cond": np.asarray(True)})
    assert has(result.reasons, "stands outside this body")


def test_captured_by_a_body() -> None:
    """The output in between is also read inside a branch."""
    model = build(
        """net (float[1,3,6,6] x, bool cond) => (float[1,4,4,4] y, float[1,16,6,6] z)
        <float[16,3,1,1] w1, float[4,16,3,3] w2>
        { c = Conv(x, w1) y = Conv(c, w2) z = If(cond) <
            then_branch = a () => (float[1,16,6,6] t) { t = Relu(c) },
            else_branch = b () => (float[1,16,6,6] e) { e = Neg(c) }> }"""
    )
    result = optimize(model, COMPOSE, feeds={"cond": np.asarray(True)})
    assert result.ops == ["Conv", "Conv", "If"]
    assert has(result.reasons, "needed elsewhere too")


@settings(deadline=None, derandomize=True, max_examples=50)
@given(data=st.data())
def test_any_pair_computes_the_same(data: st.DataObject) -> None:
    """Whatever is composed is right, at the borders too; `grow` and many channels let most through."""
    draw = data.draw
    attributes_, sizes, groups = [], [], []
    for _ in range(2):
        sizes.append(draw(st.tuples(st.integers(1, 3), st.integers(1, 3))))
        pads = draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
        strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        dilations = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
        groups.append(draw(st.sampled_from([1, 2, 3, 6])))
        attributes_.append(
            f"pads={pads}, strides={list(strides)}, dilations={list(dilations)}, group={groups[-1]}"
        )
    if draw(st.booleans()):
        attributes_[1] = f"group={groups[1]}, strides={[draw(st.integers(1, 2))] * 2}"
    w1 = f"60,{6 // groups[0]},{sizes[0][0]},{sizes[0][1]}"
    w2 = f"6,{60 // groups[1]},{sizes[1][0]},{sizes[1][1]}"
    bias = draw(st.sampled_from([("", ""), ("", "b2"), BOTH]))
    x = f"1,6,{draw(st.integers(13, 16))},{draw(st.integers(13, 16))}"
    model = pair(*attributes_, w1, w2, x=x, bias=bias)
    result = rewrite(model, ComposeConvs(grow=True))
    assert result.ops == ["Conv"] or result.reasons
    if result.ops == ["Conv"]:
        check_same(model, result.proto)


def test_a_transposed_convolution_counts_the_pixels_it_reads() -> None:
    """5 x 5 pixels in, 10 x 10 out: the one pays its 4 taps for 25 pixels, not for 100."""
    model = pair(
        "strides=[2,2]", "", "16,4,2,2", "16,4,1,1", x="1,16,5,5", ops=("ConvTranspose", "Conv")
    )
    before, after = 25 * 16 * 4 * 4 + 100 * 4 * 16, 25 * 16 * 16 * 4
    assert optimize(model, CHEAPER).reasons == [
        f"composed it would cost {after:,} MACs instead of {before:,}"
    ]


def mark_as_approximate(model: onnx.ModelProto, index: int) -> None:
    mark = model.graph.node[index].metadata_props.add()
    mark.key, mark.value = "graphopt.kind", "approximate"


@pytest.mark.parametrize("index", [0, 1])
def test_what_was_factored_is_not_factored_again(index: int) -> None:
    model = pair("", "", "16,3,1,1", "4,16,3,3")
    mark_as_approximate(model, index)
    (node,) = optimize(model, COMPOSE).proto.graph.node
    assert {p.key: p.value for p in node.metadata_props}["graphopt.kind"] == "approximate"
