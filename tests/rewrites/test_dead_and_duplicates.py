"""remove-dead and merge-duplicates: what nothing needs, what is there twice, and what only seems so."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_text import build, listed, optimize, rewrite

from graphopt.rewrites import CLEANUP, EXACT
from graphopt.rewrites.cleanup.library import MergeDuplicates, RemoveDead

DEAD, MERGE = RemoveDead(), MergeDuplicates()


def test_dead_nodes_and_initializers_go() -> None:
    model = build(
        """net (float[4] x, float[4] unused) => (float[4] y) <float[4] k, float[4] never>
        { a = Mul(x, k) b = Exp(a) y = Relu(x) }"""
    )
    result = optimize(model, DEAD)
    assert result.ops == ["Relu"]
    assert not result.proto.graph.initializer
    assert [value.name for value in result.proto.graph.input] == ["x", "unused"]


def test_an_overridable_initializer_is_part_of_the_interface() -> None:
    model = listed(build("net (float[4] x) => (float[4] y) <float[4] k> { y = Relu(x) }"), "k")
    assert [t.name for t in optimize(model, DEAD).proto.graph.initializer] == ["k"]


def test_training_outputs_of_an_old_normalization_are_not_trimmed() -> None:
    """Before opset 14 their mere presence is what makes it compute batch statistics."""
    model = build(
        """net (float[2,4,3,3] x) => (float[2,4,3,3] y)
        <float[4] g, float[4] b, float[4] mean, float[4] var>
        { y, m, v, sm, sv = BatchNormalization(x, g, b, mean, var) }""",
        opset=9,
    )
    assert len(rewrite(model, *CLEANUP).proto.graph.node[0].output) == 5


def test_equal_nodes_merge() -> None:
    model = build(
        """net (float[1,3,6,6] x) => (float[1,4,4,4] y) <float[4,3,3,3] w>
        { a = Conv(x, w) b = Conv(x, w) y = Add(a, b) }"""
    )
    assert optimize(model, MERGE).ops == ["Conv", "Add"]


def test_equal_weights_merge() -> None:
    same = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model = build(
        "net (float[2,64] x) => (float[2,64] y) { a = MatMul(x, v) y = MatMul(a, w) }",
        weights={"v": same, "w": same.copy()},
    )
    result = optimize(model, MERGE)
    assert len(result.proto.graph.initializer) == 1


def test_equal_weight_that_a_caller_may_override_stays() -> None:
    same = np.ones((8, 8), np.float32)
    model = listed(
        build(
            "net (float[2,8] x) => (float[2,8] y) { a = MatMul(x, v) y = MatMul(a, w) }",
            weights={"v": same, "w": same},
        ),
        "w",
    )
    result = optimize(model, MERGE, feeds={"w": 2 * same})
    assert len(result.proto.graph.initializer) == 2


def test_equal_outputs_keep_their_names() -> None:
    model = build("net (float[4] x) => (float[4] y, float[4] z) { y = Relu(x) z = Relu(x) }")
    optimize(model, MERGE)


@pytest.mark.parametrize("draw", ["Bernoulli(x)", "RandomNormalLike(x)", "Dropout(x, half, yes)"])
def test_equal_draws_are_different_numbers(draw: str) -> None:
    model = build(
        f"net (float[64] x) => (float[64] y) {{ a = {draw} b = {draw} y = Sub(a, b) }}",
        weights={"half": np.float32(0.5), "yes": np.asarray(True)},
    )
    assert len(rewrite(model, *CLEANUP, MERGE).ops) == 3


def test_equal_calls_of_a_function_that_draws() -> None:
    model = build(
        """net (float[64] x) => (float[64] y) { a = my.noise(x) b = my.noise(x) y = Sub(a, b) }
        <domain: "my", opset_import: ["" : 17]>
        noise (x) => (y) { y = RandomNormalLike(x) }""",
        domains=["my"],
    )
    assert len(rewrite(model, *CLEANUP, MERGE).ops) == 3


def test_a_convolution_with_two_normalizations_is_not_shared_first() -> None:
    """Merged, it could absorb neither; so duplicates merge only when nothing else is left to do."""
    model = build(
        """net (float[1,3,6,6] x) => (float[1,4,4,4] y, float[1,4,4,4] z)
        <float[4,3,3,3] w, float[4] g, float[4] b, float[4] g2, float[4] mean, float[4] var>
        { c = Conv(x, w) d = Conv(x, w) y = BatchNormalization(c, g, b, mean, var)
          z = BatchNormalization(d, g2, b, mean, var) }"""
    )
    assert MERGE.late
    exact = [rewrite for rewrite in EXACT if rewrite.name != "merge-parallel"]
    result = optimize(model, *CLEANUP, *exact)
    assert result.ops == ["Conv", "Conv"]
