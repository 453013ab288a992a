"""keep-reduced-axes: a reduction and what puts its axes back, as one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build, has, optimize, rewrite

from graphopt.rewrites import CLEANUP, EXACT
from graphopt.rewrites.cleanup.keep_reduced_axes import KeepReducedAxes

KEEP = KeepReducedAxes()
RUNS = [{"x": (1, 3, 4, 5)}, {"x": (4, 3, 4, 5)}]


def squeezed(
    back: str, axes: list[int], y: str, *, op: str = "ReduceMean", more: str = "", opset: int = 17
) -> onnx.ModelProto:
    """x -> Exp -> reduction -> `back` of r -> y."""
    reduction = f"{op}<keepdims=0>(e, axes)" if opset >= 18 else f"{op}<axes={axes}, keepdims=0>(e)"
    return build(
        f"net (float[N,3,4,5] x) => (float[{y}] y{more}) {{ e = Exp(x) r = {reduction} y = {back} }}",
        opset=opset,
        weights={"axes": np.asarray(axes), "s": np.asarray([0, 3, 1, 1])},
    )


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp"])
@pytest.mark.parametrize("back", ["Unsqueeze(r, axes)", "Reshape(r, s)"])
def test_put_back_behind(back: str, op: str, opset: int) -> None:
    result = optimize(squeezed(back, [2, 3], "N,3,1,1", op=op, opset=opset), KEEP, runs=RUNS)
    assert result.ops == ["Exp", op]
    assert result.names == ["keep-reduced-axes"]


def test_axes_counted_from_the_back() -> None:
    model = squeezed("Unsqueeze(r, axes)", [-1, -2], "N,3,1,1")
    assert optimize(model, KEEP, runs=RUNS).ops == ["Exp", "ReduceMean"]


def test_one_axis_in_the_middle() -> None:
    """The batch has lost its name, but -1 can be nothing else."""
    model = squeezed("Reshape(r, k)", [1], "N,1,4,5")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([-1, 1, 4, 5]), "k"))
    assert optimize(model, KEEP, runs=RUNS).ops == ["Exp", "ReduceMean"]


def test_two_dimensions_without_a_name() -> None:
    """[N, H, 20] as [a, 1, b, 20] need not be [N, 1, H, 20]."""
    model = build(
        """net (float[N,3,H,20] x, int64[4] s) => (float[a,b,c,d] y)
        { e = Exp(x) r = ReduceMean<axes=[1], keepdims=0>(e) y = Reshape(r, s) }"""
    )
    feeds = {"s": np.asarray([6, 1, 2, 20])}
    result = optimize(model, KEEP, runs=[{"x": (4, 3, 3, 20)}], feeds=feeds)
    assert result.ops == ["Exp", "ReduceMean", "Reshape"]
    assert has(result.reasons, "makes another shape")


def test_axes_put_elsewhere() -> None:
    model = squeezed("Unsqueeze(r, k)", [2, 3], "1,1,N,3")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([0, 1]), "k"))
    assert optimize(model, KEEP, runs=RUNS).ops == ["Exp", "ReduceMean", "Unsqueeze"]


def test_an_equal_number_of_other_dimensions() -> None:
    """[N, 3] as [N, 1, 3, 1]: one element each, but not where the reduction would leave them."""
    model = squeezed("Reshape(r, t)", [2, 3], "N,1,3,1")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([0, 1, 3, 1]), "t"))
    result = optimize(model, KEEP, runs=RUNS)
    assert result.ops == ["Exp", "ReduceMean", "Reshape"]
    assert has(result.reasons, "makes another shape")


def test_needed_elsewhere() -> None:
    model = squeezed("Unsqueeze(r, axes)", [2, 3], "N,3,1,1", more=", float[N,3] r")
    result = optimize(model, KEEP, runs=RUNS)
    assert result.ops == ["Exp", "ReduceMean", "Unsqueeze"]
    assert has(result.reasons, "needed elsewhere")


def test_squeeze_and_excitation_as_keras_writes_it() -> None:
    """Channels last, a Reshape to [N, 1, 1, C]: nothing is left of layout and reshaping."""
    model = build(
        """net (float[N,8,8,4] x) => (float[N,4,8,8] y)
        <int64[4] s, float[4,4,1,1] w, float[4] b, float[4,4,3,3] k>
        { t = Transpose<perm=[0,3,1,2]>(x) c = Conv<pads=[1,1,1,1]>(t, k)
          l = Transpose<perm=[0,2,3,1]>(c) r = ReduceMean<axes=[1,2], keepdims=0>(l)
          q = Reshape(r, s) p = Transpose<perm=[0,3,1,2]>(q) g = Conv(p, w, b) h = Sigmoid(g)
          y = Mul(c, h) }""",
        weights={"s": np.asarray([-1, 1, 1, 4])},
    )
    result = rewrite(model, *CLEANUP, *EXACT)
    assert "keep-reduced-axes" in result.names
    assert "Reshape" not in result.ops
    assert result.ops.count("Transpose") == 1
