"""Every float type is folded in float64 and rounded once; what is quantized stays quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_text import LEVELS, Result, build, error, has, random_feeds, rewrite, run

from graphopt.rewrites import CLEANUP, EXACT
from graphopt.rewrites.exact.compose_convs import ComposeConvs
from graphopt.rewrites.exact.compose_fcs import ComposeFcs
from graphopt.rewrites.exact.fuse_affine import FuseBatchNormAffine, FuseConvAffine
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm
from graphopt.rewrites.exact.merge_activations import MergeActivations

Array = np.ndarray[Any, Any]

KINDS = {"float16": 10, "bfloat16": 7, "float": 23, "double": 52}
"""Bits behind the leading one."""

_MORE = (ComposeConvs(), ComposeFcs())
EVERYTHING = (*CLEANUP, *EXACT, *(r for r in _MORE if r.name not in {e.name for e in EXACT}))


def ulps(got: Array, want: Array, kind: str) -> float:
    """The largest distance in units of the last place that `want` has in a type."""
    smallest = {"float16": -24.0, "bfloat16": -133.0}.get(kind, -149.0)
    exponent = np.floor(np.log2(np.maximum(np.abs(want), 1e-300))) - KINDS[kind]
    unit = 2.0 ** np.maximum(exponent, smallest)
    return float(np.max(np.abs(got.astype(np.float64) - want) / unit))


def wide(model: onnx.ModelProto) -> dict[str, Array]:
    """The weights by name, in float64."""
    return {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in model.graph.initializer
    }


def check_weight(result: Result, index: int, want: Array, kind: str) -> None:
    got = result.weight(0, index)
    assert str(got.dtype) == {"float": "float32", "double": "float64"}.get(kind, kind)
    if kind == "double":  # the oracle is no more exact than what it checks
        np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-14 * np.max(np.abs(want)))
    else:  # half a unit, and a little for a conversion that passes through float32
        assert ulps(got, want, kind) <= 0.502


def check_by_definition(original: onnx.ModelProto, result: Result, kind: str) -> None:
    """onnxruntime's CPU has no kernels for bfloat16 nor convolutions for double; onnx itself does."""
    onnx.checker.check_model(result.proto, full_check=True)
    tolerance = {"float16": 5e-3, "bfloat16": 4e-2, "float": 1e-5, "double": 1e-13}[kind]
    feeds = random_feeds(original, {})
    (want,) = ReferenceEvaluator(original).run(None, feeds)
    (got,) = ReferenceEvaluator(result.proto).run(None, feeds)
    assert got.dtype == want.dtype
    assert error(want.astype(np.float64), got.astype(np.float64)) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_conv_and_batch_norm(kind: str) -> None:
    model = build(
        f"""net ({kind}[1,3,6,6] x) => ({kind}[1,8,4,4] y)
        <{kind}[8,3,3,3] w, {kind}[8] b, {kind}[8] g, {kind}[8] beta, {kind}[8] mean, {kind}[8] var>
        {{ c = Conv(x, w, b) y = BatchNormalization<epsilon=0.001>(c, g, beta, mean, var) }}""",
        opset=22,
    )
    result = rewrite(model, FuseConvBatchNorm())
    assert result.ops == ["Conv"]
    k = wide(model)
    scale = k["g"] / np.sqrt(k["var"] + float(np.float32(0.001)))
    check_weight(result, 1, k["w"] * scale[:, None, None, None], kind)
    check_weight(result, 2, (k["b"] - k["mean"]) * scale + k["beta"], kind)
    check_by_definition(model, result, kind)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_statistics_of_another_type(kind: str) -> None:
    """Mixed precision: the scale and the statistics are float32, and not rounded before they are used."""
    model = build(
        f"""net ({kind}[1,3,6,6] x) => ({kind}[1,8,4,4] y)
        <{kind}[8,3,3,3] w, float[8] g, float[8] beta, float[8] mean, float[8] var>
        {{ c = Conv(x, w) y = BatchNormalization(c, g, beta, mean, var) }}""",
        opset=22,
    )
    result = rewrite(model, FuseConvBatchNorm())
    k = wide(model)
    scale = k["g"] / np.sqrt(k["var"] + float(np.float32(1e-5)))
    check_weight(result, 1, k["w"] * scale[:, None, None, None], kind)
    check_weight(result, 2, k["beta"] - k["mean"] * scale, kind)
    onnx.checker.check_model(result.proto, full_check=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arithmetic", ["Mul(c, k)", "Div(c, k)", "Add(c, k)", "Sub(k, c)"])
def test_conv_and_arithmetic(arithmetic: str, kind: str) -> None:
    model = build(
        f"""net ({kind}[1,3,6,6] x) => ({kind}[1,8,4,4] y)
        <{kind}[8,3,3,3] w, {kind}[8] b, {kind}[8,1,1] k> {{ c = Conv(x, w, b) y = {arithmetic} }}""",
        opset=22,
    )
    result = rewrite(model, FuseConvAffine())
    assert result.ops == ["Conv"]
    k = wide(model)
    one, c = np.ones((8, 1, 1)), k["k"]
    scale, shift = {
        "Mul": (c, 0 * c),
        "Div": (1 / c, 0 * c),
        "Add": (one, c),
        "Sub": (-one, c),
    }[arithmetic[:3]]
    check_weight(result, 1, k["w"] * scale[:, None], kind)
    check_weight(result, 2, (k["b"][:, None, None] * scale + shift).reshape(-1), kind)
    check_by_definition(model, result, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_matmul_and_bias(kind: str) -> None:
    """The weight is not touched; the bias becomes the Gemm's."""
    model = build(
        f"""net ({kind}[2,6] x) => ({kind}[2,5] y) <{kind}[6,5] w, {kind}[5] k>
        {{ c = MatMul(x, w) y = Add(c, k) }}""",
        opset=22,
    )
    result = rewrite(model, FuseConvAffine())
    assert result.ops == ["Gemm"]
    np.testing.assert_array_equal(result.weight(0, 1), numpy_helper.to_array(weight(model, "w")))
    check_weight(result, 2, wide(model)["k"], kind)
    check_by_definition(model, result, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_and_arithmetic(kind: str) -> None:
    model = build(
        f"""net ({kind}[1,8,4,4] x) => ({kind}[1,8,4,4] y)
        <{kind}[8] g, {kind}[8] beta, {kind}[8] mean, {kind}[8] var, {kind}[8,1,1] k>
        {{ c = BatchNormalization(x, g, beta, mean, var) y = Mul(k, c) }}""",
        opset=22,
    )
    result = rewrite(model, FuseBatchNormAffine())
    assert result.ops == ["BatchNormalization"]
    k = wide(model)
    check_weight(result, 1, k["g"] * k["k"].reshape(-1), kind)
    check_weight(result, 2, k["beta"] * k["k"].reshape(-1), kind)
    check_by_definition(model, result, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_two_convolutions(kind: str) -> None:
    model = build(
        f"""net ({kind}[1,3,6,6] x) => ({kind}[1,4,4,4] y)
        <{kind}[16,3,1,1] v, {kind}[16] b, {kind}[4,16,3,3] w, {kind}[4] a>
        {{ c = Conv(x, v, b) y = Conv(c, w, a) }}""",
        opset=22,
    )
    result = rewrite(model, ComposeConvs())
    assert result.ops == ["Conv"]
    k = wide(model)
    check_weight(result, 1, np.einsum("omij,mc->ocij", k["w"], k["v"][:, :, 0, 0]), kind)
    check_weight(result, 2, k["w"].sum(axis=(2, 3)) @ k["b"] + k["a"], kind)
    check_by_definition(model, result, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_two_fully_connected_layers(kind: str) -> None:
    model = build(
        f"""net ({kind}[3,8] x) => ({kind}[3,5] y)
        <{kind}[16,8] v, {kind}[16] b, {kind}[16,5] w, {kind}[5] a>
        {{ c = Gemm<transB=1>(x, v, b) y = Gemm(c, w, a) }}""",
        opset=22,
    )
    result = rewrite(model, ComposeFcs())
    assert result.ops == ["Gemm"]
    k = wide(model)
    check_weight(result, 1, k["v"].T @ k["w"], kind)
    check_weight(result, 2, k["b"] @ k["w"] + k["a"], kind)
    check_by_definition(model, result, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_activations(kind: str) -> None:
    model = build(
        f"""net ({kind}[40] x) => ({kind}[40] y) <{kind} low, {kind} high, {kind} top>
        {{ a = Clip(x, low, high) y = Clip(a, low, top) }}""",
        opset=22,
        weights={
            name: numpy_helper.to_array(helper.make_tensor("", number, (), [bound]))
            for name, bound in (("low", -0.3), ("high", 0.9), ("top", 0.7))
            for number in [TensorProto.DataType.Value(kind.upper())]
        },
    )
    result = rewrite(model, MergeActivations())
    assert result.ops == ["Clip"]
    for index, name in ((1, "low"), (2, "top")):
        assert result.weight(0, index) == numpy_helper.to_array(weight(model, name))
    check_by_definition(model, result, kind)


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


# What is quantized.

RNG = np.random.default_rng(0)


def eight_bits(*shape: int) -> Array:
    return RNG.integers(-127, 128, shape).astype(np.int8)


SCALES: dict[str, Array] = {
    "s": np.float32(0.02),
    "s2": np.float32(0.05),
    "s3": np.float32(0.03),
    "z": np.uint8(120),
    "z2": np.uint8(7),
    "zw": np.int8(0),
    "w8": eight_bits(16, 3, 3, 3),
    "sw": RNG.uniform(0.001, 0.01, 16).astype(np.float32),
    "zws": np.zeros(16, np.int8),
    "b32": RNG.integers(-500, 500, 16).astype(np.int32),
    "sb": np.full(16, 1e-4, np.float32),
    "zb": np.zeros(16, np.int32),
    "p8": eight_bits(4, 16, 1, 1),
    "f8": eight_bits(16, 5),
    "m8": eight_bits(8, 16),
}


def quantized(text: str, *, opset: int = 17, **more: Array) -> onnx.ModelProto:
    """The graph with those of the weights above that it uses, and random ones it declares."""
    model = build(text, opset=opset, weights={**SCALES, **more})
    used = {name for node in model.graph.node for name in node.input}
    for tensor in list(model.graph.initializer):
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)
    return model


def stored(model: onnx.ModelProto) -> Mapping[str, int]:
    """Bytes of the weights by element type."""
    found: dict[str, int] = {}
    for tensor in model.graph.initializer:
        kind = TensorProto.DataType.Name(tensor.data_type)
        size = len(tensor.raw_data) or numpy_helper.to_array(tensor).nbytes
        found[kind] = found.get(kind, 0) + size
    return found


def optimized(model: onnx.ModelProto) -> Result:
    """Everything is tried; the result computes the same.

    Level by level: onnxruntime's integer kernels round differently from its float ones.
    """
    result = rewrite(model, *EVERYTHING)
    onnx.checker.check_model(result.proto, full_check=True)
    assert rewrite(result.proto, *EVERYTHING).names == []
    feeds = random_feeds(model, {})
    for level in LEVELS:
        for want, got in zip(
            run(model, feeds, level), run(result.proto, feeds, level), strict=True
        ):
            assert got.dtype == want.dtype
            assert error(want, got) <= 1e-6
    return result


def stays(model: onnx.ModelProto) -> Result:
    """The operators, their order and the stored weights are the same when everything was tried."""
    result = optimized(model)
    assert result.ops == [node.op_type for node in model.graph.node]
    before, after = stored(model), stored(result.proto)
    assert after.keys() <= before.keys()
    assert all(after[kind] <= before[kind] for kind in after), (before, after)
    return result


CONV = "v = DequantizeLinear<axis=0>(w8, sw, zws) a = DequantizeLinear<axis=0>(b32, sb, zb)"


def test_convolutions_between_quantizers() -> None:
    """The usual QDQ graph: every operator between DequantizeLinear and QuantizeLinear."""
    stays(
        quantized(
            f"""net (float[1,3,8,8] x) => (float[1,4,8,8] y)
            {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) {CONV}
               c = Conv<pads=[1,1,1,1]>(d, v, a) r = Relu(c)
               rq = QuantizeLinear(r, s2, z2) rd = DequantizeLinear(rq, s2, z2)
               u = DequantizeLinear(p8, s, zw) e = Conv(rd, u)
               yq = QuantizeLinear(e, s3, z) y = DequantizeLinear(yq, s3, z) }}"""
        )
    )


def test_nothing_non_linear_between_two_quantized_convolutions() -> None:
    """The rounding in between is not linear: they do not compose."""
    result = stays(
        quantized(
            f"""net (float[1,3,8,8] x) => (float[1,4,6,6] y)
            {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) {CONV}
               c = Conv(d, v, a) cq = QuantizeLinear(c, s2, z) cd = DequantizeLinear(cq, s2, z)
               u = DequantizeLinear(p8, s, zw) y = Conv(cd, u) }}"""
        )
    )
    assert not has(result.reasons, "MACs")


@pytest.mark.parametrize(
    ("rest", "y"),
    [
        ("c = Conv(x, v) y = BatchNormalization(c, g, beta, mean, var)", "1,16,6,6"),
        ("c = Conv(x, v, a) y = Mul(c, k)", "1,16,6,6"),
        ("c = Conv(x, v, a) u = DequantizeLinear(p8, s, zw) y = Conv(c, u)", "1,4,6,6"),
        ("c = Conv(x, v, a) y = Conv(c, pw)", "1,4,6,6"),
    ],
)
def test_eight_bit_weights_of_a_float_convolution(rest: str, y: str) -> None:
    """Folding would store them as float, four times the size."""
    model = quantized(
        f"""net (float[1,3,8,8] x) => (float[{y}] y) <float[16] g, float[16] beta, float[16] mean,
        float[16] var, float[16,1,1] k, float[4,16,1,1] pw>
        {{ v = DequantizeLinear<axis=0>(w8, sw, zws) {
            "a = DequantizeLinear<axis=0>(b32, sb, zb)" if "a)" in rest else ""
        } {rest} }}"""
    )
    result = stays(model)
    assert stored(result.proto)["INT8"] >= 16 * 27
    assert has(result.reasons, "computed at run time")


def test_eight_bit_bias_of_a_float_weight() -> None:
    model = quantized(
        """net (float[1,3,8,8] x) => (float[1,16,6,6] y) <float[16,3,3,3] w, float[16,1,1] k>
        { a = DequantizeLinear<axis=0>(b32, sb, zb) c = Conv(x, w, a) y = Mul(c, k) }"""
    )
    assert has(stays(model).reasons, "the bias is computed at run time")


@pytest.mark.parametrize(
    "hidden", ["v = Identity(f)", "t = Transpose(f) v = Transpose(t)", "v = Cast<to=1>(f)"]
)
def test_nothing_behind_a_dequantizer_is_folded(hidden: str) -> None:
    model = quantized(
        f"""net (float[2,16] x) => (float[2,5] y) <float[5] k>
        {{ f = DequantizeLinear(f8, s, zw) {hidden} c = MatMul(x, v) y = Add(c, k) }}"""
    )
    result = optimized(model)
    assert result.ops[0] == "DequantizeLinear"
    assert stored(result.proto) == {"INT8": 81, "FLOAT": 4 + 20}


@pytest.mark.parametrize("cast", ["c8 = Cast<to=1>(m8)", "c8 = CastLike(m8, b)"])
def test_weights_kept_in_fewer_bits_do_not_compose(cast: str) -> None:
    model = quantized(
        f"""net (float[2,8] x) => (float[2,16] y) <float[16] b, float[16,16] w>
        {{ {cast} c = MatMul(x, c8) d8 = Cast<to=1>(q8) y = MatMul(c, d8) }}""",
        q8=eight_bits(16, 16),
    )
    result = rewrite(model, ComposeFcs())
    assert result.ops.count("MatMul") == 2
    assert has(result.reasons, "would take 512 bytes instead of ")
    assert rewrite(model, ComposeFcs(grow=True)).ops.count("MatMul") == 1


def test_fully_connected_layers() -> None:
    model = quantized(
        """net (float[2,8] x) => (float[2,5] y) <float[5] b>
        { m = DequantizeLinear(m8, s, zw) f = DequantizeLinear(f8, s, zw)
          c = MatMul(x, m) y = Gemm(c, f, b) }"""
    )
    stays(model)


def test_weights_quantized_in_the_graph() -> None:
    """Quantization-aware training: float weights rounded to eight bits on the way."""
    model = quantized(
        """net (float[1,3,8,8] x) => (float[1,16,6,6] y) <float[16,3,3,3] w, float[16,1,1] k>
        { wq = QuantizeLinear(w, s, zw) v = DequantizeLinear(wq, s, zw)
          c = Conv(x, v) y = Mul(c, k) }"""
    )
    assert has(stays(model).reasons, "computed at run time")


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_four_bit_weights_in_blocks(kind: str) -> None:
    number = TensorProto.DataType.Value(kind.upper())
    values = RNG.integers(0, 8, 16 * 32)
    packed = numpy_helper.to_array(helper.make_tensor("w4", number, (16, 32), values))
    model = quantized(
        f"""net (float[2,16] x) => (float[2,32] y) <float[2,32] blocks, {kind}[2,32] zeros, float[32] k>
        {{ v = DequantizeLinear<axis=0, block_size=8>(w4, blocks, zeros) c = MatMul(x, v)
           y = Add(c, k) }}""",
        opset=21,
        w4=packed,
    )
    result = optimized(model)
    assert result.ops[0] == "DequantizeLinear"
    (kept,) = (t for t in result.proto.graph.initializer if tuple(t.dims) == (16, 32))
    assert kept.data_type == number
    assert len(kept.raw_data or kept.int32_data) <= 256


def test_integer_operators() -> None:
    """The QOperator format."""
    stays(
        quantized(
            """net (uint8[1,3,8,8] x) => (uint8[1,4,6,6] y, int32[1,16,6,6] i)
            { c = QLinearConv(x, s, z, w8, sw, zws, s2, z2, b32)
              y = QLinearConv(c, s2, z2, p8, s, zw, s3, z)
              i = ConvInteger(x, w8, z) }"""
        )
    )


def test_integer_matrix_products() -> None:
    stays(
        quantized(
            """net (float[2,8] x) => (float[2,5] y, int8[2,5] q)
            { u, us, uz = DynamicQuantizeLinear(x) i = MatMulInteger(u, m8, uz)
              f = Cast<to=1>(i) k = Mul(us, s) d = Mul(f, k)
              h = QuantizeLinear(d, s2, zw) q = QLinearMatMul(h, s2, zw, f8, s, zw, s3, zw)
              y = DequantizeLinear(q, s3, zw) }"""
        )
    )


def test_activations_between_quantizers_are_merged() -> None:
    """Float operators inside a QDQ graph are still rewritten."""
    model = quantized(
        """net (float[1,3,8,8] x) => (float[1,3,8,8] y) <float[3,1,1] g, float[3,1,1] h>
        { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = Relu(d) b = Relu(a)
          y = QuantizeLinear(b, s2, z2) }""".replace("=> (float", "=> (uint8")
    )
    result = optimized(model)
    assert result.ops == ["QuantizeLinear", "DequantizeLinear", "Relu", "QuantizeLinear"]


def test_quantizing_twice_is_not_undone() -> None:
    """Two different scales: the second rounding loses what the first kept."""
    stays(
        quantized(
            """net (float[64] x) => (float[64] y)
            { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
              e = QuantizeLinear(d, s2, z) y = DequantizeLinear(e, s2, z) }"""
        )
    )
