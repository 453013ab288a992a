"""What every change did adds up to what all of them did, however the graph was changed."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.cost.census import Census, Tally
from graphopt.cost.totals import model_cost
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer

WEIGHT = np.ones((4, 4, 3, 3), np.float32)
SHAPES = {"x": (1, 4, 8, 8)}


def chain(weights):
    """3x3 convolutions of 4 channels one after the other, by the name of their weights."""
    names = ["x", *(f"v{i}" for i in range(len(weights)))]
    nodes = [
        helper.make_node("Conv", [names[i], w], [names[i + 1]], name=f"n{i}", pads=[1] * 4)
        for i, w in enumerate(weights)
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPES["x"])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHT, w) for w in sorted(set(weights))],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = ir.serde.deserialize_model(made)
    infos = infer(model, SHAPES)
    return model, infos, Census(model, infos)


CONV = Tally(nodes=1, parameters=144, weight_bytes=576, macs=4 * 64 * 36)


def split(model, infos, node, middle):
    """What the approximate rewrites do: two convolutions in the place of one."""
    change = Edit(Scope(model, model.graph, infos), "test")
    first = change.constant(np.ones((middle, 4, 1, 1), np.float32), "first")
    second = change.constant(np.ones((4, middle, 3, 3), np.float32), "second")
    inner = change.node("Conv", [node.inputs[0], first], {}, hint="inner")
    outer = change.node("Conv", [inner, second], {"pads": [1] * 4}, hint="outer", name=node.name)
    change.commit((node,), {node.outputs[0]: outer})


def test_a_change_is_what_went_and_what_came():
    model, infos, census = chain(["a", "b"])
    before = census.take()
    split(model, infos, model.graph[0], 2)
    after = census.take()
    assert before.total() == Tally(2, 288, 1152, 2 * CONV.macs)
    assert before.without(after) == CONV
    assert after.without(before) == Tally(2, 8 + 72, 4 * 80, 64 * (8 + 72))
    assert after.total() == Tally(3, 144 + 80, 576 + 320, CONV.macs + 64 * 80)


def test_a_shared_weight_is_counted_once_and_goes_with_its_last_user():
    model, infos, census = chain(["a", "a"])
    start = census.take()
    assert start.total() == Tally(2, 144, 576, 2 * CONV.macs)
    split(model, infos, model.graph[0], 2)
    middle = census.take()
    assert start.without(middle) == Tally(1, 0, 0, CONV.macs)
    split(model, infos, model.graph[2], 2)
    end = census.take()
    assert middle.without(end) == CONV


@settings(deadline=None, max_examples=25, derandomize=True)
@given(data=st.data())
def test_sums_over_changes_are_the_difference_of_the_totals(data):
    names = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=4))
    model, infos, census = chain(names)
    first = census.take()
    gone, come = np.zeros(4, int), np.zeros(4, int)
    for _ in range(data.draw(st.integers(1, 4))):
        before = census.take()
        convs = [n for n in model.graph if n.name.startswith("n")]
        split(model, infos, data.draw(st.sampled_from(convs)), data.draw(st.integers(1, 3)))
        after = census.take()
        gone += astuple(before.without(after))
        come += astuple(after.without(before))
    last = census.take()
    np.testing.assert_array_equal(
        np.array(astuple(first.total())) - gone + come, astuple(last.total())
    )
    # And the totals are those of the model looked at afresh.
    assert last.total() == model_cost(model, infer(model, SHAPES)).tally


def test_a_tensor_exchanged_in_place_is_a_change():
    model, _, census = chain(["a"])
    before = census.take()
    half = np.ones(WEIGHT.shape, np.float16)
    model.graph.initializers["a"].const_value = ir.tensor(half)
    after = census.take()
    assert before.without(after) == Tally(0, 144, 576, 0)
    assert after.without(before) == Tally(0, 144, 288, 0)
    assert after.total().weight_bytes == 288


def test_a_node_that_leaves_a_body_is_counted_and_gets_its_shape():
    model, infos, census = chain(["a"])
    conv = model.graph[0]
    model.graph.remove(conv)
    body = ir.Graph([], [], nodes=[conv], name="body")
    outer = ir.node("Loop", [], {"body": body})
    model.graph.append(outer)
    infos.pop(conv.outputs[0].name)
    before = census.take()
    assert before.total() == Tally(2, 144, 576, 0)
    body.remove(conv)
    model.graph.remove(outer)
    model.graph.append(conv)
    after = census.take()
    assert infos[conv.outputs[0].name].shape == SHAPES["x"]
    assert after.total() == CONV
    assert before.without(after) == Tally(2, 0, 0, 0)
    assert after.without(before) == Tally(1, 0, 0, CONV.macs)


def test_nothing_changed():
    _, _, census = chain(["a", "b"])
    assert census.take().without(census.take()) == Tally()


def test_constant_nodes_hold_parameters_too():
    value = numpy_helper.from_array(WEIGHT)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPES["x"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = ir.serde.deserialize_model(proto)
    assert Census(model, infer(model, SHAPES)).take().total() == Tally(2, 144, 576, CONV.macs)


@pytest.mark.parametrize("size", [(1, 4, 8, 8), (1, 4, 16, 8)])
def test_totals_follow_the_bound_shapes(size):
    model, _, _ = chain(["a"])
    model.graph.inputs[0].shape = ir.Shape((1, 4, "h", "w"))
    cost = model_cost(model, infer(model, {"x": size}))
    assert cost.tally.macs == int(np.prod(size)) * 36
    assert cost.operators == {"Conv": 1}
