"""Cutting nodes out to time them, and fingerprints that do not depend on names."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import LEVELS, build, run

from graphopt.graph.annotate import annotate
from graphopt.graph.fragment import cut_out, fingerprint
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer

TEXT = """net (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, float[4] b>
    { p = Exp(x) c = Conv(p, w, b) r = Relu(c) y = Add(r, c) }"""


def opened(text: str = TEXT, shape: tuple[int, ...] = (2, 3, 8, 8), **options: object) -> Scope:
    model = ir.from_proto(build(text, **options))
    infos = infer(model, {"x": shape})
    annotate(model)
    return Scope(model, model.graph, infos)


def cut(scope: Scope, *names: str, batch: int | None = None) -> ir.Model:
    chosen = [n for n in scope.graph if n.outputs[0].name in names]
    return cut_out(scope, chosen, batch=batch)


def test_inputs_weights_and_outputs() -> None:
    fragment = cut(opened(), "c", "r")
    assert [(v.name, tuple(v.shape)) for v in fragment.graph.inputs] == [("p", (2, 3, 8, 8))]
    assert list(fragment.graph.initializers) == ["w", "b"]
    assert [v.name for v in fragment.graph.outputs] == ["c", "r"]  # y reads both
    onnx.checker.check_model(ir.to_proto(fragment), full_check=True)


def test_it_computes_what_the_nodes_do() -> None:
    scope = opened()
    proto = ir.to_proto(cut(scope, "c", "r", "y"))
    x = {"p": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    whole = build(TEXT.replace("p = Exp(x)", "p = Identity(x)"))
    np.testing.assert_array_equal(
        run(proto, x, LEVELS[0])[0], run(whole, {"x": x["p"]}, LEVELS[0])[0]
    )


def test_batch() -> None:
    proto = ir.to_proto(cut(opened(), "c", batch=5))
    (out,) = run(proto, {"p": np.zeros((5, 3, 8, 8), np.float32)}, LEVELS[0])
    assert out.shape == (5, 4, 6, 6)


def test_the_model_is_not_touched() -> None:
    scope = opened()
    before = ir.to_proto(scope.model).SerializeToString()
    cut(scope, "c", "r")
    assert ir.to_proto(scope.model).SerializeToString() == before


def test_unknown_shape() -> None:
    scope = opened()
    with pytest.raises(ValueError, match="shape of p is unknown"):
        cut(Scope(scope.model, scope.graph), "c")


def test_names_and_weight_values_do_not_count() -> None:
    one, two = opened(), opened(re.sub(r"\b([pcrwb])\b", r"other_\1", TEXT))
    assert fingerprint(cut(one, "c", "r")) == fingerprint(cut(two, "other_c", "other_r"))
    heavier = opened(weights={"w": np.ones((4, 3, 3, 3), np.float32)})
    assert fingerprint(cut(one, "c")) == fingerprint(cut(heavier, "c"))


@pytest.mark.parametrize(
    "change",
    [
        lambda: cut(opened(shape=(1, 3, 8, 8)), "c"),
        lambda: cut(opened(TEXT.replace("[4,3,3,3]", "[4,3,3,1]").replace("6,6", "6,8")), "c"),
        lambda: cut(opened(TEXT.replace("Conv(", "Conv<strides=[2,2]>(").replace("6,6", "3,3")), "c"),
        lambda: cut(opened(TEXT.replace("(p, w, b)", "(p, w)")), "c"),
        lambda: cut(opened(opset=13), "c"),
        lambda: cut(opened(), "c", "r"),
        lambda: cut(opened(), "c", batch=8),
    ],
    ids=["batch", "kernel", "strides", "bias", "opset", "nodes", "given batch"],
)  # fmt: skip
def test_what_counts(change) -> None:
    assert fingerprint(cut(opened(), "c")) != fingerprint(change())


def test_small_shapes_count_with_their_values() -> None:
    text = "net (float[2,8] x) => (float[A,B] y) { p = Exp(x) y = Reshape(p, s) }"

    def reshaped(*shape: int) -> str:
        return fingerprint(cut(opened(text, (2, 8), weights={"s": np.array(shape)}), "y"))

    assert reshaped(4, 4) != reshaped(8, 2)
    assert reshaped(4, 4) == reshaped(4, 4)
