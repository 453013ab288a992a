"""recognise-*: activations written out as arithmetic, in every order that exporters write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import Array, body, build, has, optimize, rewrite

from graphopt.graph.scope import Scope
from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.exact.merge_activations import MergeActivations
from graphopt.rewrites.exact.polynomials import read
from graphopt.rewrites.exact.recognise_clips import RecogniseClips
from graphopt.rewrites.exact.recognise_gelu import RecogniseGelu
from graphopt.rewrites.exact.recognise_hard_swish import RecogniseHardSwish
from graphopt.rewrites.exact.recognise_leaky_relu import RecogniseLeakyRelu
from graphopt.rewrites.exact.recognise_swish import RecogniseSwish

CLIPS, LEAKY, GELU = RecogniseClips(), RecogniseLeakyRelu(), RecogniseGelu()
SWISH, HARD = RecogniseSwish(), RecogniseHardSwish()
ALL = (CLIPS, MergeActivations(), LEAKY, HARD, SWISH, GELU, RemoveDead())

NUMBERS = np.array([-9, -3, -2.5, -1, -0.5, 0, 0.5, 1, 2.5, 3, 7, 100], np.float32)
X = {"x": NUMBERS}

CONSTANTS = {
    "zero": 0.0, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "half": 0.5, "minus": -1.0,
    "tenth": 0.1, "sixth": 1 / 6, "root2": math.sqrt(2), "root_half": math.sqrt(0.5),
    "short_root": 0.7071, "wrong_root": 0.7081, "cubic": 0.044715, "root_pi": math.sqrt(2 / math.pi),
}  # fmt: skip


def model(
    expression: str, *, opset: int = 20, kind: str = "float", inputs: str = "", outputs: str = ""
) -> Any:
    """y computed from x [12] by some of the constants, which are scalars of its type."""
    dtype = np.dtype({"float": "f4", "double": "f8", "float16": "f2"}.get(kind, kind))
    names = {name for name in CONSTANTS if f" {name}" in expression.replace("(", "( ")}
    weights = {name: np.asarray(CONSTANTS[name]).astype(dtype) for name in names}
    return build(
        f"net ({kind}[12] x{inputs}) => ({kind}[12] y{outputs}) {{ {expression} }}",
        opset=opset,
        weights=weights,
    )


# -- Max, Min ---------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [8, 11, 12, 13, 18])
@pytest.mark.parametrize("expression", ["y = Max(x, zero)", "y = Max(zero, x)"])
def test_max_with_zero_is_relu(expression: str, opset: int) -> None:
    result = optimize(model(expression, opset=opset), CLIPS, feeds=X, tolerance=0.0)
    assert result.ops == ["Relu"]
    assert result.proto.graph.node[0].output == ["y"]


PAIRS = [
    "t = Max(x, {low}) y = Min(t, {high})",
    "t = Min({high}, x) y = Max({low}, t)",
]


@pytest.mark.parametrize("opset", [8, 11, 13])
@pytest.mark.parametrize("bounds", [("zero", "six"), ("minus", "one"), ("six", "two")])
@pytest.mark.parametrize("pair", PAIRS)
def test_max_and_min_are_a_clip(pair: str, bounds: tuple[str, str], opset: int) -> None:
    """Where the lower bound is above the upper, the outer one wins."""
    expression = pair.format(low=bounds[0], high=bounds[1])
    result = optimize(model(expression, opset=opset), CLIPS, feeds=X, tolerance=0.0)
    assert result.ops == ["Clip"]
    assert len(result.proto.graph.node[0].input) == (1 if opset < 11 else 3)


@pytest.mark.parametrize(
    ("expression", "op"),
    [
        ("t = Relu(x) y = Min(t, six)", "Clip"),
        ("t = Min(x, six) y = Relu(t)", "Clip"),
        ("t = Clip(x, minus, six) y = Max(t, zero)", "Clip"),
        ("t = Max(x, minus) y = Max(t, zero)", "Relu"),
        ("t = Max(x, minus) u = Min(t, six) y = Relu(u)", "Clip"),
    ],
)
def test_next_to_an_activation(expression: str, op: str) -> None:
    result = optimize(model(expression), CLIPS, MergeActivations(), feeds=X, tolerance=0.0)
    assert result.ops == [op]


@pytest.mark.parametrize("expression", ["y = Max(x, minus)", "y = Min(x, six)", "y = Min(x, zero)"])
def test_a_bound_alone_stays(expression: str) -> None:
    result = optimize(model(expression), CLIPS, feeds=X)
    assert result.names == []
    assert result.declined == ()


@pytest.mark.parametrize("expression", ["y = Max(x, z)", "y = Max(x, z, zero)", "y = Max(x, x)"])
def test_maximum_of_activations_is_none_of_its_business(expression: str) -> None:
    result = optimize(model(expression, inputs=", float[12] z"), *ALL)
    assert result.names == []
    assert result.declined == ()


def test_a_bound_per_channel() -> None:
    proto = build("net (float[2,4] x) => (float[2,4] y) <float[4] k> { y = Max(x, k) }")
    result = optimize(proto, CLIPS)
    assert has(result.reasons, "not one number")


def test_a_bound_that_adds_dimensions() -> None:
    proto = build("net (float[4] x) => (float[1,4] y) <float[1,1] k> { y = Max(x, k) }")
    assert has(optimize(proto, CLIPS).reasons, "more dimensions")


def test_what_is_between_is_an_output() -> None:
    proto = model("t = Max(x, minus) y = Min(t, one)", outputs=", float[12] t")
    assert optimize(proto, CLIPS, feeds=X).ops == ["Max", "Min"]


@pytest.mark.parametrize(
    ("kind", "opset", "op"),
    [
        ("int32", 13, "Clip"),
        ("int32", 14, "Relu"),
        ("int8", 14, "Relu"),
        ("int64", 14, "Clip"),
        ("double", 13, "Relu"),
        ("double", 8, "Relu"),
        ("float16", 13, "Relu"),
    ],
)
def test_element_types_of_relu(kind: str, opset: int, op: str) -> None:
    x = {"x": NUMBERS.astype({"double": "f8", "float16": "f2"}.get(kind, kind))}
    proto = model("y = Max(x, zero)", kind=kind, opset=opset)
    assert optimize(proto, CLIPS, feeds=x, tolerance=0.0).ops == [op]


def test_large_integers_stay_exact() -> None:
    proto = build(
        "net (int64[3] x) => (int64[3] y) { t = Max(x, a) y = Min(t, b) }",
        weights={"a": np.int64(2**60 + 1), "b": np.int64(2**62 + 1)},
    )
    x = {"x": np.array([2**61 + 1, 2**63 - 1, 3], np.int64)}
    assert optimize(proto, CLIPS, feeds=x).ops == ["Clip"]


def test_double_has_no_clip_before_opset_12() -> None:
    proto = model("t = Max(x, minus) y = Min(t, one)", kind="double", opset=11)
    result = optimize(proto, CLIPS, feeds={"x": NUMBERS.astype(np.float64)})
    assert result.ops == ["Max", "Min"]
    assert has(result.reasons, "of type double in opset 11")


def test_a_bound_that_may_be_overridden() -> None:
    proto = build(
        "net (float[4] x, float k) => (float[4] y) { y = Max(x, k) }", weights={"k": np.float32(0)}
    )
    result = rewrite(proto, CLIPS)
    assert result.names == []


# -- LeakyRelu --------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 12, 16, 20])
@pytest.mark.parametrize(
    "expression",
    [
        "t = Mul(x, tenth) y = Max(x, t)",
        "t = Mul(tenth, x) y = Max(t, x)",
        "t = Div(x, six) y = Max(t, x)",
        "c = Greater(x, zero) t = Mul(x, two) y = Where(c, x, t)",
        "c = Greater(zero, x) t = Mul(x, tenth) y = Where(c, t, x)",
        "c = Less(x, zero) t = Mul(x, minus) y = Where(c, t, x)",
    ],
)
def test_leaky_relu(expression: str, opset: int) -> None:
    result = optimize(model(expression, opset=opset), LEAKY, feeds=X, tolerance=1e-7)
    assert result.ops == ["LeakyRelu"]


@pytest.mark.parametrize(
    "expression",
    [
        "c = Greater(x, zero) y = Where(c, x, zero)",
        "c = GreaterOrEqual(x, zero) y = Where(c, x, zero)",
        "c = LessOrEqual(x, zero) y = Where(c, zero, x)",
        "c = Less(zero, x) y = Where(c, x, zero)",
    ],
)
@pytest.mark.parametrize("kind", ["float", "double"])
def test_where_is_relu(expression: str, kind: str) -> None:
    x = {"x": NUMBERS.astype("f8" if kind == "double" else "f4")}
    assert optimize(model(expression, kind=kind), LEAKY, feeds=x, tolerance=0.0).ops == ["Relu"]


@pytest.mark.parametrize(
    "expression",
    [
        "c = Greater(x, one) t = Mul(x, tenth) y = Where(c, x, t)",
        "c = Greater(x, zero) t = Mul(x, tenth) y = Where(c, t, x)",
        "c = Greater(x, zero) t = Add(x, tenth) y = Where(c, x, t)",
        "c = Greater(x, zero) y = Where(c, x, one)",
        "t = Mul(x, two) y = Max(x, t)",
        "t = Mul(x, minus) y = Max(x, t)",
        "t = Mul(x, x) y = Max(x, t)",
    ],
)
def test_what_only_looks_like_it(expression: str) -> None:
    result = optimize(model(expression), *ALL, feeds=X)
    assert result.names == []
    assert result.declined == ()


def test_the_test_is_used_twice() -> None:
    expression = "c = Greater(x, zero) t = Mul(x, tenth) y = Where(c, x, t) z = Where(c, one, x)"
    result = optimize(model(expression, outputs=", float[12] z"), LEAKY, feeds=X)
    assert "LeakyRelu" not in result.ops
    assert has(result.reasons, "used elsewhere")


def test_double_has_no_leaky_relu() -> None:
    proto = model("t = Mul(x, tenth) y = Max(x, t)", kind="double")
    result = optimize(proto, LEAKY, feeds={"x": NUMBERS.astype(np.float64)})
    assert has(result.reasons, "no LeakyRelu of type double")


# -- HardSigmoid, HardSwish -------------------------------------------------------------------

RELU6 = {
    "clip": "a = {add} t = Clip(a, zero, six)",
    "max, min": "a = {add} b = Max(a, zero) t = Min(b, six)",
    "min, max": "a = {add} b = Min(six, a) t = Max(zero, b)",
    "relu, min": "a = {add} b = Relu(a) t = Min(b, six)",
}
AFTER = [
    "u = Mul(x, t) y = Div(u, six)",
    "u = Mul(t, x) y = Mul(u, sixth)",
    "u = Div(t, six) y = Mul(x, u)",
    "u = Mul(sixth, t) y = Mul(u, x)",
    "u = Div(x, six) y = Mul(u, t)",
    "u = Mul(x, sixth) y = Mul(t, u)",
]


@pytest.mark.parametrize("add", ["Add(x, three)", "Add(three, x)"])
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("clip", RELU6)
def test_hard_swish(clip: str, after: str, add: str) -> None:
    proto = model(f"{RELU6[clip].format(add=add)} {after}")
    result = optimize(proto, *ALL, feeds=X, tolerance=1e-6)
    assert result.ops == ["HardSwish"]


@pytest.mark.parametrize("after", AFTER)
def test_hard_swish_before_opset_14(after: str) -> None:
    proto = model(f"a = Add(x, three) t = Clip(a, zero, six) {after}", opset=13)
    result = optimize(proto, *ALL, feeds=X, tolerance=1e-6)
    assert result.ops == ["HardSigmoid", "Mul"]
    assert has(result.reasons, "no HardSwish before opset 14")


def test_old_clip() -> None:
    proto = model("a = Add(x, three) t = Clip<min=0.0, max=6.0>(a) y = Div(t, six)", opset=9)
    assert optimize(proto, *ALL, feeds=X, tolerance=1e-6).ops == ["HardSigmoid"]


@pytest.mark.parametrize("attributes", ["alpha=0.16666667, beta=0.5", "alpha=0.16666667"])
def test_hard_sigmoid_times_its_input(attributes: str) -> None:
    proto = model(f"t = HardSigmoid<{attributes}>(x) y = Mul(x, t)", opset=14)
    assert optimize(proto, HARD, feeds=X, tolerance=1e-6).ops == ["HardSwish"]


@pytest.mark.parametrize(
    "expression",
    [
        "a = Add(x, three) t = Clip(a, zero, six) y = Div(t, six)",
        "a = Add(x, three) t = Clip(a, zero, six) y = Mul(t, sixth)",
        "a = Mul(x, tenth) b = Add(a, half) y = Clip(b, zero, one)",
        "a = Mul(x, two) b = Sub(a, one) c = Div(b, six) y = Clip(c, zero, one)",
        "t = Clip(x, zero, six) y = Div(t, six)",
        "t = Clip(x, minus, one) u = Add(t, one) y = Mul(u, half)",
        "a = Mul(x, minus) b = Add(a, half) y = Clip(b, zero, one)",
        "a = Mul(x, two) y = HardSigmoid(a)",
    ],
)
def test_hard_sigmoid(expression: str) -> None:
    assert optimize(model(expression), HARD, feeds=X, tolerance=1e-6).ops == ["HardSigmoid"]


def test_another_hard_swish_keeps_the_product() -> None:
    proto = model("a = Mul(x, tenth) b = Add(a, half) t = Clip(b, zero, one) y = Mul(x, t)")
    assert optimize(proto, HARD, feeds=X, tolerance=1e-6).ops == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize(
    "expression",
    [
        "y = Clip(x, zero, one)",
        "a = Add(x, three) y = Clip(a, zero, six)",
        "a = Add(x, three) t = Clip(a, minus, six) y = Div(t, six)",
        "a = Add(x, three) t = Clip(a, zero, six) u = Div(t, six) y = Add(u, x)",
        "t = HardSigmoid(x) y = Mul(x, t)",
        "a = Mul(x, x) t = HardSigmoid(a) y = Mul(x, t)",
    ],
)
def test_no_hard_swish(expression: str) -> None:
    result = optimize(model(expression), HARD, feeds=X)
    assert "HardSwish" not in result.ops


def test_negative_slope_outside() -> None:
    """1 - clip(x, 0, 1) is no HardSigmoid of this form, so it is left alone."""
    proto = model("t = Clip(x, zero, one) y = Sub(one, t)")
    assert optimize(proto, HARD, feeds=X).ops == ["Clip", "Sub"]


def test_gate_that_is_also_an_output() -> None:
    """The gate becomes a HardSigmoid of its own, and then stays visible."""
    expression = "a = Add(x, three) t = Clip(a, zero, six) u = Div(t, six) y = Mul(x, u)"
    result = optimize(model(expression, outputs=", float[12] u"), HARD, feeds=X, tolerance=1e-6)
    assert result.ops == ["HardSigmoid", "Mul"]
    assert has(result.reasons, "used elsewhere")


def test_scaled_input_that_others_use() -> None:
    """x is itself arithmetic; the gate must not reach through it, and need not."""
    expression = (
        "s = Mul(x, two) a = Add(s, three) t = Clip(a, zero, six) u = Mul(s, t) y = Div(u, six)"
    )
    assert optimize(model(expression), HARD, feeds=X, tolerance=1e-6).ops == ["Mul", "HardSwish"]


def test_behind_a_convolution() -> None:
    proto = build(
        """net (float[1,3,5,5] x) => (float[1,4,5,5] y) <float[4,3,1,1] w, float[4] b>
        { c = Conv(x, w, b) a = Add(c, three) t = Clip(a, zero, six) u = Mul(c, t)
          y = Div(u, six) }""",
        weights={n: np.float32(CONSTANTS[n]) for n in ("zero", "three", "six")},
    )
    assert optimize(proto, HARD).ops == ["Conv", "HardSwish"]


def test_double_has_no_hard_sigmoid() -> None:
    proto = model("a = Add(x, three) t = Clip(a, zero, six) y = Div(t, six)", kind="double")
    result = optimize(proto, HARD, feeds={"x": NUMBERS.astype(np.float64)})
    assert result.ops == ["Add", "Clip", "Div"]
    assert has(result.reasons, "no HardSigmoid of type double")


def test_integers_are_not_looked_at() -> None:
    proto = model("a = Add(x, three) t = Clip(a, zero, six) y = Div(t, six)", kind="int32")
    result = optimize(proto, HARD, feeds={"x": NUMBERS.astype(np.int32)})
    assert result.declined == ()


# -- Swish, Mish ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression", ["t = Sigmoid(x) y = Mul(x, t)", "a = Mul(x, two) t = Sigmoid(a) y = Mul(t, x)"]
)
def test_swish(expression: str) -> None:
    proto = model(expression, opset=24)
    assert optimize(proto, SWISH, feeds=X, tolerance=1e-6).ops == ["Swish"]
    old = optimize(model(expression, opset=23), SWISH, feeds=X)
    assert old.names == []
    assert has(old.reasons, "no Swish before opset 24")
    new = optimize(model(expression, opset=25), SWISH, feeds=X)
    assert new.names == []
    assert has(new.reasons, "cannot run a Swish of opset 25")


def test_swish_is_gated() -> None:
    proto = model("t = Sigmoid(x) y = Mul(x, t)", opset=24)
    found = [f for g in (True, False) for f in _findings(proto, RecogniseSwish(gated=g))]
    assert [f.gated for f in found] == [True, False]


def _findings(proto: Any, rewriter: Any) -> list[Any]:
    parsed = ir.from_proto(proto)
    return list(rewriter.propose(Scope(parsed, parsed.graph)))


@pytest.mark.parametrize(
    "expression",
    [
        "t = Sigmoid(x) y = Mul(z, t)",
        "t = Sigmoid(x) u = Mul(x, t) y = Add(u, z)",
        "t = Sigmoid(z) y = Mul(x, t)",
    ],
)
def test_gates_of_something_else(expression: str) -> None:
    result = optimize(model(expression, inputs=", float[12] z"), SWISH)
    assert bool(result.declined) == ("Add" in expression)


@pytest.mark.parametrize("expression", ["y = Mul(x, t)", "y = Mul(t, x)"])
def test_mish(expression: str) -> None:
    proto = model(f"s = Softplus(x) t = Tanh(s) {expression}", opset=18)
    assert optimize(proto, SWISH, feeds=X, tolerance=1e-6).ops == ["Mish"]
    result = optimize(model(f"s = Softplus(x) t = Tanh(s) {expression}", opset=17), SWISH, feeds=X)
    assert has(result.reasons, "no Mish before opset 18")


# -- Gelu -------------------------------------------------------------------------------------

ERF_INSIDE = ["Div(x, root2)", "Mul(x, root_half)", "Mul(root_half, x)", "Mul(x, short_root)"]
OUTSIDE = [
    "o = Add(e, one) m = Mul(x, o) y = Mul(m, half)",
    "o = Add(e, one) m = Mul(x, half) y = Mul(m, o)",
    "o = Add(one, e) m = Mul(half, o) y = Mul(x, m)",
    "o = Add(e, one) m = Div(o, two) y = Mul(m, x)",
    "h = Mul(e, half) o = Add(h, half) y = Mul(o, x)",
    "h = Mul(x, half) m = Mul(h, e) y = Add(h, m)",
]


@pytest.mark.parametrize(("inside", "outside"), list(product(ERF_INSIDE, OUTSIDE)))
def test_gelu(inside: str, outside: str) -> None:
    proto = model(f"i = {inside} e = Erf(i) {outside}")
    result = optimize(proto, GELU, RemoveDead(), feeds=X, tolerance=1e-4)
    assert result.ops == ["Gelu"]
    assert len(result.proto.graph.node[0].attribute) == 0


CUBES = ["c = Pow(x, three)", "q = Mul(x, x) c = Mul(q, x)", "q = Pow(x, two) c = Mul(x, q)"]
TANH_INSIDE = [
    "k = Mul(c, cubic) s = Add(x, k) i = Mul(s, root_pi)",
    "k = Mul(cubic, c) s = Add(k, x) i = Mul(root_pi, s)",
]


@pytest.mark.parametrize(("cube", "inside"), list(product(CUBES, TANH_INSIDE)))
@pytest.mark.parametrize("outside", OUTSIDE)
def test_tanh_gelu(cube: str, inside: str, outside: str) -> None:
    proto = model(f"{cube} {inside} e = Tanh(i) {outside}")
    result = optimize(proto, GELU, feeds=X, tolerance=1e-5)
    assert result.ops == ["Gelu"]
    assert result.proto.graph.node[0].attribute[0].s == b"tanh"


def test_tanh_gelu_without_the_cube() -> None:
    """sqrt(2/pi) x (1 + 0.044715 x^2), as some write it."""
    inside = "q = Mul(x, x) k = Mul(q, cubic) s = Add(k, one) p = Mul(x, root_pi) i = Mul(p, s)"
    proto = model(f"{inside} e = Tanh(i) {OUTSIDE[0]}")
    assert optimize(proto, GELU, feeds=X).ops == ["Gelu"]


@pytest.mark.parametrize("opset", [13, 19])
def test_gelu_before_opset_20(opset: int) -> None:
    result = optimize(model(f"i = Div(x, root2) e = Erf(i) {OUTSIDE[0]}", opset=opset), GELU)
    assert result.names == []
    assert has(result.reasons, "no Gelu before opset 20")


@pytest.mark.parametrize(
    "expression",
    [
        f"i = Mul(x, wrong_root) e = Erf(i) {OUTSIDE[0]}",
        f"i = Mul(x, root_half) e = Tanh(i) {OUTSIDE[0]}",
        "i = Div(x, root2) e = Erf(i) o = Add(e, one) y = Mul(x, o)",
        "i = Div(x, root2) e = Erf(i) o = Add(e, two) m = Mul(x, o) y = Mul(m, half)",
        "i = Div(x, root2) e = Erf(i) o = Sub(one, e) m = Mul(x, o) y = Mul(m, half)",
        "i = Div(x, root2) e = Erf(i) o = Add(e, one) m = Mul(i, o) y = Mul(m, half)",
        "i = Div(root2, x) e = Erf(i) o = Add(e, one) m = Mul(x, o) y = Mul(m, half)",
    ],
)
def test_no_gelu(expression: str) -> None:
    result = optimize(model(expression), GELU, feeds={"x": NUMBERS + np.float32(0.25)})
    assert result.names == []
    assert result.declined == ()


@pytest.mark.parametrize("seen", ["i", "e", "o", "m"])
def test_gelu_with_something_inside_seen(seen: str) -> None:
    expression = f"i = Div(x, root2) e = Erf(i) {OUTSIDE[0]}"
    result = optimize(model(expression, outputs=f", float[12] {seen}"), GELU, feeds=X)
    assert result.names == []
    assert has(result.reasons, "used elsewhere")


def test_gelu_in_half_precision() -> None:
    """Its constants are right to three figures only."""
    proto = model(f"{CUBES[1]} {TANH_INSIDE[0]} e = Tanh(i) {OUTSIDE[0]}", kind="float16")
    x = {"x": np.linspace(-4, 4, 12).astype(np.float16)}
    assert optimize(proto, GELU, feeds=x, tolerance=3e-3).ops == ["Gelu"]


def test_gelu_with_constants_in_nodes() -> None:
    proto = model(
        """k = Constant<value = float {1.4142135}>() i = Div(x, k) e = Erf(i)
        c = Constant<value = float {1.0}>() o = Add(e, c) m = Mul(x, o)
        h = Constant<value = float {0.5}>() h2 = Identity(h) y = Mul(m, h2)"""
    )
    assert optimize(proto, GELU, RemoveDead(), feeds=X).ops == ["Gelu"]


def test_gelu_with_shared_constants() -> None:
    once = "i{0} = Div({1}, root2) e{0} = Erf(i{0}) o{0} = Add(e{0}, one) m{0} = Mul({1}, o{0})"
    expression = f"{once.format(1, 'x')} g = Mul(m1, half) {once.format(2, 'g')} y = Mul(m2, half)"
    result = optimize(model(expression), GELU, feeds=X, tolerance=1e-5)
    assert result.ops == ["Gelu", "Gelu"]
    assert len(result.proto.graph.initializer) == 0


def test_constant_that_adds_dimensions() -> None:
    proto = build(
        """net (float[4] x) => (float[1,4] y) <float[1,1] half, float one, float root2>
        { i = Div(x, root2) e = Erf(i) o = Add(e, one) m = Mul(x, o) y = Mul(m, half) }""",
        opset=20,
        weights={"half": np.full((1, 1), 0.5, np.float32)}
        | {n: np.float32(CONSTANTS[n]) for n in ("one", "root2")},
    )
    assert optimize(proto, GELU).names == []


# -- What holds for all -----------------------------------------------------------------------


def test_inside_a_body_on_a_captured_value() -> None:
    gelu = f"i = Div(a, root2) e = Erf(i) {OUTSIDE[0]}".replace("(x,", "(a,").replace("y =", "yt =")
    hard = "b = Add(a, three) c = Clip(b, zero, six) d = Div(c, six) ye = Mul(a, d)"
    proto = model(
        f"""a = Neg(x) y = If (go) <then_branch = t () => (float[12] yt) {{ {gelu} }},
                                    else_branch = e () => (float[12] ye) {{ {hard} }}>""",
        inputs=", bool go",
    )
    for go in (True, False):
        result = optimize(proto, *ALL, feeds={**X, "go": np.asarray(go)}, tolerance=1e-5)
        ops = [
            node.op_type
            for branch in ("then_branch", "else_branch")
            for node in body(result.proto, "If", branch).node
        ]
        assert ops == ["Gelu", "HardSwish"]


def test_a_value_that_a_body_captures_is_used_elsewhere() -> None:
    expression = f"""i = Div(x, root2) e = Erf(i) {OUTSIDE[0].replace("y =", "g =")}
        y = If (go) <then_branch = t () => (float[12] yt) {{ yt = Add(g, e) }},
                     else_branch = f () => (float[12] ye) {{ ye = Neg(g) }}>"""
    proto = model(expression, inputs=", bool go")
    result = optimize(proto, *ALL, feeds={**X, "go": np.asarray(True)})
    assert has(result.reasons, "used elsewhere")


def test_dynamic_shapes_and_names() -> None:
    proto = build(
        """net (float[N,M] x) => (float[N,M] y) { a = Add(x, three) t = Clip(a, zero, six)
        u = Mul(x, t) v = Div(u, six) y = Max(v, zero) }""",
        weights={n: np.float32(CONSTANTS[n]) for n in ("zero", "three", "six")},
    )
    result = optimize(proto, *ALL, runs=[{"x": (1, 3)}, {"x": (5, 2)}], tolerance=1e-6)
    assert result.ops == ["HardSwish", "Relu"]


# -- Polynomials ------------------------------------------------------------------------------

EVALUATED: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Neg": lambda a, _: -a,
    "Pow": lambda a, _: a * a,
}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_a_polynomial_is_what_the_nodes_compute(data: st.DataObject) -> None:
    """Random arithmetic in x and t, evaluated by numpy and by its coefficients."""
    values = ["x", "t", "two", "half", "minus"]
    numbers = {"two": 2.0, "half": 0.5, "minus": -1.0}
    points = {"x": np.array([-1.5, 0.3, 2.0]), "t": np.array([0.7, -0.2, 1.1])}
    known = {**points, **{name: np.full(3, number) for name, number in numbers.items()}}
    lines = []
    for index in range(data.draw(st.integers(1, 6))):
        op = data.draw(st.sampled_from(sorted(EVALUATED)))
        left = data.draw(st.sampled_from(values))
        right = data.draw(st.sampled_from(["two", "half"] if op in ("Div", "Pow") else values))
        if op == "Pow":
            right = "two"
        name = f"v{index}"
        lines.append(f"{name} = {op}({left}{'' if op == 'Neg' else ', ' + right})")
        known[name] = EVALUATED[op](known[left], known[right])
        values.append(name)
    proto = build(
        f"net (float[3] x, float[3] t) => (float[3] {values[-1]}) {{ {' '.join(lines)} }}",
        weights={name: np.float32(number) for name, number in numbers.items()},
    )
    parsed = ir.from_proto(proto)
    graph = parsed.graph
    leaves = (graph.inputs[0], graph.inputs[1])
    found = read(graph.outputs[0], leaves, Scope(parsed, graph))
    if found is None:
        return
    total: Array = np.zeros(3)
    for (i, j), number in found.terms.items():
        total = total + number * points["x"] ** i * points["t"] ** j
    np.testing.assert_allclose(total, known[values[-1]], rtol=1e-9, atol=1e-9)
    assert {node.outputs[0].name for node in found.nodes} <= set(values)


def test_polynomials_are_read_through_several_nodes() -> None:
    """The property above holds for the wrong reason if nothing is ever read."""
    proto = build(
        "net (float[3] x) => (float[3] y) { a = Mul(x, k) b = Pow(x, k) c = Sub(a, b) y = Neg(c) }",
        weights={"k": np.float32(2)},
    )
    parsed = ir.from_proto(proto)
    found = read(parsed.graph.outputs[0], (parsed.graph.inputs[0],), Scope(parsed, parsed.graph))
    assert found is not None
    assert found.terms == {(1,): -2.0, (2,): 1.0}
    assert len(found.nodes) == 4
