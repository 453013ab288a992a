"""settle-reshapes, fold-known-dimensions: targets computed at run time, as far as they are known before."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import LEVELS, Result, body, build, check_same, has, listed, optimize, rewrite, run

from graphopt.rewrites import EXACT
from graphopt.rewrites.base import ExactRewrite, WholeModelPass
from graphopt.rewrites.cleanup.fold_known_dimensions import FoldKnownDimensions
from graphopt.rewrites.cleanup.library import FoldConstants, LiftConstants, RemoveDead
from graphopt.rewrites.cleanup.settle_shapes import SettleReshapes
from graphopt.rewrites.cleanup.sizes import Dim
from graphopt.rewrites.exact.drop_zero_bias import DropZeroBias

SETTLE, FOLD = SettleReshapes(), FoldKnownDimensions()
CLEAN: tuple[ExactRewrite | WholeModelPass, ...] = (
    LiftConstants(), RemoveDead(), FoldConstants(), FOLD, SETTLE,
)  # fmt: skip
OPEN = "float[N,3,4,5]"
BATCHES = [{"x": (1, 3, 4, 5)}, {"x": (4, 3, 4, 5)}]
EMPTY = {"x": (0, 3, 4, 5)}
NUMBERS = {"zero": 0, "one": 1, "at0": [0], "at1": [1], "at2": [2], "at3": [3], "rest": [-1]}


def reshaped(
    target: str,
    *,
    x: str = OPEN,
    rank: int = 2,
    more: str = "",
    opset: int = 17,
    allowzero: int | None = None,
    **numbers: object,
) -> onnx.ModelProto:
    """x -> Relu -> e, target computed -> t, Reshape(e, t) -> r -> Abs -> y."""
    sizes = ",".join("abcdefgh"[:rank])
    attribute = "" if allowzero is None else f"<allowzero={allowzero}>"
    return build(
        f"""net ({x} x{more}) => (float[{sizes}] y)
        {{ e = Relu(x) {target} r = Reshape{attribute}(e, t) y = Abs(r) }}""",
        opset=opset,
        weights={k: np.asarray(v, np.int64) for k, v in {**NUMBERS, **numbers}.items()},
    )


def target(result: Result) -> list[int]:
    """The constant target of the only Reshape."""
    (index,) = [i for i, op in enumerate(result.ops) if op == "Reshape"]
    return [int(n) for n in result.weight(index, 1)]


BATCH = "s = Shape(e) g = Gather(s, zero) n = Unsqueeze(g, at0)"
SETTLED = ["Relu", "Reshape", "Abs"]


@pytest.mark.parametrize(
    "batch",
    [
        BATCH,
        "s = Shape(e) n = Gather(s, at0)",
        "s = Shape(e) n = Slice(s, at0, at1)",
        "s = Shape(e) n = Slice(s, at0, at1, at0, at1)",
        "n = Shape<start=0, end=1>(e)",
        "n = Shape<end=-3>(e)",
        "s = Shape<start=0, end=1>(e) q = Squeeze(s) n = Reshape(q, rest)",
        "s = Shape<start=0, end=1>(e) q = Squeeze(s, at0) n = Reshape<allowzero=0>(q, at1)",
        "s = Shape(e) c = Cast<to=6>(s) g = Gather(c, at0) n = Cast<to=7>(g)",
        "s = Shape(e) g = Gather(s, at0) n = Mul(g, one)",
        "s = Shape(e) g = Gather(s, at0) i = Identity(g) n = Add(i, zero)",
    ],
)
def test_a_view_that_keeps_the_batch(batch: str) -> None:
    result = optimize(
        reshaped(f"{batch} t = Concat<axis=0>(n, k)", k=[60]), *CLEAN, runs=[*BATCHES, EMPTY]
    )
    assert result.ops == SETTLED
    assert target(result) == [0, 60]


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
def test_the_channels_are_known_though_the_batch_is_open(opset: int) -> None:
    """As TorchScript exports `x.view(batch, channels, -1)`: Gather(Shape, 1) is 3 for every input."""
    unsqueeze = "Unsqueeze<axes=[0]>({})" if opset < 13 else "Unsqueeze({}, at0)"
    steps = f"""s = Shape(e) g = Gather(s, zero) n = {unsqueeze.format("g")}
        h = Gather(s, one) c = {unsqueeze.format("h")} t = Concat<axis=0>(n, c, k)"""
    result = optimize(reshaped(steps, rank=3, opset=opset, k=[20]), *CLEAN, runs=[*BATCHES, EMPTY])
    assert result.ops == SETTLED
    assert target(result) == [0, 3, 20]
    assert {"fold-known-dimensions", "settle-reshapes"} <= set(result.names)


def test_each_element_is_followed_on_its_own() -> None:
    """Without fold-known-dimensions, too: products and quotients of known dimensions are numbers."""
    steps = """s = Shape(e) n = Gather(s, at0) c = Gather(s, at1) h = Gather(s, at2) w = Gather(s, at3)
        p = Mul(h, w) q = Div(p, two) t = Concat<axis=0>(n, c, q, two)"""
    result = optimize(reshaped(steps, rank=4, two=[2]), SETTLE, RemoveDead(), runs=BATCHES)
    assert result.ops == SETTLED
    assert target(result) == [0, 3, 10, 2]


def test_product_of_the_rest() -> None:
    steps = """s = Shape(e) n = Slice(s, at0, at1) r0 = Slice(s, at1, at3)
        p = ReduceProd<keepdims=1>(r0) t = Concat<axis=0>(n, p, k)"""
    result = optimize(reshaped(steps, rank=3, k=[5]), SETTLE, RemoveDead(), runs=BATCHES)
    assert target(result) == [0, 12, 5]


@pytest.mark.parametrize("allowzero", [0, 1, None])
def test_allowzero_goes(allowzero: int | None) -> None:
    model = reshaped(f"{BATCH} t = Concat<axis=0>(n, k)", k=[60], allowzero=allowzero)
    result = optimize(model, *CLEAN, runs=[*BATCHES, EMPTY])
    assert not result.proto.graph.node[1].attribute
    assert target(result) == [0, 60]


@pytest.mark.parametrize("allowzero", [0, 1])
def test_what_is_left_for_the_rest_is_a_number(allowzero: int) -> None:
    """[N, -1] of [N, 3, 4, 5]: not computed, but 60."""
    model = reshaped(f"{BATCH} t = Concat<axis=0>(n, rest)", allowzero=allowzero)
    result = optimize(model, SETTLE, RemoveDead(), runs=BATCHES)
    assert result.ops == SETTLED
    assert target(result) == [0, 60]


def test_several_copies() -> None:
    """Batch and width are both open, and both at their own place: both are copied, empty or not."""
    steps = (
        """s = Shape(e) n = Gather(s, at0) w = Gather(s, at3) t = Concat<axis=0>(n, k, at1, w)"""
    )
    model = reshaped(steps, x="float[N,3,4,W]", rank=4, k=[12])
    runs = [{"x": (2, 3, 4, 5)}, {"x": (0, 3, 4, 7)}]
    result = optimize(model, SETTLE, RemoveDead(), runs=runs)
    assert result.ops == SETTLED
    assert target(result) == [0, 12, 1, 0]


@pytest.mark.parametrize("allowzero", [0, 1])
def test_a_copy_by_its_axis_where_there_is_no_symbol(allowzero: int) -> None:
    """Only at its own place: put elsewhere, the width is no copy, and both are unknown."""
    for settled in (True, False):
        steps = f"""s = Shape(e) n = Gather(s, at0) w = Gather(s, at2)
            t = Concat<axis=0>({"n, k, w" if settled else "n, w, k"})"""
        model = reshaped(steps, x="float[?,3,?]", rank=3, k=[3], allowzero=allowzero)
        result = rewrite(model, SETTLE, RemoveDead())
        assert ("Concat" not in result.ops) == settled
        if settled:
            check_same(model, result.proto, shapes={"x": (2, 3, 5)})
            assert target(result) == [0, 3, 0]
        else:
            assert has(result.reasons, "empty batch")


def test_sizes_without_a_symbol_are_the_same_only_on_one_axis() -> None:
    value, other = ir.Value(name="v"), ir.Value(name="w")
    assert Dim(None, value, 0).same_as(Dim(None, value, 0))
    assert not Dim(None, value, 0).same_as(Dim(None, value, 1))
    assert not Dim(None, value, 0).same_as(Dim(None, other, 0))
    assert Dim("N", value, 0).same_as(Dim("N", other, 1))


def test_height_and_width_in_one_are_the_rest() -> None:
    """As `flatten(2)` is exported: [N, 3, -1]. The original fails on an empty batch, too."""
    steps = "s = Shape(e) n = Slice(s, at0, at2) t = Concat<axis=0>(n, rest)"
    model = reshaped(steps, x="float[N,3,H,W]", rank=3)
    result = optimize(model, SETTLE, RemoveDead(), runs=[{"x": (1, 3, 4, 5)}, {"x": (3, 3, 2, 6)}])
    assert result.ops == SETTLED
    assert target(result) == [0, 3, -1]
    assert fails(model, (0, 3, 4, 5))


def fails(model: onnx.ModelProto, shape: tuple[int, ...]) -> bool:
    try:
        run(model, {"x": np.zeros(shape, np.float32)}, LEVELS[0])
    except Exception:
        return True
    return False


def test_an_empty_batch_still_runs() -> None:
    """[N, 3, H * W]: with 0 and -1 an empty batch would fail, where the original does not."""
    steps = """s = Shape(e) n = Slice(s, at0, at1) h = Gather(s, at2) w = Gather(s, at3)
        p = Mul(h, w) t = Concat<axis=0>(n, at3, p)"""
    model = reshaped(steps, x="float[N,3,H,W]", rank=3)
    result = optimize(model, SETTLE, runs=[{"x": (0, 3, 4, 5)}, {"x": (2, 3, 4, 5)}])
    assert result.names == []
    assert has(result.reasons, "empty batch")
    assert not fails(model, (0, 3, 4, 5))


def test_with_allowzero_an_empty_batch_leaves_something_to_compute() -> None:
    """onnxruntime then takes [0, 3, -1] of an empty batch, so that it must go on to."""
    steps = "s = Shape(e) n = Slice(s, at0, at2) t = Concat<axis=0>(n, rest)"
    result = rewrite(reshaped(steps, x="float[N,3,H,W]", rank=3, allowzero=1), SETTLE)
    assert result.names == []
    assert has(result.reasons, "empty batch")


def test_a_fixed_batch_is_a_number_beside_the_rest() -> None:
    steps = """s = Shape(e) n = Slice(s, at0, at1) h = Gather(s, at2) w = Gather(s, at3)
        p = Mul(h, w) t = Concat<axis=0>(n, at3, p)"""
    model = reshaped(steps, x="float[2,3,H,W]", rank=3)
    result = optimize(model, SETTLE, RemoveDead(), runs=[{"x": (2, 3, 4, 5)}, {"x": (2, 3, 0, 5)}])
    assert target(result) == [2, 3, -1]


def test_zeros_of_the_target_itself() -> None:
    """A 0 among the elements copies: a number where the dimension is fixed, else it stays."""
    steps = "s = Shape(e) n = Gather(s, at0) t = Concat<axis=0>(n, at0, h)"
    result = optimize(reshaped(steps, rank=3, h=[20]), SETTLE, RemoveDead(), runs=BATCHES)
    assert target(result) == [0, 3, 20]
    steps = "s = Shape(e) n = Gather(s, at1) t = Concat<axis=0>(at0, n, h)"
    result = optimize(reshaped(steps, rank=3, h=[20]), SETTLE, RemoveDead(), runs=BATCHES)
    assert target(result) == [0, 3, 20]


def test_zero_and_other_numbers_that_cannot_be() -> None:
    steps = "s = Shape(e) n = Gather(s, at0) t = Concat<axis=0>(n, k, rest)"
    for model in (
        reshaped(steps, rank=3, k=[-7]),
        reshaped(steps.replace(", rest", ""), k=[0], x="float[N,0]", allowzero=1),
        reshaped(steps.replace(", rest", ", k"), k=[0], x="float[N,0,4,5]", rank=3),
    ):
        result = rewrite(model, SETTLE)
        assert result.names == []
        assert has(result.reasons, "zero, or asked for by a number below -1")


def test_equal_symbols_that_callers_do_not_keep_to() -> None:
    """onnxruntime does not check that both inputs have one N; where it shows, nothing is copied."""
    model = build(
        """net (float[N,8] x, float[N] z) => (float[a,b] y) <int64[1] k = {4}>
        { n = Shape(z) t = Concat<axis=0>(n, k) r = Reshape(x, t) y = Abs(r) }"""
    )
    result = optimize(model, SETTLE, RemoveDead(), runs=[{"x": (2, 8), "z": (4,)}])
    assert result.ops == ["Reshape", "Abs"]
    assert target(result) == [-1, 4]


def test_what_follows_is_known_better() -> None:
    """Inference does not see through Shape -> Cast -> Reshape; once it is settled, all is clear."""
    model = build(
        """net (float[N,3,4,5] x) => (float[a,b] y)
        <int64[1] rest = {-1}, int64[1] one = {1}, int64[1] three = {3}> {
        p = GlobalAveragePool(x) s = Shape<start=0, end=1>(x) q = Squeeze(s) n = Reshape(q, rest)
        t = Concat<axis=0>(n, three, one, one) g = Reshape(p, t)
        m = Mul(x, g) r = Relu(m)
        u = Concat<axis=0>(n, rest) y = Reshape(r, u) }"""
    )
    result = optimize(model, SETTLE, RemoveDead(), runs=BATCHES)
    assert result.ops == ["GlobalAveragePool", "Reshape", "Mul", "Relu", "Reshape"]
    assert [int(n) for n in result.weight(4, 1)] == [0, 60]


def test_a_fed_size_is_unknown() -> None:
    """One of them can be computed; a caller that asks for -1 gets the same as before."""
    steps = "i = Identity(n) t = Concat<axis=0>(i, k)"
    model = reshaped(steps, more=", int64[1] n", k=[15])
    for fed in (4, -1):
        feeds = {"n": np.asarray([fed], np.int64), "x": np.ones((1, 3, 4, 5), np.float32)}
        result = optimize(model, SETTLE, RemoveDead(), feeds=feeds)
        assert target(result) == [-1, 15]
    both = reshaped("t = Concat<axis=0>(n, m)", more=", int64[1] n, int64[1] m")
    assert has(rewrite(both, SETTLE).reasons, "more than one element is unknown")


def test_a_fed_target_is_left_alone() -> None:
    model = reshaped("u = Identity(n) t = Add(u, zero)", more=", int64[k] n")
    assert has(rewrite(model, SETTLE).reasons, "number of its dimensions|more than one")
    fed = build("net (float[N,4] x, int64[2] t) => (float[a,b] y) { y = Reshape(x, t) }")
    result = rewrite(fed, SETTLE)
    assert (result.names, result.declined) == ([], ())


def test_a_size_that_a_caller_may_override() -> None:
    model = listed(reshaped("n = Gather(k, at0) t = Concat<axis=0>(n, m)", k=[3, 4], m=[60]), "k")
    result = rewrite(model, FOLD, SETTLE)
    assert "Gather" in result.ops
    assert target(rewrite(model, SETTLE)) == [-1, 60]


def test_the_bound_shape_does_not_count() -> None:
    """The batch is 1 where the tool looks, but not for every input."""
    steps = "s = Shape(e) n = Gather(s, at0) h = Gather(s, at2) t = Concat<axis=0>(n, at3, h, w)"
    model = reshaped(steps, x="float[N,3,H,5]", rank=4, w=[5])
    runs = [{"x": (1, 3, 4, 5)}, {"x": (3, 3, 2, 5)}, {"x": (0, 3, 2, 5)}]
    result = optimize(model, FOLD, SETTLE, runs=runs)
    assert target(result) == [0, 3, 0, 5]


def test_a_target_that_others_read_and_an_output() -> None:
    model = build(
        """net (float[N,3,4,5] x) => (float[a,b] r, float[c,d] q, int64[2] t) <int64[1] k = {60}>
        { n = Shape<start=0, end=1>(x) t = Concat<axis=0>(n, k)
          e = Relu(x) r = Reshape(e, t) q = Reshape(x, t) }"""
    )
    result = optimize(model, *CLEAN, runs=[*BATCHES, EMPTY])
    assert sorted(result.ops) == ["Concat", "Relu", "Reshape", "Reshape", "Shape"]
    assert result.names.count("settle-reshapes") == 2


@pytest.mark.parametrize("dtype", ["float16", "double", "int32", "bool"])
def test_whatever_the_type(dtype: str) -> None:
    model = build(
        f"""net ({dtype}[N,3,4] x) => ({dtype}[a,b] y) <int64[1] k = {{12}}>
        {{ n = Shape<start=0, end=1>(x) t = Concat<axis=0>(n, k) r = Reshape(x, t) y = Identity(r) }}"""
    )
    result = optimize(model, SETTLE, RemoveDead(), runs=[{"x": (1, 3, 4)}, {"x": (5, 3, 4)}])
    assert result.ops == ["Reshape", "Identity"]


def test_in_a_branch_that_captures() -> None:
    model = build(
        """net (float[N,3,4] x, bool c) => (float[a,b] y) <int64[1] k = {12}> {
        e = Relu(x)
        y = If(c) <
          then_branch = t () => (float[p,q] u)
            { n = Shape<start=0, end=1>(e) t = Concat<axis=0>(n, k) u = Reshape(e, t) },
          else_branch = f () => (float[v,w] z) { z = Flatten(e) }> }"""
    )
    result = optimize(model, SETTLE, RemoveDead(), runs=[{"x": (1, 3, 4)}, {"x": (5, 3, 4)}])
    assert [n.op_type for n in body(result.proto, "If", "then_branch").node] == ["Reshape"]


GROWING = """net (float[1,2] x, int64 n) => (float[a,b] y, int64[i,j] z)
    <bool true = {1}, float[1,2] row, int64 zero = {0}, int64[1] at0 = {0}> {
    y, z = Loop(n, true, x) <body = b (int64 i, bool k, float[1,2] s)
        => (bool more, float[p,q] t, int64[1] size) {
        more = Identity(k) t = Concat<axis=0>(s, row) d = Shape(s)
        g = Gather(d, zero) size = Unsqueeze(g, at0) }> }"""


def test_the_declared_shape_of_a_loop_body_is_not_believed() -> None:
    """It says [1, 2]; it is [1, 2], then [2, 2], then [3, 2], and onnxruntime runs it so."""
    model = build(GROWING)
    feeds = {"x": np.ones((1, 2), np.float32), "n": np.asarray(3)}
    assert run(model, feeds, LEVELS[0])[1].tolist() == [[1], [2], [3]]
    result = rewrite(model, FOLD, SETTLE)
    assert result.names == []
    assert run(result.proto, feeds, LEVELS[0])[1].tolist() == [[1], [2], [3]]


# fold-known-dimensions


def asked(steps: str, *, x: str = OPEN, y: str = "int64[a]", opset: int = 17) -> onnx.ModelProto:
    """x -> Relu -> e -> steps -> k; y = k + n, n fed."""
    return build(
        f"""net ({x} x, int64 n) => ({y} y) {{ e = Relu(x) {steps} y = Add(k, n) }}""",
        opset=opset,
        weights={k: np.asarray(v, np.int64) for k, v in NUMBERS.items()},
    )


@pytest.mark.parametrize(
    ("steps", "y", "value"),
    [
        ("s = Shape(e) k = Gather(s, one)", "int64", 3),
        ("s = Shape(e) k = Gather(s, at2)", "int64[a]", [4]),
        ("s = Shape(e) k = Gather(s, rest)", "int64[a]", [5]),
        ("s = Shape(e) k = Slice(s, at1, at3)", "int64[a]", [3, 4]),
        ("s = Shape(e) k = Slice(s, rest, at0, at0, rest)", "int64[a]", [5, 4, 3]),
        ("k = Shape<start=1>(e)", "int64[a]", [3, 4, 5]),
        ("k = Shape<start=-2, end=-1>(e)", "int64[a]", [4]),
        ("s = Shape(e) k = Gather(s, pair)", "int64[a]", [5, 3]),
    ],
)
def test_known_dimensions(steps: str, y: str, value: object) -> None:
    model = asked(steps, y=y)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([3, 1]), "pair"))
    result = optimize(model, FOLD, LiftConstants(), RemoveDead(), runs=BATCHES)
    assert result.ops == ["Add"]
    assert result.weight(0, 0).tolist() == value


def test_size_of_a_fixed_value() -> None:
    result = optimize(asked("k = Size(e)", x="float[2,3]", y="int64"), FOLD, RemoveDead())
    assert result.ops == ["Constant", "Add"]


def test_the_type_stays() -> None:
    model = build(
        """net (float[N,3] x) => (int32 y) <int64 one = {1}>
        { s = Shape(x) c = Cast<to=6>(s) g = Gather(c, one) y = Abs(g) }"""
    )
    result = optimize(model, FOLD, LiftConstants(), RemoveDead(), runs=[{"x": (2, 3)}])
    assert result.ops == ["Abs"]
    assert result.weight(0, 0).dtype == np.int32


def test_an_output_of_the_graph_keeps_its_name() -> None:
    model = build(
        "net (float[N,3] x) => (int64 y) <int64 one = {1}> { s = Shape(x) y = Gather(s, one) }"
    )
    result = optimize(model, LiftConstants(), FOLD, RemoveDead(), runs=[{"x": (2, 3)}])
    assert result.ops == ["Constant"]


def test_open_dimensions_are_declined() -> None:
    for steps, y in (
        ("s = Shape(e) k = Gather(s, zero)", "int64"),
        ("s = Shape(e) k = Slice(s, at0, at2)", "int64[a]"),
        ("k = Shape<start=0, end=1>(e)", "int64[a]"),
    ):
        result = optimize(asked(steps, y=y), FOLD, runs=BATCHES)
        assert result.names == []
        assert has(result.reasons, "a dimension that it picks is open")


@pytest.mark.parametrize(
    "steps", ["s = Shape(e) k = Gather(s, i)", "s = Shape(e) k = Gather(r, zero)"]
)
def test_what_is_no_known_dimension_is_left_alone(steps: str) -> None:
    """An index that is fed; data that are."""
    model = build(
        f"""net (float[2,3] x, int64 i, int64[2] r) => (int64 y) <int64 zero = {{0}}>
        {{ e = Relu(x) {steps} y = Abs(k) }}"""
    )
    result = rewrite(model, FOLD, RemoveDead())
    assert "Gather" in result.ops
    assert result.declined == ()


def test_a_gather_of_weights_is_not_concerned() -> None:
    model = build("net (int64[N] i) => (float[a,b] y) <float[6,4] w> { y = Gather(w, i) }")
    result = rewrite(model, FOLD)
    assert (result.names, result.declined) == ([], ())


def test_long_chains_are_no_problem() -> None:
    chain = " ".join(f"c{i + 1} = Identity(c{i})" for i in range(3000))
    model = reshaped(f"c0 = Shape<start=0, end=1>(e) {chain} t = Concat<axis=0>(c3000, k)", k=[60])
    assert target(rewrite(model, SETTLE, RemoveDead())) == [-1, 60]


# Any target made of pieces


@st.composite
def pieces(draw: st.DrawFn) -> tuple[str, list[int]]:
    """A computed target for a value [N, 3, 4, W], and what it is for N = 2, W = 5."""
    names = {"n": [2], "c": [3], "h": [4], "w": [5], "hw": [20], "k2": [2], "k1": [1], "k0": [0]}
    elements = draw(st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=4))
    if draw(st.booleans()):
        elements.insert(draw(st.integers(0, len(elements))), "rest")
    return ", ".join(elements), [*elements]  # type: ignore[list-item]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(pieces(), st.booleans())
def test_any_target(made: tuple[str, list[int]], strict: bool) -> None:
    """Wherever the original runs, the settled one gives the same: other sizes and none, too."""
    elements, listed_ = made
    model = reshaped(
        f"""s = Shape(e) n = Gather(s, at0) c = Gather(s, at1) h = Gather(s, at2)
        w = Gather(s, at3) hw = Mul(h, w) t = Concat<axis=0>({elements})""",
        x="float[N,3,4,W]",
        rank=len(listed_),
        allowzero=int(strict),
        k0=[0],
        k1=[1],
        k2=[2],
    )
    result = rewrite(model, FOLD, SETTLE, RemoveDead())
    onnx.checker.check_model(result.proto)
    for shape in ((2, 3, 4, 5), (1, 3, 4, 2), (0, 3, 4, 5), (2, 3, 4, 0), (6, 3, 4, 1)):
        x = {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
        try:
            (want,) = run(model, x, LEVELS[0])
        except Exception:
            continue
        (got,) = run(result.proto, x, LEVELS[0])
        assert got.shape == want.shape
        assert np.array_equal(got, want)


# As PyTorch writes it


def exported(exporter: str) -> onnx.ModelProto:
    """A squeeze-and-excite block with views, a pooled transition and a flattened head."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (torch==2.13.0)")
    nn = torch.nn

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())
            self.narrow = nn.Conv2d(8, 4, 1, bias=False)
            self.head = nn.Linear(36, 10)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            batch, channels = x.shape[:2]
            gate = self.gate(x.mean((2, 3)).view(batch, channels)).view(batch, channels, 1, 1)
            x = nn.functional.avg_pool2d(self.narrow(x * gate), 2)
            return self.head(x.view(batch, -1)), torch.flatten(x, 2)

    torch.manual_seed(0)
    module, x, file = Net().eval(), torch.randn(2, 3, 8, 8), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            program = torch.onnx.export(
                module,
                (x,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
                optimize=False,
                verbose=False,
                input_names=["x"],
            )
            return program.model_proto
        torch.onnx.export(
            module, (x,), file, dynamo=False, opset_version=int(exporter), input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", "11", "17"])
def test_exports_keep_no_computed_shape(exporter: str) -> None:
    model = exported(exporter)
    result = rewrite(model, *CLEAN, *EXACT, DropZeroBias())
    for batch in (1, 3):
        check_same(model, result.proto, tolerance=1e-4, shapes={"x": (batch, 3, 8, 8)})
    assert not {"Shape", "Gather", "Concat", "Expand", "Unsqueeze"} & set(result.ops), result.ops
