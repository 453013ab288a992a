"""compose-fcs: fully connected layers in a row, and the low-rank ones that stay two."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build, has, listed, optimize, rewrite

from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.driver import Verdict
from graphopt.rewrites.exact.compose_fcs import ComposeFcs
from graphopt.rewrites.exact.fuse_affine import FuseConvAffine

COMPOSE = ComposeFcs()


def pair(first: str, second: str, *, opset: int = 17, kind: str = "float") -> onnx.ModelProto:
    """x [3, 8] -> 16 -> 5, by `c = ...` and `y = ...`; t1 and t2 are transposed weights."""
    model = build(
        f"""net ({kind}[3,8] x) => ({kind}[3,5] y)
        <{kind}[8,16] w1, {kind}[16,8] t1, {kind}[16] b1, {kind}[16,5] w2, {kind}[5,16] t2,
        {kind}[5] b2, {kind}[1,5] r2, {kind}[3,1] column> {{ c = {first} y = {second} }}""",
        opset=opset,
    )
    used = {name for node in model.graph.node for name in node.input}
    for tensor in list(model.graph.initializer):
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)
    return model


@pytest.mark.parametrize(
    ("first", "second", "op"),
    [
        ("MatMul(x, w1)", "MatMul(c, w2)", "MatMul"),
        ("Gemm(x, w1)", "Gemm(c, w2)", "MatMul"),
        ("Gemm<transB=1>(x, t1, b1)", "Gemm(c, w2)", "Gemm"),
        ("Gemm<transB=1, alpha=0.5, beta=3.0>(x, t1, b1)", "Gemm<transB=1>(c, t2, b2)", "Gemm"),
        ("Gemm(x, w1, b1)", "Gemm<alpha=-2.0, beta=0.25>(c, w2, r2)", "Gemm"),
        ("Gemm(x, w1, b1)", "MatMul(c, w2)", "Gemm"),
        ("MatMul(x, w1)", "Gemm(c, w2, b2)", "Gemm"),
    ],
)
def test_composed(first: str, second: str, op: str) -> None:
    result = optimize(pair(first, second), COMPOSE, tolerance=1e-6)
    assert result.ops == [op]
    assert result.names == ["compose-fcs"]
    assert result.declined == ()
    assert result.weight(0, 1).shape == (8, 5)


@pytest.mark.parametrize("opset", [7, 11, 22])
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("float16", 5e-3), ("float", 1e-6), ("double", 1e-13)]
)
def test_types_and_opsets(kind: str, tolerance: float, opset: int) -> None:
    model = pair("Gemm(x, w1, b1)", "Gemm(c, w2, b2)", opset=opset, kind=kind)
    assert optimize(model, COMPOSE, tolerance=tolerance).ops == ["Gemm"]
    model = pair("MatMul(x, w1)", "MatMul(c, w2)", opset=opset, kind=kind)
    assert optimize(model, COMPOSE, tolerance=tolerance).ops == ["MatMul"]


@pytest.mark.parametrize("shape", ["8", "2,8", "2,3,8", "2,2,3,8", "N,M,8"])
def test_matmul_of_any_rank(shape: str) -> None:
    model = build(
        f"""net (float[{shape}] x) => (float[{shape[:-1]}5] y) <float[8,16] w1, float[16,5] w2>
        {{ c = MatMul(x, w1) y = MatMul(c, w2) }}"""
    )
    assert optimize(model, COMPOSE).ops == ["MatMul"]


def test_biases_written_as_add() -> None:
    model = build(
        """net (float[N,8] x) => (float[N,5] y)
        <float[8,16] w1, float[16] b1, float[16,5] w2, float[5] b2>
        { c = MatMul(x, w1) d = Add(c, b1) e = MatMul(d, w2) y = Add(b2, e) }"""
    )
    result = optimize(model, FuseConvAffine(), COMPOSE, runs=[{"x": (1, 8)}, {"x": (4, 8)}])
    assert result.ops == ["Gemm"]


def test_an_add_in_between_is_no_site() -> None:
    model = build(
        """net (float[2,3,8] x) => (float[2,3,5] y) <float[8,16] w1, float[16] b1, float[16,5] w2>
        { c = MatMul(x, w1) d = Add(c, b1) y = MatMul(d, w2) }"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops == ["MatMul", "Add", "MatMul"]
    assert result.declined == ()


