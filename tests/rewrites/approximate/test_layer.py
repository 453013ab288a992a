"""Which convolutions qualify at all: the same for both schemes, and what they leave around them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.kernel_pair import KernelPair
from graphopt.rewrites.approximate.layer import ranks
from graphopt.rewrites.base import Decline

REWRITES = [InputBottleneck(), KernelPair()]
WEIGHT = np.random.default_rng(0).standard_normal((16, 16, 5, 5)).astype(np.float32)

pytestmark = pytest.mark.parametrize("rewrite", REWRITES, ids=lambda r: r.name)


def model(nodes, constants=(), inputs=(), outputs=("y",), kind=onnx.TensorProto.FLOAT):
    """A model on x [1, 16, 9, 9] whose output shapes are open."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 16, 9, 9]), *inputs],
        [helper.make_tensor_value_info(name, kind, [None] * 4) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def conv(weight="w", **attributes):
    return helper.make_node("Conv", ["x", weight], ["y"], name="layer", **attributes)


def menu_of(kit, rewrite, proto):
    scope = kit.scope_of(proto)
    return scope, rewrite.menu(kit.node_of(scope), scope, kit.BLOCK)


def reason_of(kit, rewrite, proto):
    found = menu_of(kit, rewrite, proto)[1]
    assert isinstance(found, Decline)
    assert (found.rewrite, found.site) == (rewrite.name, ("layer",))
    return found.reason


def test_a_weight_that_is_fed(kit, rewrite):
    fed = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, WEIGHT.shape)
    assert reason_of(kit, rewrite, model([conv()], inputs=[fed])) == "the weight is a graph input"


def test_a_weight_that_can_be_overridden(kit, rewrite):
    fed = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, WEIGHT.shape)
    proto = model([conv()], [("w", WEIGHT)], [fed])
    reason = "the weight can be overridden by a caller (it is listed as a graph input)"
    assert reason_of(kit, rewrite, proto) == reason


def test_a_weight_that_is_computed(kit, rewrite):
    fed = helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, WEIGHT.shape)
    proto = model([helper.make_node("Relu", ["v"], ["w"]), conv()], inputs=[fed])
    assert reason_of(kit, rewrite, proto) == "the weight is computed at run time"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(kit, rewrite, bad):
    weight = WEIGHT.copy()
    weight[3, 2, 1, 0] = bad
    proto = model([conv()], [("w", weight)])
    assert reason_of(kit, rewrite, proto) == "the weight is not finite"


def test_a_weight_that_is_generated(kit, rewrite):
    fill = numpy_helper.from_array(np.array([0.5], np.float32))
    made = helper.make_node("ConstantOfShape", ["shape"], ["w"], value=fill)
    proto = model([made, conv()], [("shape", np.array(WEIGHT.shape))])
    reason = "the weight is one repeated number, generated at run time"
    assert reason_of(kit, rewrite, proto) == reason


def test_a_weight_of_bfloat16(kit, rewrite):
    proto = model(
        [conv()], [("w", WEIGHT.astype(ml_dtypes.bfloat16))], kind=onnx.TensorProto.BFLOAT16
    )
    assert reason_of(kit, rewrite, proto) == "weights of type bfloat16"


def test_depthwise(kit, rewrite):
    proto = model([conv(group=16)], [("w", WEIGHT[:, :1])])
    assert reason_of(kit, rewrite, proto) == "depthwise: one input channel a group"


def test_a_bias_that_is_computed(kit, rewrite):
    fed = helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [16])
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="layer")
    proto = model([helper.make_node("Relu", ["v"], ["b"]), node], [("w", WEIGHT)], [fed])
    assert reason_of(kit, rewrite, proto) == "the bias is computed at run time"


def test_what_was_factored_before_is_left_alone(kit, rewrite):
    scope, menu = menu_of(kit, rewrite, model([conv()], [("w", WEIGHT)]))
    once = kit.rewritten(scope, menu.candidates[-1])
    again = kit.scope_of(once)
    assert [node.op_type for node in again.graph] == ["Conv", "Conv"]
    for other in REWRITES:
        for node in again.graph:
            found = other.menu(node, again, kit.BLOCK)
            assert isinstance(found, Decline)
            assert found.reason == "already factored by graphopt"


