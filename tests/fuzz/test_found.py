"""What the fuzzing found, each as small as it got."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx_text import build, listed, random_feeds, rewrite

from fuzz.checks import ALL, check
from fuzz.graphs import Case


def holds(model: onnx.ModelProto, **overrides: Any) -> None:
    """Every property holds for the model, and for overrides of its listed weights."""
    feeds = random_feeds(model, {})
    check(Case(model, (feeds, {**feeds, **overrides}), 1e-4))


def test_bounds_of_a_merged_clip_are_numbers() -> None:
    """np.ascontiguousarray gives a number a dimension; Clip's bounds may have none."""
    model = build(
        """net (float[2,3] x) => (float[2,3] y) <float low, float high>
        { c = Clip(x, low, high) y = Relu(c) }""",
        weights={"low": np.float32(-1), "high": np.float32(6)},
    )
    result = rewrite(model, *ALL)
    assert {tuple(tensor.dims) for tensor in result.proto.graph.initializer} == {()}


def test_merged_activations_in_a_body() -> None:
    """The weights made in a body were declared again as its values, with another shape."""
    holds(
        build(
            """net (float[1,4] x, bool c) => (float[1,4] y) <float low, float high>
            { y = If (c) <
                then_branch = yes () => (float[1,4] a) { k = Clip(x, low, high) a = Relu(k) },
                else_branch = no () => (float[1,4] b) { b = Tanh(x) }
            > }""",
            weights={"low": np.float32(-1), "high": np.float32(6)},
        )
    )


def test_the_condition_of_an_if_is_overridable() -> None:
    """It stood among the inputs with a default; the default was dropped, the input stayed."""
    model = build(
        """net (float[1,4] x) => (float[1,4] y) <bool c, float[4] w>
        { m = Mul(x, w) y = If (c) <
            then_branch = yes () => (float[1,4] a) { a = Relu(m) },
            else_branch = no () => (float[1,4] b) { b = Tanh(m) }
        > }""",
        weights={"c": np.asarray(True)},
    )
    holds(listed(model, "c"), c=np.asarray(False))


@pytest.mark.parametrize("op", ["Expand", "Reshape"])
def test_an_overridable_shape(op: str) -> None:
    """Of no effect by default; another shape can be asked for."""
    model = build(
        f"""net (float[1,4] x) => (float[N,M] y) <int64[2] s, float[4] v>
        {{ m = Mul(x, v) y = {op}(m, s) }}""",
        weights={"s": np.asarray([1, 4])},
    )
    holds(listed(model, "s"), s=np.asarray([2, 4] if op == "Expand" else [4, 1]))


def test_the_overridable_weight_is_the_last_one_left() -> None:
    """Once the others are folded away, all that is left is listed; that is no exporter's habit."""
    model = build(
        """net (float[1,4] x) => (float[1,4] y) <float[4] w, float one>
        { m = Mul(x, one) y = Mul(m, w) }""",
        weights={"one": np.float32(1)},
    )
    holds(listed(model, "w"), w=np.full(4, 3, np.float32))


def test_an_expanded_weight_is_not_blown_up() -> None:
    """A few kB of model became 2 MB: only what is one number throughout is kept generated."""
    model = build(
        """net (float[1,256,4,4] x) => (float[1,256,4,4] y)
        <float[256,1,1,1] w, int64[4] s, float[256] g, float[256] b, float[256] m, float[256] var>
        { e = Expand(w, s) c = Conv<pads=[1,1,1,1]>(x, e) y = BatchNormalization(c, g, b, m, var) }""",
        weights={"s": np.asarray([256, 256, 3, 3])},
    )
    holds(model)


def test_a_pooling_that_is_an_output_too() -> None:
    """onnxruntime refuses two nodes of one name; and a pooling done twice is no gain."""
    holds(
        build(
            """net (float[1,4,6,6] x) => (float[1,4] y, float[1,4] p) <float[4,4] w>
            { [pool] p = ReduceMean<axes=[2,3], keepdims=0>(x) y = MatMul(p, w) }"""
        )
    )


def test_two_outputs_that_are_the_input() -> None:
    """b = Identity(a) <-> b = Identity(x), until the driver gave up."""
    holds(
        build(
            """net (float[2,3] x) => (float[2,3] a, float[2,3] b)
            { a = Identity(x) b = Identity(x) }"""
        )
    )


def test_a_transpose_in_a_file_that_can_hold_no_shape() -> None:
    """IR 3 wants a Constant node for a new shape, and before opset 9 a Constant has no integers."""
    holds(
        build(
            "net (float[1,4,6,1] x) => (float[1,4,1,6] y) { y = Transpose<perm=[0,1,3,2]>(x) }",
            opset=7,
            ir_version=3,
        )
    )


def test_a_reshape_of_what_a_layer_gives_under_a_new_name() -> None:
    """fc-to-conv names the batch that a Reshape to -1 had lost: only a second run saw the way back."""
    model = build(
        """net (float[N,1,H,W] x) => (float[N,1,H,W] y, float[M,1] g)
        <int64[2] s, float[1,4] k, float[1,4] v, float[1] c, int64[4] t>
        { p = GlobalAveragePool(x) r = Reshape(p, s) m = MatMul(r, k) q = Relu(m)
          g = Gemm<transB=1>(q, v, c) u = Reshape(g, t) z = Sigmoid(u) y = Mul(x, z) }""",
        opset=7,
        weights={"s": np.asarray([-1, 1]), "t": np.asarray([0, 1, 1, 1])},
    )
    result = rewrite(model, *ALL)
    assert "fc-to-conv" in result.names
    assert rewrite(result.proto, *ALL).names == []


def test_a_branch_that_is_always_taken_after_a_loop() -> None:
    """What comes after a Loop has a rank only when run: nodes of a branch put in its place had none."""
    model = build(
        """net (float[1,4,6,6] x) => (float[1,4,6,6] y)
        <int64 rounds, bool cond, float[4] g, float[4] b, float[4] m, float[4] var, float[4,1,1] t>
        { l = Loop(rounds, "", x) <body = body (int64 i, bool go, float[] a) => (bool went, float[] r)
            { r = Sin(a) went = Identity(go) }>
          y = If(cond) <
            then_branch = then_branch () => (float[] p) { p = Cos(l) },
            else_branch = else_branch () => (float[] q)
            { s = Sin(l) n = BatchNormalization(s, g, b, m, var) q = Add(n, t) }> }""",
        weights={"rounds": np.asarray(2), "cond": np.asarray(False)},
    )
    result = rewrite(model, *ALL)
    assert "fuse-bn-affine" in result.names
    assert rewrite(result.proto, *ALL).names == []


def test_a_reshape_to_the_own_shape_hides_what_comes_behind() -> None:
    """Once it is gone, the shapes behind it are known, and another Reshape proves to be nothing."""
    model = build(
        """net (float[N,4,6,6] x) => (float[N,4,6,6] y) <float[4,4,1,1] w, int64[4] t>
        { a = Add(x, x) s = Shape(a) r = Reshape(a, s) c = Conv(r, w) f = Flatten(c)
          y = Reshape(f, t) }""",
        weights={"t": np.asarray([0, 4, 6, 6])},
    )
    result = rewrite(model, *ALL)
    assert result.ops == ["Add", "Conv"]
    assert rewrite(result.proto, *ALL).names == []
