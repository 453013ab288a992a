"""What is kept beside a timing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.cost.facts import NodeFacts, facts_of


def model(nodes, shape, constants, dtype=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", 13)
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=[opset], ir_version=8))


def test_a_convolution_and_its_activation():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2], group=2),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    made = model(nodes, (1, 8, 9, 9), {"w": np.ones((6, 4, 3, 3), np.float32)})
    assert facts_of(made) == (
        NodeFacts("Conv", (1, 8, 9, 9), (6, 4, 3, 3), (1, 6, 4, 4), 2),
        NodeFacts("Relu", (1, 6, 4, 4), (), (1, 6, 4, 4)),
    )


@pytest.mark.parametrize(
    ("op", "attributes", "weight"),
    [("Gemm", {"transB": 1}, (5, 7)), ("Gemm", {}, (7, 5)), ("MatMul", {}, (7, 5))],
)
def test_products_have_their_outputs_first(op, attributes, weight):
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    made = model([node], (2, 7), {"w": np.ones(weight, np.float32)})
    assert facts_of(made) == (NodeFacts(op, (2, 7), (5, 7), (2, 5)),)


@pytest.mark.parametrize("kind", ["half", "product of two inputs", "empty"])
def test_none_where_the_model_is_of_another_kind(kind):
    if kind == "half":
        weight = {"w": np.ones((4, 4, 3, 3), np.float16)}
        node = helper.make_node("Conv", ["x", "w"], ["y"])
        made = model([node], (1, 4, 8, 8), weight, TensorProto.FLOAT16)
    elif kind == "empty":
        made = model([helper.make_node("Relu", ["x"], ["y"])], (0, 4), {})
    else:
        made = model([helper.make_node("MatMul", ["x", "x"], ["y"])], (4, 4), {})
    assert facts_of(made) is None


def test_there_and_back():
    facts = NodeFacts("Conv", (1, 8, 9, 9), (6, 4, 3, 3), (1, 6, 4, 4), 2)
    assert NodeFacts.read(facts.plain()) == facts


@pytest.mark.parametrize(
    "plain",
    [
        None,
        3,
        "Conv!",
        [],
        ["Conv", [1], [1], [1]],
        ["Conv", 1, [], [1], 1],
        ["Conv", ["a"], [], [1], 1],
        ["Relu", [1, 0], [], [1, 2], 1],
        ["Conv", [1, 4, 8, 8], [4, 4, 3, 3], [1, 4], 1],
        ["Conv", [1, 4, 8, 8], [4, 4, 3, 3], [1, 4, 6, 6], 0],
        ["Conv", [1, 4, 8, 8], [4, 4, 3, 3], [1, 4, 6, 6], None],
    ],
)
def test_what_is_no_facts_is_refused(plain):
    with pytest.raises((TypeError, ValueError)):
        NodeFacts.read(plain)
