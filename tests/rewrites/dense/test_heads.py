"""What a classifier ends in: flattening, fully connected layers, global pooling, softmax, classes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build

FLATTENINGS = {
    "Flatten": "f = Flatten(p)",
    "Flatten to the end": "f = Flatten<axis=-3>(p)",
    "Reshape": "f = Reshape(p, target)",
    "Reshape, copying": "f = Reshape(p, copied)",
}


def classifier(
    head: str,
    *,
    out: str = "5",
    weights: str = "",
    opset: int = 17,
    batch: str = "N",
    **given: object,
) -> onnx.ModelProto:
    """x [N, 2, 12, 12] -> Conv, MaxPool -> p [N, 4, 5, 5], stride 2 -> the head -> y."""
    return build(
        f"""net (float[{batch},2,12,12] x) => (float[{batch},{out}] y)
        <float[4,2,3,3] w, float[4] bias {weights}>
        {{ c = Conv(x, w, bias) r = Relu(c) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
           {head} }}""",
        opset=opset,
        weights={name: np.asarray(array) for name, array in given.items()},
    )


def small(*shape: int) -> np.ndarray:
    """Weights that leave a softmax something to say."""
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)


@pytest.mark.parametrize("how", FLATTENINGS)
def test_flatten_and_layers(dense, how):
    model = classifier(
        f"{FLATTENINGS[how]} h = Gemm(f, v, b) g = Relu(h) y = Gemm<transB=1, alpha=0.5>(g, u)",
        weights=", float[7] b",
        v=small(100, 7),
        u=small(5, 7),
        target=[-1, 100],
        copied=[0, -1],
    )
    made = dense(model, batches=(1, 3))
    assert made.ops == ["Conv", "Relu", "MaxPool", "Conv", "Relu", "Conv"]
    assert made.facts.stride == (2, 2)
    assert made.facts.window == (12, 12)
    assert made.facts.inexact is None
    assert made.interface == {
        "x": ["N", 2, "height", "width"],
        "y": ["N", 5, "y_height", "y_width"],
    }


def test_the_kernel_is_the_map(dense):
    """Rows of the layer's weight in the order of the flattened [C, H, W]; not square."""
    model = build(
        """net (float[1,3,5,11] x) => (float[1,4] y)
        { p = MaxPool<kernel_shape=[2,2], strides=[1,2]>(x) f = Flatten(p) y = MatMul(f, w) }""",
        weights={"w": small(60, 4)},
    )
    made = dense(model)
    assert made.ops == ["MaxPool", "Conv"]
    assert made.attributes("Conv")["kernel_shape"] == [4, 5]
    assert made.facts.stride == (1, 2)


def test_the_weight_of_another_use_stays(dense):
    """A weight that two layers share is copied."""
    model = classifier(
        "f = Flatten(p) h = MatMul(f, v) g = MatMul(f, v) y = Sub(h, k)  z = Add(g, h)",
        v=small(100, 5),
        k=small(5),
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 5]))
    assert dense(model).ops.count("Conv") == 3


@pytest.mark.parametrize("bias", [(5,), (1, 5), (), (1,)])
def test_matmul_and_add(dense, bias):
    model = classifier(
        "f = Flatten(p) h = MatMul(f, v) y = Add(h, k)",
        v=small(100, 5),
        k=small(*bias or (1,)).reshape(bias),
    )
    made = dense(model)
    assert made.ops[-2:] == ["Conv", "Add"]


@pytest.mark.parametrize(
    "pool",
    [
        "g = GlobalAveragePool(p) f = Flatten(g)",
        "g = GlobalMaxPool(p) f = Reshape(g, two)",
        "f = ReduceMean<axes=[2,3], keepdims=0>(p)",
        "f = ReduceMax<axes=[-1,-2], keepdims=0>(p)",
        "g = ReduceMean<axes=[2,3]>(p) f = Squeeze(g, axes)",
        "g = AveragePool<kernel_shape=[5,5], strides=[5,5]>(p) f = Flatten(g)",
        "g = MaxPool<kernel_shape=[5,5], strides=[5,5]>(p) f = Flatten(g)",
    ],
)
def test_global_pooling(dense, pool):
    """Of the original size, at every place."""
    model = classifier(
        f"{pool} y = Gemm(f, v, b)", weights=", float[5] b", v=small(4, 5), axes=[2, 3], two=[0, -1]
    )
    made = dense(model, batches=(1, 2))
    kind = "MaxPool" if "Max" in pool else "AveragePool"
    assert made.ops == ["Conv", "Relu", "MaxPool", kind, "Conv"]
    pools = [node for node in made.proto.graph.node if node.op_type == kind]
    attributes = {a.name: list(a.ints) for a in pools[-1].attribute}
    assert attributes["kernel_shape"] == [5, 5]
    assert attributes.get("strides", [1, 1]) == [1, 1]
    assert made.facts.stride == (2, 2)


def test_pooling_behind_a_layer(dense):
    """Network in Network: a 1x1 convolution to the classes, pooled."""
    model = classifier(
        "c2 = Conv(p, k) g = GlobalAveragePool(c2) y = Flatten(g)", k=small(5, 4, 1, 1)
    )
    assert dense(model).ops[-2:] == ["Conv", "AveragePool"]


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 22])
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_softmax(dense, opset, name):
    """Before opset 13 it takes all axes from one on together: with the channels last that is right."""
    model = classifier(
        f"f = Flatten(p) h = Gemm(f, v, b) y = {name}(h)",
        weights=", float[5] b",
        opset=opset,
        v=small(100, 5),
    )
    made = dense(model)
    if opset < 13:
        assert made.ops[-3:] == ["Transpose", name, "Transpose"]
        assert made.attributes(name)["axis"] == 3
    else:
        assert made.ops[-1] == name
        assert made.attributes(name)["axis"] == 1


