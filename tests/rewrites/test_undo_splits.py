"""undo-splits: Split, Slice and Concat that undo one another, in old and new forms."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import body, build, has, optimize

from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.cleanup.remove_noops import RemoveNoops
from graphopt.rewrites.cleanup.undo_splits import UndoSplits

UNDO = UndoSplits()
MAX = int(np.iinfo(np.int64).max)
INT_MAX = int(np.iinfo(np.int32).max)


def net(
    steps: str,
    *,
    x: str = "float[2,6,5]",
    y: str = "float[a,b,c]",
    more_in: str = "",
    more_out: str = "",
    opset: int = 17,
    given: dict[str, object] | None = None,
) -> onnx.ModelProto:
    """x -> Exp -> e -> steps -> r -> Abs -> y."""
    return build(
        f"net ({x} x{more_in}) => ({y} y{more_out}) {{ e = Exp(x) {steps} y = Abs(r) }}",
        opset=opset,
        weights={k: np.asarray(v, np.int64) for k, v in (given or {}).items()},
    )


def split(outputs: str, source: str, axis: int, sizes: list[int] | None, opset: int) -> str:
    if sizes is None:
        count = len(outputs.split(","))
        more = f", num_outputs={count}" if opset >= 18 else ""
        return f"{outputs} = Split<axis={axis}{more}>({source})"
    if opset < 13:
        return f"{outputs} = Split<axis={axis}, split={sizes}>({source})"
    return f"{outputs} = Split<axis={axis}>({source}, sizes)"


def cut(made: str, source: str, axis: int, start: int, end: int, opset: int) -> str:
    """A Slice of the operator set's form."""
    if opset < 10:
        return f"{made} = Slice<axes=[{axis}], starts=[{start}], ends=[{end}]>({source})"
    names = [f"{made}_{what}" for what in ("s", "e", "a")]
    values = " ".join(
        f"{name} = Constant<value = int64[1] {{{value}}}>()"
        for name, value in zip(names, (start, end, axis), strict=True)
    )
    return f"{values} {made} = Slice({source}, {', '.join(names)})"


def without_constants(ops: list[str]) -> list[str]:
    return [op for op in ops if op != "Constant"]


OPSETS = [7, 9, 11, 13, 18]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("sizes", [None, [1, 2, 3]])
def test_concat_of_all_parts(sizes: list[int] | None, opset: int) -> None:
    steps = split("p, q, s", "e", 1, sizes, opset) + " r = Concat<axis=-2>(p, q, s)"
    opset = max(opset, 7)
    if opset < 11:
        steps = steps.replace("axis=-2", "axis=1")
    result = optimize(net(steps, opset=opset, given={"sizes": sizes or [2, 2, 2]}), UNDO)
    assert result.ops == ["Exp", "Abs"]
    assert result.names == ["undo-splits"]


def test_open_sizes_do_not_matter_to_concat_of_split() -> None:
    model = net(
        split("p, q", "e", 1, None, 13) + " r = Concat<axis=1>(p, q)", x="float[N,M,5]", opset=13
    )
    assert optimize(model, UNDO, runs=[{"x": (2, 4, 5)}]).ops == ["Exp", "Abs"]


@pytest.mark.parametrize(
    "concat", ["Concat<axis=1>(q, p)", "Concat<axis=0>(p, q)", "Concat<axis=1>(p, p, q, p)"]
)
def test_other_concats_of_parts(concat: str) -> None:
    model = net(split("p, q", "e", 1, None, 13) + f" r = {concat}", opset=13)
    result = optimize(model, UNDO)
    ops = ["Exp", "Split", "Concat", "Abs"]
    assert result.ops == ops


def test_concat_of_parts_among_others() -> None:
    model = net(split("p, q", "e", 1, None, 13) + " r = Concat<axis=1>(x, p, q, x)", opset=13)
    assert optimize(model, UNDO).ops == ["Exp", "Concat", "Abs"]


