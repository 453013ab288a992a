"""may_fold: whether the library's folding would do anything; in doubt, yes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt.graph.annotate import annotate
from graphopt.rewrites.cleanup.foldable import may_fold
from graphopt.rewrites.cleanup.library import LiftConstants

NOTHING = {
    "a plain network": """net (float[N,3,8,8] x) => (float[N,4] y)
        <float[4,3,3,3] w, float[144,4] f>
        { c = Conv(x, w) r = Relu(c) q = Flatten(r) y = MatMul(q, f) }""",
    "a concatenation": "net (float[1,3] x) => (float[1,6] y) { y = Concat<axis=1>(x, x) }",
    "a reshape that does something": """net (float[2,3] x) => (float[3,2] y) <int64[2] s>
        { y = Reshape(x, s) }""",
    "sizes that nobody knows": """net (float[1,3,H,W] x) => (float[1,4,a,b] y) <float[4,3,3,3] w>
        { y = Conv<strides=[2,2]>(x, w) }""",
    "what is fed": "net (float[3] x, float[3] w) => (float[3] y) <float[3] w> { y = Add(x, w) }",
}

SOMETHING = {
    "constants": "net (float[3] x) => (float[3] y) <float[3] a, float[3] b> "
    "{ c = Add(a, b) y = Mul(x, c) }",
    "an identity": "net (float[3] x) => (float[3] y) { i = Identity(x) y = Relu(i) }",
    "a cast": "net (float[3] x) => (float[3] y) { c = Cast<to=1>(x) y = Relu(c) }",
    "a shape": "net (float[3] x) => (int64[1] y) { y = Shape(x) }",
    "a dropout": "net (float[3] x) => (float[3] y) { d = Dropout(x) y = Relu(d) }",
    "a concatenation of one": "net (float[1,3] x) => (float[1,3] y) { y = Concat<axis=1>(x) }",
    "nothing in a concatenation": "net (float[1,3] x, float[1,0] e) => (float[1,3] y) "
    "{ y = Concat<axis=1>(x, e) }",
    "a reshape to the same": "net (float[3,2] x) => (float[3,2] y) <int64[2] s> "
    "{ y = Reshape(x, s) }",
    "a body": """net (float[3] x, bool b) => (float[3] y) {
        y = If (b) <then_branch = yes () => (float[3] t) { t = Relu(x) },
                    else_branch = no () => (float[3] e) { e = Neg(x) }> }""",
}


def asked(text: str, should: bool | None = True, **options: object) -> bool:
    made = build(text, weights={"s": np.array([3, 2])}, **options)  # type: ignore[arg-type]
    model = ir.from_proto(made)
    LiftConstants().run(model)
    annotate(model)
    return may_fold(model, lambda _: should)


@pytest.mark.parametrize("what", NOTHING)
def test_nothing_to_do(what: str) -> None:
    assert not asked(NOTHING[what])


@pytest.mark.parametrize("what", NOTHING)
def test_then_the_library_changes_nothing(what: str) -> None:
    from onnxscript.optimizer import fold_constants

    model = ir.from_proto(build(NOTHING[what], weights={"s": np.array([3, 2])}))
    annotate(model, frozen=False)
    before = ir.to_proto(model)
    fold_constants(model, onnx_shape_inference=True, should_fold=lambda _: True)
    assert ir.to_proto(model) == before


@pytest.mark.parametrize("what", SOMETHING)
def test_something_to_do(what: str) -> None:
    assert asked(SOMETHING[what])


def test_constants_that_must_not_be_folded() -> None:
    text = "net (float[3] x) => (float[3] y) <float[3] a> { c = Neg(a) y = Mul(x, c) }"
    assert not asked(text, should=False)
    assert asked(text, should=None)


def test_a_dropout_before_the_library_knows_it() -> None:
    assert not asked(SOMETHING["a dropout"], opset=11)


def test_shapes_that_inference_can_still_find() -> None:
    model = ir.from_proto(build("net (float[3] x) => (float[3] y) { r = Relu(x) y = Neg(r) }"))
    assert may_fold(model, lambda _: True)
    annotate(model)
    assert not may_fold(model, lambda _: True)


def test_functions_may_hold_anything() -> None:
    proto = build("net (float[3] x) => (float[3] y) { y = Relu(x) }")
    proto.opset_import.append(onnx.helper.make_opsetid("own", 1))
    body = onnx.helper.make_node("Relu", ["a"], ["b"])
    opset = onnx.helper.make_opsetid("", 17)
    proto.functions.append(onnx.helper.make_function("own", "F", ["a"], ["b"], [body], [opset]))
    assert may_fold(ir.from_proto(proto), lambda _: True)
