"""drop-expand: which operators broadcast by themselves, and where the expanded value must stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build, has, optimize

from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.exact.drop_expand import DropExpand

DROP = (DropExpand(), RemoveDead())


def model(
    nodes: str,
    *,
    x: str = "2,8,5,5",
    s: str = "2,8,1,1",
    y: str = "float[A,B,C,D] y",
    opset: int = 17,
    more: str = "",
    kind: str = "float",
    weights: dict[str, object] | None = None,
) -> onnx.ModelProto:
    text = f"net ({kind}[{x}] x, {kind}[{s}] s{more}) => ({y}) {{ {nodes} }}"
    arrays = {name: np.asarray(array) for name, array in (weights or {}).items()}
    return build(text.replace("float[A", f"{kind}[A"), opset=opset, weights=arrays)


RUNS = [{"x": (2, 8, 5, 5), "s": (2, 8, 1, 1)}, {"x": (1, 8, 7, 4), "s": (1, 8, 1, 1)}]


@pytest.mark.parametrize("opset", [8, 13, 22])
@pytest.mark.parametrize(("x", "s"), [("2,8,5,5", "2,8,1,1"), ("N,8,H,W", "N,8,1,1")])
@pytest.mark.parametrize(
    "last", ["Mul(x, e)", "Mul(e, x)", "Add(e, x)", "Sub(e, x)", "Div(x, e)", "Max(x, e)"]
)
def test_beside_a_value_of_that_shape(last: str, x: str, s: str, opset: int) -> None:
    built = model(f"sh = Shape(x) e = Expand(s, sh) y = {last}", x=x, s=s, opset=opset)
    result = optimize(built, *DROP, runs=RUNS if "N" in x else [{}])
    assert result.ops == [last[:3]]
    assert "drop-expand" in result.names


def test_to_a_constant_shape() -> None:
    built = model("e = Expand(s, t) y = Mul(x, e)", weights={"t": [2, 8, 5, 5]})
    assert optimize(built, *DROP).ops == ["Mul"]


@pytest.mark.parametrize("s", ["N,8,1,1", "1,8,1,1"])
def test_to_a_shape_put_together(s: str) -> None:
    """As the newer exporter of torch writes expand_as: an open batch, the rest as numbers."""
    built = model(
        "b = Shape<start=0, end=1>(x) sh = Concat<axis=0>(b, rest) e = Expand(s, sh) y = Mul(x, e)",
        x="N,8,5,5",
        s=s,
        weights={"rest": [8, 5, 5]},
    )
    runs = [{"x": (n, 8, 5, 5), "s": (n if "N" in s else 1, 8, 1, 1)} for n in (1, 3)]
    assert optimize(built, *DROP, runs=runs).ops == ["Mul"]


@pytest.mark.parametrize(
    ("target", "idle"),
    [([1, 8, 5, 5], True), ([8, 5, 1], True), ([1, 1, 1, 1], True), ([2, 1, 8, 5, 5], False),
     ([3, 8, 5, 5], False)],
)  # fmt: skip
def test_targets_that_ask_for_no_more_than_the_value_has(target: list[int], idle: bool) -> None:
    built = model(
        "e = Expand(s, t) y = Mul(x, e)", x="1,8,5,5", s="8,1,1", weights={"t": target},
        y="float[A,B,C,D] y" if len(target) < 5 else "float[A,B,C,D,E] y",
    )  # fmt: skip
    assert ("Expand" not in optimize(built, *DROP).ops) == idle


def test_behind_a_convolution_of_an_open_size() -> None:
    built = build(
        """net (float[N,3,H,W] x, float[N,8,1,1] s) => (float[N,8,A,B] y) <float[8,3,3,3] w>
        { c = Conv(x, w) sh = Shape(c) e = Expand(s, sh) y = Mul(c, e) }"""
    )
    runs = [{"x": (n, 3, 7, 6), "s": (n, 8, 1, 1)} for n in (1, 2)]
    assert optimize(built, *DROP, runs=runs).ops == ["Conv", "Mul"]


@pytest.mark.parametrize(
    ("nodes", "x", "s"),
    [
        ("e = Expand(s, t) y = Mul(x, e)", "1,8,5,5", "2,8,1,1"),  # the batch comes of the Expand
        ("e = Expand(s, t) y = Mul(x, e)", "2,8,5,1", "2,8,1,1"),
        ("e = Expand(s, t) y = Mul(x, e)", "5", "2,8,1,1"),
        ("e = Expand(s, t) r = Relu(x) y = Conv(r, e)", "2,8,5,5", "2,8,1,1"),  # no broadcasting
        ("e = Expand(s, t) r = Relu(x) y = Mul(e, e)", "2,8,5,5", "2,8,1,1"),
        ("e = Expand(s, t) y = Concat<axis=1>(x, e)", "2,8,5,5", "2,8,1,1"),
    ],
)
def test_where_the_shape_comes_of_the_expand(nodes: str, x: str, s: str) -> None:
    result = optimize(model(nodes, x=x, s=s, weights={"t": [2, 8, 5, 5]}), *DROP)
    assert "Expand" in result.ops
    assert result.reasons == []


def test_open_sizes_that_may_differ() -> None:
    """H of the value beside it may be 1 where that of the target is not."""
    built = model(
        "sh = Shape(z) e = Expand(s, sh) y = Mul(x, e)", x="1,8,H,W", s="1,8,1,1",
        more=", float[1,8,A,B] z",
    )  # fmt: skip
    runs = [{"x": (1, 8, 1, 1), "s": (1, 8, 1, 1), "z": (1, 8, 5, 5)}]
    assert optimize(built, *DROP, runs=runs).ops == ["Shape", "Expand", "Mul"]


def test_one_expand_for_two_products() -> None:
    built = model(
        "sh = Shape(x) e = Expand(s, sh) y = Mul(x, e) z = Add(e, x)",
        y="float[A,B,C,D] y, float[A2,B2,C2,D2] z",
    )
    assert optimize(built, *DROP).ops == ["Mul", "Add"]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("z = Relu(e)", "float[A,B,C,D] y, float[A2,B2,C2,D2] z"),
        ("", "float[A,B,C,D] y, float[2,8,5,5] e"),
    ],
)
def test_expanded_value_that_is_needed_elsewhere(nodes: str, outputs: str) -> None:
    built = model(f"sh = Shape(x) e = Expand(s, sh) y = Mul(x, e) {nodes}", y=outputs)
    result = optimize(built, *DROP)
    assert "Expand" in result.ops
    assert has(result.reasons, "^the expanded value is needed elsewhere too$")


def test_captured_by_a_body() -> None:
    built = build(
        """net (float[2,8,5,5] x, float[2,8,1,1] s, bool cond) => (float[2,8,5,5] y)
        { sh = Shape(x) e = Expand(s, sh) y = If(cond) <
            then_branch = a () => (float[2,8,5,5] t) { t = Mul(x, e) },
            else_branch = b () => (float[2,8,5,5] f) { f = Neg(x) }> }"""
    )
    result = optimize(built, *DROP, feeds={"cond": np.asarray(True)})
    assert "Expand" in result.ops


@pytest.mark.parametrize("kind", ["float16", "double", "int32"])
def test_types(kind: str) -> None:
    built = model("sh = Shape(x) e = Expand(s, sh) y = Mul(x, e)", kind=kind)
    assert optimize(built, *DROP, tolerance=1e-3).ops == ["Mul"]


def test_where() -> None:
    built = build(
        """net (bool[2,8,5,5] c, float[2,8,5,5] x, float[2,8,1,1] s) => (float[2,8,5,5] y)
        { sh = Shape(x) e = Expand(s, sh) y = Where(c, x, e) }"""
    )
    assert optimize(built, *DROP).ops == ["Where"]
