"""What stands before the head: residuals, squeeze-and-excite, shuffles, resizing, channels last."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build

HEAD = "g = GlobalAveragePool({}) y = Flatten(g)"


def network(
    body: str, *, opset: int = 17, size: int = 12, weights: str = "", **given: object
) -> onnx.ModelProto:
    """x [N, 4, s, s] -> body -> [N, 4] y."""
    return build(
        f"""net (float[N,4,{size},{size}] x) => (float[N,K] y)
        <float[4,4,3,3] w, float[4,4,1,1] w1, float[8,4,3,3] w2 {weights}> {{ {body} }}""",
        opset=opset,
        weights={name: np.asarray(array) for name, array in given.items()},
    )


def small(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)


def test_a_residual_that_is_not_padded(dense):
    """Joined at one stride: exact."""
    model = network(
        "a = Conv(x, w1) r = Relu(a) s = Add(r, x) b = Conv<strides=[2,2]>(s, w) "
        "c = MaxPool<kernel_shape=[3,3], strides=[2,2]>(s) t = Add(b, c) " + HEAD.format("t")
    )
    made = dense(model, batches=(1, 2))
    assert made.facts.inexact is None
    assert made.facts.stride == (2, 2)


def test_padding_is_not_exact_and_says_who_pads(dense):
    made = dense(network("a = Conv<pads=[1,1,1,1]>(x, w) s = Add(a, x) " + HEAD.format("s")))
    assert made.facts.inexact == "Conv 'a' pads"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = Conv<auto_pad=\"SAME_UPPER\">(x, w)", "pads"),
        ("s = Conv<auto_pad=\"SAME_LOWER\", strides=[2,2]>(x, w)", "pads"),
        ("s = Conv<auto_pad=\"SAME_UPPER\">(x, w1)", None),
        ("s = Conv<auto_pad=\"VALID\">(x, w)", None),
        ("s = Conv<dilations=[2,2]>(x, w)", None),
        ("s = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", "ceil_mode"),
        ("s = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", None),
        ("s = AveragePool<kernel_shape=[3,3], pads=[1,0,1,0], count_include_pad=1>(x)", "pads"),
        ("s = Pad(x, pads)", "pads"),
        ("s = Pad(x, cut)", None),
        ("s = InstanceNormalization(x, scale, shift)", "whole picture"),
        ("s = LRN<size=3>(x)", None),
        ("s = ConvTranspose<strides=[2,2]>(x, up)", None),
        ("s = ConvTranspose<strides=[2,2]>(x, w)", "overlaps"),
        ("s = ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, up)", "overlaps"),
        ("s = Resize<mode=\"nearest\">(x, , twice)", None),
        ("s = Resize<mode=\"nearest\">(x, , thrice)", None),
        ("s = Resize<mode=\"linear\">(x, , twice)", "interpolates"),
        ("s = DepthToSpace<blocksize=2>(x)", None),
        ("s = SpaceToDepth<blocksize=2>(x)", None),
        ("s = Slice(x, zero, whole, axes, steps)", None),
        ("s = Slice(x, zero, minus, axes)", None),
    ],
)  # fmt: skip
def test_strides_and_borders(dense, body, reason):
    """What is said to be exact is checked on windows by the fixture."""
    given = {
        "pads": [0, 0, 1, 1, 0, 0, 1, 1],
        "cut": [0, 0, -1, -2, 0, 0, -1, 0],
        "scale": small(4),
        "shift": small(4),
        "up": small(4, 3, 2, 2),
        "twice": np.array([1, 1, 2, 2], np.float32),
        "thrice": np.array([1, 1, 3, 2], np.float32),
        "zero": [0, 1],
        "whole": [2**62, 2**62],
        "minus": [-1, -2],
        "axes": [2, 3],
        "steps": [2, 2],
    }
    used = {name: array for name, array in given.items() if name in body}
    model = network(f"{body} l = Relu(s) " + HEAD.format("l"), **used)
    made = dense(model)
    if reason is None:
        assert made.facts.inexact is None
    else:
        assert reason in made.facts.inexact


def test_upsampled_maps_move_by_whole_cells(dense):
    """Three cells a pixel: a window a pixel further is three cells further."""
    model = build(
        """net (float[1,2,5,5] x) => (float[1,2,15,15] y)
        { y = Resize<mode="nearest">(x, , s) }""",
        weights={"s": np.array([1, 1, 3, 3], np.float32)},
    )
    made = dense(model)
    assert made.facts.stride == (1, 1)
    assert made.facts.cells("y") == (3, 3)


def test_deformable_convolution_samples_anywhere(dense):
    """Its offsets are a map like any other; where they lead is not bounded by the window."""
    model = network(
        "o = Conv(x, wo) d = DeformConv(x, w, o) " + HEAD.format("d"),
        opset=19,
        wo=small(18, 4, 3, 3),
    )
    made = dense(model)
    assert "may sample beyond the window" in made.facts.inexact


def test_outputs_of_several_strides(dense):
    """Features at stride 2 and classes at stride 4: windows are 4 pixels apart, 2 cells of the first."""
    model = build(
        """net (float[1,2,13,13] x) => (float[1,2,6,6] features, float[1,3] y)
        { features = MaxPool<kernel_shape=[3,3], strides=[2,2]>(x)
          p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(features)
          f = Flatten(p) y = Gemm(f, v) }""",
        weights={"v": small(18, 3)},
    )
    made = dense(model)
    assert made.facts.stride == (4, 4)
    assert made.facts.cells("features") == (2, 2)
    assert made.facts.cells("y") == (1, 1)
    assert made.interface["features"] == [1, 2, "features_height", "features_width"]


GATES = {
    "torch": """q = GlobalAveragePool(a) qf = Flatten(q) h = Gemm(qf, u) hr = Relu(h)
        e = Gemm(hr, v) s = Sigmoid(e) g4 = Reshape(s, back) m = Mul(a, g4)""",
    "paddle": """q = GlobalAveragePool(a) h = Conv(q, cu) hr = Relu(h) e = Conv(hr, cv)
        s = HardSigmoid(e) m = Mul(s, a)""",
    "mean": """q = ReduceMean<axes=[2,3], keepdims=0>(a) h = MatMul(q, u) e = MatMul(h, v)
        s = Sigmoid(e) g4 = Unsqueeze(s, last) m = Mul(a, g4)""",
    "sized": """q = AveragePool<kernel_shape=[12,12], strides=[12,12]>(a) h = Conv(q, cu)
        e = Conv(h, cv) s = Sigmoid(e) m = Mul(a, s)""",
}


@pytest.mark.parametrize("gate", GATES)
def test_squeeze_and_excite_stays_global(dense, gate):
    """Its result weights a map: it looks at the whole picture, whatever its size, and says so."""
    body = GATES[gate]
    given = {
        "u": small(4, 2),
        "v": small(2, 4),
        "cu": small(2, 4, 1, 1),
        "cv": small(4, 2, 1, 1),
        "back": [0, 4, 1, 1],
        "last": [2, 3],
    }
    used = {n: array for n, array in given.items() if f" {n})" in body}
    model = network(f"a = Conv(x, w1) {body} " + HEAD.format("m"), **used)
    made = dense(model)
    assert "looks at the whole picture" in made.facts.inexact
    kept = "ReduceMean" if gate == "mean" else "GlobalAveragePool"
    assert kept in made.ops
    assert made.ops.count("AveragePool") == 1
    assert made.ops[-1] == "AveragePool"


def test_squeeze_and_excite_on_one_cell_is_of_the_window(dense):
    """Where the map has one cell at the original size, every cell weights itself: exact."""
    model = network(
        "a = Conv(x, deep) q = GlobalAveragePool(a) h = Conv(q, cu) e = Conv(h, cv) s = Sigmoid(e) "
        "m = Mul(a, s) y = Flatten(m)",
        deep=small(4, 4, 12, 12),
        cu=small(2, 4, 1, 1),
        cv=small(4, 2, 1, 1),
    )
    made = dense(model)
    assert made.facts.inexact is None
    assert "GlobalAveragePool" not in made.ops


@pytest.mark.parametrize("joined", [True, False])
def test_channel_shuffle(dense, joined):
    """Reshapes would have to know the size; a Gather of channels does not."""
    parts, order = ([0, 2, 2, 144], "[0,2,1,3]") if joined else ([0, 2, 2, 12, 12], "[0,2,1,3,4]")
    model = network(
        f"s = Reshape(x, parts) t = Transpose<perm={order}>(s) u = Reshape(t, back) a = Conv(u, w) "
        + HEAD.format("a"),
        parts=parts,
        back=[-1, 4, 12, 12],
    )
    made = dense(model)
    assert made.ops == ["Gather", "Conv", "AveragePool"]
    order_name = made.node("Gather").input[1]
    found = next(t for t in made.proto.graph.initializer if t.name == order_name)
    assert onnx.numpy_helper.to_array(found).tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), (), (1, 4, 12, 12)])
def test_constants_a_channel(dense, shape):
    """One that is spread over space, but the same at every place, is one a channel."""
    constant = small(4).reshape(4, 1, 1) if len(shape) > 1 else small(1)
    array = np.ascontiguousarray(np.broadcast_to(constant, shape) if shape else constant[0])
    model = network("a = Add(x, k) c = Conv(a, w) " + HEAD.format("c"), k=array)
    dense(model)


def test_constants_of_a_flattened_map(dense):
    """[C*H*W], the same at every place of a channel."""
    spread = np.repeat(small(4), 144)
    model = network(
        "f = Flatten(x) a = Mul(f, k) r = Relu(a) y = MatMul(r, v)", k=spread, v=small(576, 3)
    )
    assert dense(model).ops == ["Mul", "Relu", "Conv"]


def test_spatial_attention(dense):
    """A map [N, 1, H, W] of the channels' mean and maximum (CBAM)."""
    model = network(
        "a = ReduceMean<axes=[1]>(x) b = ReduceMax<axes=[1]>(x) c = Concat<axis=1>(a, b) "
        "d = Conv(c, k) s = Sigmoid(d) m = Mul(x, s) " + HEAD.format("m"),
        k=small(1, 2, 1, 1),
    )
    assert dense(model).facts.inexact is None


