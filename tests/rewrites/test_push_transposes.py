"""push-transposes: NHWC regions flipped to NCHW when that saves Transposes, and only then."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import body, build, has, optimize, rewrite

from graphopt.graph.annotate import annotate
from graphopt.graph.fragment import changed_fragment
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.rewrites.base import Proposal
from graphopt.rewrites.cleanup.library import FoldConstants, LiftConstants, RemoveDead
from graphopt.rewrites.driver import Verdict
from graphopt.rewrites.exact.fold_transpose_into_fc import FoldTransposeIntoFc
from graphopt.rewrites.exact.fuse_affine import FuseConvAffine
from graphopt.rewrites.exact.push_transposes import MatMulToConv, PushTransposes

PUSH = PushTransposes()
TO_NHWC, TO_NCHW = "Transpose<perm=[0,2,3,1]>", "Transpose<perm=[0,3,1,2]>"
IN, OUT = "float[2,3,4,5] x", "float[a,b,c,d] y"
RUNS = [{"x": (1, 3, 4, 5)}, {"x": (3, 3, 6, 2)}]


def between(
    inner: str,
    *,
    inputs: str = IN,
    output: str = OUT,
    weights: str = "",
    opset: int = 17,
    given: dict[str, object] | None = None,
) -> onnx.ModelProto:
    """x (NCHW) -> Transpose -> t -> inner -> r -> Transpose back -> y."""
    declared = f"<{weights}>" if weights else ""
    return build(
        f"net ({inputs}) => ({output}) {declared} {{ t = {TO_NHWC}(x) {inner} y = {TO_NCHW}(r) }}",
        opset=opset,
        weights=given and {k: np.asarray(v) for k, v in given.items()},
    )


UNARY = [
    "Relu(t)", "LeakyRelu<alpha=0.2>(t)", "Sigmoid(t)", "Tanh(t)", "Elu(t)", "Selu(t)",
    "HardSigmoid(t)", "HardSwish(t)", "Erf(t)", "Softplus(t)", "Exp(t)", "Abs(t)", "Neg(t)",
    "Identity(t)", "Clip(t, low, high)", "Clip(t, , high)", "Sign(t)", "Round(t)",
]  # fmt: skip


@pytest.mark.parametrize("operator", UNARY)
def test_through_unary_operators(operator: str) -> None:
    model = between(f"r = {operator}", weights="float low, float high")
    result = optimize(model, PUSH)
    assert len(result.ops) == 1
    assert result.names == ["push-transposes"]
    assert result.declined == ()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 3), (5, 1), (4, 5, 3), (1, 4, 1, 1)])
@pytest.mark.parametrize("operator", ["Add(t, k)", "Sub(k, t)", "Mul(k, t)", "Div(t, k)"])
def test_through_arithmetic_with_constants(operator: str, shape: tuple[int, ...]) -> None:
    constant = np.random.default_rng(0).uniform(0.5, 2, shape).astype(np.float32)
    result = optimize(between(f"r = {operator}", given={"k": constant}), PUSH)
    assert result.ops == [operator[:3]]


def test_channel_constants_become_columns() -> None:
    result = optimize(between("r = Add(t, k)", weights="float[3] k"), PUSH)
    assert result.weight(0, 1).shape == (3, 1, 1)


def test_scalars_are_not_copied() -> None:
    result = optimize(between("r = Add(t, k)", weights="float[1] k"), PUSH)
    assert result.proto.graph.node[0].input[1] == "k"


@pytest.mark.parametrize("shape", ["3", "1", "5,1", "4,5,3"])
def test_prelu(shape: str) -> None:
    assert optimize(between("r = PRelu(t, k)", weights=f"float[{shape}] k"), PUSH).ops == ["PRelu"]


def test_generated_constant_stays_generated() -> None:
    model = between(
        "k = ConstantOfShape<value = float[1] {0.5}>(s) r = Add(t, k)",
        inputs="float[1,64,32,32] x",
        given={"s": np.array([32, 32, 64])},
    )
    result = optimize(model, PUSH, RemoveDead())
    assert sorted(result.ops) == ["Add", "ConstantOfShape"]
    assert len(result.proto.SerializeToString()) < 1000


def test_a_whole_network_in_nhwc() -> None:
    """What tf2onnx leaves: every convolution in brackets of Transposes, a residual, an SE block."""
    model = build(
        f"""net (float[N,8,8,3] x) => (float[N,8,8,4] y)
        <float[4,3,3,3] w, float[4] b, float[4,4,3,3] w2, float[4] g, float[4] h,
         float[2,4,1,1] s1, float[4,2,1,1] s2>
        {{ x0 = {TO_NCHW}(x) c0 = Conv<pads=[1,1,1,1]>(x0, w) c1 = {TO_NHWC}(c0)
           a = Add(c1, b) r = Relu(a)
           r0 = {TO_NCHW}(r) d0 = Conv<pads=[1,1,1,1]>(r0, w2) d1 = {TO_NHWC}(d0)
           m = Mul(d1, g) n = Add(m, h)
           p = ReduceMean<axes=[1,2], keepdims=1>(n) p0 = {TO_NCHW}(p) q0 = Conv(p0, s1)
           q1 = {TO_NHWC}(q0) q2 = Relu(q1) q3 = {TO_NCHW}(q2) q4 = Conv(q3, s2)
           q5 = {TO_NHWC}(q4) q = Sigmoid(q5)
           e = Mul(n, q) f = Add(e, r) y = Relu(f) }}"""
    )
    result = optimize(model, PUSH, runs=[{"x": (1, 8, 8, 3)}, {"x": (3, 8, 8, 3)}])
    assert result.ops.count("Transpose") == 2
    assert result.ops[0] == result.ops[-1] == "Transpose"


def test_normalisation_moves_behind_the_transposed_input() -> None:
    """The number of Transposes is the same, but the convolution can now take the arithmetic in."""
    model = build(
        f"""net (float[N,8,8,3] x) => (float[N,4,6,6] y) <float[3] m, float[3] s, float[4,3,3,3] w>
        {{ a = Sub(x, m) d = Mul(a, s) t = {TO_NCHW}(d) y = Conv(t, w) }}"""
    )
    result = optimize(model, PUSH, runs=[{"x": (2, 8, 8, 3)}])
    assert result.ops == ["Transpose", "Sub", "Mul", "Conv"]


def test_down_to_a_fully_connected_layer() -> None:
    """Where the rows of the weight take it in; onnxruntime fuses what is now side by side."""
    model = build(
        f"""net (float[N,3,6,6] x) => (float[N,5] y) <float[4,3,3,3] w, float[4] b, float[64,5] f>
        {{ c = Conv(x, w) t = {TO_NHWC}(c) a = Add(t, b) r = Relu(a) i = Flatten(r)
           y = Gemm(i, f) }}"""
    )
    runs = [{"x": (1, 3, 6, 6)}, {"x": (3, 3, 6, 6)}]
    assert optimize(model, PUSH, runs=runs).ops[3:] == ["Transpose", "Flatten", "Gemm"]
    result = optimize(model, PUSH, FoldTransposeIntoFc(), FuseConvAffine(), runs=runs)
    assert result.ops == ["Conv", "Relu", "Flatten", "Gemm"]


def test_bytes_decide_between_equally_many() -> None:
    """A Transpose moves behind a reduction, in front of an enlargement and of a wider type."""
    model = build(
        f"""net (float[1,3,8,8] x, uint8[1,8,8,3] u) => (float[a,b,c,d] y, float[e,f,g,h] z)
        {{ e = Exp(x) t = {TO_NHWC}(e) y = ReduceMax<axes=[1,2]>(t)
           i = Identity(u) c = Cast<to=1>(i) z = {TO_NCHW}(c) }}"""
    )
    result = optimize(model, PUSH)
    assert sorted(result.ops) == sorted(
        ["Exp", "ReduceMax", "Transpose", "Transpose", "Identity", "Cast"]
    )
    assert result.ops.index("ReduceMax") < next(
        i for i, n in enumerate(result.proto.graph.node) if n.output[0] == "y"
    )


def test_two_transposed_operands() -> None:
    model = between(
        f"t2 = {TO_NHWC}(x2) r = Add(t, t2)", inputs="float[2,3,4,5] x, float[2,3,1,5] x2"
    )
    assert optimize(model, PUSH).ops == ["Add"]


def test_two_transposed_operands_leave_one_transpose() -> None:
    model = build(
        f"""net (float[2,3,4,5] x, float[2,3,4,5] z) => (float[a,b,c,d] y)
        {{ t = {TO_NHWC}(x) u = {TO_NHWC}(z) y = Add(t, u) }}"""
    )
    result = optimize(model, PUSH)
    assert result.ops == ["Add", "Transpose"]


def test_square() -> None:
    assert optimize(between("r = Mul(t, t)"), PUSH).ops == ["Mul"]


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17])
@pytest.mark.parametrize("axis", [-1, 1])
def test_concat(axis: int, opset: int) -> None:
    model = between(
        f"t2 = {TO_NHWC}(x2) r = Concat<axis={axis}>(t, t2, t)",
        inputs="float[2,3,4,5] x, float[2,3,4,5] x2",
        opset=opset,
    )
    assert optimize(model, PUSH).ops == ["Concat"]


def test_concat_with_a_constant() -> None:
    model = between("r = Concat<axis=3>(t, k)", weights="float[2,4,5,2] k")
    result = optimize(model, PUSH)
    assert result.ops == ["Concat"]
    assert result.weight(0, 1).shape == (2, 2, 4, 5)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split(opset: int) -> None:
    sizes = "Split<axis=3, split=[2,2]>(t)" if opset < 13 else "Split<axis=3>(t, s)"
    model = build(
        f"""net (float[2,4,3,5] x) => (float[a,b,c,d] y, float[e,f,g,h] z) <int64[2] s>
        {{ t = {TO_NHWC}(x) p, q = {sizes} r = Relu(q) y = {TO_NCHW}(p) z = {TO_NCHW}(r) }}""",
        opset=opset,
        weights={"s": np.array([2, 2])},
    )
    result = optimize(model, PUSH)
    assert result.ops == ["Split", "Relu"]
    assert [o.name for o in result.proto.graph.output] == ["y", "z"]


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad(mode: str) -> None:
    pads = np.array([0, 1, 2, 0, 0, 2, 1, 0])
    model = between(f'r = Pad<mode="{mode}">(t, p)', given={"p": pads})
    assert optimize(model, PUSH).ops == ["Pad"]


def test_pad_with_a_value_and_before_opset_11() -> None:
    pads = np.array([0, 1, 2, 1, 0, 2, 1, 0])
    model = between("r = Pad(t, p, v)", given={"p": pads, "v": np.float32(3)})
    assert optimize(model, PUSH).ops == ["Pad"]
    old = between("r = Pad<pads=[0,1,2,1,0,2,1,0], value=2.0>(t)", opset=9)
    assert optimize(old, PUSH).ops == ["Pad"]


def test_pad_with_axes() -> None:
    given = {"p": np.array([1, 2, 0, 1]), "a": np.array([-2, 1])}
    model = between("r = Pad(t, p, , a)", opset=18, given=given)
    assert optimize(model, PUSH).ops == ["Pad"]


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceMax", "ReduceSum"])
def test_reductions(op_type: str, opset: int) -> None:
    by_input = opset >= (13 if op_type == "ReduceSum" else 18)
    call = f"{op_type}(t, a)" if by_input else f"{op_type}<axes=[1,-2]>(t)"
    given = {"a": np.array([1, -2])} if by_input else {}
    model = between(f"r = {call}", opset=opset, given=given)
    assert optimize(model, PUSH).ops == [op_type]


def test_reduction_over_everything() -> None:
    assert optimize(between("r = ReduceMax(t)"), PUSH).ops == ["ReduceMax"]


def swallowed(call: str, output: str, **options: object) -> onnx.ModelProto:
    return build(
        f"net (float[2,3,4,5] x) => ({output} y) {{ t = {TO_NHWC}(x) y = {call} }}", **options
    )


@pytest.mark.parametrize(
    ("call", "output"),
    [
        ("ReduceMean<axes=[1,2], keepdims=0>(t)", "float[a,b]"),
        ("ReduceMean<keepdims=0>(t)", "float"),
        ("ArgMax<axis=3, keepdims=0>(t)", "int64[a,b,c]"),
        ("ArgMax<axis=-1, keepdims=0>(t)", "int64[a,b,c]"),
        ("ReduceSum<keepdims=0>(t, axes)", "float[a,b,c]"),
    ],
)
def test_reductions_that_swallow(call: str, output: str) -> None:
    result = optimize(swallowed(call, output, weights={"axes": np.array([3])}), PUSH)
    assert "Transpose" not in result.ops
    assert len(result.ops) == 1


def test_reduction_whose_rest_is_in_another_order() -> None:
    model = swallowed("ReduceMean<axes=[1], keepdims=0>(t)", "float[a,b,c]")
    result = optimize(model, PUSH)
    assert result.ops == ["Transpose", "ReduceMean"]


def test_squeeze_and_flatten_of_a_pooled_map() -> None:
    model = build(
        f"""net (float[N,3,8,8] x) => (float[N,3] y, float[N,3] z, float[M,3] v)
        <int64[2] a, int64[2] s>
        {{ p = GlobalAveragePool(x) t = {TO_NHWC}(p)
           y = Squeeze(t, a) z = Flatten(t) v = Reshape(t, s) }}""",
        weights={"a": np.array([1, 2]), "s": np.array([-1, 3])},
    )
    result = optimize(model, PUSH, runs=[{"x": (1, 3, 8, 8)}, {"x": (4, 3, 8, 8)}])
    assert "Transpose" not in result.ops


def test_flatten_of_a_map_keeps_its_transpose() -> None:
    result = optimize(swallowed("Flatten(t)", "float[a,b]"), PUSH)
    assert result.ops == ["Transpose", "Flatten"]


def test_softmax_from_opset_13() -> None:
    assert optimize(between("r = Softmax<axis=-1>(t)"), PUSH).ops == ["Softmax"]
    old = optimize(between("r = Softmax<axis=3>(t)", opset=12), PUSH)
    assert old.ops == ["Transpose", "Softmax", "Transpose"]


@pytest.mark.parametrize("opset", [10, 11, 13, 18])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_by_scales(mode: str, opset: int) -> None:
    operands = "t, s" if opset == 10 else "t, roi, s"
    given = {"s": np.array([1, 2, 3, 1], np.float32), "roi": np.zeros(0, np.float32)}
    model = between(f'r = Resize<mode="{mode}">({operands})', opset=opset, given=given)
    assert optimize(model, PUSH).ops == ["Resize"]


def test_resize_by_sizes_and_upsample() -> None:
    sizes = {"s": np.array([2, 8, 15, 3])}
    assert optimize(between("r = Resize(t, , , s)", given=sizes), PUSH).ops == ["Resize"]
    scales = {"s": np.array([1, 2, 3, 1], np.float32)}
    assert optimize(between("r = Upsample(t, s)", opset=9, given=scales), PUSH).ops == ["Upsample"]
    old = between("r = Upsample<scales=[1.0,2.0,2.0,1.0]>(t)", opset=7)
    assert optimize(old, PUSH).ops == ["Upsample"]


def test_resize_along_what_would_become_the_channels() -> None:
    """[N, C, H, W] is all that every interpolation of onnxruntime takes: the Transposes stay."""
    scales = {"s": np.array([1, 1, 1, 2], np.float32)}
    result = optimize(between("r = Resize(t, , s)", given=scales), PUSH)
    assert result.ops == ["Transpose", "Resize", "Transpose"]


@pytest.mark.parametrize("opset", [9, 13])
def test_slice(opset: int) -> None:
    if opset < 10:
        model = between("r = Slice<axes=[1,3], starts=[1,0], ends=[3,2]>(t)", opset=opset)
    else:
        given = {"s": np.array([1, 0]), "e": np.array([3, 2]), "a": np.array([1, -1])}
        model = between("r = Slice(t, s, e, a)", given=given)
    assert optimize(model, PUSH).ops == ["Slice"]


def test_slice_without_axes() -> None:
    given = {"s": np.array([0, 1]), "e": np.array([2, 3])}
    assert optimize(between("r = Slice(t, s, e)", given=given), PUSH).ops == ["Slice"]


def test_quantized_along_the_channels() -> None:
    model = between(
        """q = QuantizeLinear<axis=3>(t, s, z) d = DequantizeLinear<axis=-1>(q, s, z)
        e = QuantizeLinear(d, s1, z1) r = DequantizeLinear(e, s1, z1)""",
        given={
            "s": np.array([0.1, 0.2, 0.05], np.float32),
            "z": np.zeros(3, np.int8),
            "s1": np.float32(0.1),
            "z1": np.int8(0),
        },
    )
    result = optimize(model, PUSH)
    assert result.ops == ["QuantizeLinear", "DequantizeLinear"] * 2


def test_where_and_comparisons() -> None:
    model = between("c = Greater(t, k) r = Where(c, t, k)", weights="float[3] k")
    assert optimize(model, PUSH).ops == ["Greater", "Where"]


def test_values_between_that_are_outputs_or_used_twice() -> None:
    """Two Transposes go, one comes: what the outside reads keeps its name and layout."""
    model = build(
        f"""net (float[2,3,4,5] x, float[2,3,4,5] x2) => (float[a,b,c,d] y, float[e,f,g,h] m)
        {{ t = {TO_NHWC}(x) t2 = {TO_NHWC}(x2) m = Add(t, t2) r = Relu(m) y = {TO_NCHW}(r) }}"""
    )
    result = optimize(model, PUSH)
    assert sorted(result.ops) == ["Add", "Relu", "Transpose"]


def test_equal_numbers_change_nothing() -> None:
    model = build(
        f"""net (float[2,3,4,5] x) => (float[a,b,c,d] y, float[e,f,g,h] m, float[i,j,k,l] n)
        {{ t = {TO_NHWC}(x) m = Exp(t) n = Neg(m) y = {TO_NCHW}(n) }}"""
    )
    result = optimize(model, PUSH)
    assert result.names == []
    assert has(result.reasons, "no fewer Transposes")


def test_transposed_operand_with_other_uses() -> None:
    model = build(
        f"""net (float[2,3,4,5] x) => (float[a,b,c,d] y, float[e,f,g,h] z)
        {{ t = {TO_NHWC}(x) r = Relu(t) y = {TO_NCHW}(r) z = CumSum(t, k) }}""",
        weights={"k": np.int64(1)},
    )
    result = optimize(model, PUSH)
    assert sorted(result.ops) == ["CumSum", "Relu", "Transpose"]


def test_two_outputs_of_one_value() -> None:
    """Two graph outputs cannot be one value: one of the two Transposes stays."""
    model = build(
        f"""net (float[2,3,4,5] x, float[2,3,4,5] z) => (float[a,b,c,d] y1, float[e,f,g,h] y2)
        {{ t = {TO_NHWC}(x) u = {TO_NHWC}(z) r = Add(t, u)
           y1 = {TO_NCHW}(r) y2 = {TO_NCHW}(r) }}"""
    )
    result = optimize(model, PUSH)
    assert result.ops.count("Transpose") < 4


def test_transpose_behind_is_composed() -> None:
    model = build(
        f"""net (float[2,3,4,5] x) => (float[a,b,c,d] y)
        {{ t = {TO_NHWC}(x) r = Relu(t) y = Transpose<perm=[0,2,1,3]>(r) }}"""
    )
    result = optimize(model, PUSH)
    assert result.ops == ["Relu", "Transpose"]


def test_default_order() -> None:
    model = build(
        """net (float[3,4,5] x) => (float[a,b,c] y)
        { t = Transpose(x) r = Relu(t) y = Transpose(r) }"""
    )
    assert optimize(model, PUSH).ops == ["Relu"]


def test_orders_that_undo_themselves() -> None:
    model = build(
        """net (float[3,4,5] x) => (float[a,b,c] y)
        { t = Transpose<perm=[0,2,1]>(x) r = Relu(t) u = Transpose<perm=[0,2,1]>(r)
          s = Tanh(u) v = Transpose<perm=[0,2,1]>(s) w = Abs(v) y = Transpose<perm=[0,2,1]>(w) }"""
    )
    result = optimize(model, PUSH)
    assert sorted(result.ops) == ["Abs", "Relu", "Tanh"]


def test_one_order_twice() -> None:
    """The second Transpose starts from what stands behind the first."""
    model = build(
        f"""net (float[2,3,4,5] x) => (float[a,b,c,d] y, float[e,f,g,h] z)
        {{ t = {TO_NHWC}(x) m = Relu(t) y = {TO_NCHW}(m) u = {TO_NHWC}(m) e = Exp(u)
           z = {TO_NCHW}(e) }}"""
    )
    result = optimize(model, PUSH)
    assert sorted(result.ops) == ["Exp", "Relu", "Transpose"]


def test_a_value_beside_its_own_transpose() -> None:
    model = build(
        """net (float[4,4] x) => (float[a,b] y)
        { e = Exp(x) t = Transpose(e) s = Add(e, t) y = Transpose(s) }"""
    )
    assert optimize(model, PUSH).ops.count("Transpose") <= 2


def test_order_of_nodes_with_several_ends() -> None:
    """What reads an early end of the region must come behind its new maker."""
    model = build(
        f"""net (float[2,3,4,5] x) => (float[a,b,c,d] y, float[e,f,g,h] z)
        {{ t = {TO_NHWC}(x) r = Relu(t) u = {TO_NCHW}(r) y = MaxPool<kernel_shape=[2,2]>(u)
           s = Tanh(r) z = {TO_NCHW}(s) }}"""
    )
    assert sorted(optimize(model, PUSH).ops) == ["MaxPool", "Relu", "Tanh"]


def test_dynamic_sizes() -> None:
    model = between("a = Add(t, k) r = Relu(a)", inputs="float[N,3,H,W] x", weights="float[3] k")
    assert optimize(model, PUSH, runs=RUNS).ops == ["Add", "Relu"]


@pytest.mark.parametrize("dtype", ["float16", "double", "int64"])
def test_types(dtype: str) -> None:
    model = between(
        "r = Add(t, k)",
        inputs=f"{dtype}[2,3,4,5] x",
        output=f"{dtype}[a,b,c,d] y",
        weights=f"{dtype}[3] k",
    )
    assert optimize(model, PUSH).ops == ["Add"]


def test_three_dimensions_of_space_and_one() -> None:
    cube = build(
        """net (float[2,3,4,5,6] x) => (float[a,b,c,d,e] y) <float[3] k>
        { t = Transpose<perm=[0,2,3,4,1]>(x) r = Mul(t, k) y = Transpose<perm=[0,4,1,2,3]>(r) }"""
    )
    assert optimize(cube, PUSH).ops == ["Mul"]


def test_shared_constant_is_copied() -> None:
    model = between(
        "a = Add(t, k) r = Mul(a, k) z = Exp(k)", output=f"{OUT}, float[3] z", weights="float[3] k"
    )
    result = optimize(model, PUSH)
    assert sorted(result.ops) == ["Add", "Exp", "Mul"]
    assert "k" in {tensor.name for tensor in result.proto.graph.initializer}


def test_constant_behind_nodes() -> None:
    model = build(
        f"""net ({IN}) => ({OUT}) <double[3] k>
        {{ t = {TO_NHWC}(x) c = Cast<to=1>(k) i = Identity(c) r = Add(t, i) y = {TO_NCHW}(r) }}"""
    )
    assert optimize(model, PUSH, RemoveDead()).ops == ["Add"]


def test_operand_that_can_be_overridden() -> None:
    """A vector that a caller may feed has no layout of its own: nothing is moved."""
    model = between("r = Add(t, k)", inputs=f"{IN}, float[3] k")
    result = optimize(model, PUSH)
    assert result.ops == ["Transpose", "Add", "Transpose"]


@pytest.mark.parametrize("cond", [True, False])
def test_inside_a_branch_and_captured(cond: bool) -> None:
    model = build(
        f"""net ({IN}, bool cond) => (float[2,3,4,5] y, float[2,4,5,3] z)
        {{ t = {TO_NHWC}(x) r = Relu(t) u = {TO_NCHW}(r) z = Abs(r)
        y = If (cond) <then_branch = a () => (float[2,3,4,5] yt)
            {{ p = {TO_NHWC}(u) q = Exp(p) yt = {TO_NCHW}(q) }},
          else_branch = b () => (float[2,3,4,5] ye) {{ n = Neg(r) ye = {TO_NCHW}(n) }}> }}"""
    )
    result = optimize(model, PUSH, feeds={"cond": np.asarray(cond)})
    assert [n.op_type for n in body(result.proto, "If", "then_branch").node] == ["Exp"]


def test_old_broadcasting() -> None:
    model = build(
        f"""net ({IN}) => ({OUT}) <float[3] k>
        {{ t = {TO_NHWC}(x) r = Add<broadcast=1, axis=3>(t, k) y = {TO_NCHW}(r) }}""",
        opset=6,
    )
    assert rewrite(model, PUSH).ops == ["Transpose", "Add", "Transpose"]


def test_quantized_neighbours_stay_together() -> None:
    """The Transpose would be of fewer bytes between the two, but the pair is one to a runtime."""
    model = build(
        f"""net ({IN}) => ({OUT}) {{ e = MaxPool<kernel_shape=[2,2]>(x) t = {TO_NHWC}(e)
        q = QuantizeLinear(t, s, z) d = DequantizeLinear(q, s, z) y = CumSum(d, k) }}""",
        weights={"s": np.float32(0.1), "z": np.int8(0), "k": np.int64(1)},
    )
    result = optimize(model, PUSH)
    assert result.ops == ["MaxPool", "Transpose", "QuantizeLinear", "DequantizeLinear", "CumSum"]
    assert has(result.reasons, "quantized")


def test_names_that_must_not_collide() -> None:
    model = build(
        f"""net ({IN}) => ({OUT}, {OUT.replace(" y", " k_push-transposes".replace("-", "_"))})
        <float[3] k>
        {{ t = {TO_NHWC}(x) a = Add(t, k) r = Mul(a, k) y = {TO_NCHW}(r)
           k_push_transposes = Abs(x) }}"""
    )
    assert sorted(optimize(model, PUSH).ops) == ["Abs", "Add", "Mul"]


# matmul-to-conv

CONVOLVE = MatMulToConv(gated=False)


def test_matmul_between_transposes() -> None:
    model = between(
        "m = MatMul(t, w) a = Add(m, b) h = Relu(a) n = MatMul(h, w2) r = Add(n, b2)",
        inputs="float[N,3,H,W] x",
        weights="float[3,7] w, float[7] b, float[7,2] w2, float[2] b2",
    )
    result = optimize(model, CONVOLVE, FuseConvAffine(), runs=RUNS, tolerance=1e-5)
    assert result.ops == ["Conv", "Relu", "Conv"]
    assert optimize(model, PUSH).ops.count("MatMul") == 2


@pytest.mark.parametrize("rank", [3, 5])
def test_matmul_of_other_ranks(rank: int) -> None:
    spatial = list(range(2, rank))
    sizes, names = ",".join("45678"[: rank - 2]), ",".join("abcdefg"[:rank])
    model = build(
        f"""net (float[2,3,{sizes}] x) => (float[{names}] y) <float[3,7] w>
        {{ t = Transpose<perm={[0, *spatial, 1]}>(x) r = MatMul(t, w)
           y = Transpose<perm={[0, rank - 1, *range(1, rank - 1)]}>(r) }}"""
    )
    assert optimize(model, CONVOLVE).ops == ["Conv"]


@pytest.mark.parametrize("inner", ["MatMul(w, t)", "MatMul(t, t2)"])
def test_other_products_stay(inner: str) -> None:
    model = between(
        f"t2 = {TO_NCHW}(t) r = {inner}",
        inputs="float[2,3,3,3] x",
        weights="float[3,3] w",
    )
    assert "Conv" not in optimize(model, CONVOLVE).ops


def test_double_has_no_convolution() -> None:
    model = between(
        "r = MatMul(t, w)",
        inputs="double[2,3,4,5] x",
        output="double[a,b,c,d] y",
        weights="double[3,7] w",
    )
    assert optimize(model, CONVOLVE).names == []


def test_matmul_without_a_way_back() -> None:
    model = build(
        f"""net ({IN}) => (float[a,b,c,d] y) <float[3,7] w>
        {{ e = Exp(x) t = {TO_NHWC}(e) y = MatMul(t, w) }}"""
    )
    result = optimize(model, CONVOLVE)
    assert result.names == []
    assert has(result.reasons, "no fewer Transposes")


def test_the_gate_is_asked() -> None:
    asked: list[str] = []

    def gate(rule: object, proposal: object, scope: object) -> Verdict:
        asked.append(proposal.rewrite)  # type: ignore[attr-defined]
        return Verdict(False, "slower")

    result = rewrite(between("r = MatMul(t, w)", weights="float[3,7] w"), MatMulToConv(), gate=gate)
    assert asked == ["matmul-to-conv"]
    assert result.names == []
    assert has(result.reasons, "slower")


def test_found_again_in_a_fragment() -> None:
    """What the gate measures: the region cut out, with the Transpose that others read too."""
    proto = build(
        f"""net (float[N,3,8,8] x) => (float[a,b,c,d] y, float[e,f,g,h] k) <float[3,5] w, float[5] v>
        {{ e = Exp(x) t = {TO_NHWC}(e) m = MatMul(t, w) s = Add(m, v) u = {TO_NCHW}(s)
           y = MaxPool<kernel_shape=[2,2]>(u) k = CumSum(t, axis) }}""",
        weights={"axis": np.int64(1)},
    )
    model = ir.from_proto(proto)
    infos = infer(model, {"x": (1, 3, 8, 8)})
    annotate(model)
    scope = Scope(model, model.graph, infos)
    (proposal,) = (f for f in MatMulToConv().propose(scope) if isinstance(f, Proposal))

    def again(fragment: Scope) -> bool:
        for finding in MatMulToConv().propose(fragment):
            if isinstance(finding, Proposal):
                finding.apply()
                return True
        return False

    for batch in (1, 8):
        pair = changed_fragment(scope, proposal.nodes, again, batch=batch)
        assert pair is not None
        assert [n.op_type for n in pair[0].graph] == ["Transpose", "MatMul", "Add", "Transpose"]
        assert sorted(n.op_type for n in pair[1].graph) == ["Add", "Conv", "Transpose"]


# Everything at once, at random


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A random tangle of elementwise operators and Transposes of one order and its inverse."""
    order = draw(st.sampled_from([(0, 2, 3, 1), (0, 2, 1, 3), (1, 0, 2, 3), (3, 2, 1, 0)]))
    back = tuple(order.index(i) for i in range(4))
    values = [("x", 0), ("x2", 0)]
    lines = []
    for index in range(draw(st.integers(3, 14))):
        name, layout = draw(st.sampled_from(values[-5:]))
        kind = draw(st.sampled_from(["T", "T", "unary", "binary", "constant"]))
        made = f"v{index}"
        if kind == "T":
            lines.append(f"{made} = Transpose<perm={list(back if layout else order)}>({name})")
            layout = 1 - layout
        elif kind == "unary":
            lines.append(f"{made} = {draw(st.sampled_from(['Relu', 'Tanh', 'Abs']))}({name})")
        elif kind == "constant":
            lines.append(f"{made} = Add({name}, k{layout})")
        else:
            others = [n for n, other in values if other == layout]
            lines.append(f"{made} = Add({name}, {draw(st.sampled_from(others))})")
        values.append((made, layout))
    made_here = [name for name, _ in values[2:]]
    outputs = draw(st.lists(st.sampled_from(made_here), min_size=1, max_size=3, unique=True))
    listed = ", ".join(f"float[{o}a,{o}b,{o}c,{o}d] {o}" for o in outputs)
    shape = (2, 3, 4, 5)
    rng = np.random.default_rng(0)
    constants = {
        "k0": rng.standard_normal(shape[2:]).astype(np.float32),
        "k1": rng.standard_normal([shape[i] for i in order][3:]).astype(np.float32),
    }
    text = f"net (float[2,3,4,5] x, float[2,3,4,5] x2) => ({listed}) {{ {' '.join(lines)} }}"
    return build(text, weights=constants)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(networks())
