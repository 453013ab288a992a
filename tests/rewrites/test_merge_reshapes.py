"""merge-reshapes: chains of Reshape, Flatten, Squeeze, Unsqueeze as one, where that always holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import body, build, has, optimize, rewrite

from graphopt.rewrites.cleanup.library import LiftConstants, RemoveDead
from graphopt.rewrites.cleanup.merge_reshapes import MergeReshapes
from graphopt.rewrites.cleanup.remove_noops import RemoveNoops

MERGE = MergeReshapes()
FIXED = "float[2,3,4,5]"
OPEN = "float[N,3,4,5]"
RUNS = [{"x": (1, 3, 4, 5)}, {"x": (4, 3, 4, 5)}]


def chain(
    steps: str,
    *,
    x: str = OPEN,
    rank: int = 2,
    given: dict[str, list[int]] | None = None,
    more: str = "",
    opset: int = 17,
) -> onnx.ModelProto:
    """x -> Exp -> e -> steps -> r -> Abs -> y."""
    names = ",".join("abcdefgh"[:rank])
    return build(
        f"net ({x} x) => (float[{names}] y{more}) {{ e = Exp(x) {steps} y = Abs(r) }}",
        opset=opset,
        weights={k: np.asarray(v, np.int64) for k, v in (given or {}).items()},
    )


def target(result: object, node: int = 1) -> list[int]:
    return [int(n) for n in result.weight(node, 1)]  # type: ignore[attr-defined]


def test_the_last_target_stands_alone() -> None:
    model = chain("m = Reshape(e, s) r = Reshape(m, t)", given={"s": [0, -1], "t": [-1, 20]})
    result = optimize(model, MERGE, runs=RUNS)
    assert result.ops == ["Exp", "Reshape", "Abs"]
    assert result.proto.graph.node[1].input[1] == "t"
    assert result.names == ["merge-reshapes"]


def test_zeros_that_copy_from_the_middle() -> None:
    """0 copies axis 1 of the value between, 12, not 3."""
    model = chain(
        "m = Reshape(e, s) r = Reshape(m, t)", given={"s": [0, 12, 5], "t": [0, 0, 5]}, rank=3
    )
    result = optimize(model, MERGE, runs=RUNS)
    assert result.ops == ["Exp", "Reshape", "Abs"]
    assert target(result) == [0, 12, 5]


def test_zeros_that_copy_what_is_not_there() -> None:
    """The first axis of the middle is N * 3, which is not that of the input."""
    model = chain(
        "m = Reshape(e, s) r = Reshape(m, t)", given={"s": [-1, 20], "t": [0, 4, 5]}, rank=3
    )
    result = optimize(model, MERGE, runs=RUNS)
    assert target(result) == [-1, 4, 5] or result.ops.count("Reshape") == 2


def test_flatten_behind_reshape() -> None:
    model = chain("m = Reshape(e, s) r = Flatten(m)", given={"s": [0, 3, 20]})
    result = optimize(model, MERGE, runs=RUNS)
    assert result.ops == ["Exp", "Reshape", "Abs"]
    assert target(result) == [0, 60]


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_squeeze_and_flatten(opset: int) -> None:
    squeeze = "Squeeze<axes=[2,3]>(p)" if opset < 13 else "Squeeze(p, a)"
    model = chain(
        f"p = GlobalAveragePool(e) q = {squeeze} r = Flatten(q)",
        given={"a": [2, 3]},
        opset=opset,
    )
    result = optimize(model, MERGE, runs=RUNS)
    assert result.ops == ["Exp", "GlobalAveragePool", "Reshape", "Abs"]


@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize("x", ["float[A,B,C,D]", OPEN])
def test_squeeze_undoes_unsqueeze(x: str, opset: int) -> None:
    if opset < 13:
        steps = "m = Unsqueeze<axes=[1,3]>(e) r = Squeeze<axes=[1,3]>(m)"
    else:
        steps = "m = Unsqueeze(e, a) r = Squeeze(m, b)"
    model = chain(steps, x=x, rank=4, given={"a": [1, -3], "b": [3, 1]}, opset=opset)
    result = optimize(model, MERGE, runs=RUNS)
    assert result.ops == ["Exp", "Abs"]


def test_unsqueeze_undoes_squeeze_of_open_sizes() -> None:
    model = chain(
        "m = Squeeze(e, a) r = Unsqueeze(m, a)", x="float[A,1,C,D]", rank=4, given={"a": [1]}
    )
    result = optimize(model, MERGE, runs=[{"x": (2, 1, 3, 4)}])
    assert result.ops == ["Exp", "Abs"]


def test_unsqueeze_elsewhere_than_the_squeeze() -> None:
    model = chain(
        "m = Squeeze(e, a) r = Unsqueeze(m, b)",
        x="float[A,1,C]",
        rank=3,
        given={"a": [1], "b": [2]},
    )
    result = optimize(model, MERGE, runs=[{"x": (2, 1, 3)}])
    assert len(result.ops) > 2


@pytest.mark.parametrize("opset", [11, 13])
def test_unsqueezes_of_open_sizes(opset: int) -> None:
    if opset < 13:
        steps = "m = Unsqueeze<axes=[0]>(e) r = Unsqueeze<axes=[0,3]>(m)"
    else:
        steps = "m = Unsqueeze(e, a) r = Unsqueeze(m, b)"
    model = chain(steps, x="float[A,B]", rank=5, given={"a": [0], "b": [0, 3]}, opset=opset)
    result = optimize(model, MERGE, runs=[{"x": (2, 3)}])
    assert result.ops == ["Exp", "Unsqueeze", "Abs"]


def test_squeezes_of_open_sizes() -> None:
    model = chain(
        "m = Squeeze(e, a) r = Squeeze(m, b)", x="float[A,1,B,1]", given={"a": [1], "b": [-1]}
    )
    result = optimize(model, MERGE, runs=[{"x": (2, 1, 3, 1)}])
    assert result.ops == ["Exp", "Squeeze", "Abs"]
    assert target(result) == [1, 3]


def test_squeeze_of_a_part_of_what_was_unsqueezed() -> None:
    model = chain(
        "m = Unsqueeze(e, a) r = Squeeze(m, b)",
        x="float[A,B]",
        rank=3,
        given={"a": [0, 3], "b": [0]},
    )
    result = optimize(model, MERGE, runs=[{"x": (2, 3)}])
    assert result.ops == ["Exp", "Unsqueeze", "Abs"]
    assert target(result) == [2]


def test_squeeze_without_axes() -> None:
    """Which axes go depends on the sizes: with fixed ones that is known."""
    model = chain("m = Unsqueeze(e, a) r = Squeeze(m)", x="float[2,3]", given={"a": [1]})
    assert optimize(model, MERGE).ops == ["Exp", "Abs"]
    open_sizes = build(
        """net (float[A,3] x) => (float y) <int64[1] a>
        { e = Exp(x) m = Unsqueeze(e, a) r = Squeeze(m) y = ReduceSum<keepdims=0>(r) }""",
        weights={"a": np.array([1])},
    )
    result = optimize(open_sizes, MERGE, runs=[{"x": (2, 3)}, {"x": (1, 3)}])
    assert result.ops == ["Exp", "Unsqueeze", "Squeeze", "ReduceSum"]
    assert has(result.reasons, "for every input")


def test_there_and_back() -> None:
    model = chain(
        "m = Reshape(e, s) r = Reshape(m, t)",
        given={"s": [2, -1], "t": [2, 3, 4, 5]},
        x=FIXED,
        rank=4,
    )
    assert optimize(model, MERGE).ops == ["Exp", "Abs"]


def test_there_and_back_between_the_names_of_the_interface() -> None:
    model = build(
        """net (float[2,3] x) => (float[2,3] y) { m = Reshape(x, s) y = Reshape(m, t) }""",
        weights={"s": np.array([6]), "t": np.array([2, 3])},
    )
    result = optimize(model, MERGE)
    assert result.ops == ["Reshape", "Reshape"]
    assert has(result.reasons, "name that must stay")


def test_a_long_chain() -> None:
    model = chain(
        """a = Flatten(e) b = Reshape(a, s) c = Unsqueeze(b, u) d = Squeeze(c, u)
        f = Reshape(d, t) r = Flatten<axis=2>(f)""",
        given={"s": [0, 3, 20], "u": [0], "t": [-1, 6, 10]},
    )
    result = optimize(model, MERGE, RemoveNoops(), runs=RUNS)
    assert result.ops == ["Exp", "Reshape", "Abs"]


def test_value_between_is_needed() -> None:
    steps = "m = Reshape(e, s) r = Reshape(m, t)"
    shapes = {"s": [-1, 60], "t": [-1, 20]}
    result = optimize(chain(steps, given=shapes, more=", float[i,j] m"), MERGE, runs=RUNS)
    assert result.names == []
    assert has(result.reasons, "needed elsewhere")


def test_value_between_is_needed_but_the_end_is_the_beginning() -> None:
    model = chain(
        "m = Unsqueeze(e, a) r = Squeeze(m, a)",
        rank=4,
        given={"a": [0]},
        more=", float[i,j,k,l,o] m",
    )
    assert sorted(optimize(model, MERGE, runs=RUNS).ops) == ["Abs", "Exp", "Unsqueeze"]


def test_two_open_sizes() -> None:
    model = chain(
        "m = Unsqueeze(e, a) r = Flatten<axis=2>(m)", x="float[A,B,C,D]", given={"a": [0]}
    )
    result = optimize(model, MERGE, runs=[{"x": (2, 3, 4, 5)}])
    assert result.ops == ["Exp", "Unsqueeze", "Flatten", "Abs"]
    assert has(result.reasons, "for every input")


def test_allowzero() -> None:
    model = chain("m = Flatten(e) r = Reshape<allowzero=1>(m, t)", given={"t": [-1, 20]})
    assert optimize(model, MERGE, runs=RUNS).ops == ["Exp", "Reshape", "Abs"]
    empty = chain(
        "m = Flatten(e) r = Reshape<allowzero=1>(m, t)", x="float[0,3,4]", given={"t": [0, 12]}
    )
    result = optimize(empty, MERGE, runs=[{"x": (0, 3, 4)}])
    assert "Reshape" in result.ops


def test_an_empty_batch() -> None:
    """What worked for no sample at all still does."""
    model = chain("m = Reshape(e, s) r = Flatten(m)", given={"s": [0, 3, 20]})
    optimize(model, MERGE, runs=[{"x": (0, 3, 4, 5)}])


def test_target_computed_at_run_time() -> None:
    """x.view(x.size(0), -1): the shape arithmetic is dead afterwards."""
    model = build(
        f"""net ({OPEN} x) => (float[N,60] y) <int64 i, int64[1] k, int64[1] a>
        {{ e = Exp(x) s = Shape(e) n = Gather<axis=0>(s, i) u = Unsqueeze(n, a)
           t = Concat<axis=0>(u, k) r = Reshape(e, t) y = Abs(r) }}""",
        weights={"i": np.int64(0), "k": np.array([60]), "a": np.array([0])},
    )
    result = optimize(model, MERGE, RemoveDead(), runs=RUNS)
    assert result.ops == ["Exp", "Reshape", "Abs"]
    assert target(result) == [0, 60]


def test_target_computed_at_run_time_with_unknown_result() -> None:
    model = build(
        """net (float[N,M] x, float[P,Q] z) => (float[a,b] y)
        { e = Exp(x) s = Shape(z) r = Reshape(e, s) y = Abs(r) }"""
    )
    result = optimize(model, MERGE, runs=[{"x": (6, 4), "z": (8, 3)}])
    assert result.names == []
    assert has(result.reasons, "at run time")


def generated(more: str = "") -> onnx.ModelProto:
    return build(
        f"""net (float[2,64] x) => (float[2,32] y{", float[2048] g" if more else ""})
        {{ g = ConstantOfShape<value = float[1] {{0.5}}>(s) w = Reshape(g, t) y = MatMul(x, w) }}""",
        weights={"s": np.array([2048]), "t": np.array([64, 32])},
    )


def test_a_generated_weight_is_generated_in_its_shape() -> None:
    model = generated()
    result = optimize(model, MERGE)
    assert result.ops == ["ConstantOfShape", "MatMul"]
    assert len(result.proto.SerializeToString()) < 1000


def test_a_generated_weight_that_others_read_stays() -> None:
    assert "Reshape" in optimize(generated(more="g"), MERGE).ops


def test_target_that_is_fed() -> None:
    model = build("net (float[2,3] x, int64[1] s) => (float[a] y) { e = Exp(x) y = Reshape(e, s) }")
    result = optimize(model, MERGE, feeds={"s": np.array([6])})
    assert result.names == []


def test_before_opset_5() -> None:
    model = build(
        """net (float[2,3,4] x) => (float[6,4] y)
        { m = Reshape<shape=[2,12]>(x) y = Reshape<shape=[6,4]>(m) }""",
        opset=4,
    )
    result = rewrite(model, MERGE)
    assert result.ops == ["Reshape", "Reshape"]
    assert has(result.reasons, "older than 5")


def test_constants_behind_nodes() -> None:
    model = chain(
        "c = Constant<value_ints=[-1,20]>() i = Identity(c) m = Flatten(e) r = Reshape(m, i)"
    )
    result = optimize(model, LiftConstants(), RemoveNoops(), MERGE, runs=RUNS)
    assert result.ops == ["Exp", "Reshape", "Abs"]


@pytest.mark.parametrize("cond", [True, False])
def test_in_bodies(cond: bool) -> None:
    model = build(
        f"""net ({FIXED} x, bool cond) => (float[2,60] y) <int64[1] a, int64[2] s>
        {{ u = Unsqueeze(x, a)
        y = If (cond) <then_branch = p () => (float[2,60] yt) {{ v = Flatten(u) yt = Reshape(v, s) }},
          else_branch = q () => (float[2,60] ye) {{ ye = Reshape(u, s) }}> }}""",
        weights={"a": np.array([0]), "s": np.array([2, 60])},
    )
    result = optimize(model, MERGE, feeds={"cond": np.asarray(cond)})
    assert len(body(result.proto, "If", "then_branch").node) == 1


@st.composite
def chains(draw: st.DrawFn) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """Random chains on [N, 2, 3, 4]; all of them valid for every N."""
    shape: list[int] = [draw(st.integers(1, 3)), 2, 3, 4]
    first, steps, weights = shape[0], [], {}
    for index in range(draw(st.integers(2, 5))):
        source, made = f"v{index}", f"v{index + 1}"
        kind = draw(st.sampled_from(["Flatten", "Unsqueeze", "Squeeze", "Reshape", "Zero"]))
        key = f"k{index}"
        units = [i for i, n in enumerate(shape) if n == 1 and i > 0]
        if kind == "Squeeze" and units:
            axis = draw(st.sampled_from(units))
            weights[key] = [draw(st.sampled_from([axis, axis - len(shape)]))]
            steps.append(f"{made} = Squeeze({source}, {key})")
            del shape[axis]
        elif kind == "Unsqueeze":
            axis = draw(st.integers(1, len(shape)))
            weights[key] = [axis]
            steps.append(f"{made} = Unsqueeze({source}, {key})")
            shape.insert(axis, 1)
        elif kind == "Zero" and len(shape) > 1:
            weights[key] = [0] * (len(shape) - 1) + [-1]
            steps.append(f"{made} = Reshape({source}, {key})")
        elif kind == "Reshape":
            weights[key] = [-1, draw(st.sampled_from([1, 2, 12])), 2]
            rest = int(np.prod(shape)) // (weights[key][1] * 2)
            shape = [rest, weights[key][1], 2]
            steps.append(f"{made} = Reshape({source}, {key})")
        else:
            steps.append(f"{made} = Flatten({source})")
            shape = [shape[0], int(np.prod(shape[1:]))]
    last = f"v{len(steps)}"
    names = ",".join("abcdefghijkl"[: len(shape)])
    text = f"net (float[N,2,3,4] x) => (float[{names}] y) {{ v0 = Exp(x) {' '.join(steps)} y = Abs({last}) }}"
    model = build(text, weights={k: np.asarray(v, np.int64) for k, v in weights.items()})
    return model, (first, 2, 3, 4)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(chains())
def test_random_chains(case: tuple[onnx.ModelProto, tuple[int, ...]]) -> None:
    model, shape = case
    result = optimize(model, MERGE, runs=[{"x": shape}, {"x": (5, 2, 3, 4)}])
    assert len(result.ops) <= len(model.graph.node)
