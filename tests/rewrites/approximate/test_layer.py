"""Which layers qualify at all, and what every scheme leaves around the layer it replaces."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.rewrites.approximate import kernel_chain
from graphopt.rewrites.approximate.layer import Layer

WEIGHT = np.random.default_rng(0).standard_normal((16, 16, 5, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch):
    """How well a chain is fitted is no matter here."""
    monkeypatch.setattr(kernel_chain, "_FINAL_ROUNDS", 1)
    monkeypatch.setattr(kernel_chain, "_FINAL_STEPS", 1)


def model(nodes, constants=(), inputs=(), outputs=("y",), kind=onnx.TensorProto.FLOAT, rank=4):
    """A model on x [1, 16, 9, 9] (or [1, 16]) whose output shapes are open."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 16, 9, 9][:rank]), *inputs],
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def conv(weight="w", **attributes):
    return helper.make_node("Conv", ["x", weight], ["y"], name="layer", **attributes)


def layer_of(kit, proto):
    scope = kit.scope_of(proto)
    return Layer.of(kit.node_of(scope), scope)


def replaced(kit, case, proto):
    """The model with the candidate in place of its layer, of a kernel that the case asks for."""
    scheme, _, ranks = case
    scope = kit.scope_of(proto)
    layer = Layer.of(kit.node_of(scope), scope)
    return scope, kit.rewritten(scope, kit.candidate(layer, scheme, ranks).realised)


def weight_for(case):
    return np.random.default_rng(0).standard_normal((16, 16, *case[1])).astype(np.float32)


def test_a_weight_that_is_fed(kit):
    fed = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, WEIGHT.shape)
    assert layer_of(kit, model([conv()], inputs=[fed])) == "the weight is a graph input"


def test_a_weight_that_can_be_overridden(kit):
    fed = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, WEIGHT.shape)
    proto = model([conv()], [("w", WEIGHT)], [fed])
    reason = "the weight can be overridden by a caller (it is listed as a graph input)"
    assert layer_of(kit, proto) == reason


def test_a_weight_that_is_computed(kit):
    fed = helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, WEIGHT.shape)
    proto = model([helper.make_node("Relu", ["v"], ["w"]), conv()], inputs=[fed])
    assert layer_of(kit, proto) == "the weight is computed at run time"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(kit, bad):
    weight = WEIGHT.copy()
    weight[3, 2, 1, 0] = bad
    proto = model([conv()], [("w", weight)])
    assert layer_of(kit, proto) == "the weight is not finite"


def test_a_weight_that_is_generated(kit):
    fill = numpy_helper.from_array(np.array([0.5], np.float32))
    made = helper.make_node("ConstantOfShape", ["shape"], ["w"], value=fill)
    proto = model([made, conv()], [("shape", np.array(WEIGHT.shape))])
    reason = "the weight is one repeated number, generated at run time"
    assert layer_of(kit, proto) == reason


def test_a_weight_of_bfloat16(kit):
    proto = model(
        [conv()], [("w", WEIGHT.astype(ml_dtypes.bfloat16))], kind=onnx.TensorProto.BFLOAT16
    )
    assert layer_of(kit, proto) == "weights of type bfloat16"


def test_depthwise(kit):
    proto = model([conv(group=16)], [("w", WEIGHT[:, :1])])
    assert layer_of(kit, proto) == "depthwise: one input channel a group"


def test_a_bias_that_is_computed(kit):
    fed = helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [16])
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="layer")
    proto = model([helper.make_node("Relu", ["v"], ["b"]), node], [("w", WEIGHT)], [fed])
    assert layer_of(kit, proto) == "the bias is computed at run time"


@pytest.mark.parametrize("attributes", [{}, {"transA": 1}])
def test_fully_connected_layers_are_read_as_outputs_by_inputs(kit, attributes):
    weight = WEIGHT[:, :3, 0, 0]  # [K, O] = [16, 3]
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="layer", alpha=2.0, **attributes)
    found = layer_of(kit, model([node], [("w", weight)], rank=2))
    if attributes:
        assert found == "transA=1: the input is transposed"
    else:
        np.testing.assert_array_equal(found.weight, 2 * weight.T)
        assert (found.kernel, found.taps, found.outputs, found.inputs) == ((), 1, 3, 16)


