"""MACs and parameters against numbers worked out by hand or printed in the papers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.cost.counts import (
    macs,
    node_parameters,
    node_weight_bytes,
    operators,
    parameters,
)
from graphopt.cost.totals import model_cost
from graphopt.graph.shapes import infer


def model(nodes, shapes, outputs=("y",), constants=(), kinds=None):
    """shapes: of all inputs. constants: (name, array)."""
    kinds = kinds or {}
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in shapes.items()
        ],
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None)
            for name in outputs
        ],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    opset = helper.make_opsetid("", 19)
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=[opset], ir_version=9))


def counted(made, shapes):
    infos = infer(made, shapes)
    return [macs(node, infos) for node in made.graph]


def macs_of(op, shapes, *, kinds=None, **attributes):
    """MACs of one node whose inputs have these shapes."""
    node = helper.make_node(op, list(shapes), ["y"], **attributes)
    made = model([node], shapes, kinds=kinds)
    return counted(made, shapes)[0]


@pytest.mark.parametrize(
    ("x", "w", "attributes", "expected"),
    [
        # output elements x taps x input channels of a group
        ((1, 3, 8, 8), (4, 3, 3, 3), {}, (4 * 6 * 6) * (3 * 9)),
        ((1, 3, 8, 8), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}, (4 * 8 * 8) * (3 * 9)),
        ((5, 3, 8, 8), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}, 5 * (4 * 8 * 8) * (3 * 9)),
        ((1, 3, 8, 8), (4, 3, 3, 3), {"strides": [2, 2]}, (4 * 3 * 3) * (3 * 9)),
        ((1, 3, 9, 8), (4, 3, 3, 3), {"strides": [1, 2], "dilations": [2, 1]}, 4 * 5 * 3 * 27),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, 4 * 25 * 27),
        ((1, 6, 8, 8), (4, 3, 3, 3), {"group": 2}, (4 * 6 * 6) * (3 * 9)),
        ((1, 6, 8, 8), (6, 1, 3, 3), {"group": 6}, (6 * 6 * 6) * 9),
        ((1, 6, 8, 8), (12, 1, 3, 3), {"group": 6}, (12 * 6 * 6) * 9),
        ((1, 3, 20), (4, 3, 5), {}, (4 * 16) * (3 * 5)),
        ((1, 3, 20), (4, 3, 5), {"strides": [3], "pads": [2, 2]}, (4 * 7) * (3 * 5)),
        ((1, 2, 6, 7, 8), (3, 2, 2, 3, 3), {}, (3 * 5 * 5 * 6) * (2 * 18)),
    ],
)
def test_convolution(x, w, attributes, expected):
    assert macs_of("Conv", {"x": x, "w": w}, **attributes) == expected


@pytest.mark.parametrize(
    ("x", "w", "attributes", "expected"),
    [
        # every input element meets every tap of every output channel of its group
        ((1, 3, 8, 8), (3, 4, 2, 2), {"strides": [2, 2]}, (3 * 8 * 8) * (4 * 4)),
        ((1, 3, 8, 8), (3, 4, 3, 3), {}, (3 * 8 * 8) * (4 * 9)),
        ((2, 4, 8, 8), (4, 3, 3, 3), {"group": 2}, (2 * 4 * 8 * 8) * (3 * 9)),
        ((1, 3, 8), (3, 4, 5), {}, (3 * 8) * (4 * 5)),
    ],
)
def test_transposed_convolution(x, w, attributes, expected):
    assert macs_of("ConvTranspose", {"x": x, "w": w}, **attributes) == expected


@pytest.mark.parametrize("group", [1, 2])
def test_deformable_convolution(group):
    shapes = {"x": (1, 4, 8, 8), "w": (6, 4 // group, 3, 3), "offset": (1, 18, 6, 6)}
    assert macs_of("DeformConv", shapes, group=group) == (6 * 6 * 6) * (4 // group * 9)


@pytest.mark.parametrize(
    ("a", "b", "attributes"),
    [
        ((5, 7), (7, 11), {}),
        ((7, 5), (7, 11), {"transA": 1}),
        ((5, 7), (11, 7), {"transB": 1}),
        ((7, 5), (11, 7), {"transA": 1, "transB": 1, "alpha": 2.0}),
    ],
)
def test_gemm(a, b, attributes):
    assert macs_of("Gemm", {"a": a, "b": b}, **attributes) == 5 * 7 * 11
    assert macs_of("Gemm", {"a": a, "b": b, "c": (11,)}, **attributes) == 5 * 7 * 11


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((5, 7), (7, 11), 5 * 7 * 11),
        ((2, 3, 5, 7), (2, 3, 7, 11), 6 * 5 * 7 * 11),
        ((2, 3, 5, 7), (7, 11), 6 * 5 * 7 * 11),
        ((5, 7), (4, 7, 11), 4 * 5 * 7 * 11),
        ((2, 1, 5, 7), (3, 7, 11), 6 * 5 * 7 * 11),
        ((7,), (7, 11), 7 * 11),
        ((5, 7), (7,), 5 * 7),
        ((7,), (7,), 7),
    ],
)
def test_matrix_product(a, b, expected):
    assert macs_of("MatMul", {"a": a, "b": b}) == expected


def test_integer_products():
    byte = TensorProto.UINT8
    kinds = {"a": byte, "b": byte, "y": TensorProto.INT32}
    assert macs_of("MatMulInteger", {"a": (5, 7), "b": (7, 11)}, kinds=kinds) == 5 * 7 * 11
    shapes = {"a": (1, 3, 8, 8), "b": (4, 3, 3, 3)}
    assert macs_of("ConvInteger", shapes, kinds=kinds) == (4 * 6 * 6) * 27
    # x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero
    kinds = dict.fromkeys("adfhy", byte) | {"c": byte}
    scalars = {"b": (), "c": ()}, {"e": (), "f": (), "g": (), "h": ()}
    shapes = {"a": (5, 7), **scalars[0], "d": (7, 11), **scalars[1]}
    assert macs_of("QLinearMatMul", shapes, kinds=kinds) == 5 * 7 * 11
    shapes = {"a": (1, 3, 8, 8), **scalars[0], "d": (4, 3, 3, 3), **scalars[1]}
    assert macs_of("QLinearConv", shapes, kinds=kinds) == (4 * 6 * 6) * 27


@pytest.mark.parametrize("op", ["Relu", "Softmax", "GlobalAveragePool"])
def test_everything_else_counts_as_nothing(op):
    assert macs_of(op, {"x": (1, 3, 8, 8)}) == 0


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MatMul", "Gemm"])
def test_unknown_shapes_count_as_nothing(op):
    made = model([helper.make_node(op, ["x", "w"], ["y"])], {"x": None, "w": None})
    assert [macs(node, {}) for node in made.graph] == [0]


def conv(name, source, weight, shape, constants, pad):
    constants.append((weight, np.zeros(shape, np.float32)))
    return helper.make_node("Conv", [source, weight], [name], pads=[pad] * 4)


def cost_of(nodes, shape, outputs, constants):
    made = model(nodes, {"x": shape}, outputs, constants)
    return model_cost(made, infer(made, {"x": shape})).tally


def test_inception_3a():
    # Szegedy et al. 2015, table 1: 28 x 28 x 192 in; 64, 128 and 32 maps of 1x1, 3x3 and 5x5.
    constants = []
    naive = [
        conv("a", "x", "w1", (64, 192, 1, 1), constants, 0),
        conv("b", "x", "w3", (128, 192, 3, 3), constants, 1),
        conv("c", "x", "w5", (32, 192, 5, 5), constants, 2),
    ]
    shape = (1, 192, 28, 28)
    plain = cost_of(naive, shape, ("a", "b", "c"), constants)
    assert plain.parameters == 387_072
    assert plain.weight_bytes == 4 * 387_072
    assert plain.macs == 387_072 * 28 * 28
    constants = []
    reduced = [
        conv("a", "x", "w1", (64, 192, 1, 1), constants, 0),
        conv("r3", "x", "w3r", (96, 192, 1, 1), constants, 0),
        conv("b", "r3", "w3", (128, 96, 3, 3), constants, 1),
        conv("r5", "x", "w5r", (16, 192, 1, 1), constants, 0),
        conv("c", "r5", "w5", (32, 16, 5, 5), constants, 2),
    ]
    cheap = cost_of(reduced, shape, ("a", "b", "c"), constants)
    assert cheap.parameters == 157_184
    assert cheap.macs == 157_184 * 28 * 28
    assert (plain.nodes, cheap.nodes) == (3, 5)


def test_a_3x3_of_256_channels_behind_a_64_wide_reducer():
    constants = []
    plain = [conv("y", "x", "w", (256, 256, 3, 3), constants, 1)]
    assert cost_of(plain, (1, 256, 14, 14), ("y",), constants).parameters == 589_824
    constants = []
    thin = [
        conv("r", "x", "wr", (64, 256, 1, 1), constants, 0),
        conv("y", "r", "w", (256, 64, 3, 3), constants, 1),
    ]
    cost = cost_of(thin, (1, 256, 14, 14), ("y",), constants)
    assert cost.parameters == 163_840
    assert cost.macs == 163_840 * 14 * 14


def test_resnet_stem():
    # He et al. 2016: 7x7, 64, stride 2 on 224 x 224 x 3 is 118 M MACs.
    shapes = {"x": (1, 3, 224, 224), "w": (64, 3, 7, 7)}
    assert macs_of("Conv", shapes, strides=[2, 2], pads=[3] * 4) == 118_013_952


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((2, 3), np.float32), 6),
        (np.zeros((2, 3), np.float16), 6),
        (np.zeros((2, 3), np.float64), 6),
        (np.zeros((2, 3), np.int8), 6),
        (np.zeros((2, 3), np.uint8), 6),
        (np.zeros(4, np.int64), 0),
        (np.zeros(4, np.int32), 0),
        (np.zeros(4, bool), 0),
        (np.zeros((), np.float32), 1),
        (np.zeros((0, 3), np.float32), 0),
    ],
)
def test_parameters(array, expected):
    assert parameters(ir.tensor(array)) == expected


def test_tensors_of_constant_nodes_and_bodies():
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [5])],
        [numpy_helper.from_array(np.zeros(5, np.float32), "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["out"], value_floats=[0.0] * 5)],
        "other",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [5])],
    )
    value = numpy_helper.from_array(np.zeros(7, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=other),
        helper.make_node("Add", ["c", "w"], ["z"]),
    ]
    made = model(
        nodes,
        {"x": ()},
        ("y", "z"),
        [("w", np.zeros(7, np.float32))],
        kinds={"x": TensorProto.BOOL},
    )
    assert model_cost(made, infer(made, {"x": ()})).tally.parameters == 5 + 7 + 7
    assert operators(made) == {"Constant": 2, "Add": 1, "Identity": 1, "If": 1}
    assert next(iter(operators(made))) == "Constant"


def test_parameters_of_one_node_wherever_its_constants_are():
    """Left or right of a product, behind an Identity, past the offsets of a deformable convolution."""
    constants = [
        (name, np.zeros(shape, np.float32)) for name, shape in (("w", (5, 7)), ("b", (3,)))
    ]
    constants.append(("k", np.zeros((3, 2, 3, 3), np.float32)))
    nodes = [
        helper.make_node("MatMul", ["w", "a"], ["left"]),
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("MatMul", ["c", "same"], ["right"]),
        helper.make_node("DeformConv", ["x", "k", "offset", "b"], ["deformed"]),
        helper.make_node("MatMul", ["c", "left"], ["none"]),
    ]
    shapes = {"a": (7, 5), "c": (5, 5), "x": (1, 2, 8, 8), "offset": (1, 18, 6, 6)}
    made = model(nodes, shapes, ("left", "right", "deformed", "none"), constants)
    layers = [node for node in made.graph if node.op_type != "Identity"]
    assert [node_parameters(node) for node in layers] == [35, 35, 3 * 18 + 3, 0]
    assert [node_weight_bytes(node) for node in layers] == [140, 140, 4 * 57, 0]