def test_parts_needed_elsewhere() -> None:
    model = net(
        split("p, q", "e", 1, None, 13) + " r = Concat<axis=1>(p, q)",
        opset=13,
        more_out=", float[d,f,g] p",
    )
    assert sorted(optimize(model, UNDO).ops) == ["Abs", "Exp", "Split"]


def test_between_the_names_of_the_interface() -> None:
    model = build(
        """net (float[2,6] x) => (float[2,6] y)
        { p, q = Split<axis=1>(x) y = Concat<axis=1>(p, q) }"""
    )
    result = optimize(model, UNDO)
    assert result.ops == ["Split", "Concat"]
    assert has(result.reasons, "name that must stay")


@pytest.mark.parametrize("opset", OPSETS)
def test_split_of_a_concat(opset: int) -> None:
    steps = "f = Neg(z) c = Concat<axis=1>(e, f) "
    steps += (
        split("p, q", "c", 1, [6, 2], opset) + " s = Tanh(q) t = Abs(p) r = Concat<axis=1>(s, t)"
    )
    model = net(steps, more_in=", float[2,2,5] z", opset=opset, given={"sizes": [6, 2]})
    result = optimize(model, UNDO)
    assert sorted(result.ops) == sorted(["Exp", "Neg", "Tanh", "Abs", "Concat", "Abs"])


def test_split_into_outputs() -> None:
    """The parts are outputs of the graph: their names pass to the operands."""
    model = build(
        """net (float[2,3] x, float[2,3] z) => (float[2,3] p, float[2,3] q)
        { e = Exp(x) f = Neg(z) c = Concat<axis=1>(e, f) p, q = Split<axis=1>(c) }"""
    )
    assert optimize(model, UNDO).ops == ["Exp", "Neg"]
    same = build(
        """net (float[2,3] x) => (float[2,3] p, float[2,3] q)
        { e = Exp(x) c = Concat<axis=1>(e, e) p, q = Split<axis=1>(c) }"""
    )
    result = optimize(same, UNDO)
    assert result.ops == ["Exp", "Concat", "Split"]
    assert has(result.reasons, "name that must stay")


@pytest.mark.parametrize(
    ("x", "sizes", "reason"),
    [("float[2,6,5]", [4, 4], "not the operands"), ("float[2,M,5]", [6, 2], "not the operands")],
)
def test_splits_elsewhere(x: str, sizes: list[int], reason: str) -> None:
    steps = "c = Concat<axis=1>(e, z) " + split("p, q", "c", 1, sizes, 13)
    steps += " s = Tanh(q) t = Abs(p) r = Concat<axis=1>(s, t)"
    model = net(steps, x=x, more_in=", float[2,2,5] z", opset=13, given={"sizes": sizes})
    result = optimize(model, UNDO, runs=[{"x": (2, 6, 5)}])
    assert result.names == []
    assert has(result.reasons, reason)


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [
        (0, 6, "e"), (-11, -5, "e"), (6, 8, "f"), (-5, -3, "f"), (6, -3, "f"), (8, MAX, "g"),
        (8, INT_MAX, "g"), (-3, MAX, "g"), (8, 11, "g"), (8, 100, "g"), (0, 7, None), (1, 6, None),
        (6, 11, None), (0, 8, None), (-100, 6, "e"),
    ],
)  # fmt: skip
def test_slice_of_a_concat(start: int, end: int, kept: str | None, opset: int) -> None:
    steps = "f = Neg(z) g = Sin(v) c = Concat<axis=1>(e, f, g) " + cut(
        "r", "c", 1, start, end, opset
    )
    model = net(steps, more_in=", float[2,2,5] z, float[2,3,5] v", opset=opset)
    result = optimize(model, UNDO)
    made = without_constants(result.ops)
    if kept is None:
        assert "Slice" in made
        assert has(result.reasons, "just one operand")
    else:
        assert "Slice" not in made
        assert "Concat" not in made


