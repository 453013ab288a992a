"""What opens, what keeps its name, and what is left alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import build, structure

from graphopt.errors import InputError
from graphopt.rewrites.dense.make import make_dense

RNG = np.random.default_rng(0)


def test_names_of_sizes_do_not_collide(make):
    model = build(
        """net (float[height,3,6,6] x) => (float[height,3,6,6] y, float[height,3,4,4] z)
        { z = MaxPool<kernel_shape=[3,3]>(x) y = Relu(x) }"""
    )
    made = make(model)
    assert made.interface["x"] == ["height", 3, "height_2", "width"]
    assert made.interface["z"] == ["height", 3, "z_height", "z_width"]
    assert made.interface["y"][:2] == ["height", 3]
    names = [n for dims in made.interface.values() for n in dims[2:]]
    assert all(isinstance(n, str) for n in names)


def test_nor_do_those_of_the_maps(make):
    text = "net (float[y_height,3,6,6] x) => (float[y_height,3,6,6] y) { y = Relu(x) }"
    assert make(build(text)).interface["y"] == ["y_height", 3, "y_height_2", "y_width"]


def test_one_open_size_keeps_its_name(make):
    model = build("net (float[1,3,rows,6] x) => (float[1,3,rows,6] y) { y = Relu(x) }")
    assert make(model).interface["x"] == [1, 3, "rows", "width"]


def test_a_fully_convolutional_network_only_opens(dense):
    text = "net (float[1,3,6,6] x) => (float[1,4,4,4] y) <float[4,3,3,3] w> { y = Conv(x, w) }"
    model = build(text)
    made = dense(model)
    assert structure(made.proto) == structure(model)
    assert made.facts.changed
    assert made.interface == {"x": [1, 3, "height", "width"], "y": [1, 4, "y_height", "y_width"]}


def test_one_that_is_open_already_is_left_alone(make):
    text = "net (float[N,3,h,w] x) => (float[N,4,a,b] y) <float[4,3,3,3] w> { y = Conv(x, w) }"
    model = build(text)
    made = make(model, False)
    assert not made.facts.changed
    assert structure(made.proto) == structure(model)
    assert made.interface["x"] == ["N", 3, "h", "w"]


def test_squeeze_and_excite_in_an_open_network_is_left_alone(make):
    model = build(
        """net (float[N,3,h,w] x) => (float[N,3,h,w] y)
        { p = GlobalAveragePool(x) s = Sigmoid(p) y = Mul(x, s) }"""
    )
    made = make(model, False)
    assert not made.facts.changed
    assert "looks at the whole picture" in made.facts.inexact


def test_sizes_that_are_computed(make):
    """A network with open sizes that resizes a map to that of another one."""
    model = build(
        """net (float[N,2,h,w] x) => (float[N,2,a,b] y)
        { p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) s = Shape(x) n = Slice(s, two, four)
          c = Shape(p) k = Slice(c, none, two) t = Concat<axis=0>(k, n)
          u = Resize<mode="nearest">(p, , , t) y = Add(u, x) }""",
        weights={"two": np.array([2]), "four": np.array([4]), "none": np.array([0])},
    )
    made = make(model, False)
    assert not made.facts.changed
    assert made.facts.outputs["y"].stride == (1, 1)


def test_names_of_nodes_stay(make):
    model = build(
        """net (float[1,2,4,4] x) => (float[1,3] y)
        { p = GlobalAveragePool(x) f = Flatten(p) y = Gemm(f, v) }""",
        weights={"v": RNG.standard_normal((2, 3)).astype(np.float32)},
    )
    for node, name in zip(model.graph.node, ("pool", "flat", "fc"), strict=True):
        node.name = name
    made = make(model)
    assert [node.name for node in made.proto.graph.node] == ["pool", "fc"]
    assert made.node("Conv").metadata_props[0].key.startswith("graphopt")


def test_no_shape_of_the_original_size_is_left(make):
    model = build(
        """net (float[1,2,4,4] x) => (float[1,3] y)
        <float[3,2,3,3] w> { c = Conv(x, w) r = Relu(c) f = Flatten(r) y = Gemm(f, v) }""",
        weights={"v": RNG.standard_normal((12, 3)).astype(np.float32)},
    )
    proto = make(model).proto
    weights = {tensor.name for tensor in proto.graph.initializer}
    between = [v for v in proto.graph.value_info if v.name not in weights]
    assert not any(v.type.tensor_type.HasField("shape") for v in between)


def test_a_failure_leaves_the_model_alone():
    proto = build(
        """net (float[1,2,4,4] x) => (float[1,2,1,1] p, float[1,2,4,4] y)
        { p = GlobalAveragePool(x) y = Add(x, k) }""",
        weights={"k": RNG.standard_normal((2, 4, 4)).astype(np.float32)},
    )
    model = ir.from_proto(proto)
    with pytest.raises(InputError, match="varies over space"):
        make_dense(model, {"x": (1, 2, 4, 4)}, sized=True)
    assert structure(ir.to_proto(model)) == structure(proto)