def test_a_picture_with_channels_last(dense):
    model = build(
        """net (uint8[N,9,8,3] x) => (float[N,5] y) <float[4,3,3,3] w>
        { f = Cast<to=1>(x) n = Sub(f, mean) m = Mul(n, scale) t = Transpose<perm=[0,3,1,2]>(m)
          c = Conv(t, w) g = GlobalAveragePool(c) h = Flatten(g) y = Gemm(h, v) }""",
        weights={
            "mean": small(3),
            "scale": np.float32(0.01),
            "v": small(4, 5),
        },
    )
    made = dense(model, batches=(1, 2))
    assert made.interface["x"] == ["N", "height", "width", 3]
    assert made.facts.axes == (1, 2)
    assert made.facts.window == (9, 8)


def test_layers_over_the_last_axis(dense):
    """ConvNeXt normalizes with the channels last."""
    model = network(
        "c = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(c) l = LayerNormalization(t, scale, shift) "
        "e = MatMul(l, v) r = Relu(e) b = Add(r, shift) m = ReduceMean<axes=[1,2], keepdims=0>(b) "
        "y = Softmax(m)",
        scale=small(4),
        shift=small(4),
        v=small(4, 4),
    )
    assert dense(model, batches=(1, 2)).facts.inexact is None


def test_a_mean_with_channels_last_that_keeps_its_axes(dense):
    model = network(
        "t = Transpose<perm=[0,2,3,1]>(x) m = ReduceMean<axes=[1,2]>(t) f = Reshape(m, k) "
        "y = Gemm(f, v)",
        k=[-1, 4],
        v=small(4, 3),
    )
    dense(model, batches=(1, 2))