@pytest.mark.parametrize(
    ("start", "end", "fits"), [(-3, MAX, True), (6, MAX, False), (0, 6, False)]
)
def test_slice_of_a_concat_of_open_size(start: int, end: int, fits: bool) -> None:
    """The first operand may have any length: only what is counted from the back is known."""
    steps = "c = Concat<axis=1>(e, z) " + cut("r", "c", 1, start, end, 13)
    model = net(steps, x="float[2,M,5]", more_in=", float[2,3,5] z", opset=13)
    result = optimize(model, UNDO, runs=[{"x": (2, 6, 5)}, {"x": (2, 7, 5)}])
    assert ("Slice" not in result.ops) == fits


def test_slice_of_a_concat_along_another_axis_or_with_steps() -> None:
    other = net("c = Concat<axis=1>(e, e) " + cut("r", "c", 2, 0, 3, 13), opset=13)
    assert "Slice" in optimize(other, UNDO).ops
    steps = net(
        "c = Concat<axis=1>(e, e) r = Slice(c, s, t, a, k)",
        given={"s": [0], "t": [6], "a": [1], "k": [2]},
    )
    assert "Slice" in optimize(steps, UNDO).ops


def test_concat_needed_elsewhere_too() -> None:
    steps = "c = Concat<axis=1>(e, x) " + cut("r", "c", 1, 0, 6, 13)
    model = net(steps, opset=13, more_out=", float[d,f,g] c")
    assert sorted(without_constants(optimize(model, UNDO, RemoveDead()).ops)) == [
        "Abs",
        "Concat",
        "Exp",
    ]


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, 5), (1, 3)), ((1, 5), (1, MAX)), ((2, MAX), (1, 2)), ((1, 5), (0, 100)),
        ((0, 4), (3, 9)), ((1, -1), (1, MAX)), ((-4, MAX), (1, 2)), ((1, 5), (-2, MAX)),
        ((4, 2), (0, 1)), ((1, 3), (2, 1)), ((3, 100), (2, INT_MAX)),
    ],
)  # fmt: skip
def test_slices_of_one_axis(first: tuple[int, int], second: tuple[int, int], opset: int) -> None:
    """All sizes are fixed, so that ends counted from the back are known too."""
    steps = (
        cut("m", "e", 1, *first, opset) + " " + cut("r", "m", -2 + 3 * (opset < 10), *second, opset)
    )
    result = optimize(net(steps, opset=opset), UNDO, RemoveDead())
    assert without_constants(result.ops) == ["Exp", "Slice", "Abs"]


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ((1, 5), (1, 3), True), ((1, MAX), (1, MAX), True), ((1, -1), (1, MAX), True),
        ((1, -1), (1, 3), False), ((-3, MAX), (1, MAX), False), ((1, 5), (-2, MAX), False),
    ],
)  # fmt: skip
def test_slices_of_an_open_axis(
    first: tuple[int, int], second: tuple[int, int], merged: bool
) -> None:
    steps = cut("m", "e", 1, *first, 13) + " " + cut("r", "m", 1, *second, 13)
    result = optimize(
        net(steps, opset=13, x="float[2,M,5]"),
        UNDO,
        RemoveDead(),
        runs=[{"x": (2, size, 5)} for size in (1, 2, 4, 8)],
    )
    assert result.ops.count("Slice") == (1 if merged else 2)
    assert merged or has(result.reasons, "counted from the back")


def test_slices_of_different_axes() -> None:
    model = net(
        "m = Slice(e, s, t, a, k) r = Slice(m, s2, t2, a2)",
        given={
            "s": [-1], "t": [-MAX], "a": [1], "k": [-2], "s2": [1, 0], "t2": [MAX, -1], "a2": [-1, 0],
        },
        x="float[N,6,M]",
    )  # fmt: skip
    result = optimize(model, UNDO, runs=[{"x": (3, 6, 4)}])
    assert result.ops == ["Exp", "Slice", "Abs"]