def test_softmax_of_a_map_of_one_cell(dense):
    """[N, K, 1, 1], softmax, and only then flattened (SqueezeNet 1.0)."""
    model = classifier(
        "c2 = Conv(p, k) g = GlobalAveragePool(c2) s = Softmax<axis=1>(g) y = Flatten(s)",
        k=small(5, 4, 1, 1),
        opset=9,
    )
    assert dense(model).ops[-4:] == ["AveragePool", "Transpose", "Softmax", "Transpose"]


@pytest.mark.parametrize(("keepdims", "out"), [(0, "N"), (1, "N,1")])
@pytest.mark.parametrize("axis", [1, -1])
def test_classes(dense, keepdims, out, axis):
    model = build(
        f"""net (float[N,2,6,6] x) => (int64[{out}] y, float[N,5] s)
        {{ f = Flatten(x) s = Gemm(f, v)
           y = ArgMax<axis={axis}, keepdims={keepdims}>(s) }}""",
        weights={"v": small(72, 5)},
    )
    made = dense(model, batches=(1, 2))
    assert made.interface["y"] == ["N", *([1] if keepdims else []), "y_height", "y_width"]


def test_the_most_likely_few(dense):
    model = build(
        """net (float[N,2,6,6] x) => (float[N,2] best, int64[N,2] which)
        { f = Flatten(x) s = Gemm(f, v) best, which = TopK(s, k) }""",
        weights={"v": small(72, 5), "k": np.array([2])},
    )
    made = dense(model)
    assert made.interface["which"] == ["N", 2, "which_height", "which_width"]


@pytest.mark.parametrize(
    ("tail", "out"),
    [
        ("y = BatchNormalization(h, scale, shift, mean, variance)", "5"),
        ("l = LayerNormalization(h, scale, shift) y = Identity(l)", "5"),
        ("y = Concat<axis=-1>(h, h)", "10"),
        ("a, b2 = Split(h, sizes) y = Concat<axis=1>(b2, a)", "5"),
        ("y = Gather<axis=-1>(h, picked)", "3"),
        ("y = Slice(h, one, most, last)", "4"),
        ("y = Slice(h, one, most, second)", "4"),
        ("q = QuantizeLinear(h, step, zero) y = DequantizeLinear(q, step, zero)", "5"),
        ("n = ReduceL2<axes=[-1], keepdims=1>(h) y = Div(h, n)", "5"),
        ("y = LpNormalization(h)", "5"),
        ("d = Dropout(h) y = Clip(d, low, high)", "5"),
        ("u = Unsqueeze(h, two) s = Sigmoid(u) m = Mul(s, s) y = Squeeze(m, two)", "5"),
        ("u = Unsqueeze(h, last) m = Mul(u, column) y = Squeeze(m, last)", "5"),
        ("y = PRelu(h, scale)", "5"),
        ("t = Greater(h, scale) y = Where(t, h, shift)", "5"),
    ],
)
def test_behind_the_layers(dense, tail, out):
    """What is done to [N, K] is done to [N, K, h, w]."""
    split = "Split<axis=-1>" if "Split" in tail else "Split"
    model = classifier(
        f"f = Flatten(p) h = Gemm(f, v, b) {tail.replace('Split', split)}",
        out=out,
        weights=", float[5] b, float[5] scale, float[5] shift, float[5] mean",
        v=small(100, 5),
        variance=np.linspace(0.5, 2, 5, dtype=np.float32),
        sizes=[2, 3],
        picked=[0, 4, 2],
        low=np.float32(-1),
        high=np.float32(1),
        two=[2, 3],
        last=[-1],
        column=small(5, 1),
        one=[1],
        most=[2**62],
        second=[1],
        step=np.linspace(0.1, 0.2, 5, dtype=np.float32),
        zero=np.zeros(5, np.int8),
    )
    made = dense(model, batches=(1, 2))
    assert made.interface["y"][1] == int(out)


@pytest.mark.parametrize("element", ["float16", "float"])
def test_half_precision(dense, element):
    """Tolerance 5e-3: both are rounded to 11 bits after every layer."""
    half = np.float16 if element == "float16" else np.float32
    model = build(
        f"""net ({element}[N,2,6,6] x) => ({element}[N,5] y)
        {{ p = GlobalAveragePool(x) f = Flatten(p) h = Gemm(f, v) y = Mul(h, k) }}""",
        weights={"v": small(2, 5).astype(half), "k": small(5).astype(half)},
    )
    made = dense(model, tolerance=5e-3)
    assert made.ops == ["AveragePool", "Conv", "Mul"]


def test_generated_weights_stay_generated(dense):
    model = build(
        """net (float[1,8,6,6] x) => (float[1,64] y) <int64[2] s>
        { v = ConstantOfShape<value = float[1] {0.25}>(s) f = Flatten(x) y = MatMul(f, v) }""",
        weights={"s": np.array([288, 64])},
    )
    made = dense(model)
    assert sorted(made.ops) == ["Constant", "ConstantOfShape", "Conv"] or sorted(made.ops) == [
        "ConstantOfShape",
        "Conv",
    ]
    assert len(made.proto.SerializeToString()) < 1500


def test_a_constant_node_holds_the_weight(dense):
    model = build(
        """net (float[1,1,2,2] x) => (float[1,2] y)
        { v = Constant<value = float[4,2] {1,2,3,4,5,6,7,8}>() f = Flatten(x) y = MatMul(f, v) }"""
    )
    assert dense(model).ops[-1] == "Conv"
