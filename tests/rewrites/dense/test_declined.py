"""Networks that cannot be dense: one line that names the node and the reason."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_text import build

from graphopt.errors import InputError


def small(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape).astype(np.float32)


GIVEN = {
    "channels": np.array([0, 576, 1, 1]),
    "sequence": np.array([0, 4, 144]),
    "halves": np.array([0, 8, 12, 6]),
    "merged": np.array([-1, 144]),
    "groups": np.array([0, 2, 2, 12, 12]),
    "fixed": np.array([1, 4, 24, 24]),
    "odd": np.array([1, 1, 1.7, 1.7], np.float32),
    "positional": small(1, 4, 12, 12),
    "row": small(12),
    "each": small(576),
    "v": small(576, 5),
    "square": small(12, 12),
    "k": small(4, 5),
    "zero": np.array([0, 0]),
    "half": np.array([6, 6]),
    "axes": np.array([2, 3]),
    "three": np.array([3]),
    "tensor": small(3, 4, 4),
    "shift": small(4),
    "down": np.array([-1, -1]),
}

CASES = {
    "space into channels": (
        "y = Reshape(x, channels)",
        "Reshape 'y' changes Nx4x12x12 to Nx576x1x1: space is turned into channels",
    ),
    "a sequence of places": ("y = Reshape(x, sequence)", "the places of the map become a sequence"),
    "columns into channels": ("y = Reshape(x, halves)", "space is turned into channels"),
    "the batch": ("y = Reshape(x, merged)", "the batch is not kept"),
    "a positional weight": (
        "y = Add(x, positional)",
        "Add 'y' has a constant that varies over space",
    ),
    "a weight for every column": ("y = Mul(x, row)", "varies over space"),
    "a weight for every place": (
        "f = Flatten(x) g = Mul(f, each) y = MatMul(g, v)",
        "varies over space",
    ),
    "statistics for every place": (
        "f = Flatten(x) g = BatchNormalization(f, each, each, each, var) y = MatMul(g, v)",
        "statistics for every place",
    ),
    "softmax of every place": (
        "f = Flatten(x) g = Softmax(f) y = MatMul(g, v)",
        "channels and places of a flattened map",
    ),
    "a layer along the width": (
        "y = MatMul(x, square)",
        "MatMul 'y' multiplies along the width of a map",
    ),
    "softmax along the width": ("y = Softmax(x)", "works along space or along the batch"),
    "classes of the width": ("y = ArgMax<axis=3>(x)", "works along space"),
    "an order of axes": ("y = Transpose<perm=[0,1,3,2]>(x)", "changes the order of the axes"),
    "groups that stay": ("g = Reshape(x, groups) y = ReduceSum(g, three)", "ReduceSum"),
    "groups as an output": ("y = Reshape(x, groups)", "is an output, and no map"),
    "a fixed size": (
        'y = Resize<mode="nearest">(x, , , fixed)',
        "Resize 'y' resizes to a fixed size",
    ),
    "an odd scale": ('y = Resize<mode="nearest">(x, , odd)', "does not divide the map"),
    "a cut of space": ("y = Slice(x, zero, half, axes)", "cuts space at places for one size"),
    "a cut from the end": ("y = Slice(x, down, big, axes)", "cuts space at places"),
    "a sum over space": ("y = ReduceSum(x, axes)", "reduces over space, which is no pooling"),
    "a mean over rows": ("y = ReduceMean<axes=[2]>(x)", "neither all of space nor the channels"),
    "a mean over everything": ("y = ReduceMean(x)", "reduces over all axes"),
    "positions of maxima": (
        "p, i = MaxPool<kernel_shape=[2,2]>(x) q = Cast<to=1>(i) y = Add(p, q)",
        "positions in a map of one size",
    ),
    "an operator over places": (
        "s = Reshape(x, sequence) y = Relu(s)",
        "the places of the map become a sequence",
    ),
    "something unknown": (
        "y = CumSum(x, three)",
        "CumSum 'y' is not known to work on a map of any size",
    ),
    "a flattened output": (
        "y = Flatten(x)",
        "Flatten 'y' is an output, and flattens a map of one size",
    ),
    "a weight from the picture": (
        "p = Flatten(x) q = Transpose(p) y = MatMul(p, q)",
        "Transpose 'q' changes the order",
    ),
    "two maps multiplied": ("y = MatMul(x, x)", "multiplies by what is computed from the picture"),
    "two strides": (
        "a = MaxPool<kernel_shape=[7,7], strides=[1,1]>(x) "
        "b = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) y = Add(a, b)",
        "joins maps of different strides",
    ),
    "two sizes": (
        "a = MaxPool<kernel_shape=[12,1]>(x) y = Add(a, x)",
        "their cells do not correspond",
    ),
    "a layer that weights a map": (
        "f = Flatten(x) h = MatMul(f, v4) u = Unsqueeze(h, axes) y = Mul(u, x)",
        "their cells do not correspond",
    ),
    "an answer about the whole": (
        "p = GlobalAveragePool(x) m = Mul(x, p) f = Flatten(p) q = GlobalAveragePool(m) "
        "z2 = Flatten(q) z = Relu(z2) y = Gemm(f, k)",
        "Gemm 'y' is an output, and about the whole picture",
    ),
    "channels and space at once": (
        "y = ReduceMean<axes=[1,2,3]>(x)",
        "neither all of space nor the channels",
    ),
    "one channel without its axis": (
        "y = Gather<axis=1>(x, several)",
        "picks channels into several axes",
    ),
    "samples that differ": ("y = Add(x, samples)", "differs between the samples"),
    "integers of the shape": (
        "s = Shape(x) c = Cast<to=1>(s) r = ReduceProd<keepdims=0>(c) y = Div(x, r)",
        "computes with the sizes of a map",
    ),
    "samples that become one": (
        "p = GlobalAveragePool(x) y = Reshape(p, one_row)",
        "the batch is not kept",
    ),
    "sizes of a flattened map": (
        "f = Flatten(x) s = Shape(f) n = Slice(s, first, second) t = Concat<axis=0>(n, gate) "
        "p = GlobalAveragePool(x) h = Flatten(p) u = Relu(h) r = Reshape(u, t) y = Mul(x, r)",
        "Reshape 'r' computes with the sizes of a map",
    ),
    "a recurrent layer": (
        "s = Reshape(x, sequence) y, h, c = LSTM<hidden_size=2>(s, lw, lr)",
        "the places of the map become a sequence",
    ),
    "a body": (
        "y = If<then_branch = t () => (float[N,4,12,12] a) { a = Relu(x) }, "
        "else_branch = e () => (float[N,4,12,12] b) { b = Neg(x) }>(flag)",
        "If 'y' runs a body over the picture",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_declined_with_its_reason(make, case):
    body, reason = CASES[case]
    more = {
        "var": np.ones(576, np.float32),
        "big": np.array([2**62, 2**62]),
        "v4": small(576, 4),
        "several": np.array([[0, 1]]),
        "samples": small(2, 1, 1, 1),
        "lw": small(1, 8, 144),
        "lr": small(1, 8, 2),
        "flag": np.array(True),
        "one_row": np.array([1, -1]),
        "first": np.array([0]),
        "second": np.array([1]),
        "gate": np.array([4, 1, 1]),
    }
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: array for name, array in {**GIVEN, **more}.items() if name in words}
    batch = "2" if case == "samples that differ" else "N"
    kind = "int64" if "ArgMax" in body else "float"
    extra = ", float[N,4] z" if " z = " in body else ""
    model = build(
        f"net (float[{batch},4,12,12] x) => ({kind} y{extra}) {{ {body} }}",
        weights=used,
        opset=17,
    )
    with pytest.raises(InputError, match="--dense: this network cannot be dense: ") as raised:
        make(model)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_layer_whose_weight_a_caller_may_override(make):
    model = build(
        """net (float[1,2,3,3] x, float[18,4] v) => (float[1,4] y)
        { f = Flatten(x) y = MatMul(f, v) }""",
        weights={"v": small(18, 4)},
    )
    with pytest.raises(InputError, match="is no plain layer: the weight can be overridden"):
        make(model)


def test_double_precision(make):
    """onnxruntime has no convolution of doubles."""
    model = build(
        "net (double[1,2,3,3] x) => (double[1,4] y) <double[18,4] v> { f = Flatten(x) y = MatMul(f, v) }"
    )
    with pytest.raises(InputError, match="of type float64, which onnxruntime cannot convolve"):
        make(model)


def test_a_pooling_of_a_type_without_one(make):
    model = build(
        "net (double[1,2,3,3] x) => (double[1,2,1,1] y) { y = ReduceMean<axes=[2,3]>(x) }"
    )
    with pytest.raises(InputError, match="no pooling of a given size"):
        make(model)


def test_a_pooling_of_open_size(make):
    """Nothing says how large the window is."""
    model = build("net (float[N,3,h,w] x) => (float[N,3,1,1] y) { y = GlobalAveragePool(x) }")
    with pytest.raises(InputError, match="pools a map of open size: give --shape"):
        make(model, False)


def test_opset_six(make):
    model = build("net (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Relu(x) }", opset=6)
    with pytest.raises(InputError, match="opset 6 is older than 7"):
        make(model)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("float[1,3] x", "input 'x' is of rank 2"),
        ("float[1,3,4] x", "input 'x' is of rank 3"),
        ("float[1,3,4,4] x, float[1,3,4,4] z", "one input, a picture \\(inputs: 'x', 'z'\\)"),
    ],
)
def test_inputs_that_are_no_picture(make, inputs, expected):
    model = build(f"net ({inputs}) => (float y) {{ y = ReduceMean(x) }}")
    with pytest.raises(InputError, match=expected):
        make(model)