def test_channels_picked_one_by_one(dense):
    """torchvision's Inception normalizes every channel of the picture on its own."""
    model = network(
        "a = Gather<axis=1>(x, one) a4 = Unsqueeze(a, axis) am = Mul(a4, k) "
        "b = Gather<axis=1>(x, two) b4 = Unsqueeze(b, axis) c = Concat<axis=1>(am, b4) "
        + HEAD.format("c"),
        one=1,
        two=2,
        axis=[1],
        k=np.float32(0.5),
    )
    assert dense(model, batches=(1, 2)).facts.inexact is None


def test_the_score_of_one_class(dense):
    model = build(
        """net (float[N,2,6,6] x) => (float[N] y, float[N,1] z)
        { f = Flatten(x) s = Gemm(f, v) y = Gather<axis=-1>(s, one) z = Unsqueeze(y, axis) }""",
        weights={"v": small(72, 5), "one": np.array(1), "axis": np.array([1])},
    )
    made = dense(model, batches=(1, 2))
    assert made.interface["y"] == ["N", "y_height", "y_width"]
    assert made.interface["z"] == ["N", 1, "z_height", "z_width"]


def test_names_that_are_read_again(dense):
    """A flattened value and an intermediate map that are outputs as well."""
    model = build(
        """net (float[N,2,6,6] x) => (float[N,2] pooled, float[N,3] y, float[N,3] same)
        { p = GlobalAveragePool(x) pooled = Flatten(p) y = Gemm(pooled, v) same = Identity(y) }""",
        weights={"v": small(2, 3)},
    )
    made = dense(model, batches=(1, 2))
    assert made.interface["pooled"] == ["N", 2, "pooled_height", "pooled_width"]


def test_a_flattened_input_that_is_an_output(dense):
    """Two names for one value: an Identity stays between them."""
    model = build(
        "net (float[N,3,1,1] x) => (float[N,3] y, float[N,3] z) { y = Flatten(x) z = Flatten(x) }"
    )
    assert dense(model).ops == ["Identity", "Identity"]