def test_a_matrix_product_of_higher_rank(kit):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    proto = model([node], [("w", np.ones((9, 5), np.float32) * np.arange(5, dtype=np.float32))])
    assert layer_of(kit, proto) == "a matrix product of rank above 2"


def test_a_matrix_product_of_two_inputs_is_no_layer(kit):
    fed = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [16, 4])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    assert layer_of(kit, model([node], inputs=[fed], rank=2)) is None


def test_an_input_of_unknown_size(kit):
    scope = kit.scope_of(model([conv()], [("w", WEIGHT)]))
    blind = type(scope)(scope.model, scope.graph, {})
    assert Layer.of(kit.node_of(blind), blind) == "the size of its input is unknown"


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_with_a_stride_needs_the_size(kit, mode):
    one = kit.Model(WEIGHT, (13, 14), strides=(2, 2), auto_pad=mode, open_size=True)
    scope = one.scope()
    reason = f"auto_pad={mode} with strides depends on the size of the input"
    assert Layer.of(kit.node_of(scope), scope) == reason


def test_no_layer_at_all(kit):
    proto = model([helper.make_node("Relu", ["x"], ["y"], name="layer")], [("w", WEIGHT)])
    assert layer_of(kit, proto) is None


def test_a_convolution_of_another_domain(kit):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", domain="com.example")
    proto = model([node], [("w", WEIGHT)])
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    assert layer_of(kit, proto) is None


@pytest.mark.parametrize("hidden", ["Constant", "Identity", "Cast"])
def test_weights_in_hiding_are_found(kit, hidden):
    if hidden == "Constant":
        nodes = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT))]
        constants = []
    else:
        attributes = {"to": onnx.TensorProto.FLOAT} if hidden == "Cast" else {}
        nodes = [helper.make_node(hidden, ["v"], ["w"], **attributes)]
        constants = [("v", WEIGHT.astype(np.float16) if hidden == "Cast" else WEIGHT)]
    found = layer_of(kit, model([*nodes, conv()], constants))
    np.testing.assert_allclose(found.weight, WEIGHT, rtol=1e-3)


def test_what_was_factored_before_is_left_alone(kit, case):
    _, once = replaced(kit, case, model([conv()], [("w", weight_for(case))]))
    again = kit.scope_of(once)
    found = {node.op_type: Layer.of(node, again) for node in again.graph}
    assert found.pop("Add", None) is None
    assert set(found.values()) == {"already factored by graphopt"}


def test_a_shared_weight_stays_with_the_other_layer(kit, case):
    weight = weight_for(case)
    other = helper.make_node("Conv", ["x", "w"], ["z"], name="other", pads=[2, 2, 2, 2])
    proto = model([conv(), other], [("w", weight)], outputs=("y", "z"))
    _, optimized = replaced(kit, case, proto)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 16, 9, 9)).astype(np.float32)}
    before, after = kit.run(proto, feeds), kit.run(optimized, feeds)
    np.testing.assert_array_equal(before[1], after[1])
    assert 0 < kit.distance(before[0], after[0]) < 1.2
    assert "w" in [t.name for t in optimized.graph.initializer]


def test_an_output_that_is_also_used_keeps_its_name(kit, case):
    relu = helper.make_node("Relu", ["y"], ["z"])
    proto = model([conv(), relu], [("w", weight_for(case))], outputs=("y", "z"))
    _, optimized = replaced(kit, case, proto)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 16, 9, 9)).astype(np.float32)}
    y, z = kit.run(optimized, feeds)
    np.testing.assert_array_equal(np.maximum(y, 0), z)
    assert [output.name for output in optimized.graph.output] == ["y", "z"]
    assert "w" not in [t.name for t in optimized.graph.initializer], "left without a use"


