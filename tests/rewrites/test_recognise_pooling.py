"""recognise-pooling: ReduceMean and ReduceMax over space."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import body, build, has, optimize, rewrite

from graphopt.cost.latency import Timing
from graphopt.graph.fragment import changed_fragment
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import bind_inputs, infer
from graphopt.rewrites.base import ExactRewrite, Proposal
from graphopt.rewrites.cleanup.keep_reduced_axes import KeepReducedAxes
from graphopt.rewrites.driver import Verdict
from graphopt.rewrites.exact.recognise_pooling import RecognisePooling

POOL = RecognisePooling()
MEAN_AND_MAX = [("ReduceMean", "GlobalAveragePool"), ("ReduceMax", "GlobalMaxPool")]


def reduced(
    reduce: str, x: str, y: str, axes: list[int], *, opset: int, rest: str = "", kind: str = "float"
) -> Any:
    """y = reduce(x) over axes, as attribute or as input."""
    as_input = opset >= 18
    attributes = rest if as_input else ", ".join(filter(None, [f"axes = {axes}", rest]))
    operands = "x, axes" if as_input else "x"
    call = f"{reduce}<{attributes}>({operands})" if attributes else f"{reduce}({operands})"
    return build(
        f"net ({kind}[{x}] x) => ({kind}[{y}] y) {{ y = {call} }}",
        opset=opset,
        weights={"axes": np.asarray(axes, np.int64)} if as_input else {},
    )


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 18, 21])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2], [2, -1]])
@pytest.mark.parametrize(("reduce", "pool"), MEAN_AND_MAX)
def test_two_dimensions(reduce: str, pool: str, axes: list[int], opset: int) -> None:
    if opset < 11 and min(axes) < 0:
        pytest.skip("negative axes came with opset 11")
    result = optimize(reduced(reduce, "2,3,5,4", "2,3,1,1", axes, opset=opset), POOL)
    assert result.ops == [pool]
    assert len(result.proto.graph.initializer) == 0


@pytest.mark.parametrize(("x", "axes"), [("2,3,7", [2]), ("1,3,4,2,3", [2, 3, -1])])
@pytest.mark.parametrize(("reduce", "pool"), MEAN_AND_MAX)
def test_one_and_three_dimensions(reduce: str, pool: str, x: str, axes: list[int]) -> None:
    y = ",".join([*x.split(",")[:2], *("1" for _ in axes)])
    result = optimize(reduced(reduce, x, y, axes, opset=18, rest="keepdims = 1"), POOL)
    assert result.ops == [pool]


def test_open_batch_and_size() -> None:
    proto = reduced("ReduceMean", "N,3,H,W", "N,3,1,1", [2, 3], opset=17)
    runs = [{"x": (1, 3, 4, 4)}, {"x": (3, 3, 9, 2)}]
    assert optimize(proto, POOL, runs=runs).ops == ["GlobalAveragePool"]


@pytest.mark.parametrize("axes", [[1, 2], [1], [2], [0, 2, 3], [1, 2, 3]])
def test_other_axes(axes: list[int]) -> None:
    y = ",".join("1" if axis in axes else n for axis, n in enumerate("2345"))
    result = optimize(reduced("ReduceMean", "2,3,4,5", y, axes, opset=17), POOL)
    assert result.ops == ["ReduceMean"]
    assert result.declined == ()


@pytest.mark.parametrize("opset", [17, 18])
def test_no_axes_are_all_axes(opset: int) -> None:
    proto = build(
        "net (float[2,3,4,5] x) => (float y) { y = ReduceMean<keepdims=0>(x) }", opset=opset
    )
    assert optimize(proto, POOL).ops == ["ReduceMean"]


def test_axes_that_are_dropped_stay_so() -> None:
    proto = reduced("ReduceMean", "2,3,4,5", "2,3", [2, 3], opset=17, rest="keepdims = 0")
    result = optimize(proto, POOL)
    assert result.ops == ["ReduceMean"]


@pytest.mark.parametrize("opset", [12, 13, 18])
def test_axes_that_are_dropped_and_put_back(opset: int) -> None:
    mean = (
        "ReduceMean<keepdims=0>(x, axes)"
        if opset >= 18
        else "ReduceMean<axes=[2,3], keepdims=0>(x)"
    )
    back = "Unsqueeze(m, axes)" if opset >= 13 else "Unsqueeze<axes=[2,3]>(m)"
    proto = build(
        f"net (float[2,3,4,5] x) => (float[2,3,1,1] y) {{ m = {mean} y = {back} }}",
        opset=opset,
        weights={"axes": np.array([2, 3], np.int64)} if opset >= 13 else {},
    )
    assert optimize(proto, KeepReducedAxes(), POOL).ops == ["GlobalAveragePool"]


def test_axes_put_elsewhere() -> None:
    proto = build(
        """net (float[2,3,4,5] x) => (float[1,1,2,3] y)
        { m = ReduceMean<axes=[2,3], keepdims=0>(x) y = Unsqueeze(m, axes) }""",
        weights={"axes": np.array([0, 1], np.int64)},
    )
    assert optimize(proto, KeepReducedAxes(), POOL).ops == ["ReduceMean", "Unsqueeze"]


def test_axes_that_are_fed() -> None:
    proto = build(
        "net (float[2,3,4,5] x, int64[2] axes) => (float[a,b,c,d] y) { y = ReduceMean(x, axes) }",
        opset=18,
    )
    result = optimize(proto, POOL, feeds={"axes": np.array([2, 3])})
    assert has(result.reasons, "computed at run time")


@pytest.mark.parametrize("kind", ["double", "int32"])
def test_types_without_a_pool(kind: str) -> None:
    result = optimize(reduced("ReduceMax", "1,3,4,5", "1,3,1,1", [2, 3], opset=17, kind=kind), POOL)
    assert result.ops == ["ReduceMax"]
    assert has(result.reasons, f"no GlobalMaxPool of type {kind}")


def test_half_precision() -> None:
    proto = reduced("ReduceMean", "1,3,4,5", "1,3,1,1", [2, 3], opset=17, kind="float16")
    assert optimize(proto, POOL, tolerance=2e-3).ops == ["GlobalAveragePool"]


def test_inside_a_body() -> None:
    proto = build(
        """net (float[2,3,4,5] x, bool go) => (float[2,3,1,1] y) <float[2,3,1,1] k> { a = Relu(x)
        y = If (go) <then_branch = t () => (float[2,3,1,1] yt) { yt = ReduceMean<axes=[2,3]>(a) },
                     else_branch = e () => (float[2,3,1,1] ye) { ye = Neg(k) }> }"""
    )
    for go in (True, False):
        result = optimize(proto, POOL, feeds={"go": np.asarray(go)})
        assert [n.op_type for n in body(result.proto, "If", "then_branch").node] == [
            "GlobalAveragePool"
        ]


HEAD = """net (float[1,8,6,6] x) => (float[1,8,1,1] y) <float[8,8,1,1] w, float[8] b>
    { c = Conv(x, w, b) s = Add(c, x) r = Relu(s) y = ReduceMean<axes=[2,3]>(r) }"""


def test_is_measured_with_the_convolution_before_it() -> None:
    seen: list[tuple[str, ...]] = []

    def gate(_: ExactRewrite, proposal: Proposal, scope: Scope) -> Verdict:
        seen.append(tuple(node.op_type for node in proposal.nodes))
        cut = changed_fragment(scope, proposal.nodes, _apply)
        assert cut is not None
        assert [node.op_type for node in cut[1].graph] == [
            "Conv",
            "Add",
            "Relu",
            "GlobalAveragePool",
        ]
        return Verdict(False, "slower", Timing(1.0, 2.0, 2.0, 2.0, 2.0, 9))

    result = rewrite(build(HEAD), POOL, gate=gate)
    assert seen == [("Conv", "Add", "Relu", "ReduceMean")]
    assert has(result.reasons, "slower")
    assert result.ops == ["Conv", "Add", "Relu", "ReduceMean"]
    assert optimize(build(HEAD), POOL).ops == ["Conv", "Add", "Relu", "GlobalAveragePool"]


def _apply(scope: Scope) -> bool:
    for finding in POOL.propose(scope):
        assert isinstance(finding, Proposal)
        finding.apply()
        return True
    return False


def test_a_target_may_take_it_always() -> None:
    proto = build(HEAD)
    parsed = ir.from_proto(proto)
    scope = Scope(parsed, parsed.graph, infer(parsed, bind_inputs(parsed.graph, {})))
    (found,) = RecognisePooling(gated=False).propose(scope)
    assert isinstance(found, Proposal)
    assert not found.gated
    assert len(found.nodes) == 1
