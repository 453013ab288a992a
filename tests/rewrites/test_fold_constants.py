"""fold-constants: what is folded, and the size guard that keeps files from growing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build, listed, optimize, rewrite

from graphopt.rewrites import CLEANUP
from graphopt.rewrites.cleanup.library import FoldConstants, LiftConstants, RemoveDead

FOLD = (LiftConstants(), RemoveDead(), FoldConstants())


def size(proto: onnx.ModelProto) -> int:
    return len(proto.SerializeToString())


@pytest.mark.parametrize(
    ("nodes", "weights", "out"),
    [
        ("k = ConstantOfShape<value = float[1] {0.5}>(s)", {"s": [64, 64]}, "64,64"),
        ("k = Expand(v, s)", {"v": np.float32(2), "s": [64, 64]}, "64,64"),
        ("k = Tile(v, s)", {"v": np.ones((4, 4), np.float32), "s": [16, 16]}, "64,64"),
        ("k = Mul(v, u)", {"v": np.ones((64, 1), np.float32), "u": np.ones((1, 64), np.float32)},
         "64,64"),
        ("i = Range(a, e, o) k = Cast<to=1>(i)", {"a": 0, "e": 4096, "o": 1}, "4096"),
        ("k = Resize<mode=\"nearest\">(v, , , s)",
         {"v": np.ones((1, 1, 8, 8), np.float32), "s": [1, 1, 64, 64]}, "1,1,64,64"),
    ],
)  # fmt: skip
def test_generated_constants_are_not_spelled_out(
    nodes: str, weights: dict[str, object], out: str
) -> None:
    model = build(
        f"net (float[{out}] x) => (float[{out}] y) {{ {nodes} y = Mul(x, k) }}",
        weights={name: np.asarray(array) for name, array in weights.items()},
    )
    result = optimize(model, *FOLD)
    assert size(result.proto) <= size(model) + 200  # provenance is stamped on the model
    grown = optimize(model, LiftConstants(), RemoveDead(), FoldConstants(grow=True))
    assert grown.ops == ["Mul"]
    assert size(grown.proto) > size(model) + 8000


def test_shape_arithmetic_is_folded() -> None:
    model = build(
        """net (float[2,3,4,5] x) => (float[2,60] y)
        { s = Shape(x) zero = Constant<value_int=0>() n = Gather(s, zero)
          at = Constant<value_ints=[0]>() n1 = Unsqueeze(n, at)
          rest = Constant<value_ints=[-1]>() to = Concat<axis=0>(n1, rest) y = Reshape(x, to) }"""
    )
    assert optimize(model, *CLEANUP).ops == ["Reshape"]


def test_shape_of_an_open_dimension_is_not_folded() -> None:
    """It holds for the shape the model was read with, and for no other."""
    model = build(
        """net (float[N,3,4] x) => (float[N,12] y) <int64[1] at, int64[1] rest>
        { s = Shape(x) n = Gather(s, zero) n1 = Unsqueeze(n, at) to = Concat<axis=0>(n1, rest)
          y = Reshape(x, to) }""",
        weights={"zero": np.int64(0), "at": np.array([0]), "rest": np.array([-1])},
    )
    passes = [rewrite for rewrite in CLEANUP if rewrite.name != "settle-reshapes"]
    result = optimize(model, *passes, runs=[{"x": (1, 3, 4)}, {"x": (5, 3, 4)}])
    assert "Shape" in result.ops


def test_a_chain_behind_a_weight_is_folded() -> None:
    model = build(
        """net (float[2,64] x) => (float[2,32] y) <double[32,64] w>
        { c = Cast<to=1>(w) t = Transpose<perm=[1,0]>(c) i = Identity(t) y = MatMul(x, i) }"""
    )
    result = optimize(model, *CLEANUP)
    assert result.ops == ["MatMul"]
    assert size(result.proto) < size(model)


def test_a_weight_that_others_read_is_not_copied() -> None:
    model = build(
        """net (float[2,64] x) => (float[2,64] y) <float[64,64] w>
        { t = Transpose<perm=[1,0]>(w) a = MatMul(x, w) y = MatMul(a, t) }"""
    )
    assert optimize(model, *CLEANUP).ops.count("Transpose") == 1


def test_quantization_stays() -> None:
    model = build(
        """net (float[2,8] x) => (float[2,8] y) <float[8,8] w>
        { q = QuantizeLinear(w, scale, zero) d = DequantizeLinear(q, scale, zero)
          y = MatMul(x, d) }""",
        weights={"scale": np.float32(0.02), "zero": np.int8(0)},
    )
    # 2 %: at its highest level onnxruntime itself computes with 8 bits here.
    result = optimize(model, *FOLD, tolerance=0.02)
    assert result.ops == ["QuantizeLinear", "DequantizeLinear", "MatMul"]


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize(
    "draw",
    [
        "RandomNormal<shape=[4]>()",
        "RandomUniformLike(k)",
        "Bernoulli(k)",
        "Dropout(k, half, yes)",
    ],
)
def test_random_numbers_stay_random(draw: str, grow: bool) -> None:
    model = build(
        f"net (float[4] x) => (float[4] y) <float[4] k> {{ r = {draw} y = Add(x, r) }}",
        weights={"half": np.float32(0.5), "yes": np.asarray(True), "k": np.ones(4, np.float32)},
    )
    result = rewrite(model, LiftConstants(), FoldConstants(grow))
    assert len(result.ops) == 2


def in_parts(split: object, *, keepdims: int = 1, opset: int = 18) -> onnx.ModelProto:
    return build(
        f"""net (float[2,6,4] x) => (float[2,3,4] y)
        {{ all = SplitToSequence<axis = 1, keepdims = {keepdims}>(x, parts)
          second = SequenceAt(all, one) y = Relu(second) }}""",
        opset=opset,
        weights={"parts": np.asarray(split), "one": np.asarray(1)},
    )


@pytest.mark.parametrize("split", [3, [3, 3]])
def test_a_sequence_of_known_parts_becomes_a_split(split: object) -> None:
    """As the dynamo exporter writes torch.chunk and torch.split."""
    assert optimize(in_parts(split), *CLEANUP).ops == ["Split", "Relu"]


def test_a_sequence_stays_below_opset_18() -> None:
    assert optimize(in_parts([3, 3], opset=17), *CLEANUP).ops[0] == "SplitToSequence"


def test_keepdims_is_ignored_where_the_parts_are_given() -> None:
    result = optimize(in_parts([3, 3], keepdims=0), *CLEANUP)
    assert result.ops == ["SplitToSequence", "SequenceAt", "Relu"]


def test_a_number_of_parts_that_only_run_time_knows_stays() -> None:
    model = build(
        """net (float[2,6,4] x, int64 parts) => (float y)
        { two = Add(k, k) all = SplitToSequence<axis = 1>(x, parts)
          first = SequenceAt(all, one) sum = ReduceSum<keepdims = 0>(first) y = Add(sum, two) }""",
        opset=18,
        weights={"one": np.asarray(0), "k": np.float32(1)},
    )
    assert "SplitToSequence" in optimize(model, *CLEANUP).ops


def test_overridable_initializer_is_no_constant() -> None:
    model = build(
        "net (float[64] x) => (float[64] y) <double[64] k> { s = Cast<to=1>(k) y = Mul(x, s) }"
    )
    assert optimize(model, *FOLD).ops == ["Mul"]
    assert optimize(listed(model, "k"), *FOLD).ops == ["Cast", "Mul"]


def test_folded_value_that_is_an_output() -> None:
    model = build("net (float[4] x) => (float[4] y, float[4] k2) { y = Relu(x) k2 = Exp(k) }",
                  weights={"k": np.ones(4, np.float32)})  # fmt: skip
    result = optimize(model, *CLEANUP)
    assert [output.name for output in result.proto.graph.output] == ["y", "k2"]


def test_constants_become_initializers() -> None:
    model = build(
        """net (float[2] x) => (float[2] y, float[2] c)
        { k = Constant<value = float[2] {1.0, 2.0}>() c = Constant<value = float[2] {3.0, 4.0}>()
          y = Mul(x, k) }"""
    )
    result = optimize(model, LiftConstants())
    assert [t.name for t in result.proto.graph.initializer] == ["k"]
    assert sorted(result.ops) == ["Constant", "Mul"]  # the output keeps its producer


def test_no_library_metadata_is_left() -> None:
    model = build(
        "net (float[64] x) => (float[64] y) <double[64] k> { s = Cast<to=1>(k) y = Mul(x, s) }"
    )
    text = str(optimize(model, *FOLD).proto)
    assert "onnxscript" not in text
