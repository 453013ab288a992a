"""merge-transposes and fold-transpose-into-fc."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import body, build, has, optimize

from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.cleanup.merge_transposes import MergeTransposes
from graphopt.rewrites.exact.fold_transpose_into_fc import FoldTransposeIntoFc, permuted_rows

MERGE = MergeTransposes()
FOLD = FoldTransposeIntoFc()


def pair(first: str, second: str, *, x: str = "float[2,3,4,5]", more: str = "") -> onnx.ModelProto:
    return build(
        f"""net ({x} x) => (float[a,b,c,d] y{more})
        {{ e = Exp(x) t = Transpose{first}(e) u = Transpose{second}(t) y = Abs(u) }}"""
    )


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.permutations(range(4)), st.permutations(range(4)))
def test_pairs(first: list[int], second: list[int]) -> None:
    result = optimize(pair(f"<perm={first}>", f"<perm={second}>"), MERGE)
    identity = [first[i] for i in second] == [0, 1, 2, 3]
    trivial = [0, 1, 2, 3] in (first, second)
    assert trivial or result.ops.count("Transpose") == (0 if identity else 1)


def test_default_orders() -> None:
    assert optimize(pair("", ""), MERGE).ops == ["Exp", "Abs"]
    assert optimize(pair("", "<perm=[0,2,3,1]>"), MERGE).ops == ["Exp", "Transpose", "Abs"]


def test_default_order_of_unknown_rank() -> None:
    model = build(
        """net (float[M] x, int64[r] s) => (float y)
        { e = Reshape(x, s) t = Transpose(e) u = Transpose(t) y = ReduceSum<keepdims=0>(u) }"""
    )
    result = optimize(model, MERGE, runs=[{"x": (8,), "s": (3,)}], feeds={"s": np.array([2, 2, 2])})
    assert result.names == []


def test_between_the_names_of_the_interface() -> None:
    model = build(
        """net (float[2,3] x) => (float[2,3] y)
        { t = Transpose<perm=[1,0]>(x) y = Transpose<perm=[1,0]>(t) }"""
    )
    result = optimize(model, MERGE)
    assert result.ops == ["Transpose", "Transpose"]
    assert has(result.reasons, "name that must stay")


def test_value_between_is_an_output() -> None:
    """Cancelled all the same; a pair that would only be merged stays."""
    model = pair("<perm=[0,2,3,1]>", "<perm=[0,3,1,2]>", more=", float[e,f,g,h] t")
    assert optimize(model, MERGE).ops == ["Exp", "Transpose", "Abs"]
    model = pair("<perm=[0,2,3,1]>", "<perm=[3,0,1,2]>", more=", float[e,f,g,h] t")
    result = optimize(model, MERGE)
    assert result.names == []
    assert has(result.reasons, "needed elsewhere")


def test_axes_of_length_one() -> None:
    model = pair("<perm=[0,1,2,3]>", "<perm=[0,3,1,2]>", x="float[N,1,1,5]")
    result = optimize(model, MERGE, runs=[{"x": (1, 1, 1, 5)}, {"x": (3, 1, 1, 5)}])
    assert result.ops == ["Exp", "Reshape", "Abs"] or "Reshape" in result.ops
    assert list(result.weight(result.ops.index("Reshape"), 1)) == [0, 5, 1, 1]


def test_axes_of_length_one_among_open_ones() -> None:
    model = build(
        """net (float[N,1,H,W] x) => (float[a,b,c,d] y)
        { e = Exp(x) y = Transpose<perm=[0,2,3,1]>(e) }"""
    )
    result = optimize(model, MERGE, runs=[{"x": (2, 1, 3, 4)}])
    assert result.ops == ["Exp", "Transpose"]
    assert has(result.reasons, "for every input")


def test_an_open_axis_is_not_taken_for_one() -> None:
    model = build(
        """net (float[1,C,4] x) => (float[a,b,c] y)
        { e = Exp(x) y = Transpose<perm=[0,2,1]>(e) }"""
    )
    result = optimize(model, MERGE, runs=[{"x": (1, 1, 4)}, {"x": (1, 3, 4)}])
    assert result.ops == ["Exp", "Transpose"]
    assert result.declined == ()


@pytest.mark.parametrize("cond", [True, False])
def test_in_bodies(cond: bool) -> None:
    """A Transpose outside the body stays; a pair inside it goes."""
    model = build(
        """net (float[2,3] x, bool cond) => (float[2,3] y) { t = Transpose<perm=[1,0]>(x)
        y = If (cond) <then_branch = a () => (float[2,3] yt)
            { yt = Transpose<perm=[1,0]>(t) },
          else_branch = b () => (float[2,3] ye) { e = Exp(x) f = Transpose<perm=[1,0]>(e)
            g = Transpose<perm=[1,0]>(f) ye = Abs(g) }> }"""
    )
    result = optimize(model, MERGE, feeds={"cond": np.asarray(cond)})
    assert [n.op_type for n in body(result.proto, "If", "else_branch").node] == ["Exp", "Abs"]
    assert [n.op_type for n in body(result.proto, "If", "then_branch").node] == ["Transpose"]


# fold-transpose-into-fc


def head(
    flatten: str = "Flatten(t)",
    layer: str = "Gemm<transB=1>(f, w, b)",
    *,
    weights: str = "float[7,60] w, float[7] b",
    output: str = "float[N,7] y",
    order: str = "0,2,3,1",
    x: str = "float[N,3,4,5]",
    given: dict[str, object] | None = None,
) -> onnx.ModelProto:
    return build(
        f"""net ({x} x) => ({output}) <{weights}>
        {{ t = Transpose<perm=[{order}]>(x) f = {flatten} y = {layer} }}""",
        weights=given and {k: np.asarray(v) for k, v in given.items()},
    )


RUNS = [{"x": (1, 3, 4, 5)}, {"x": (3, 3, 4, 5)}]


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        ("Gemm<transB=1>(f, w, b)", "float[7,60] w, float[7] b"),
        ("Gemm<alpha=0.5, beta=2.0>(f, w, b)", "float[60,7] w, float[7] b"),
        ("Gemm(f, w)", "float[60,7] w"),
        ("MatMul(f, w)", "float[60,7] w"),
    ],
)
@pytest.mark.parametrize("order", ["0,2,3,1", "0,3,1,2", "0,1,3,2", "0,3,2,1"])
def test_layers(layer: str, weights: str, order: str) -> None:
    result = optimize(head(layer=layer, weights=weights, order=order), FOLD, runs=RUNS)
    assert result.ops == ["Flatten", layer[:4] if layer[0] == "G" else "MatMul"]
    assert result.declined == ()


@pytest.mark.parametrize("target", [[-1, 60], [0, -1], [0, 60]])
def test_reshapes(target: list[int]) -> None:
    model = head("Reshape(t, s)", given={"s": np.array(target)})
    assert optimize(model, FOLD, runs=RUNS).ops == ["Reshape", "Gemm"]


def test_flatten_from_a_later_axis() -> None:
    """[N, 1, W, C] flattened from axis 2: of the map in its first order that would be another matrix."""
    model = head("Flatten<axis=2>(t)", x="float[N,12,1,5]")
    result = optimize(model, FOLD, runs=[{"x": (2, 12, 1, 5)}])
    assert result.ops == ["Flatten", "Gemm"]


def test_flattening_that_mixes_samples() -> None:
    model = head("Reshape(t, s)", x="float[2,3,4,5]", given={"s": np.array([-1, 60])})
    assert optimize(model, FOLD).ops == ["Reshape", "Gemm"]
    mixing = head(
        "Reshape(t, s)",
        weights="float[7,30] w, float[7] b",
        x="float[2,3,4,5]",
        given={"s": np.array([-1, 30])},
    )
    result = optimize(mixing, FOLD)
    assert result.names == []
    assert has(result.reasons, "together")


def test_several_layers_on_one_map() -> None:
    model = build(
        """net (float[N,3,4,5] x) => (float[N,2] y, float[N,4] z)
        <float[60,2] v, float[60,4] w, float[4] b>
        { t = Transpose<perm=[0,2,3,1]>(x) f = Flatten(t) a = MatMul(f, v) y = Relu(a)
          z = Gemm(f, w, b) }"""
    )
    assert sorted(optimize(model, FOLD, runs=RUNS).ops) == ["Flatten", "Gemm", "MatMul", "Relu"]


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (head(x="float[N,3,H,5]"), (1, 3, 4, 5), "not fixed"),
        (head(order="1,0,2,3", x="float[1,1,12,5]"), (1, 1, 12, 5), "not in front"),
        (head(output="float[N,7] y, float[N,60] f"), (1, 3, 4, 5), "flattened map is needed"),
        (head(output="float[N,7] y, float[N,4,5,3] t"), (1, 3, 4, 5), "transposed map is needed"),
    ],
)
def test_declines(model: onnx.ModelProto, shape: tuple[int, ...], reason: str) -> None:
    result = optimize(model, FOLD, runs=[{"x": shape}])
    assert result.names == []
    assert has(result.reasons, reason)


def test_weight_that_can_be_overridden() -> None:
    model = build(
        """net (float[N,3,4,5] x, float[60,7] w) => (float[N,7] y)
        { t = Transpose<perm=[0,2,3,1]>(x) f = Flatten(t) y = MatMul(f, w) }"""
    )
    result = optimize(model, FOLD)
    assert has(result.reasons, "graph input")


def test_shared_weight_is_copied() -> None:
    model = build(
        """net (float[N,3,4,5] x, float[N,60] z) => (float[N,7] y, float[N,7] v) <float[60,7] w>
        { t = Transpose<perm=[0,2,3,1]>(x) f = Flatten(t) y = MatMul(f, w) v = MatMul(z, w) }"""
    )
    assert optimize(model, FOLD, runs=[{"x": (2, 3, 4, 5), "z": (2, 60)}]).names == [FOLD.name]


def test_generated_weight_stays_generated() -> None:
    model = build(
        """net (float[N,3,4,5] x) => (float[N,700] y) <int64[2] s>
        { w = ConstantOfShape<value = float[1] {0.25}>(s) t = Transpose<perm=[0,2,3,1]>(x)
          f = Flatten(t) y = MatMul(f, w) }""",
        weights={"s": np.array([60, 700])},
    )
    result = optimize(model, FOLD, RemoveDead(), runs=RUNS)
    assert sorted(result.ops) == ["ConstantOfShape", "Flatten", "MatMul"]
    assert len(result.proto.SerializeToString()) < 1000


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_types(dtype: str) -> None:
    model = build(
        f"""net ({dtype}[N,3,4,5] x) => ({dtype}[N,7] y) <{dtype}[60,7] w>
        {{ t = Transpose<perm=[0,2,3,1]>(x) f = Flatten(t) y = MatMul(f, w) }}"""
    )
    result = optimize(model, FOLD, runs=RUNS, tolerance=5e-3)
    assert result.ops == ["Flatten", "MatMul"]


def test_fewer_than_three_axes() -> None:
    model = build(
        """net (float[3,5] x) => (float[a,b] y) <float[3,7] w>
        { t = Transpose<perm=[1,0]>(x) f = Flatten(t) y = MatMul(f, w) }"""
    )
    assert optimize(model, FOLD).names == []


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.permutations(range(1, 5)), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_rows(order: list[int], sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    u = rng.standard_normal((2, *sizes))
    x = np.transpose(u, (0, *order))
    weight = rng.standard_normal((x[0].size, 3))
    rows = permuted_rows(weight, list(x.shape[1:]), (0, *order))
    np.testing.assert_allclose(u.reshape(2, -1) @ rows, x.reshape(2, -1) @ weight, atol=1e-12)