def test_slices_with_steps() -> None:
    given = {"s": [0], "t": [6], "a": [1], "k": [2], "s2": [0], "t2": [2]}
    model = net("m = Slice(e, s, t, a, k) r = Slice(m, s2, t2, a)", given=given)
    result = optimize(model, UNDO)
    assert result.ops.count("Slice") == 2
    assert has(result.reasons, "steps")


def test_slices_without_axes() -> None:
    given = {"s": [0, 1], "t": [1, 5], "s2": [0, 1, 1], "t2": [9, 9, 3]}
    model = net("m = Slice(e, s, t) r = Slice(m, s2, t2)", given=given)
    assert optimize(model, UNDO).ops == ["Exp", "Slice", "Abs"]


def test_slice_between_is_an_output() -> None:
    steps = cut("m", "e", 1, 1, 5, 9) + " " + cut("r", "m", 1, 1, 3, 9)
    result = optimize(net(steps, opset=9, more_out=", float[d,f,g] m"), UNDO)
    assert result.names == []
    assert has(result.reasons, "needed elsewhere")


def test_ends_computed_at_run_time() -> None:
    model = build(
        """net (float[2,6] x, int64[1] n) => (float[a,b] y) <int64[1] s, int64[1] t, int64[1] a1>
        { m = Slice(x, s, n, a1) y = Slice(m, s, t, a1) }""",
        weights={"s": np.array([1]), "t": np.array([2]), "a1": np.array([1])},
    )
    assert optimize(model, UNDO, feeds={"n": np.array([5])}).ops == ["Slice", "Slice"]


@pytest.mark.parametrize("opset", [9, 13])
def test_concat_of_concat(opset: int) -> None:
    inner = -2 if opset > 10 else 1
    steps = f"c = Concat<axis={inner}>(e, x) d = Concat<axis=1>(x, c, e, c) r = Neg(d)"
    result = optimize(net(steps, opset=opset), UNDO)
    assert result.ops == ["Exp", "Concat", "Neg", "Abs"]
    assert len(result.proto.graph.node[1].input) == 6


@pytest.mark.parametrize(
    ("steps", "more"),
    [
        ("c = Concat<axis=1>(e, x) r = Concat<axis=1>(x, c)", ", float[d,f,g] c"),
        ("c = Concat<axis=2>(e, x) f = Concat<axis=2>(x, x) r = Concat<axis=1>(f, c)", ""),
    ],
)
def test_concats_that_stay(steps: str, more: str) -> None:
    result = optimize(net(steps, more_out=more), UNDO)
    assert result.names == []


def pieces(bounds: list[tuple[int, int]], opset: int = 13) -> str:
    names = [f"p{i}" for i in range(len(bounds))]
    cuts = " ".join(cut(n, "e", 1, a, b, opset) for n, (a, b) in zip(names, bounds, strict=True))
    return f"{cuts} r = Concat<axis=1>({', '.join(names)})"


COVERS = [
    ([(0, 2), (2, MAX)], True, True),
    ([(0, 2), (2, 4), (4, INT_MAX)], True, True),
    ([(0, -2), (-2, MAX)], True, True),
    ([(0, -4), (-4, -1), (-1, MAX)], True, True),
    ([(0, 2), (2, 6)], True, False),
    ([(0, 2), (2, -2), (-2, MAX)], True, False),
    ([(0, 2), (-4, MAX)], True, False),
    ([(0, 4), (4, 2), (2, MAX)], False, False),
    ([(0, -2), (-2, 2), (2, MAX)], False, False),
    ([(0, 2), (3, MAX)], False, False),
    ([(2, MAX), (0, 2)], False, False),
    ([(0, 2), (2, 5)], False, False),
]


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize(("bounds", "fixed", "open_too"), COVERS)
def test_slices_that_cover(
    bounds: list[tuple[int, int]], fixed: bool, open_too: bool, opset: int
) -> None:
    """`open_too`: also where the length of the axis is not known."""
    result = optimize(net(pieces(bounds, opset), opset=opset), UNDO, RemoveDead())
    assert (without_constants(result.ops) == ["Exp", "Abs"]) == fixed
    model = net(pieces(bounds, opset), opset=opset, x="float[2,M,5]")
    runs = [{"x": (2, size, 5)} for size in (1, 2, 3, 4, 6, 9)]
    result = optimize(model, UNDO, RemoveDead(), runs=runs)
    assert (without_constants(result.ops) == ["Exp", "Abs"]) == open_too