@pytest.mark.parametrize("op", ["ConvTranspose", "Relu"])
def test_no_opinion_on_other_operators(kit, rewrite, op):
    inputs = ["x", "w"] if op == "ConvTranspose" else ["x"]
    proto = model([helper.make_node(op, inputs, ["y"], name="layer")], [("w", WEIGHT)])
    assert menu_of(kit, rewrite, proto)[1] is None


def test_no_opinion_on_a_convolution_of_another_domain(kit, rewrite):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", domain="com.example")
    proto = model([node], [("w", WEIGHT)])
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    assert menu_of(kit, rewrite, proto)[1] is None


@pytest.mark.parametrize("hidden", ["Constant", "Identity", "Cast"])
def test_weights_in_hiding_are_found(kit, rewrite, hidden):
    if hidden == "Constant":
        nodes = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT))]
        constants = []
    else:
        attributes = {"to": onnx.TensorProto.FLOAT} if hidden == "Cast" else {}
        nodes = [helper.make_node(hidden, ["v"], ["w"], **attributes)]
        constants = [("v", WEIGHT.astype(np.float16) if hidden == "Cast" else WEIGHT)]
    _, found = menu_of(kit, rewrite, model([*nodes, conv()], constants))
    _, plain = menu_of(kit, rewrite, model([conv()], [("w", WEIGHT)]))
    assert [c.options for c in found.candidates] == [c.options for c in plain.candidates]


def test_a_shared_weight_stays_with_the_other_layer(kit, rewrite):
    other = helper.make_node("Conv", ["x", "w"], ["z"], name="other", pads=[2, 2, 2, 2])
    proto = model([conv(), other], [("w", WEIGHT)], outputs=("y", "z"))
    scope, menu = menu_of(kit, rewrite, proto)
    optimized = kit.rewritten(scope, menu.candidates[0])
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 16, 9, 9)).astype(np.float32)}
    before, after = kit.run(proto, feeds), kit.run(optimized, feeds)
    np.testing.assert_array_equal(before[1], after[1])
    assert 0 < kit.distance(before[0], after[0]) < 1
    assert next(t.name for t in optimized.graph.initializer) == "w"


def test_an_output_that_is_also_used_keeps_its_name(kit, rewrite):
    proto = model(
        [conv(), helper.make_node("Relu", ["y"], ["z"])], [("w", WEIGHT)], outputs=("y", "z")
    )
    scope, menu = menu_of(kit, rewrite, proto)
    optimized = kit.rewritten(scope, menu.candidates[-1])
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 16, 9, 9)).astype(np.float32)}
    y, z = kit.run(optimized, feeds)
    np.testing.assert_array_equal(np.maximum(y, 0), z)
    assert [output.name for output in optimized.graph.output] == ["y", "z"]
    assert "w" not in [t.name for t in optimized.graph.initializer], "left without a use"


def test_new_names_collide_with_none(kit, rewrite):
    scope, menu = menu_of(kit, rewrite, model([conv()], [("w", WEIGHT)]))
    made = kit.rewritten(scope, menu.candidates[0])
    taken = [name for node in made.graph.node for name in (*node.output, *node.input[1:])]
    taken = [name for name in taken if name not in ("y", "w")]
    nodes = [helper.make_node("Identity", ["x"], [name], name=name) for name in taken]
    proto = model([conv(), *nodes], [("w", WEIGHT)], outputs=("y", *taken))
    scope, menu = menu_of(kit, rewrite, proto)
    optimized = kit.rewritten(scope, menu.candidates[0])  # the checker refuses a name made twice
    assert [output.name for output in optimized.graph.output] == ["y", *taken]


def test_a_menu_leaves_the_model_alone(kit, rewrite):
    proto = model([conv()], [("w", WEIGHT)])
    scope, menu = menu_of(kit, rewrite, proto)
    kit.rewritten(scope, menu.candidates[0])
    (node,) = scope.graph
    assert (node.name, node.op_type, list(scope.graph.initializers)) == ("layer", "Conv", ["w"])


@settings(deadline=None, max_examples=50, derandomize=True)
@given(limit=st.integers(0, 700), block=st.sampled_from([4, 8, 16, 32]), most=st.integers(2, 12))
def test_ranks(rewrite, limit, block, most):
    found = ranks(limit, block, most)
    assert len(found) == min(limit // block, most)
    assert list(found) == sorted(set(found))
    assert all(rank % block == 0 and 0 < rank <= limit for rank in found)
    if found:
        assert (found[0], found[-1]) == (block, limit // block * block)