def test_random_tangles(model: onnx.ModelProto) -> None:
    before = optimize(model, RemoveDead())
    result = optimize(model, RemoveDead(), PUSH)
    assert result.ops.count("Transpose") <= before.ops.count("Transpose")
    assert len(result.ops) <= len(before.ops)


def test_constants_of_transposes_fold_first() -> None:
    """A transposed constant is a constant."""
    model = build(
        f"""net (float[2,4,5,3] x) => (float[a,b,c,d] y) <float[2,3,4,5] k>
        {{ t = {TO_NHWC}(k) y = Add(x, t) }}"""
    )
    assert optimize(model, LiftConstants(), FoldConstants(), PUSH).ops == ["Add"]


KINDS = (
    "conv", "conv", "conv", "bias", "act", "add", "concat", "split", "pad", "se", "softmax",
    "matmul", "resize", "slice", "prelu",
)  # fmt: skip


@st.composite
def channels_last(draw: st.DrawFn) -> onnx.ModelProto:
    """A random network as tf2onnx writes it: NHWC, with Transposes around every convolution."""
    lines: list[str] = []
    weights: dict[str, np.ndarray] = {"sq": np.array([1, 2])}
    rng = np.random.default_rng(1)
    values = [("x", 4, 8)]  # name, channels, size

    def emit(call: str) -> str:
        name = f"v{len(lines)}"
        lines.append(f"{name} = {call}")
        return name

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights[name] = (rng.standard_normal(shape) / 4).astype(np.float32)
        return name

    def integers(*numbers: int) -> str:
        name = f"i{len(weights)}"
        weights[name] = np.asarray(numbers, np.int64)
        return name

    for _ in range(draw(st.integers(2, 9))):
        value, channels, size = draw(st.sampled_from(values[-4:]))
        kind = draw(st.sampled_from(KINDS))
        if kind == "conv":
            u = emit(f"{TO_NCHW}({value})")
            c = emit(f"Conv<pads=[1,1,1,1]>({u}, {weight(4, channels, 3, 3)})")
            value, channels = emit(f"{TO_NHWC}({c})"), 4
        elif kind == "bias":
            value = emit(f"{draw(st.sampled_from(['Add', 'Mul']))}({value}, {weight(channels)})")
        elif kind == "act":
            value = emit(f"{draw(st.sampled_from(['Relu', 'Sigmoid', 'LeakyRelu']))}({value})")
        elif kind == "add":
            same = [v for v, c, s in values if (c, s) == (channels, size)]
            value = emit(f"Add({value}, {draw(st.sampled_from(same))})")
        elif kind == "concat":
            same = [(v, c) for v, c, s in values if s == size]
            other, more = draw(st.sampled_from(same))
            value, channels = emit(f"Concat<axis=3>({value}, {other})"), channels + more
        elif kind == "split":
            half = channels // 2
            name = f"v{len(lines)}"
            lines.append(
                f"{name}a, {name} = Split<axis=-1>({value}, {integers(channels - half, half)})"
            )
            values.append((f"{name}a", channels - half, size))
            value, channels = name, half
        elif kind == "pad":
            pads = integers(0, 1, 1, 0, 0, 1, 1, 0)
            value, size = emit(f"Pad({value}, {pads})"), size + 2
        elif kind == "se":
            mean = emit(f"ReduceMean<axes=[1,2]>({value})")
            gate = emit(f"Sigmoid({emit(f'Mul({mean}, {weight(channels)})')})")
            value = emit(f"Mul({value}, {gate})")
        elif kind == "softmax":
            value = emit(f"Softmax<axis=-1>({value})")
        elif kind == "matmul":
            value, channels = emit(f"MatMul({value}, {weight(channels, 4)})"), 4
        elif kind == "resize" and size < 20:
            name = f"s{len(weights)}"
            weights[name] = np.array([1, 2, 2, 1], np.float32)
            value, size = emit(f'Resize<mode="nearest">({value}, , {name})'), size * 2
        elif kind == "slice" and size > 2:
            operands = (integers(1), integers(size), integers(-2))
            cut = emit(f"Slice({value}, {', '.join(operands)})")
            value = emit(f"Pad({cut}, {integers(0, 0, 1, 0, 0, 0, 0, 0)})")
        elif kind == "prelu":
            value = emit(f"PRelu({value}, {weight(1, 1, channels)})")
        values.append((value, max(channels, 1), size))
    last, channels, _ = values[-1]
    head = draw(st.sampled_from(["map", "pool", "argmax", "both"]))
    outputs = []
    if head in ("map", "both"):
        lines.append(f"y = Identity({last})")
        outputs.append("float[a,b,c,d] y")
    if head in ("pool", "both"):
        lines.append(f"z = ReduceMean<axes=[1,2], keepdims=0>({last})")
        outputs.append("float[e,f] z")
    if head == "argmax":
        lines.append(f"q = ReduceMax<axes=[3], keepdims=0>({last})")
        outputs.append("float[g,h,k] q")
    text = f"net (float[N,8,8,4] x) => ({', '.join(outputs)}) {{ {' '.join(lines)} }}"
    return build(text, weights=weights)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(channels_last())
def test_random_networks_in_nhwc(model: onnx.ModelProto) -> None:
    runs = [{"x": (1, 8, 8, 4)}, {"x": (3, 8, 8, 4)}]
    before = optimize(model, RemoveDead())
    result = optimize(model, RemoveDead(), PUSH, runs=runs)
    assert result.ops.count("Transpose") <= before.ops.count("Transpose")
    assert len(result.ops) <= len(before.ops)
    convolved = optimize(model, RemoveDead(), PUSH, CONVOLVE, runs=runs, tolerance=1e-4)
    assert convolved.ops.count("Transpose") <= result.ops.count("Transpose")