def test_chain_of_three() -> None:
    model = build(
        """net (float[2,8] x) => (float[2,3] y)
        <float[8,16] w1, float[16,16] w2, float[16,3] w3, float[16] b1, float[16] b2, float[3] b3>
        { c = Gemm(x, w1, b1) d = Gemm(c, w2, b2) y = Gemm(d, w3, b3) }"""
    )
    assert optimize(model, COMPOSE).ops == ["Gemm"]


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_what_low_rank_factors_are_made_for_stays(op: str) -> None:
    model = build(
        f"""net (float[2,64] x) => (float[2,32] y) <float[64,8] w1, float[8,32] w2>
        {{ c = {op}(x, w1) y = {op}(c, w2) }}"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops == [op, op]
    assert result.reasons == ["composed it would cost 2,048 MACs a row instead of 768"]


def test_the_clear_case_is_not_measured_and_the_close_one_is() -> None:
    def refuse(*_: object) -> Verdict:
        return Verdict(False, "not now")

    clear = pair("MatMul(x, w1)", "MatMul(c, w2)")
    assert rewrite(clear, COMPOSE, gate=refuse).ops == ["MatMul"]
    even = build(
        """net (float[2,8] x) => (float[2,8] y) <float[8,4] w1, float[4,8] w2>
        { c = MatMul(x, w1) y = MatMul(c, w2) }"""
    )
    result = rewrite(even, COMPOSE, gate=refuse)
    assert (result.ops, result.reasons) == (["MatMul", "MatMul"], ["not now"])
    assert optimize(even, COMPOSE).ops == ["MatMul"]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("Gemm<transA=1>(xt, w1)", "Gemm(c, w2)", "the input is transposed"),
        ("Gemm(x, w1)", "Gemm<transA=1>(c, wt)", "the input is transposed"),
        ("Gemm(x, w1)", "Gemm(c, w2, column)", "the bias differs between samples"),
        ("Gemm(x, v)", "Gemm(c, w2)", "computed at run time"),
        ("MatMul(x, w1)", "MatMul(c, cube)", "not a matrix"),
    ],
)
def test_declined(first: str, second: str, reason: str) -> None:
    y = "N,M" if "cube" not in second else "A,B,C"
    model = build(
        f"""net (float[3,8] x) => (float[{y}] y)
        <float[8,16] w1, float[16,5] w2, float[3,5] wt, float[3,1] column, float[2,16,5] cube>
        {{ xt = Transpose(x) v = Neg(w1) c = {first} y = {second} }}"""
    )
    result = optimize(model, COMPOSE)
    assert len([op for op in result.ops if op in ("Gemm", "MatMul")]) == 2
    assert has(result.reasons, reason)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_overridable_weight(op: str) -> None:
    model = listed(pair(f"{op}(x, w1)", f"{op}(c, w2)"), "w2")
    result = optimize(model, COMPOSE)
    assert result.ops == [op, op]
    assert has(result.reasons, "can be overridden by a caller")


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_output_in_between_is_needed(op: str) -> None:
    twice = build(
        f"""net (float[3,8] x) => (float[3,5] y, float[3,16] z) <float[8,16] w1, float[16,5] w2>
        {{ c = {op}(x, w1) y = {op}(c, w2) z = Relu(c) }}"""
    )
    output = build(
        f"""net (float[3,8] x) => (float[3,5] y, float[3,16] c) <float[8,16] w1, float[16,5] w2>
        {{ c = {op}(x, w1) y = {op}(c, w2) }}"""
    )
    for model in (twice, output):
        result = optimize(model, COMPOSE)
        assert result.ops[:2] == [op, op]
        assert has(result.reasons, "needed elsewhere too")


def test_products_of_activations_are_no_site() -> None:
    model = build(
        """net (float[4,8] x) => (float[4,16] y, float[3,16] z) <float[8,16] w1, float[3,4] left>
        { t = Transpose(x) s = MatMul(x, t) c = MatMul(x, w1) y = MatMul(s, c)
          d = MatMul(x, w1) z = MatMul(left, d) }"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops.count("MatMul") == 5
    assert result.declined == ()


def test_weight_shared_with_another_node() -> None:
    model = build(
        """net (float[3,8] x, float[3,8] v) => (float[3,5] y, float[3,16] z)
        <float[8,16] w1, float[16,5] w2>
        { c = MatMul(x, w1) y = MatMul(c, w2) z = MatMul(v, w1) }"""
    )
    result = optimize(model, COMPOSE)
    assert result.ops == ["MatMul", "MatMul"]
    assert {"w1"} < {tensor.name for tensor in result.proto.graph.initializer}


def test_hidden_weights() -> None:
    model = build(
        """net (float[3,8] x) => (float[3,5] y) <double[8,16] d, float[80] flat, int64[2] shape>
        { w1 = Cast<to=1>(d) w2 = Reshape(flat, shape) c = MatMul(x, w1) y = MatMul(c, w2) }""",
        weights={"shape": np.array([16, 5])},
    )
    assert optimize(model, COMPOSE, RemoveDead()).ops == ["MatMul"]


def test_generated_weights_stay_generated() -> None:
    model = build(
        """net (float[1,8192] x) => (float[1,8192] y) <int64[2] s>
        { w1 = ConstantOfShape<value = float[1] {0.25}>(s)
          w2 = ConstantOfShape<value = float[1] {0.01}>(s)
          c = MatMul(x, w1) y = MatMul(c, w2) }""",
        weights={"s": np.array([8192, 8192])},
    )
    result = rewrite(model, COMPOSE, RemoveDead())
    assert sorted(result.ops) == ["ConstantOfShape", "MatMul"]
    assert len(result.proto.SerializeToString()) < 1000


def test_integers_are_left_alone() -> None:
    model = pair("MatMul(x, w1)", "MatMul(c, w2)", kind="int32")
    result = optimize(model, COMPOSE)
    assert result.ops == ["MatMul", "MatMul"]
    assert has(result.reasons, "weights of type int32 are not composed")


def test_half_precision_that_would_overflow() -> None:
    model = pair("MatMul(x, w1)", "MatMul(c, w2)", kind="float16")
    for tensor in model.graph.initializer:
        large = np.full(tuple(tensor.dims), 200, np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(large, tensor.name))
    result = rewrite(model, COMPOSE)
    assert result.ops == ["MatMul", "MatMul"]
    assert has(result.reasons, "too large for float16")


def test_old_opset() -> None:
    """Before opset 7 a Gemm's addend was broadcast on demand only."""
    model = pair("MatMul(x, w1)", "MatMul(c, w2)", opset=6)
    assert has(rewrite(model, COMPOSE).reasons, "older than 7")
