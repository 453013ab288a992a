"""DeformConv: what is fused into it, and where it is a plain convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import body, build, has, listed, optimize, rewrite

from graphopt.rewrites import CLEANUP, EXACT
from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.exact.deform_to_conv import DeformToConv
from graphopt.rewrites.exact.drop_zero_bias import DropZeroBias
from graphopt.rewrites.exact.fuse_affine import FuseConvAffine
from graphopt.rewrites.exact.fuse_affine_before import FuseAffineBefore
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm

Array = np.ndarray[Any, Any]
BN, AFFINE, BEFORE = FuseConvBatchNorm(), FuseConvAffine(), FuseAffineBefore()
DROP, PLAIN = DropZeroBias(), DeformToConv()

NORM = "BatchNormalization(c, scale, shift, mean, var)"
NORMED = "float[6] scale, float[6] shift, float[6] mean, float[6] var"
OPERANDS = ["x, w, o", "x, w, o, b", 'x, w, o, "", m', "x, w, o, b, m"]
"""Without and with a bias and a mask."""


def deform(
    nodes: str,
    declared: str = "float[6,4,3,3] w, float[6] b",
    *,
    kind: str = "float",
    y: str = "2,6,6,5",
    offsets: int = 18,
    opset: int = 19,
    weights: Mapping[str, Array] | None = None,
) -> onnx.ModelProto:
    """x, offsets o and mask m (real ones, as inputs) -> nodes -> y."""
    return build(
        f"""net ({kind}[2,4,6,5] x, {kind}[2,{offsets},6,5] o, {kind}[2,{offsets // 2},6,5] m)
        => ({kind}[{y}] y) <{declared}> {{ {nodes} }}""",
        opset=opset,
        weights=weights,
    )


def conv(operands: str, attributes: str = "") -> str:
    return f"DeformConv<pads=[1,1,1,1]{attributes}>({operands})"


def inputs(proto: onnx.ModelProto, op_type: str = "DeformConv") -> list[str]:
    return list(next(n for n in proto.graph.node if n.op_type == op_type).input)


# What follows goes into weight and bias.


@pytest.mark.parametrize("opset", [19, 22, 23])
@pytest.mark.parametrize("operands", OPERANDS)
def test_batch_normalization_behind(operands: str, opset: int) -> None:
    nodes = f"c = {conv(operands)} y = {NORM}"
    model = deform(nodes, f"float[6,4,3,3] w, float[6] b, {NORMED}", opset=opset)
    result = optimize(model, BN)
    assert result.ops == ["DeformConv"]
    x, w, o, b, *mask = inputs(result.proto)
    assert (x, o, mask) == ("x", "o", ["m"] if "m" in operands else [])
    assert w not in ("", "w")
    assert b not in ("", "b")


@pytest.mark.parametrize("arithmetic", ["Mul(c, k)", "Div(c, k)", "Add(k, c)", "Sub(k, c)"])
@pytest.mark.parametrize("operands", OPERANDS)
def test_affine_map_behind(operands: str, arithmetic: str) -> None:
    model = deform(
        f"c = {conv(operands)} y = {arithmetic}", "float[6,4,3,3] w, float[6] b, float[6,1,1] k"
    )
    result = optimize(model, AFFINE)
    assert result.ops == ["DeformConv"]
    assert inputs(result.proto)[4:] == (["m"] if "m" in operands else [])


@pytest.mark.parametrize("mask", [False, True])
def test_an_added_bias_leaves_the_weight_alone(mask: bool) -> None:
    model = deform(
        f"c = {conv('x, w, o' + (', , m' if mask else ''))} y = Add(c, k)",
        "float[6,4,3,3] w, float[6,1,1] k",
    )
    result = optimize(model, AFFINE)
    x, w, o, _, *rest = inputs(result.proto)
    assert (x, w, o, rest) == ("x", "w", "o", ["m"] if mask else [])
    np.testing.assert_allclose(result.weight(0, 3), weight_of(model, "k").ravel())


def weight_of(model: onnx.ModelProto, name: str) -> Array:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def test_a_scale_alone_makes_no_bias() -> None:
    result = optimize(
        deform(
            f"c = {conv(OPERANDS[2])} y = Mul(c, k)",
            weights={"w": np.ones((6, 4, 3, 3), np.float32), "k": np.float32(3)},
            declared="float[1] z",
        ),
        AFFINE,
    )
    assert result.ops == ["DeformConv"]
    assert inputs(result.proto)[3:] == ["", "m"]


@pytest.mark.parametrize(
    ("attributes", "weight", "offsets", "size"),
    [
        ("group=2", "6,2,3,3", 18, "4,3"),
        ("offset_group=2", "6,4,3,3", 36, "4,3"),
        ("group=2, offset_group=4", "6,2,3,3", 72, "4,3"),
        ("strides=[2,1], pads=[1,0,2,1]", "6,4,3,3", 18, "4,4"),
        ("dilations=[2,1], pads=[1,2,1,0]", "6,4,3,3", 18, "4,5"),
        ("kernel_shape=[2,3]", "6,4,2,3", 12, "5,3"),
    ],
)
def test_geometries(attributes: str, weight: str, offsets: int, size: str) -> None:
    model = build(
        f"""net (float[2,4,6,5] x, float[2,{offsets},{size}] o, float[2,{offsets // 2},{size}] m)
        => (float[2,6,{size}] y) <float[{weight}] w, {NORMED}, float[6,1,1] k>
        {{ d = DeformConv<{attributes}>(x, w, o, , m) c = Mul(d, k) y = {NORM} }}""",
        opset=19,
    )
    result = optimize(model, BN, AFFINE)
    assert result.ops == ["DeformConv"]


@pytest.mark.parametrize(("kind", "tolerance"), [("double", 1e-12), ("float16", 5e-3)])
def test_types(kind: str, tolerance: float) -> None:
    """float16: onnxruntime computes in float32; the weight is rounded once more to 11 bits."""
    declared = f"{kind}[6,4,3,3] w, {kind}[6] b, {kind}[6,1,1] k"
    model = deform(f"c = {conv(OPERANDS[3])} y = Mul(c, k)", declared, kind=kind)
    assert optimize(model, AFFINE, tolerance=tolerance).ops == ["DeformConv"]


def test_a_shared_weight_is_copied() -> None:
    model = deform(
        f"c = {conv('x, w, o')} n = {NORM} d = {conv('x, w, o')} y = Add(n, d)",
        f"float[6,4,3,3] w, {NORMED}",
    )
    result = optimize(model, BN, AFFINE)
    assert result.ops == ["DeformConv", "DeformConv", "Add"]
    assert {n.input[1] for n in result.proto.graph.node[:2]} > {"w"}


def test_offsets_that_are_the_data() -> None:
    """What is used twice by one node stays what it is for the offsets."""
    model = build(
        """net (float[1,18,6,5] x) => (float[1,6,6,5] y)
        <float[6,18,3,3] w, float[18,1,1] k, float[6,1,1] t>
        { s = Mul(x, k) c = DeformConv<pads=[1,1,1,1]>(s, w, s) y = Mul(c, t) }""",
        opset=19,
    )
    result = optimize(model, BEFORE, AFFINE)
    assert result.ops == ["Mul", "DeformConv"]
    assert has(result.reasons, "needed elsewhere")


@pytest.mark.parametrize(
    ("made", "declared"),
    [
        ("w = Identity(v)", "float[6,4,3,3] v"),
        ("w = Cast<to=1>(v)", "float16[6,4,3,3] v"),
        ("w = CastLike(v, x)", "double[6,4,3,3] v"),
        ("w = Reshape(v, s)", "float[216] v"),
    ],
)
def test_weights_behind_other_nodes(made: str, declared: str) -> None:
    model = deform(
        f"{made} c = {conv('x, w, o')} y = {NORM}",
        f"{declared}, {NORMED}",
        weights={"s": np.asarray([6, 4, 3, 3])},
    )
    result = optimize(model, BN, RemoveDead())
    assert (result.ops == ["DeformConv"]) == ("CastLike" not in made)


def test_a_weight_that_a_caller_may_override() -> None:
    model = listed(deform(f"c = {conv('x, w, o')} y = {NORM}", f"float[6,4,3,3] w, {NORMED}"), "w")
    result = optimize(model, BN)
    assert result.ops == ["DeformConv", "BatchNormalization"]
    assert has(result.reasons, "overridden by a caller")


def test_a_bias_computed_at_run_time() -> None:
    model = deform(
        f"b = ReduceMean<keepdims=0>(o, a) c = {conv('x, w, o, b')} y = {NORM}",
        f"float[18,4,3,3] w, {NORMED.replace('6', '18')}",
        y="2,18,6,5",
        weights={"a": np.asarray([0, 2, 3])},
    )
    result = optimize(model, BN)
    assert result.ops == ["ReduceMean", "DeformConv", "BatchNormalization"]
    assert has(result.reasons, "the bias is computed at run time")


def test_an_output_in_between() -> None:
    model = build(
        f"""net (float[2,4,6,5] x, float[2,18,6,5] o) => (float[2,6,6,5] y, float[2,6,6,5] c)
        <float[6,4,3,3] w, {NORMED}> {{ c = {conv("x, w, o")} y = {NORM} }}""",
        opset=19,
    )
    result = optimize(model, BN)
    assert result.ops == ["DeformConv", "BatchNormalization"]
    assert has(result.reasons, "needed elsewhere")


# What stands before it: sampling is linear, but nothing is added to the zeros outside.


@pytest.mark.parametrize(
    "attributes", ["", ", group=2", ", offset_group=2", ", group=2, offset_group=4"]
)
def test_a_scale_before(attributes: str) -> None:
    weight = "6,2,3,3" if " group" in attributes else "6,4,3,3"
    offsets = 18 * int(attributes[-1]) if "offset_group" in attributes else 18
    model = deform(
        f"s = Mul(x, k) y = {conv('s, w, o, b, m', attributes)}",
        f"float[{weight}] w, float[6] b, float[4,1,1] k",
        offsets=offsets,
    )
    result = optimize(model, BEFORE)
    assert result.ops == ["DeformConv"]
    assert inputs(result.proto)[2:] == ["o", "b", "m"]


def test_a_shift_before_stays() -> None:
    model = deform(f"s = Add(x, k) y = {conv('s, w, o')}", "float[6,4,3,3] w, float[4,1,1] k")
    result = optimize(model, BEFORE)
    assert result.ops == ["Add", "DeformConv"]
    assert has(result.reasons, "it samples its input, and outside of it zeros")


def test_a_shift_before_stays_without_padding() -> None:
    """Offsets lead outside whatever is padded."""
    model = build(
        """net (float[1,4,6,5] x, float[1,8,5,4] o) => (float[1,3,5,4] y)
        <float[3,4,2,2] w, float[4] scale, float[4] shift, float[4] mean, float[4] var>
        { s = BatchNormalization(x, scale, shift, mean, var) y = DeformConv(s, w, o) }""",
        opset=19,
    )
    result = optimize(model, BEFORE)
    assert result.ops == ["BatchNormalization", "DeformConv"]


def test_the_scale_before_a_shift_goes() -> None:
    model = deform(
        f"t = Mul(x, k) s = Add(t, l) y = {conv('s, w, o')}",
        "float[6,4,3,3] w, float[4,1,1] k, float[4,1,1] l",
    )
    result = optimize(model, BEFORE)
    assert result.ops == ["Add", "DeformConv"]
    assert result.names == ["fuse-affine-before"]


def test_what_scales_the_offsets_is_no_site() -> None:
    model = deform(f"s = Mul(o, k) y = {conv('x, w, s')}", "float[6,4,3,3] w, float[18,1,1] k")
    result = optimize(model, BEFORE, AFFINE)
    assert result.ops == ["Mul", "DeformConv"]
    assert result.declined == ()


@pytest.mark.parametrize("operands", OPERANDS[1::2])
def test_a_bias_of_zeros(operands: str) -> None:
    model = deform(
        f"y = {conv(operands)}", "float[6,4,3,3] w", weights={"b": np.zeros(6, np.float32)}
    )
    result = optimize(model, DROP)
    assert inputs(result.proto) == ["x", "w", "o", *(["", "m"] if "m" in operands else [])]
    assert result.names == ["drop-zero-bias"]


def test_offsets_of_zeros_are_no_bias() -> None:
    model = deform(f"y = {conv('x, w, z')}", weights={"z": np.zeros((2, 18, 6, 5), np.float32)})
    assert optimize(model, DROP).names == []


# Where it is a plain convolution.

ZEROS = np.zeros((2, 18, 6, 5), np.float32)


@pytest.mark.parametrize("opset", [19, 22])
@pytest.mark.parametrize(
    "made",
    [
        "z = Identity(zeros)",
        "z = ConstantOfShape(shape)",
        "v = Constant<value_float = 0.0>() z = Expand(v, shape)",
        "z = Conv<pads=[1,1,1,1]>(x, none)",
        "z = Conv<pads=[1,1,1,1]>(x, none, nothing)",
        "z = Conv<pads=[1,1,1,1]>(x, generated, nothing)",
        "v = Conv<pads=[1,1,1,1]>(x, none, some) z = Mul(v, nought)",
        "v = Conv<pads=[1,1,1,1]>(x, none, some) z = Sub(v, some3)",
        "v = Conv<pads=[1,1,1,1]>(x, none) t = Tanh(v) z = Div(t, two)",
        "v = Conv<pads=[1,1,1,1]>(x, none) r = Relu(v) a, c = Split<axis=1>(r, half) "
        "z = Concat<axis=-3>(c, a)",
        "v = Conv<pads=[1,1,1,1]>(x, none) a, c = Split<axis=-3, num_outputs=2>(v) "
        "z = Concat<axis=1>(a, c)",
    ],
)
def test_offsets_of_zero(made: str, opset: int) -> None:
    some = np.arange(18, dtype=np.float32)
    model = deform(
        f"generated = ConstantOfShape(wide) {made} y = {conv('x, w, z, b')}",
        opset=opset,
        weights={
            "zeros": ZEROS,
            "shape": np.asarray([2, 18, 6, 5]),
            "wide": np.asarray([18, 4, 3, 3]),
            "none": np.zeros((18, 4, 3, 3), np.float32),
            "nothing": np.zeros(18, np.float32),
            "some": some,
            "some3": some.reshape(1, 18, 1, 1),
            "nought": np.float32(0),
            "two": np.float32(2),
            "half": np.asarray([8, 10]),
        },
    )
    result = optimize(model, PLAIN, RemoveDead())
    assert result.ops == ["Conv"]
    assert inputs(result.proto, "Conv") == ["x", "w", "b"]
    assert result.names[0] == "deform-to-conv"
    assert result.declined == ()


@pytest.mark.parametrize(
    "text",
    [
        """v = Slice(p, zero, eighteen, one) z = Identity(v) u = Slice(p, eighteen, last, minus3)
        s = Sigmoid(u) m = Mul(two, s)""",
        "z, u = Split<axis=1>(p, sizes) m = Sigmoid(u)",
    ],
)
@pytest.mark.parametrize("learnt", [0.0, 0.7])
def test_as_it_is_initialized_before_training(text: str, learnt: float) -> None:
    """One convolution with a weight of zero predicts offsets and mask: torchvision, Zhu et al. 2019."""
    bias = np.zeros(27, np.float32)
    bias[18:] = learnt * np.arange(9)
    model = build(
        f"""net (float[N,4,H,W] x) => (float[N,6,h,l] y) <float[6,4,3,3] w>
        {{ p = Conv<pads=[1,1,1,1], strides=[2,1]>(x, none, bias) {text}
          y = DeformConv<pads=[1,1,1,1], strides=[2,1]>(x, w, z, , m) }}""",
        opset=19,
        weights={
            "none": np.zeros((27, 4, 3, 3), np.float32),
            "bias": bias,
            "zero": np.asarray([0]), "one": np.asarray([1]), "eighteen": np.asarray([18]),
            "last": np.asarray([2**63 - 1]), "minus3": np.asarray([-3]),
            "sizes": np.asarray([18, 9]), "two": np.float32([[[2]]]),
        },
    )  # fmt: skip
    result = optimize(model, PLAIN, runs=[{"x": (1, 4, 7, 6)}, {"x": (3, 4, 6, 9)}])
    assert result.ops == ["Conv"]
    expected = weight_of(model, "w") / (1 + np.exp(-bias[18:].astype(float))).reshape(3, 3)
    if "two" in text:
        expected = 2 * expected
        assert (inputs(result.proto, "Conv")[1] == "w") == (learnt == 0)
    np.testing.assert_allclose(result.weight(0, 1), expected, rtol=1e-6)


def test_what_others_read_stays() -> None:
    """Nodes that only the offsets need go with them, and no others."""
    model = deform(
        f"""s = Relu(x) z = Conv<pads=[1,1,1,1]>(s, none) c = {conv("s, w, z")}
        d = {conv("s, v, z")} y = Add(c, d)""",
        "float[6,4,3,3] w, float[6,4,3,3] v",
        weights={"none": np.zeros((18, 4, 3, 3), np.float32)},
    )
    result = optimize(model, PLAIN)
    assert result.ops == ["Relu", "Conv", "Conv", "Add"]
    assert sorted(t.name for t in result.proto.graph.initializer) == ["v", "w"]


def test_what_it_reads_itself_stays() -> None:
    model = deform(
        f"s = Relu(x) z = Conv<pads=[1,1,1,1]>(s, none) y = {conv('s, w, z')}",
        "float[6,4,3,3] w",
        weights={"none": np.zeros((18, 4, 3, 3), np.float32)},
    )
    assert optimize(model, PLAIN).ops == ["Relu", "Conv"]


def test_offsets_that_are_an_output_stay() -> None:
    model = build(
        f"""net (float[2,4,6,5] x) => (float[2,6,6,5] y, float[2,18,6,5] z) <float[6,4,3,3] w>
        {{ z = Conv<pads=[1,1,1,1]>(x, none) y = {conv("x, w, z")} }}""",
        opset=19, weights={"none": np.zeros((18, 4, 3, 3), np.float32)},
    )  # fmt: skip
    assert optimize(model, PLAIN).ops == ["Conv", "Conv"]


@pytest.mark.parametrize(
    ("attributes", "weight", "groups"),
    [
        ("strides=[2,1], pads=[0,2,1,1]", "6,4,3,3", 1),
        ("dilations=[1,2], pads=[1,2,0,1]", "6,4,3,3", 1),
        ("group=2", "6,2,3,3", 1),
        ("offset_group=2", "6,4,3,3", 2),
        ("group=2, offset_group=4", "6,2,3,3", 4),
        ("group=4, offset_group=2", "8,1,3,3", 2),
        ("kernel_shape=[1,1]", "6,4,1,1", 1),
    ],
)
@pytest.mark.parametrize("mask", ["ones", "uniform", "zero"])
def test_geometries_and_constant_masks(
    attributes: str, weight: str, groups: int, mask: str
) -> None:
    """A number for every kernel position and offset group goes into the weight."""
    outputs, _, *kernel = (int(size) for size in weight.split(","))
    count = groups * kernel[0] * kernel[1]
    size = {"strides": (3, 6), "dilations": (5, 4), "group": (4, 3), "offset_group": (4, 3)}.get(
        attributes.split("=")[0], (6, 5)
    )
    numbers = {"ones": np.ones, "zero": np.zeros}.get(mask, np.arange)(count)
    full = np.broadcast_to(numbers.reshape(1, -1, 1, 1), (2, count, *size)).astype(np.float32)
    model = build(
        f"""net (float[2,4,6,5] x) => (float[2,{outputs},{size[0]},{size[1]}] y)
        <float[{weight}] w, float[{outputs}] b>
        {{ y = DeformConv<{attributes}>(x, w, z, b, m) }}""",
        opset=22,
        weights={"z": np.zeros((2, 2 * count, *size), np.float32), "m": full},
    )
    result = optimize(model, PLAIN)
    assert result.ops == ["Conv"]
    assert (inputs(result.proto, "Conv")[1] == "w") == (mask == "ones")
    kept = {a.name for a in result.proto.graph.node[0].attribute}
    assert kept == {a.name for a in model.graph.node[0].attribute} - {"offset_group"}


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("z = Identity(o)", "its offsets are computed at run time"),
        ("z = Identity(few)", "its offsets are constant, but not zero"),
        (
            "z = ConstantOfShape<value = float[1] {0.5}>(s)",
            "its offsets are constant, but not zero",
        ),
        ("z = Conv<pads=[1,1,1,1]>(x, none, few18)", "its offsets are constant, but not zero"),
        ("z = Conv<pads=[1,1,1,1]>(x, one)", "its offsets are computed at run time"),
        ("v = Conv<pads=[1,1,1,1]>(x, none) z = Add(v, o)", "its offsets are computed at run time"),
        ("v = Conv<pads=[1,1,1,1]>(x, none) z = Exp(v)", "its offsets are computed at run time"),
    ],
)
def test_offsets_that_are_not_zero(made: str, reason: str) -> None:
    few, one = ZEROS.copy(), np.zeros((18, 4, 3, 3), np.float32)
    few[1, 17, 5, 4] = one[17, 3, 2, 2] = 0.25
    model = deform(
        f"{made} y = {conv('x, w, z, b')}",
        weights={
            "few": few,
            "s": np.asarray(ZEROS.shape),
            "none": np.zeros_like(one),
            "one": one,
            "few18": few[1, :, 5, 4],
        },
    )
    result = optimize(model, PLAIN)
    assert result.names == []
    assert result.reasons == [reason]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("k = Identity(m)", "its mask is computed at run time"),
        ("k = Sigmoid(m)", "its mask is computed at run time"),
        ("k = Identity(varied)", "its mask varies from place to place"),
    ],
)
def test_masks_that_stay(made: str, reason: str) -> None:
    varied = np.ones((2, 9, 6, 5), np.float32)
    varied[0, 0, 0, 0] = 0.5
    model = deform(f"{made} y = {conv('x, w, z, b, k')}", weights={"z": ZEROS, "varied": varied})
    result = optimize(model, PLAIN)
    assert result.names == []
    assert result.reasons == [reason]


def test_offsets_that_a_caller_may_override() -> None:
    model = listed(deform(f"y = {conv('x, w, z')}", weights={"z": ZEROS}), "z")
    result = optimize(model, PLAIN)
    assert result.ops == ["DeformConv"]
    assert result.reasons == ["its offsets can be overridden by a caller"]


def test_a_predictor_that_a_caller_may_override() -> None:
    none = np.zeros((18, 4, 3, 3), np.float32)
    model = deform(
        f"z = Conv<pads=[1,1,1,1]>(x, none) y = {conv('x, w, z')}", weights={"none": none}
    )
    result = optimize(listed(model, "none"), PLAIN)
    assert result.ops == ["Conv", "DeformConv"]


def test_a_weight_computed_at_run_time() -> None:
    """It can be the convolution's, but no mask goes into it."""
    text = "v = ReduceMean<keepdims=1>(x, a) w = Mul(v, u)"
    weights = {
        "z": ZEROS[:, :18],
        "a": np.asarray([0, 2, 3]),
        "half": np.full((2, 9, 6, 5), 0.5, np.float32),
    }
    declared = "float[6,4,3,3] u"
    plain = optimize(deform(f"{text} y = {conv('x, w, z')}", declared, weights=weights), PLAIN)
    assert plain.ops == ["ReduceMean", "Mul", "Conv"]
    masked = optimize(
        deform(f"{text} y = {conv('x, w, z, , half')}", declared, weights=weights), PLAIN
    )
    assert masked.ops == ["ReduceMean", "Mul", "DeformConv"]
    assert has(masked.reasons, "not all ones, and the weight is computed at run time")


@pytest.mark.parametrize("uniform", [True, False])
def test_a_generated_weight_stays_generated(uniform: bool) -> None:
    mask = np.broadcast_to(
        (np.ones(9) if uniform else np.arange(9)).reshape(9, 1, 1) / 2, (2, 9, 6, 5)
    )
    model = deform(
        f"w = ConstantOfShape<value = float[1] {{0.25}}>(s) y = {conv('x, w, z, , k')}",
        declared="float[1] unused",
        weights={"s": np.asarray([6, 4, 3, 3]), "z": ZEROS, "k": mask.astype(np.float32)},
    )
    result = optimize(model, PLAIN, RemoveDead())
    assert sorted(result.ops) == ["ConstantOfShape", "Conv" if uniform else "DeformConv"]
    assert has(result.reasons, "would have to be stored") != uniform


def test_a_folded_weight_that_is_too_large() -> None:
    mask = np.full((2, 9, 6, 5), 4e4, np.float16)
    model = deform(
        f"y = {conv('x, w, z, , k')}",
        "float16[1] unused",
        kind="float16",
        weights={
            "w": np.full((6, 4, 3, 3), 3, np.float16) * np.arange(3, dtype=np.float16),
            "z": ZEROS.astype(np.float16),
            "k": mask,
        },
    )
    result = rewrite(model, PLAIN)
    assert result.ops == ["DeformConv"]
    assert has(result.reasons, "too large for float16")


@pytest.mark.parametrize("kind", ["double", "float16"])
def test_types_of_plain_convolutions(kind: str) -> None:
    """onnxruntime runs DeformConv in double precision, but not Conv."""
    dtype = {"double": np.float64, "float16": np.float16}[kind]
    mask = np.broadcast_to(np.linspace(0, 1, 9).reshape(9, 1, 1), (2, 9, 6, 5)).astype(dtype)
    model = deform(
        f"y = {conv('x, w, z, b, k')}",
        f"{kind}[6,4,3,3] w, {kind}[6] b",
        kind=kind,
        weights={"z": ZEROS.astype(dtype), "k": mask},
    )
    result = optimize(model, PLAIN, tolerance=5e-3)
    assert result.ops == ["Conv" if kind == "float16" else "DeformConv"]
    assert has(result.reasons, "no plain convolution of type float64") == (kind == "double")
    assert result.weight(0, 1).dtype == dtype


def test_an_output_that_is_used_further() -> None:
    model = build(
        f"""net (float[2,4,6,5] x) => (float[2,6,6,5] c, float[2,6,6,5] y) <float[6,4,3,3] w>
        {{ c = {conv("x, w, z")} y = Relu(c) }}""",
        opset=19, weights={"z": ZEROS},
    )  # fmt: skip
    assert optimize(model, PLAIN).ops == ["Conv", "Relu"]


@pytest.mark.parametrize(("size", "kernel"), [("6", "3"), ("5,4,6", "3,1,3")])
def test_other_dimensions(size: str, kernel: str) -> None:
    """onnxruntime and onnx.reference know two dimensions only, ONNX any number."""
    sizes, taps = [int(n) for n in size.split(",")], [int(n) for n in kernel.split(",")]
    out = [n - k + 1 for n, k in zip(sizes, taps, strict=True)]
    offsets = np.zeros((1, len(sizes) * int(np.prod(taps)), *out), np.float32)
    model = build(
        f"""net (float[1,4,{size}] x) => (float[1,6,{",".join(map(str, out))}] y)
        <float[6,4,{kernel}] w> {{ y = DeformConv(x, w, z) }}""",
        opset=19, weights={"z": offsets},
    )  # fmt: skip
    result = rewrite(model, PLAIN)
    assert result.ops == ["Conv"]
    onnx.checker.check_model(result.proto, full_check=True)


def test_in_a_body() -> None:
    model = build(
        f"""net (float[2,4,6,5] x, bool t) => (float[2,6,6,5] y) <float[6,4,3,3] w, {NORMED}>
        {{ y = If(t) <
             then_branch = then () => (float[2,6,6,5] u) {{ c = {conv("x, w, z")} u = {NORM} }},
             else_branch = other () => (float[2,6,6,5] v) {{ v = {conv("x, w, z")} }}
           > }}""",
        opset=19,
        weights={"z": ZEROS},
    )
    result = optimize(model, PLAIN, BN)
    for branch in ("then_branch", "else_branch"):
        assert [n.op_type for n in body(result.proto, "If", branch).node] == ["Conv"]


def test_with_all_other_rewrites() -> None:
    """A block with a predictor of zeros: what is left is a convolution and a Relu."""
    model = deform(
        f"""z = Conv<pads=[1,1,1,1]>(x, none, nothing) c = {conv("x, w, z")} n = {NORM}
        r = Relu(n) y = Mul(r, one)""",
        f"float[6,4,3,3] w, {NORMED}",
        weights={
            "none": np.zeros((18, 4, 3, 3), np.float32),
            "nothing": np.zeros(18, np.float32),
            "one": np.float32(1),
        },
    )
    assert optimize(model, *CLEANUP, *EXACT).ops == ["Conv", "Relu"]


def test_with_all_other_rewrites_and_real_offsets() -> None:
    model = deform(
        f"""p = Conv<pads=[1,1,1,1]>(x, v, f) c = {conv("x, w, p, b, m")} n = {NORM}
        y = Relu(n)""",
        f"float[6,4,3,3] w, float[6] b, {NORMED}, float[18,4,3,3] v, float[18] f",
    )
    result = optimize(model, *CLEANUP, *EXACT)
    assert result.ops == ["Conv", "DeformConv", "Relu"]
    assert has(result.reasons, "its offsets are computed at run time")
