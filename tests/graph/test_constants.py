"""constants.constant: every evaluator agrees with onnxruntime, lazily, and nothing fed is constant."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import LEVELS, build, listed, run

from graphopt.graph.constants import constant, is_splat, splat

V = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 5


def value_of(nodes: str, weights: dict[str, object] | None = None, *, kind: str = "float",
             rank: int = 3, opset: int = 17):  # fmt: skip
    """The model whose output k the nodes compute, and what `constant` makes of k."""
    dims = ",".join(f"D{i}" for i in range(rank))
    model = build(
        f"net () => ({kind}[{dims}] k) {{ {nodes} }}" if rank else f"net () => ({kind} k) {{ {nodes} }}",
        opset=opset,
        weights={name: np.asarray(array) for name, array in (weights or {}).items()},
    )  # fmt: skip
    return model, constant(ir.from_proto(model).graph.outputs[0])


@pytest.mark.parametrize(
    ("nodes", "weights", "kind", "rank", "opset"),
    [
        ("k = Identity(v)", {"v": V}, "float", 3, 17),
        ("k = Cast<to=7>(v)", {"v": V * 0.7}, "int64", 3, 17),
        ("k = Cast<to=10>(v)", {"v": V / 3}, "float16", 3, 17),
        ("k = Cast<to=9>(v)", {"v": V}, "bool", 3, 17),
        ("k = CastLike(v, l)", {"v": V, "l": np.zeros(1)}, "double", 3, 17),
        ("k = Unsqueeze(v, a)", {"v": V, "a": [0, -1]}, "float", 5, 17),
        ("k = Unsqueeze<axes=[1]>(v)", {"v": V}, "float", 4, 11),
        ("k = Squeeze(v, a)", {"v": V.reshape(1, 24, 1), "a": [-1]}, "float", 2, 17),
        ("k = Squeeze(v)", {"v": V.reshape(1, 24, 1)}, "float", 1, 17),
        ("k = Squeeze<axes=[0]>(v)", {"v": V.reshape(1, 24, 1)}, "float", 2, 11),
        ("k = Reshape(v, s)", {"v": V, "s": [0, -1]}, "float", 2, 17),
        ("k = Reshape(v, s)", {"v": V, "s": [4, 3, 2]}, "float", 3, 17),
        ("k = ConstantOfShape<value = int64[1] {7}>(s)", {"s": [2, 3]}, "int64", 2, 17),
        ("k = ConstantOfShape(s)", {"s": [2, 3]}, "float", 2, 17),
        ("k = ConstantOfShape(s)", {"s": np.zeros(0, np.int64)}, "float", 0, 17),
        ("k = Expand(v, s)", {"v": V[:, :1], "s": [2, 1, 3, 1]}, "float", 4, 17),
        ("k = Shape(v)", {"v": V}, "int64", 1, 17),
        ("k = Constant<value = float[2] {1.0, 2.0}>()", {}, "float", 1, 17),
        ("k = Constant<value_float = 1.5>()", {}, "float", 0, 17),
        ("k = Constant<value_ints = [1, 2]>()", {}, "int64", 1, 17),
        ("k = Constant<value_int = 3>()", {}, "int64", 0, 17),
        ("k = Constant<value_floats = [1.0, 2.5]>()", {}, "float", 1, 17),
    ],
)
def test_evaluators(
    nodes: str, weights: dict[str, object], kind: str, rank: int, opset: int
) -> None:
    model, found = value_of(nodes, weights, kind=kind, rank=rank, opset=opset)
    (expected,) = run(model, {}, LEVELS[0])
    assert found is not None
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("k = Relu(v)", {"v": V}),  # no evaluator: left to fold-constants
        ("k = RandomNormalLike(v)", {"v": V}),
        ("k = Reshape<allowzero=1>(v, s)", {"v": V, "s": [2, 12]}),
        ("k = Shape<start=1>(v)", {"v": V}),
        ('k = Constant<value_string = "a">()', {}),
    ],
)
def test_what_is_not_resolved(nodes: str, weights: dict[str, object]) -> None:
    assert value_of(nodes, weights)[1] is None


def test_inputs_and_overridable_initializers_are_not_constant() -> None:
    model = build("net (float[4] x) => (float[4] y) <float[4] k> { i = Identity(k) y = Mul(x, i) }")
    (node, mul) = ir.from_proto(model).graph
    assert constant(node.outputs[0]) is not None
    assert constant(mul.inputs[0]) is None
    assert constant(mul.outputs[0]) is None
    assert constant(None) is None
    (node, _) = ir.from_proto(listed(model, "k")).graph
    assert constant(node.inputs[0]) is None
    assert constant(node.outputs[0]) is None


def test_operators_of_other_domains_are_not_resolved() -> None:
    model = build("net () => (float[4] k) <float[4] v> { k = my.Identity(v) }", domains=["my"])
    assert constant(ir.from_proto(model).graph.outputs[0]) is None


def test_a_very_long_chain_ends() -> None:
    chain = " ".join(f"v{i + 1} = Identity(v{i})" for i in range(200))
    model = build(f"net () => (float[4] v200) <float[4] v0> {{ {chain} }}")
    assert constant(ir.from_proto(model).graph.outputs[0]) is None


@pytest.mark.parametrize(
    "then",
    ["k = Identity(c)", "k = Cast<to=11>(c)", "k = Unsqueeze(c, a)", "k = Reshape(c, s)",
     "u = Unsqueeze(c, a) k = Squeeze(u, a)", "k = Expand(c, big)", "k = CastLike(c, half)"],
)  # fmt: skip
def test_a_gigabyte_of_equal_numbers_costs_nothing(then: str) -> None:
    weights = {"s": [1 << 14, 1 << 14], "a": [0], "big": [1 << 14, 1 << 14], "half": np.float16(0)}
    nodes = f"c = ConstantOfShape<value = float[1] {{0.5}}>(s) {then}"
    tracemalloc.start()
    try:
        _, found = value_of(nodes, weights)
        assert found is not None
        assert is_splat(found)
        assert found.size == 1 << 28
        assert found.flat[0] == 0.5
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_splat() -> None:
    assert is_splat(splat(np.float32(1), (3, 4)))
    assert not is_splat(np.ones((3, 4)))
    assert not is_splat(np.ones(1))
    assert not is_splat(np.broadcast_to(np.ones((3, 1)), (3, 4)))
