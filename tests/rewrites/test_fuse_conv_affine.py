"""fuse-conv-affine: Mul, Div, Add, Sub by constants per channel, and what only looks like it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build, has, optimize, rewrite

from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.exact.fuse_affine import FuseConvAffine

FUSE = FuseConvAffine()
RNG = np.random.default_rng(0)


def after_conv(
    arithmetic: str, constant: object, *, y: str = "2,4,N,M", out: int = 4, bias: str = ""
) -> onnx.ModelProto:
    """x -> Conv -> arithmetic with the constant k -> y."""
    operands = f"x, w{bias}"
    return build(
        f"""net (float[2,3,6,6] x) => (float[{y}] y)
        <float[{out},3,3,3] w, float[{out}] bias> {{ c = Conv({operands}) y = {arithmetic} }}""",
        weights={"k": np.asarray(constant, np.float32)},
    )


def positive(*shape: int) -> object:
    return RNG.uniform(0.5, 2.0, shape)


@pytest.mark.parametrize("bias", ["", ", bias"])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    "arithmetic",
    ["Mul(c, k)", "Mul(k, c)", "Div(c, k)", "Add(c, k)", "Add(k, c)", "Sub(c, k)", "Sub(k, c)"],
)
def test_per_channel(arithmetic: str, shape: tuple[int, ...], bias: str) -> None:
    result = optimize(after_conv(arithmetic, positive(*shape), bias=bias), FUSE)
    assert result.ops == ["Conv"]
    assert result.names == ["fuse-conv-affine"]
    assert result.declined == ()


def test_an_unfolded_batch_norm_folds_whole() -> None:
    model = build(
        """net (float[2,3,6,6] x) => (float[2,4,4,4] y)
        <float[4,3,3,3] w, float[4,1,1] m, float[4,1,1] v, float[4,1,1] g, float[4,1,1] b>
        { c = Conv(x, w) s = Sub(c, m) d = Div(s, v) t = Mul(d, g) y = Add(t, b) }"""
    )
    result = optimize(model, FUSE)
    assert result.ops == ["Conv"]
    assert len(result.names) == 4


def test_adding_a_bias_leaves_the_weight_alone() -> None:
    """Only the bias is new; the weight is the very initializer of the file."""
    result = optimize(after_conv("Add(c, k)", positive(4, 1, 1)), FUSE)
    assert result.proto.graph.node[0].input[1] == "w"


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(group: int) -> None:
    model = build(
        f"""net (float[1,4,5,5] x) => (float[1,6,7,7] y)
        <float[4,{6 // group},3,3] w, float[6] bias, float[6,1,1] k, float[6,1,1] t>
        {{ c = ConvTranspose<group={group}>(x, w, bias) m = Mul(c, k) y = Add(m, t) }}"""
    )
    assert optimize(model, FUSE).ops == ["ConvTranspose"]


@pytest.mark.parametrize("shape", ["6", "1,6", "", "1"])
@pytest.mark.parametrize("arithmetic", ["Mul(c, k)", "Sub(k, c)", "Add(c, k)"])
def test_gemm(arithmetic: str, shape: str) -> None:
    constant = f"float[{shape}] k" if shape else "float k"
    model = build(
        f"""net (float[3,4] x) => (float[3,6] y) <float[6,4] w, float[6] b, {constant}>
        {{ c = Gemm<transB=1, alpha=0.5, beta=3.0>(x, w, b) y = {arithmetic} }}"""
    )
    assert optimize(model, FUSE).ops == ["Gemm"]


def test_matmul_and_add_become_a_gemm() -> None:
    model = build(
        """net (float[N,4] x) => (float[N,6] y) <float[4,6] w, float[6] b>
        { c = MatMul(x, w) y = Add(b, c) }"""
    )
    result = optimize(model, FUSE, runs=[{"x": (1, 4)}, {"x": (5, 4)}])
    assert result.ops == ["Gemm"]
    assert result.proto.graph.node[0].input[1] == "w"


def test_matmul_of_rank_three_takes_a_scale_but_no_bias() -> None:
    text = """net (float[2,3,4] x) => (float[2,3,6] y) <float[4,6] w, float[6] k>
        {{ c = MatMul(x, w) y = {}(c, k) }}"""
    assert optimize(build(text.format("Mul")), FUSE).ops == ["MatMul"]
    result = optimize(build(text.format("Add")), FUSE)
    assert result.ops == ["MatMul", "Add"]
    assert has(result.reasons, "no place for a bias")


def test_matmul_with_the_constant_on_the_left() -> None:
    model = build(
        """net (float[4,6] x) => (float[3,6] y) <float[3,4] w, float[6] k>
        { c = MatMul(w, x) y = Mul(c, k) }"""
    )
    assert optimize(model, FUSE).ops == ["MatMul", "Mul"]


@pytest.mark.parametrize("shape", [(4, 4), (1, 4), (4,), (4, 4, 1), (2, 1, 1, 1)])
def test_constant_that_varies_along_another_axis(shape: tuple[int, ...]) -> None:
    """The map is 4x4 with 4 channels: only the position in the shape tells the axes apart."""
    result = optimize(after_conv("Mul(c, k)", positive(*shape)), FUSE)
    assert result.ops == ["Conv", "Mul"]
    assert has(result.reasons, "varies along another axis")


def test_gemm_with_a_column_constant() -> None:
    model = build(
        """net (float[6,4] x) => (float[6,6] y) <float[4,6] w, float[6,1] k>
        { c = Gemm(x, w) y = Mul(c, k) }"""
    )
    result = optimize(model, FUSE)
    assert result.ops == ["Gemm", "Mul"]
    assert has(result.reasons, "another axis")


def test_constant_that_widens_the_channels() -> None:
    result = optimize(after_conv("Mul(c, k)", positive(1, 8, 1, 1), out=1, y="2,8,N,M"), FUSE)
    assert result.ops == ["Conv", "Mul"]
    assert has(result.reasons, "widens the channel axis")


@pytest.mark.parametrize("shape", [(5, 1, 4, 1, 1), (1, 1, 1, 1, 1)])
def test_constant_with_more_dimensions(shape: tuple[int, ...]) -> None:
    model = after_conv("Add(c, k)", positive(*shape), y="P,2,4,N,M")
    result = optimize(model, FUSE)
    assert result.ops == ["Conv", "Add"]
    assert has(result.reasons, "more dimensions")


def test_division_by_the_output() -> None:
    model = after_conv("Div(k, c)", positive(4, 1, 1))
    result = optimize(model, FUSE)
    assert result.ops == ["Conv", "Div"]
    assert has(result.reasons, "is the divisor")


def test_division_by_zero() -> None:
    result = rewrite(after_conv("Div(c, k)", [[[1.0]], [[0.0]], [[2.0]], [[3.0]]]), FUSE)
    assert result.ops == ["Conv", "Div"]
    assert has(result.reasons, "divides by zero")


def test_integers_are_left_alone() -> None:
    model = build(
        """net (int32[3,4] x) => (int32[3,6] y) <int32[4,6] w, int32[6] k>
        { c = MatMul(x, w) y = Add(c, k) }"""
    )
    result = optimize(model, FUSE)
    assert result.ops == ["MatMul", "Add"]
    assert has(result.reasons, "int32")


def test_residual_addition_is_no_site() -> None:
    """An addition of two activations is neither proposed nor declined."""
    model = build(
        """net (float[1,3,6,6] x) => (float[1,3,6,6] y) <float[3,3,3,3] w>
        { c = Conv<pads=[1,1,1,1]>(x, w) y = Add(c, x) }"""
    )
    result = optimize(model, FUSE)
    assert result.ops == ["Conv", "Add"]
    assert result.declined == ()


def test_square_is_no_site() -> None:
    result = optimize(after_conv("Mul(c, c)", 1.0), FUSE)
    assert result.ops == ["Conv", "Mul"]
    assert result.declined == ()


def test_output_used_elsewhere() -> None:
    model = build(
        """net (float[1,3,6,6] x) => (float[1,3,6,6] y, float[1,3,6,6] c)
        <float[3,3,3,3] w, float[3,1,1] k> { c = Conv<pads=[1,1,1,1]>(x, w) y = Mul(c, k) }"""
    )
    assert optimize(model, FUSE).ops == ["Conv", "Mul"]


def test_zero_scale() -> None:
    """A channel that is switched off stays off."""
    result = optimize(after_conv("Mul(c, k)", [[[0.0]], [[1.0]], [[-1.0]], [[2.0]]]), FUSE)
    assert result.ops == ["Conv"]


def test_half_precision() -> None:
    """Tolerance 5e-3: the weight is rounded once more to 11 bits."""
    model = build(
        """net (float16[1,3,6,6] x) => (float16[1,4,4,4] y) <float16[4,3,3,3] w, float16[4,1,1] k>
        { c = Conv(x, w) y = Mul(c, k) }"""
    )
    assert optimize(model, FUSE, tolerance=5e-3).ops == ["Conv"]


def test_rank_of_one() -> None:
    model = build(
        """net (float[4] x) => (float[6] y) <float[4,6] w, float[6] k>
        { c = MatMul(x, w) y = Add(c, k) }"""
    )
    result = optimize(model, FUSE)
    assert result.ops == ["MatMul", "Add"]


def test_generated_grouped_weight_stays_generated() -> None:
    model = build(
        """net (float[1,64,2,2] x) => (float[1,64,3,3] y) <int64[4] s>
        { w = ConstantOfShape<value = float[1] {0.25}>(s) c = ConvTranspose<group=2>(x, w)
          y = Mul(c, k) }""",
        weights={"s": np.array([64, 32, 2, 2]), "k": np.float32(2)},
    )
    result = optimize(model, FUSE, RemoveDead())
    assert sorted(result.ops) == ["ConstantOfShape", "ConvTranspose"]
    assert len(result.proto.SerializeToString()) < 1000


def test_broadcasting_by_attribute_is_declined() -> None:
    """Before opset 7 the constant was aligned by `axis`: here it varies along the batch."""
    model = build(
        """net (float[4,3] x) => (float[4,4] y) <float[3,4] w, float[4] k>
        { c = MatMul(x, w) y = Mul<broadcast=1, axis=0>(c, k) }""",
        opset=6,
    )
    result = rewrite(model, FUSE)
    assert result.ops == ["MatMul", "Mul"]
    assert has(result.reasons, "older than 7")
