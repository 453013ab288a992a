"""merge-activations: pairs of Relu, Clip and LeakyRelu, and the algebra of intervals behind them."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_text import build, has, optimize, rewrite

from graphopt.rewrites.exact.interval import Interval
from graphopt.rewrites.exact.merge_activations import MergeActivations

MERGE = MergeActivations()
INF = math.inf
X = {"x": np.array([-9, -2.5, -1, -0.5, 0, 0.5, 1, 2.5, 7, 100], np.float32)}

OLD = {
    "Relu": "Relu({})",
    "Clip(0,6)": "Clip<min=0.0, max=6.0>({})",
    "Clip(-1,)": "Clip<min=-1.0>({})",
    "Clip(,2)": "Clip<max=2.0>({})",
    "Clip(,)": "Clip({})",
    "Leaky": "LeakyRelu<alpha=0.25>({})",
    "Leaky(0)": "LeakyRelu<alpha=0.0>({})",
}
NEW = {
    **OLD,
    "Clip(0,6)": "Clip({}, zero, six)",
    "Clip(-1,)": "Clip({}, minus)",
    "Clip(,2)": "Clip({}, , two)",
}
BOUNDS = {
    name: np.float32(value) for name, value in [("zero", 0), ("six", 6), ("minus", -1), ("two", 2)]
}


@pytest.mark.parametrize(("inner", "outer"), list(product(OLD, repeat=2)))
@pytest.mark.parametrize("opset", [10, 13])
def test_every_pair_computes_the_same(inner: str, outer: str, opset: int) -> None:
    forms = OLD if opset < 11 else NEW
    chain = f"t = {forms[inner].format('x')} y = {forms[outer].format('t')}"
    model = build(f"net (float[10] x) => (float[10] y) {{ {chain} }}", opset=opset, weights=BOUNDS)
    result = optimize(model, MERGE, feeds=X, tolerance=0.0)
    kept = {inner.split("(")[0], outer.split("(")[0]} == {"Leaky", "Clip"} and "Clip(0,6)" not in (
        inner,
        outer,
    )
    assert len(result.ops) == (2 if kept else 1)
    assert len(result.declined) == (1 if kept else 0)


@pytest.mark.parametrize(
    ("chain", "op"),
    [
        ("t = Relu(x) y = Relu(t)", "Relu"),
        ("t = Clip(x, zero) y = Clip(t, minus)", "Relu"),
        ("t = Relu(x) y = Clip(t, , six)", "Clip"),
        ("t = LeakyRelu<alpha=0.5>(x) y = Relu(t)", "Relu"),
        ("t = Relu(x) u = Clip(t, minus, six) v = LeakyRelu(u) y = Relu(v)", "Clip"),
    ],
)
def test_what_it_becomes(chain: str, op: str) -> None:
    model = build(f"net (float[10] x) => (float[10] y) {{ {chain} }}", weights=BOUNDS)
    assert optimize(model, MERGE, feeds=X, tolerance=0.0).ops == [op]


@pytest.mark.parametrize(
    "chain",
    ["t = LeakyRelu<alpha=-0.5>(x) y = Relu(t)", "t = Relu(x) y = LeakyRelu<alpha=-2.0>(t)"],
)
def test_negative_slope(chain: str) -> None:
    model = build(f"net (float[10] x) => (float[10] y) {{ {chain} }}")
    result = optimize(model, MERGE, feeds=X, tolerance=0.0)
    assert result.names == []
    assert has(result.reasons, "slope is negative")


@pytest.mark.parametrize(
    "chain", ["t = Clip(x, six, two) y = Relu(t)", "t = Relu(x) y = Clip(t, six, two)"]
)
def test_empty_interval(chain: str) -> None:
    """min above max: onnx says that max wins, runtimes disagree; it is left as it is."""
    model = build(f"net (float[10] x) => (float[10] y) {{ {chain} }}", weights=BOUNDS)
    result = rewrite(model, MERGE)
    assert len(result.ops) == 2
    assert has(result.reasons, "interval is empty")


def test_bound_that_is_fed() -> None:
    model = build(
        "net (float[10] x, float high) => (float[10] y) { t = Relu(x) y = Clip(t, , high) }"
    )
    result = optimize(model, MERGE, feeds={**X, "high": np.array(3, np.float32)})
    assert result.ops == ["Relu", "Clip"]
    assert has(result.reasons, "not one constant number")


def test_inner_one_is_an_output() -> None:
    model = build(
        "net (float[10] x) => (float[10] y, float[10] t) { t = Clip(x, , six) y = Relu(t) }",
        weights=BOUNDS,
    )
    assert optimize(model, MERGE, feeds=X).ops == ["Clip", "Relu"]


@pytest.mark.parametrize("kind", ["int8", "int32", "int64"])
def test_integers_keep_their_operator(kind: str) -> None:
    """[0, inf) stays a Clip: Relu takes no integers before opset 14, and few after it."""
    dtype = np.dtype(kind)
    model = build(
        f"net ({kind}[4] x) => ({kind}[4] y) {{ t = Clip(x, a) y = Clip(t, b) }}",
        opset=13,
        weights={"a": np.array(0, dtype), "b": np.array(-5, dtype)},
    )
    x = {"x": np.array([-7, -1, 0, 9], dtype)}
    assert optimize(model, MERGE, feeds=x).ops == ["Clip"]


@pytest.mark.parametrize("bound", [2**60 + 1, 2**63 - 1, -(2**63)])
def test_large_integer_bounds_are_exact(bound: int) -> None:
    model = build(
        "net (int64[3] x) => (int64[3] y) { t = Clip(x, low) y = Clip(t, , high) }",
        weights={"low": np.int64(min(bound, 5)), "high": np.int64(bound)},
    )
    x = {"x": np.array([2**62, 2**60 + 3, -(2**62)], np.int64)}
    assert optimize(model, MERGE, feeds=x).ops == ["Clip"]


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_bounds_have_the_type_of_the_input(kind: str) -> None:
    dtype = np.float16 if kind == "float16" else np.float64
    model = build(
        f"net ({kind}[4] x) => ({kind}[4] y) {{ t = Relu(x) y = Clip(t, , six) }}",
        weights={"six": dtype(6)},
    )
    assert optimize(model, MERGE, tolerance=0.0).ops == ["Clip"]


bounds = st.floats(-10, 10) | st.sampled_from([-INF, INF])
intervals = st.tuples(bounds, bounds).map(lambda pair: Interval(min(pair), max(pair)))


@given(st.lists(intervals, min_size=2, max_size=5), st.floats(-20, 20))
def test_composition_of_intervals_is_clipping_in_turn(chain: list[Interval], x: float) -> None:
    expected = x
    for interval in chain:
        expected = float(np.clip(expected, interval.low, interval.high))
    joined = chain[0]
    for interval in chain[1:]:
        joined = joined.then(interval)
    assert joined.low <= joined.high
    assert float(np.clip(x, joined.low, joined.high)) == expected


@given(intervals, intervals, intervals)
def test_composition_of_intervals_is_associative(a: Interval, b: Interval, c: Interval) -> None:
    assert a.then(b).then(c) == a.then(b.then(c))
