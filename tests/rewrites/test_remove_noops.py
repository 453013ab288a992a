"""remove-noops: each operator of its table without effect, and the near miss that must stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build, has, optimize, rewrite

from graphopt.rewrites.cleanup.remove_noops import _CHECKS, RemoveNoops

NOOPS = RemoveNoops()
F = np.float32
I = np.array  # noqa: E741

WITHOUT_EFFECT = [
    ("Cast<to=1>(a)", {}, 17),
    ("Reshape(a, s)", {"s": I([2, 3, 4, 4])}, 17),
    ("Reshape(a, s)", {"s": I([0, -1, 4, 4])}, 17),
    ("Expand(a, s)", {"s": I([3, 1, 4])}, 17),
    ("Transpose<perm=[0,1,2,3]>(a)", {}, 17),
    ("Pad(a, s)", {"s": np.zeros(8, np.int64)}, 17),
    ('Pad<mode="reflect">(a, s)', {"s": np.zeros(8, np.int64)}, 17),
    ("Pad<pads=[0,0,0,0,0,0,0,0]>(a)", {}, 10),
    ("Slice(a, zero, end, at)", {"zero": I([0]), "end": I([99]), "at": I([2])}, 17),
    ("Slice(a, zero, end, at, one)", {"zero": I([0]), "end": I([4]), "at": I([-1]), "one": I([1])},
     17),
    ("Slice<starts=[0], ends=[4], axes=[2]>(a)", {}, 9),
    ("Concat<axis=1>(a)", {}, 17),
    ("Dropout(a)", {}, 17),
    ("Dropout<ratio=0.5>(a)", {}, 10),
    ("Dropout(a, half)", {"half": F(0.5)}, 17),
    ("Dropout(a, half, no)", {"half": F(0.5), "no": np.asarray(False)}, 17),
    ("MaxPool<kernel_shape=[1,1]>(a)", {}, 17),
    ("AveragePool<kernel_shape=[1,1], strides=[1,1], pads=[0,0,0,0]>(a)", {}, 17),
    ("Mul(a, k)", {"k": F(1)}, 17),
    ("Mul(k, a)", {"k": np.ones((1, 1, 1), F)}, 17),
    ("Div(a, k)", {"k": np.ones((1,), F)}, 17),
    ("Add(k, a)", {"k": F(0)}, 17),
    ("Sub(a, k)", {"k": F(0)}, 17),
]  # fmt: skip

WITH_EFFECT = [
    ("Cast<to=11>(a)", {}, 17),
    ("Reshape(a, s)", {"s": I([2, 4, 3, 4])}, 17),
    ("Flatten(a)", {}, 17),
    ("Expand(a, s)", {"s": I([5, 1, 1, 1, 1])}, 17),
    ("Transpose<perm=[0,1,3,2]>(a)", {}, 17),
    ("Transpose(a)", {}, 17),
    ("Pad(a, s)", {"s": I([0, 0, 0, 1, 0, 0, 0, 0])}, 17),
    ("Pad(a, s)", {"s": I([0, 0, 0, 1, 0, 0, 0, -1])}, 17),
    ("Slice(a, start, end, at, step)",
     {"start": I([-1]), "end": I([-99]), "at": I([2]), "step": I([-1])}, 17),
    ("Slice(a, start, end, at)", {"start": I([1]), "end": I([4]), "at": I([2])}, 17),
    ("Concat<axis=0>(a, a)", {}, 17),
    ("MaxPool<kernel_shape=[1,1], strides=[2,2]>(a)", {}, 17),
    ("MaxPool<kernel_shape=[2,2]>(a)", {}, 17),
    ("AveragePool<kernel_shape=[2,2], pads=[1,1,0,0]>(a)", {}, 17),
    ("Mul(a, k)", {"k": np.ones((1, 1, 1, 1, 1), F)}, 17),
    ("Add(a, k)", {"k": np.zeros((5, 1, 1, 1, 1), F)}, 17),
    ("Mul(a, k)", {"k": F(2)}, 17),
    ("Add(a, k)", {"k": F(1)}, 17),
    ("Div(k, a)", {"k": F(1)}, 17),
    ("Sub(k, a)", {"k": F(0)}, 17),
]  # fmt: skip


def between(op: str, weights: dict[str, object], opset: int) -> onnx.ModelProto:
    """x -> Sigmoid -> the operator -> Abs -> y, whose shape is what the operator makes of it."""
    kind = "double" if "to=11" in op else "float"
    model = build(
        f"net (float[2,3,4,4] x) => ({kind} y) {{ a = Sigmoid(x) c = {op} y = Abs(c) }}",
        opset=opset,
        weights={name: np.asarray(array) for name, array in weights.items()},
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize(("op", "weights", "opset"), WITHOUT_EFFECT)
def test_without_effect(op: str, weights: dict[str, object], opset: int) -> None:
    result = optimize(between(op, weights, opset), NOOPS, tolerance=0.0)
    assert result.ops == ["Sigmoid", "Abs"]
    assert result.names == ["remove-noops"]


@pytest.mark.parametrize(("op", "weights", "opset"), WITH_EFFECT)
def test_with_effect(op: str, weights: dict[str, object], opset: int) -> None:
    model = between(op, weights, opset)
    result = optimize(model, NOOPS, tolerance=0.0)
    assert len(result.ops) == 3
    assert result.names == []


def test_every_operator_of_the_table_is_tested() -> None:
    tested = {op.split("<")[0].split("(")[0] for op, *_ in WITHOUT_EFFECT}
    assert set(_CHECKS) - tested == {"Flatten", "Identity"}  # of a matrix, and between names: below


def test_flatten_of_a_matrix() -> None:
    model = build("net (float[N,4] x) => (float[N,4] y) { a = Relu(x) f = Flatten(a) y = Abs(f) }")
    assert optimize(model, NOOPS, runs=[{"x": (3, 4)}]).ops == ["Relu", "Abs"]


def test_training_dropout_stays() -> None:
    weights = {"half": F(0.5), "yes": np.asarray(True)}
    model = between("Dropout(a, half, yes)", weights, 17)
    assert rewrite(model, NOOPS).ops == ["Sigmoid", "Dropout", "Abs"]


@pytest.mark.parametrize(
    "op", ["c, m = Dropout(a)", "c, m = MaxPool<kernel_shape=[1,1]>(a)"]
)  # fmt: skip
def test_second_output_in_use(op: str) -> None:
    kind = "bool" if "Dropout" in op else "int64"
    model = build(
        f"net (float[1,1,2,2] x) => (float[1,1,2,2] y, {kind}[1,1,2,2] m)"
        f" {{ a = Relu(x) {op} y = Abs(c) }}"
    )
    assert len(optimize(model, NOOPS).ops) == 3


def test_rank_raised_above_that_of_a_scalar() -> None:
    model = build(
        "net (float x) => (float[1,1,1] y) { a = Relu(x) y = Mul(a, k) }",
        weights={"k": np.ones((1, 1, 1), F)},
    )
    assert optimize(model, NOOPS).ops == ["Relu", "Mul"]


def test_add_zero_that_widens() -> None:
    model = build(
        "net (float[1,3] x) => (float[2,3] y) { a = Relu(x) y = Add(a, k) }",
        weights={"k": np.zeros((2, 1), F)},
    )
    assert optimize(model, NOOPS).ops == ["Relu", "Add"]


def test_open_dimensions_count_as_equal_only_by_symbol() -> None:
    same = "net (float[N,C] x) => (float[N,C] y) {{ a = Relu(x) r = Reshape(a, s) y = Abs(r) }}"
    model = build(same.format(), weights={"s": I([0, 0])})
    assert optimize(model, NOOPS, runs=[{"x": (2, 4)}]).ops == ["Relu", "Abs"]
    model = build(same.format(), weights={"s": I([-1, 2])})
    assert optimize(model, NOOPS, runs=[{"x": (2, 4)}]).ops == ["Relu", "Reshape", "Abs"]


def test_a_declared_output_shape_is_not_trusted() -> None:
    """The file says y is [N, C] like x; it is [2 N, C / 2]."""
    model = build(
        "net (float[N,C] x) => (float[N,C] y) { a = Relu(x) y = Reshape(a, s) }",
        weights={"s": I([-1, 2])},
    )
    assert optimize(model, NOOPS, runs=[{"x": (2, 4)}]).ops == ["Relu", "Reshape"]


def test_a_wrong_value_info_is_not_trusted() -> None:
    model = build(
        "net (float[N,4] x) => (float[M,2] y) { a = Relu(x) r = Reshape(a, s) y = Abs(r) }",
        weights={"s": I([-1, 2])},
    )
    wrong = onnx.helper.make_tensor_value_info("r", 1, ["N", 4])
    model.graph.value_info.append(wrong)
    result = rewrite(model, NOOPS)
    assert result.ops == ["Relu", "Reshape", "Abs"]


def test_between_input_and_output_it_stays() -> None:
    model = build("net (float[2,3] x) => (float[2,3] y) { y = Transpose<perm=[0,1]>(x) }")
    result = optimize(model, NOOPS)
    assert result.ops == ["Transpose"]
    assert has(result.reasons, "name that must stay")


@pytest.mark.parametrize("op", ["Identity(x)", "Identity(w)"])
def test_identity_that_names_an_output_stays(op: str) -> None:
    model = build(
        f"""net (float[2] x) => (float[2] y, float[2] z) <float[2] w>
        {{ y = {op} z = Add(x, w) }}"""
    )
    assert sorted(optimize(model, NOOPS).ops) == ["Add", "Identity"]


def test_output_takes_over_the_name() -> None:
    model = build(
        "net (float[2,3] x) => (float[2,3] y, float[2,3] z) { a = Relu(x) y = Cast<to=1>(a) z = Abs(a) }"
    )
    result = optimize(model, NOOPS)
    assert sorted(result.ops) == ["Abs", "Relu"]


def test_two_outputs_of_one_value() -> None:
    model = build(
        "net (float[2,3] x) => (float[2,3] a, float[2,3] y) { a = Relu(x) y = Cast<to=1>(a) }"
    )
    result = optimize(model, NOOPS)
    assert result.ops == ["Relu", "Cast"]
    assert has(result.reasons, "name that must stay")