def test_new_names_collide_with_none(kit, case):
    weight = weight_for(case)
    _, made = replaced(kit, case, model([conv()], [("w", weight)]))
    taken = {name for node in made.graph.node for name in (*node.output, *node.input)}
    taken = sorted(taken - {"x", "y", "w"})
    nodes = [helper.make_node("Identity", ["x"], [name], name=name) for name in taken]
    proto = model([conv(), *nodes], [("w", weight)], outputs=("y", *taken))
    _, optimized = replaced(kit, case, proto)  # the checker refuses a name made twice
    assert [output.name for output in optimized.graph.output] == ["y", *taken]


def test_a_candidate_leaves_the_model_alone(kit, case):
    scope, _ = replaced(kit, case, model([conv()], [("w", weight_for(case))]))
    (node,) = scope.graph
    assert (node.name, node.op_type, list(scope.graph.initializers)) == ("layer", "Conv", ["w"])


def test_the_same_layer_makes_the_same_file(kit, case):
    proto = model([conv()], [("w", weight_for(case))])
    one, other = (replaced(kit, case, proto)[1].SerializeToString() for _ in range(2))
    assert one == other


STRIDES, DILATIONS, PADS = [2, 3], [1, 2], [1, 2, 0, 3]


def conv_attributes(kernel, strides=(1, 1), pads=(0,) * 4, group=2):
    """As `put` writes them: defaults left out, dilation only along a kernel wider than one."""
    dilations = [d if k > 1 else 1 for d, k in zip(DILATIONS, kernel, strict=True)]
    named = {"strides": list(strides), "dilations": dilations, "pads": list(pads)}
    idle = {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4}
    kept = {name: value for name, value in named.items() if value != idle[name]}
    return {"kernel_shape": list(kernel), "group": group, **kept}


ALL, POINTWISE = conv_attributes, conv_attributes((1, 1))
WRITTEN = {
    "input-bottleneck": [POINTWISE, ALL((3, 4), STRIDES, PADS)],
    "output-bottleneck": [ALL((4, 3), STRIDES, PADS), POINTWISE],
    "pointwise": [ALL((1, 1), STRIDES, PADS), POINTWISE],
    "two-sided": [POINTWISE, ALL((3, 3), STRIDES, PADS), POINTWISE],
    "spatial": [ALL((3, 1), (2, 1), (1, 0, 0, 0)), ALL((1, 5), (1, 3), (0, 2, 0, 3))],
    "spatial-transposed": [ALL((1, 5), (1, 3), (0, 2, 0, 3)), ALL((3, 1), (2, 1), (1, 0, 0, 0))],
    "pair": [ALL((3, 3), pads=PADS), ALL((3, 3), STRIDES)],
    "chain": [ALL((3, 3), pads=PADS), ALL((3, 3)), ALL((3, 3), STRIDES)],
    "decoupled": [ALL((3, 3), STRIDES, PADS, group=16), POINTWISE] * 2,
    "decoupled-pointwise-first": [POINTWISE, ALL((3, 3), STRIDES, PADS, group=24)] * 2,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written(kit, name):
    scheme, kernel, ranks = kit.CASES[name]
    weight, _ = kit.representable(scheme, kernel, ranks, 2)
    shape = {"group": 2, "strides": STRIDES, "dilations": DILATIONS, "pads": PADS}
    one = kit.Model(weight, (17, 18), **shape)
    nodes = kit.rewritten(one.scope(), kit.exact(one, scheme, ranks)).graph.node
    convs = [node for node in nodes if node.op_type == "Conv"]
    attributes = [{a.name: list(a.ints) or a.i for a in node.attribute} for node in convs]
    assert attributes == WRITTEN[name]
    # A bias before the padding would change the border; one is enough.
    assert [len(node.input) for node in convs] == [2] * (len(convs) - 1) + [3]
    assert list(nodes[-1].output) == ["y"]
    if not name.startswith("decoupled"):
        assert convs[-1].name == "layer"
