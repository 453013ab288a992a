"""drop-zero-bias: biases that are zero everywhere, as weights or generated, and those that stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import body, build, check_same, has, listed, optimize, rewrite

from graphopt.rewrites.cleanup.library import LiftConstants, RemoveDead
from graphopt.rewrites.exact.drop_zero_bias import DropZeroBias
from graphopt.rewrites.exact.fuse_affine import FuseConvAffine
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm

DROP = DropZeroBias()
ZEROS = np.zeros(4, np.float32)


def conv(bias: str = "", *, opset: int = 17, **weights: object) -> onnx.ModelProto:
    """x -> Conv with the bias b, computed as stated -> y."""
    arrays = {k: np.asarray(v) for k, v in weights.items()}
    return build(
        f"""net (float[N,3,6,6] x) => (float[N,4,H,W] y) <float[4,3,3,3] w>
        {{ {bias} y = Conv<pads=[1,0,0,1], strides=[2,1]>(x, w, b) }}""",
        opset=opset,
        weights=arrays,
    )


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
def test_a_weight_of_zeros(opset: int) -> None:
    result = optimize(
        conv(b=ZEROS, opset=opset), DROP, runs=[{"x": (1, 3, 6, 6)}, {"x": (3, 3, 6, 6)}]
    )
    assert result.ops == ["Conv"]
    assert list(result.proto.graph.node[0].input) == ["x", "w"]
    assert [t.name for t in result.proto.graph.initializer] == ["w"]
    assert result.names == ["drop-zero-bias"]
    assert len(result.proto.graph.node[0].attribute) == 2
    assert result.declined == ()


@pytest.mark.parametrize(
    "bias",
    [
        "b = Constant<value = float[4] {0, 0, 0, -0.0}>()",
        "b = Identity(zeros)",
        "d = Constant<value = double[4] {0, 0, 0, 0}>() b = Cast<to=1>(d)",
        "d = Constant<value = double[4] {0, 0, 0, 0}>() b = CastLike(d, w)",
        "z = Constant<value_float = 0.0>() b = Expand(z, four)",
        "z = Constant<value_float = 0.0>() c = CastLike(z, w) b = Expand(c, four)",
        "b = ConstantOfShape(four)",
    ],
)
def test_zeros_however_they_are_made(bias: str) -> None:
    model = conv(bias, zeros=ZEROS, four=np.asarray([4], np.int64))
    result = optimize(model, DROP, RemoveDead())
    assert result.ops == ["Conv"]
    assert len(result.proto.graph.initializer) == 1


@pytest.mark.parametrize("bias", [[0, 0, 1e-30, 0], [1, 1, 1, 1], [0, 0, 0, np.nan]])
def test_what_is_not_zero_stays(bias: list[float]) -> None:
    result = rewrite(conv(b=np.asarray(bias, np.float32)), DROP)
    assert len(result.proto.graph.node[0].input) == 3
    assert (result.names, result.declined) == ([], ())


@pytest.mark.parametrize(
    ("x", "w", "op", "y"),
    [
        ("2,4,9", "4,2,3", "Conv<group=2, dilations=[2]>", "2,4,M"),
        ("1,2,5,6,7", "4,2,3,3,3", "Conv", "1,4,D,E,F"),
        ("1,3,6,6", "4,3,3,3", 'Conv<auto_pad="SAME_LOWER", strides=[2,2]>', "1,4,H,W"),
        ("1,6,5,5", "6,2,3,3", "ConvTranspose<group=2, strides=[2,2]>", "1,4,H,W"),
        ("5,3", "3,4", "Gemm<alpha=0.5, beta=2.0>", "5,4"),
        ("3,5", "4,3", "Gemm<transA=1, transB=1>", "5,4"),
    ],
)
def test_other_operators(x: str, w: str, op: str, y: str) -> None:
    model = build(
        f"net (float[{x}] x) => (float[{y}] y) <float[{w}] w> {{ y = {op}(x, w, b) }}",
        weights={"b": ZEROS},
    )
    result = optimize(model, DROP)
    assert list(result.proto.graph.node[0].input) == ["x", "w"]


@pytest.mark.parametrize("shape", [(), (1,), (1, 4), (5, 1), (5, 4)])
def test_gemm_with_an_addend_of_any_shape(shape: tuple[int, ...]) -> None:
    model = build(
        "net (float[5,3] x) => (float[5,4] y) <float[3,4] w> { y = Gemm(x, w, b) }",
        weights={"b": np.zeros(shape, np.float32)},
    )
    assert list(optimize(model, DROP).proto.graph.node[0].input) == ["x", "w"]


@pytest.mark.parametrize("opset", [7, 9, 10, 11])
def test_gemm_must_have_one_before_opset_11(opset: int) -> None:
    model = build(
        "net (float[5,3] x) => (float[5,4] y) <float[3,4] w> { y = Gemm(x, w, b) }",
        opset=opset,
        weights={"b": ZEROS},
    )
    result = optimize(model, DROP)
    assert has(result.reasons, "must have a bias") == (opset < 11)
    assert len(result.proto.graph.node[0].input) == (2 if opset == 11 else 3)


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_types(dtype: str) -> None:
    model = build(
        f"net ({dtype}[5,3] x) => ({dtype}[5,4] y) <{dtype}[3,4] w> {{ y = Gemm(x, w, b) }}",
        weights={"b": np.zeros(4, "float64" if dtype == "double" else dtype)},
    )
    result = optimize(model, DROP, tolerance=1e-3)
    assert list(result.proto.graph.node[0].input) == ["x", "w"]


def test_bfloat16() -> None:
    model = build("net (float[5,3] x) => (float[5,4] y) <float[3,4] w> { y = Gemm(x, w, b) }")
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    del model.graph.initializer[:]
    for name, size in (("w", 12), ("b", 4)):
        dims = [3, 4] if name == "w" else [4]
        model.graph.initializer.append(
            onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, dims, [0.0] * size)
        )
    result = rewrite(model, DROP)
    assert list(result.proto.graph.node[0].input) == ["x", "w"]
    onnx.checker.check_model(result.proto, full_check=True)


def test_one_bias_for_two() -> None:
    model = build(
        """net (float[1,4,6,6] x) => (float[1,4,4,4] y, float[4] b2) <float[4,4,3,3] w, float[4,4,1,1] v>
        { c = Conv(x, w, b) y = Conv(c, v, b) b2 = Relu(b) }""",
        weights={"b": ZEROS},
    )
    result = optimize(model, DROP)
    assert result.names == ["drop-zero-bias"] * 2
    assert [len(n.input) for n in result.proto.graph.node] == [2, 2, 1]


def test_a_generated_bias_that_is_also_an_output() -> None:
    model = build(
        """net (float[1,3,6,6] x) => (float[1,4,4,4] y, float[4] b) <float[4,3,3,3] w, int64[1] four = {4}>
        { b = ConstantOfShape(four) y = Conv(x, w, b) }"""
    )
    result = optimize(model, DROP, RemoveDead())
    assert sorted(result.ops) == ["ConstantOfShape", "Conv"]


def test_a_bias_that_a_caller_may_override() -> None:
    for bias, declined in ((ZEROS, True), (ZEROS + 1, False)):
        result = rewrite(listed(conv(b=bias), "b"), DROP)
        assert result.names == []
        assert has(result.reasons, "overridden by a caller") == declined
    fed = build(
        "net (float[5,3] x, float[4] b) => (float[5,4] y) <float[3,4] w> { y = Gemm(x, w, b) }"
    )
    result = rewrite(fed, DROP)
    assert (result.names, result.declined) == ([], ())


def test_run_time_weights_do_not_matter() -> None:
    model = build(
        "net (float[5,3] x, float[3,4] w) => (float[5,4] y) { y = Gemm(x, w, b) }",
        weights={"b": ZEROS},
    )
    assert list(optimize(model, DROP).proto.graph.node[0].input) == ["x", "w"]


def test_in_a_branch_with_a_captured_bias() -> None:
    model = build(
        """net (float[5,3] x, bool c) => (float[5,4] y) <float[3,4] w> {
        y = If(c) <then_branch = t () => (float[5,4] u) { u = Gemm(x, w, b) },
                   else_branch = f () => (float[5,4] v) { v = MatMul(x, w) }> }""",
        weights={"b": ZEROS},
    )
    result = rewrite(model, DROP)
    check_same(model, result.proto)
    assert list(body(result.proto, "If", "then_branch").node[0].input) == ["x", "w"]
    assert [t.name for t in result.proto.graph.initializer] == ["w"]


def test_it_ends_with_the_fusions() -> None:
    """A normalization still brings its bias; only a convolution that keeps none loses the zeros."""
    model = build(
        """net (float[2,3,6,6] x) => (float[2,4,P,Q] y)
        <float[4,3,3,3] w, float[4,4,1,1] v, float[4] g, float[4] beta, float[4] m,
        float[4] var, float k = {2.0}>
        { c = Conv(x, w, b) n = BatchNormalization(c, g, beta, m, var) r = Relu(n)
          d = Conv(r, v, b) s = Mul(d, k) y = AveragePool<kernel_shape=[2,2]>(s) }""",
        weights={"b": ZEROS},
    )
    for order in (
        (DROP, FuseConvBatchNorm(), FuseConvAffine()),
        (FuseConvBatchNorm(), FuseConvAffine(), DROP),
    ):
        result = optimize(model, *order, LiftConstants(), RemoveDead())
        assert result.ops == ["Conv", "Relu", "Conv", "AveragePool"]
        assert [len(n.input) for n in result.proto.graph.node if n.op_type == "Conv"] == [3, 2]


def test_other_domains_are_not_concerned() -> None:
    model = build(
        "net (float[5,3] x) => (float[5,4] y) <float[3,4] w> { y = com.acme.Gemm(x, w, b) }",
        domains=["com.acme"],
        weights={"b": ZEROS},
    )
    assert len(rewrite(model, DROP).proto.graph.node[0].input) == 3
