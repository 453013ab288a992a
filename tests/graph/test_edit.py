"""Edit: names, placement, and what happens to graph outputs and weights left without a use."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt.graph.edit import Edit, bypass
from graphopt.graph.scope import Scope

TEXT = """net (float[2,4] x) => (float[2,4] y) <float[4,4] w, float[4,4] v>
    { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"""


def opened(text: str = TEXT, **options: object) -> tuple[Scope, dict[str, ir.Node]]:
    model = ir.from_proto(build(text, **options))
    return Scope(model, model.graph), {n.outputs[0].name or "": n for n in model.graph}


def valid(scope: Scope) -> onnx.ModelProto:
    proto = ir.to_proto(scope.model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_nothing_changes_before_commit() -> None:
    scope, node = opened()
    before = ir.to_proto(scope.model).SerializeToString()
    change = Edit(scope, "test")
    k = change.constant(np.ones((4, 4), np.float32), "a_weight")
    change.node("MatMul", [node["a"].inputs[0], k], hint="a")
    # only the constructor of a node counts as a use of its inputs, which no file shows
    assert ir.to_proto(scope.model).SerializeToString() == before


def test_replacement_takes_name_place_and_uses() -> None:
    scope, node = opened()
    change = Edit(scope, "test")
    k = change.constant(np.ones((4, 4), np.float32), "a_weight")
    new = change.node("MatMul", [node["a"].inputs[0], k], hint="a", name="mine")
    change.commit([node["a"]], {node["a"].outputs[0]: new})
    proto = valid(scope)
    assert [n.op_type for n in proto.graph.node] == ["MatMul", "Relu", "MatMul"]
    assert proto.graph.node[0].name == "mine"
    assert proto.graph.node[0].output[0] == "a"
    assert {t.name for t in proto.graph.initializer} == {"a_weight_test", "v"}


def test_a_graph_output_keeps_its_name() -> None:
    scope, node = opened()
    change = Edit(scope, "test")
    new = change.like(node["y"], node["y"].inputs)
    change.commit([node["y"]], {node["y"].outputs[0]: new})
    proto = valid(scope)
    assert [o.name for o in proto.graph.output] == ["y"]
    assert {t.name for t in proto.graph.initializer} == {"w", "v"}


def test_names_never_collide() -> None:
    text = TEXT.replace("float[4,4] v>", "float[4,4] v, float a_test>").replace(
        "b = Relu(a)", "n = Neg(a) b = Max(a, n, a_test)"
    )
    scope, node = opened(text)
    change = Edit(scope, "test")
    first = change.node("Relu", [node["a"].outputs[0]], hint="a")
    second = change.node("Relu", [first], hint="a")
    assert [first.name, second.name] == ["a_test_2", "a_test_3"]


def test_names_in_bodies_count() -> None:
    scope, node = opened(
        """net (float[4] x, bool go) => (float[4] y) { a = Abs(x)
        y = If (go) <then_branch = t () => (float[4] a_test) { a_test = Neg(a) },
                     else_branch = e () => (float[4] e1) { e1 = Neg(x) }> }"""
    )
    made = Edit(scope, "test").node("Relu", [node["a"].outputs[0]], hint="a")
    assert made.name == "a_test_2"


def test_names_do_not_depend_on_what_happened_to_a_clone() -> None:
    """Rollback runs the same edits again on a fresh clone and must meet the same names."""
    scope, node = opened()
    Edit(scope, "test").node("Relu", [node["a"].outputs[0]], hint="q")
    names = []
    for _ in range(2):
        clone = scope.model.clone()
        source = next(n for n in clone.graph if n.op_type == "Relu").outputs[0]
        names.append(Edit(Scope(clone, clone.graph), "new").node("Abs", [source], hint="q").name)
    assert names == ["q_new", "q_new"]


def test_a_weight_that_is_an_output_or_shared_is_kept() -> None:
    scope, node = opened(
        """net (float[2,4] x) => (float[2,4] y, float[4,4] w) <float[4,4] w>
        { a = MatMul(x, w) y = Relu(a) }"""
    )
    change = Edit(scope, "test")
    new = change.node("Relu", [node["a"].inputs[0]], hint="a")
    change.commit([node["a"], node["y"]], {node["y"].outputs[0]: new})
    assert "w" in scope.graph.initializers


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("net (float[4] x) => (float[4] y) { a = Abs(x) i = Relu(a) y = Neg(i) }", True),
        ("net (float[4] x) => (float[4] i) { a = Abs(x) i = Relu(a) }", True),
        ("net (float[4] x) => (float[4] i) { i = Relu(x) }", False),
        ("net (float[4] x) => (float[4] i) <float[4] w> { i = Relu(w) }", False),
        ("net (float[4] x) => (float[4] i, float[4] a) { a = Abs(x) i = Relu(a) }", False),
    ],
)
def test_bypass(text: str, allowed: bool) -> None:
    scope, node = opened(text)
    source = node["i"].inputs[0]
    assert source is not None
    assert bypass(scope, node["i"], source) is allowed


@pytest.mark.parametrize(("opset", "generated"), [(9, True), (8, False)])
def test_equal_numbers_are_generated_where_the_opset_can(opset: int, generated: bool) -> None:
    scope, _ = opened(TEXT, opset=opset)
    array = np.broadcast_to(np.float32(0.5), (16, 16))
    made = Edit(scope, "test").constant(array, "a")
    assert (made.producer() is not None) is generated


def test_old_files_get_constant_nodes() -> None:
    """Before IR 4 an initializer would have to be listed as an input."""
    scope, _ = opened(TEXT, ir_version=3, opset=9)
    made = Edit(scope, "test").constant(np.ones(3, np.float32), "a")
    assert made.producer() is not None
    assert made.producer().op_type == "Constant"