def test_slices_of_two_values() -> None:
    steps = (
        cut("p", "e", 1, 0, 2, 9) + " " + cut("q", "x", 1, 2, 6, 9) + " r = Concat<axis=1>(p, q)"
    )
    assert optimize(net(steps, opset=9), UNDO).names == []


@pytest.mark.parametrize("cond", [True, False])
def test_in_bodies(cond: bool) -> None:
    """A Split outside the body stays for the other branch; names captured by it survive."""
    model = build(
        """net (float[2,6] x, bool cond) => (float[2,6] y) { e = Exp(x) p, q = Split<axis=1>(e)
        y = If (cond) <then_branch = a () => (float[2,6] yt)
            { s, t = Split<axis=1>(e) c = Concat<axis=1>(s, t) yt = Neg(c) },
          else_branch = b () => (float[2,6] ye) { ye = Concat<axis=1>(p, q) }> }"""
    )
    result = optimize(model, UNDO, feeds={"cond": np.asarray(cond)})
    assert [n.op_type for n in body(result.proto, "If", "then_branch").node] == ["Neg"]
    assert [n.op_type for n in body(result.proto, "If", "else_branch").node] == ["Concat"]


@st.composite
def cuts_and_joins(draw: st.DrawFn) -> onnx.ModelProto:
    """Random Split, Slice and Concat along one axis of fixed sizes."""
    values, lines = {"x": 6, "z": 3}, []
    for index in range(draw(st.integers(2, 8))):
        source = draw(st.sampled_from(sorted(values)))
        size, made = values[source], f"v{index}"
        kind = draw(st.sampled_from(["Concat", "Concat", "Slice", "Split"]))
        if kind == "Split" and size >= 2:
            at = draw(st.integers(1, size - 1))
            lines.append(f"{made}a, {made}b = Split<axis=1, split=[{at},{size - at}]>({source})")
            lines.append(f"{made} = Concat<axis=1>({made}a, {made}b)")
            values |= {f"{made}a": at, f"{made}b": size - at, made: size}
        elif kind == "Slice" and size >= 2:
            at = draw(st.integers(1, size - 1))
            end = draw(st.sampled_from([size, MAX, 100]))
            back = draw(st.booleans())
            lines.append(cut(f"{made}a", source, 1, 0, at - size if back else at, 9))
            lines.append(cut(f"{made}b", source, 1, at - size if back else at, end, 9))
            lines.append(f"{made} = Concat<axis=1>({made}a, {made}b)")
            values |= {f"{made}a": at, f"{made}b": size - at, made: size}
        else:
            others = draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=2))
            lines.append(f"{made} = Concat<axis=1>({', '.join([source, *others])})")
            values[made] = size + sum(values[other] for other in others)
    made_here = sorted(set(values) - {"x", "z"})
    outputs = draw(st.lists(st.sampled_from(made_here), min_size=1, max_size=3, unique=True))
    listed = ", ".join(f"float[2,{values[name]}] {name}" for name in outputs)
    return build(f"net (float[2,6] x, float[2,3] z) => ({listed}) {{ {' '.join(lines)} }}", opset=9)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(cuts_and_joins())
def test_random_cuts_and_joins(model: onnx.ModelProto) -> None:
    before = optimize(model, RemoveDead(), RemoveNoops())
    result = optimize(model, RemoveDead(), RemoveNoops(), UNDO)
    assert len(result.ops) <= len(before.ops)
