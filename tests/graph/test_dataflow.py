"""The dataflow graph, convex regions, and peak memory on graphs worked out by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt.graph.dataflow import dataflow, is_convex, peak_activation_bytes
from graphopt.graph.shapes import bind_inputs, infer


def graph(text: str) -> tuple[ir.Model, dict[str, ir.Node]]:
    model = ir.from_proto(build(text))
    return model, {node.outputs[0].name or "": node for node in model.graph}


def peak(text: str) -> int | None:
    model, _ = graph(text)
    return peak_activation_bytes(model.graph, infer(model, bind_inputs(model.graph, {})))


DIAMOND = "net (float[4] x) => (float[4] y) { a = Abs(x) b = Exp(a) c = Neg(a) d = Relu(c) y = Add(b, d) }"


def test_edges() -> None:
    model, node = graph(DIAMOND)
    flow = dataflow(model.graph)
    edges = [("a", "b"), ("a", "c"), ("c", "d"), ("b", "y"), ("d", "y")]
    assert set(flow.edges) == {(node[u], node[v]) for u, v in edges}


@pytest.mark.parametrize(
    ("region", "convex"),
    [
        ("a b c d y", True),
        ("c d", True),
        ("a c", True),
        ("b c", True),
        ("a d", False),  # a -> c -> d leaves through c
        ("a y", False),
        ("a b y", False),
        ("", True),
        ("c", True),
    ],
)
def test_convexity(region: str, convex: bool) -> None:
    model, node = graph(DIAMOND)
    assert is_convex(dataflow(model.graph), [node[name] for name in region.split()]) is convex


BRANCHES = """net (float[4] x, bool go) => (float[4] y) {{ {}
    y = If (go) <then_branch = t () => (float[4] t1) {{ t0 = Neg({}) t1 = Exp(t0) }},
                 else_branch = e () => (float[4] e1) {{ e1 = Neg(x) }}> }}"""


def test_what_a_body_reads_counts_for_its_owner() -> None:
    model, node = graph(BRANCHES.format("a = Abs(x)", "a"))
    assert set(dataflow(model.graph).edges) == {(node["a"], node["y"])}


def test_peak_of_a_chain_is_two_values() -> None:
    assert peak("net (float[8] x) => (float[8] y) { a = Abs(x) b = Exp(a) y = Neg(b) }") == 64


def test_peak_of_a_residual_block() -> None:
    """x [8] and a, b [16] floats: at b, x waits for the end while a is read and b written."""
    text = """net (float[8] x) => (float[16] y) {
        a = Concat<axis=0>(x, x) b = Exp(a) c = Concat<axis=0>(x, x) y = Add(b, c) }"""
    # a: x + a = 96; b: x + a + b = 160; c: x + b + c = 160; y: b + c + y = 192
    assert peak(text) == 192


def test_an_output_lives_to_the_end() -> None:
    text = "net (float[8] x) => (float[8] a, float[8] y) { a = Abs(x) b = Exp(x) c = Neg(b) y = Relu(c) }"
    # b: a, x, b; c: a, b, c; y: a, c, y: three at a time
    assert peak(text) == 96


def test_an_input_that_a_body_reads_lives_until_then() -> None:
    """x is read by the If alone, after a chain that does not touch it."""
    text = """net (float[100] x, float[4] z, bool go) => (float[4] y) { a = Abs(z)
        b = Exp(a)
        y = If (go) <then_branch = t () => (float[4] t1) { t0 = ReduceMean(x) t1 = Add(t0, b) },
                     else_branch = e () => (float[4] e1) { e1 = Identity(b) }> }"""
    # at a: x 400, z 16, go 1, a 16; at b: x, go, a, b; at y: x, go, b, y
    assert peak(text) == 400 + 16 + 1 + 16


def test_weights_do_not_count_and_types_do() -> None:
    assert peak("net (float[4,8] x) => (float[4,2] y) <float[8,2] w> { y = MatMul(x, w) }") == 160
    assert peak("net (float16[8] x) => (double[8] y) { y = Cast<to=11>(x) }") == 16 + 64


def test_unknown_shape() -> None:
    model, _ = graph("net (float[4] x) => (float[4] y) { y = Abs(x) }")
    assert peak_activation_bytes(model.graph, {}) is None
