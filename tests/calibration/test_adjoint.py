"""Every rule, and whole networks, against central finite differences of onnxruntime's forward."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from graphopt.calibration.adjoint import Adjoint, adjoint
from graphopt.errors import InputError
from graphopt.graph.io import session_source
from graphopt.graph.scope import Scope, is_op
from graphopt.graph.shapes import bind_inputs, infer, is_batch_dynamic, with_batch
from graphopt.runtime import open_session, run

RNG = np.random.default_rng(7)


def w(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers):
    return np.asarray(numbers, np.int64)


def positive(*shape):
    return RNG.uniform(0.5, 2, shape).astype(np.float32)


P = (1, 4, 6, 7)  # a picture
V = (1, 6)  # a vector
POOL = "y = {}<kernel_shape=[{}], strides=[{}]{}>(h)"


def pool(op, kernel, strides, more=""):
    return POOL.format(op, kernel, strides, f", {more}" if more else "")


BN = {"s": positive(4), "b": w(4), "m": w(4), "v": positive(4)}

# name: (body with input h and output y, shape of h, opset, constants)
CASES = {
    "conv": ("y = Conv<pads=[1,1,1,1]>(h, w)", P, 17, {"w": w(5, 4, 3, 3)}),
    "conv_bias_valid": ("y = Conv(h, w, b)", P, 7, {"w": w(5, 4, 2, 3), "b": w(5)}),
    "conv_1x1": ("y = Conv(h, w)", P, 17, {"w": w(5, 4, 1, 1)}),
    "conv_wide_pads": ("y = Conv<pads=[3,0,1,4]>(h, w)", P, 13, {"w": w(5, 4, 3, 3)}),
    "conv_stride": ("y = Conv<strides=[2,3], pads=[1,0,2,1]>(h, w)", P, 13, {"w": w(5, 4, 3, 3)}),
    "conv_stride_1x1": ("y = Conv<strides=[2,2]>(h, w)", P, 13, {"w": w(5, 4, 1, 1)}),
    "conv_dilated": ("y = Conv<dilations=[2,1], pads=[2,1,0,1]>(h, w)", P, 9, {"w": w(5, 4, 3, 3)}),
    "conv_dilated_stride": (
        "y = Conv<dilations=[2,2], strides=[2,2], pads=[2,2,2,2]>(h, w)",
        P,
        9,
        {"w": w(5, 4, 3, 3)},
    ),
    "conv_groups": ("y = Conv<group=2, pads=[1,1,1,1]>(h, w)", P, 13, {"w": w(6, 2, 3, 3)}),
    "conv_depthwise": ("y = Conv<group=4, pads=[1,1,1,1]>(h, w)", P, 13, {"w": w(4, 1, 3, 3)}),
    "conv_groups_stride": ("y = Conv<group=2, strides=[2,2]>(h, w)", P, 13, {"w": w(6, 2, 3, 3)}),
    "conv_same_upper": (
        'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(h, w)',
        P,
        8,
        {"w": w(3, 4, 3, 3)},
    ),
    "conv_same_lower": ('y = Conv<auto_pad="SAME_LOWER">(h, w)', P, 13, {"w": w(3, 4, 4, 2)}),
    "conv_auto_valid": (
        'y = Conv<auto_pad="VALID", strides=[2,2]>(h, w)',
        P,
        13,
        {"w": w(3, 4, 3, 3)},
    ),
    "conv_1d": ("y = Conv<strides=[2], pads=[1,1]>(h, w)", (1, 3, 9), 13, {"w": w(4, 3, 3)}),
    "conv_3d": ("y = Conv<pads=[1,1,1,1,1,1]>(h, w)", (1, 2, 3, 4, 3), 13, {"w": w(3, 2, 3, 3, 3)}),
    "conv_weight_computed": (
        "e = Exp(k) y = Conv<pads=[1,1,1,1]>(h, e)",
        P,
        13,
        {"k": w(5, 4, 3, 3)},
    ),
    "deconv": ("y = ConvTranspose(h, w)", P, 13, {"w": w(4, 3, 3, 3)}),
    "deconv_stride": (
        "y = ConvTranspose<strides=[2,3], pads=[1,0,0,1], output_padding=[1,2]>(h, w)",
        P,
        11,
        {"w": w(4, 3, 3, 3)},
    ),
    "deconv_groups": (
        "y = ConvTranspose<group=2, strides=[2,2]>(h, w)",
        P,
        7,
        {"w": w(4, 3, 2, 2)},
    ),
    "deconv_same": (
        'y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,2]>(h, w)',
        P,
        13,
        {"w": w(4, 3, 4, 4)},
    ),
    "deconv_output_shape": (
        "y = ConvTranspose<output_shape=[12,14], strides=[2,2]>(h, w)",
        P,
        13,
        {"w": w(4, 3, 4, 4)},
    ),
    "gemm": ("y = Gemm<transB=1, alpha=0.5>(h, w, b)", V, 13, {"w": w(3, 6), "b": w(3)}),
    "gemm_old": ("y = Gemm<alpha=0.5, beta=2.0>(h, w, b)", V, 7, {"w": w(6, 3), "b": w(3)}),
    "gemm_turned": (
        "t = Transpose(h) y = Gemm<transA=1, transB=1, alpha=2.0>(t, w)",
        V,
        13,
        {"w": w(3, 6)},
    ),
    "gemm_right": ("y = Gemm<transB=1, alpha=2.0>(w, h)", V, 13, {"w": w(3, 6)}),
    "gemm_right_turned": ("y = Gemm<transA=1, transB=1>(w, h)", V, 13, {"w": w(6, 3)}),
    "gemm_right_plain": ("t = Transpose(h) y = Gemm(w, t)", V, 13, {"w": w(3, 6)}),
    "gemm_addend": (
        "e = Sigmoid(h) y = Gemm<beta=3.0>(e, w, h)",
        V,
        13,
        {"w": w(6, 6)},
    ),
    "matmul": ("y = MatMul(h, w)", V, 7, {"w": w(6, 3)}),
    "matmul_stack": ("y = MatMul(h, w)", P, 13, {"w": w(7, 3)}),
    "matmul_left": ("y = MatMul(w, h)", P, 13, {"w": w(3, 6)}),
    "matmul_both": ("t = Transpose<perm=[0,1,3,2]>(h) y = MatMul(h, t)", P, 13, {}),
    "matmul_repeated": (
        "a = ReduceMean<axes=[1]>(h) t = Transpose<perm=[0,1,3,2]>(h) y = MatMul(a, t)",
        P,
        13,
        {},
    ),
    "add_constant": ("y = Add(c, h)", P, 13, {"c": w(4, 1, 1)}),
    "sub": ("a = Sigmoid(h) y = Sub(a, h)", P, 13, {}),
    "sub_from_constant": ("y = Sub(c, h)", P, 7, {"c": w(1)}),
    "mul_self": ("y = Mul(h, h)", P, 13, {}),
    "mul_gate": ("a = GlobalAveragePool(h) b = Sigmoid(a) y = Mul(h, b)", P, 13, {}),
    "mul_gate_old": ("a = GlobalAveragePool(h) b = Sigmoid(a) y = Mul(b, h)", P, 7, {}),
    "add_lower_rank": (
        "a = ReduceSum<keepdims=0>(h, x) b = Sigmoid(a) y = Add(h, b)",
        (1, 2, 3),
        13,
        {"x": ints(0, 1)},
    ),
    "div": ("a = Exp(h) y = Div(h, a)", P, 13, {}),
    "div_by_constant": ("y = Div(h, c)", P, 7, {"c": positive(4, 1, 1)}),
    "div_constant_by": ("a = Exp(h) y = Div(c, a)", P, 13, {"c": w(4, 1, 1)}),
    "sum": ("a = Sigmoid(h) b = GlobalAveragePool(h) y = Sum(h, a, b, a)", P, 13, {}),
    "relu": ("y = Relu(h)", P, 13, {}),
    "relu_old": ("y = Relu(h)", P, 7, {}),
    "leaky": ("y = LeakyRelu<alpha=0.2>(h)", P, 13, {}),
    "leaky_negative": ("y = LeakyRelu<alpha=-0.2>(h)", P, 7, {}),
    "clip_old": ("y = Clip<min=-1.0, max=2.0>(h)", P, 7, {}),
    "clip": ("y = Clip(h, a, b)", P, 13, {"a": np.float32(-1), "b": np.float32(2)}),
    "clip_above": ('y = Clip(h, "", b)', P, 11, {"b": np.float32(1)}),
    "clip_none": ("y = Clip(h)", P, 11, {}),
    "prelu": ("y = PRelu(h, c)", P, 13, {"c": w(4, 1, 1)}),
    "sigmoid": ("y = Sigmoid(h)", P, 7, {}),
    "hard_sigmoid": ("y = HardSigmoid<alpha=0.4, beta=0.6>(h)", P, 7, {}),
    "hard_swish": ("y = HardSwish(h)", P, 14, {}),
    "tanh": ("y = Tanh(h)", P, 7, {}),
    "elu": ("y = Elu<alpha=1.5>(h)", P, 7, {}),
    "softplus": ("y = Softplus(h)", P, 7, {}),
    "exp": ("y = Exp(h)", P, 7, {}),
    "dropout_old": ("y = Dropout(h)", P, 7, {}),
    "dropout": ("y = Dropout(h, r)", P, 13, {"r": np.float32(0.5)}),
    "cast": (f"a = Cast<to={onnx.TensorProto.DOUBLE}>(h) y = Cast<to=1>(a)", P, 13, {}),
    "flatten": ("y = Flatten(h)", P, 7, {}),
    "reshape": ("y = Reshape(h, s)", P, 7, {"s": ints(-1, 24, 7)}),
    "squeeze": ("a = GlobalAveragePool(h) y = Squeeze(a, x)", P, 13, {"x": ints(2, 3)}),
    "squeeze_old": ("a = GlobalAveragePool(h) y = Squeeze<axes=[2,3]>(a)", P, 7, {}),
    "unsqueeze": ("y = Unsqueeze(h, x)", V, 13, {"x": ints(2, 3)}),
    "transpose": ("y = Transpose<perm=[1,3,0,2]>(h)", P, 7, {}),
    "transpose_default": ("y = Transpose(h)", P, 7, {}),
    "concat": (
        "a = Sigmoid(h) y = Concat<axis=1>(h, c, a)",
        (3, 4, 2, 2),
        13,
        {"c": w(3, 3, 2, 2)},
    ),
    "concat_old": ("a = Sigmoid(h) y = Concat<axis=-3>(h, a, h)", P, 11, {}),
    "concat_one": ("y = Concat<axis=1>(h)", P, 13, {}),
    "split": (
        "a, b, c = Split<axis=1>(h, s) d = Sigmoid(c) y = Concat<axis=1>(d, a)",
        P,
        13,
        {"s": ints(1, 1, 2)},
    ),
    "split_old": ("a, b = Split<axis=2, split=[2,4]>(h) y = Sigmoid(b)", P, 7, {}),
    "split_even": ("a, b = Split<axis=1>(h) y = Mul(a, b)", P, 11, {}),
    "slice": (
        "y = Slice(h, s, e, a)",
        P,
        13,
        {"s": ints(1, -3), "e": ints(3, 99), "a": ints(1, -1)},
    ),
    "slice_old": ("y = Slice<axes=[2], starts=[1], ends=[-1]>(h)", P, 7, {}),
    "slice_steps": (
        "y = Slice(h, s, e, a, t)",
        P,
        10,
        {"s": ints(0, 1), "e": ints(2**31, 6), "a": ints(2, 3), "t": ints(2, 3)},
    ),
    "slice_all_axes": (
        "y = Slice(h, s, e)",
        P,
        13,
        {"s": ints(0, 1, 0), "e": ints(2**62, 3, 5)},
    ),
    "pad": ("y = Pad(h, p)", P, 13, {"p": ints(0, 1, 2, 0, 0, 0, 1, 3)}),
    "pad_value": (
        "y = Pad(h, p, c)",
        P,
        11,
        {"p": ints(0, 1, 2, -1, 0, 0, 1, 3), "c": np.float32(2)},
    ),
    "pad_old": ("y = Pad<pads=[0,0,1,1,0,0,-1,2]>(h)", P, 7, {}),
    "pad_axes": ("y = Pad(h, p, , a)", P, 18, {"p": ints(1, 2), "a": ints(3)}),
    "batch_norm": ("y = BatchNormalization<epsilon=0.1>(h, s, b, m, v)", P, 15, BN),
    "batch_norm_old": ("y = BatchNormalization(h, s, b, m, v)", P, 7, BN),
    "batch_norm_1d": (
        "y = BatchNormalization(h, s, b, m, v)",
        (1, 4),
        13,
        BN,
    ),
    "global_average": ("y = GlobalAveragePool(h)", P, 13, {}),
    "global_max": ("y = GlobalMaxPool(h)", P, 13, {}),
    "global_max_old": ("y = GlobalMaxPool(h)", P, 9, {}),
    "gelu": ("y = Gelu(h)", P, 20, {}),
    "gelu_tanh": ('y = Gelu<approximate="tanh">(h)', P, 20, {}),
    "mish": ("y = Mish(h)", P, 18, {}),
    "swish": ("y = Swish<alpha=1.5>(h)", P, 24, {}),
    "global_average_old": ("y = GlobalAveragePool(h)", P, 7, {}),
    "average": (pool("AveragePool", "2,2", "2,2"), P, 13, {}),
    "average_overlap": (pool("AveragePool", "3,3", "2,2", "pads=[1,1,1,1]"), P, 7, {}),
    "average_padded": (
        pool("AveragePool", "3,3", "2,1", "pads=[1,1,0,1], count_include_pad=1"),
        P,
        13,
        {},
    ),
    "average_ceil": (pool("AveragePool", "3,3", "2,2", "ceil_mode=1, pads=[1,1,1,1]"), P, 13, {}),
    "average_same": (pool("AveragePool", "3,2", "2,2", 'auto_pad="SAME_UPPER"'), P, 13, {}),
    "average_dilated": (pool("AveragePool", "2,2", "1,2", "dilations=[2,3]"), P, 19, {}),
    "average_1d": (pool("AveragePool", "3", "2"), (1, 3, 9), 13, {}),
    "reduce_mean": ("y = ReduceMean<axes=[2,3]>(h)", P, 13, {}),
    "reduce_mean_flat": ("y = ReduceMean<axes=[-1], keepdims=0>(h)", P, 7, {}),
    "reduce_mean_input": ("y = ReduceMean<keepdims=0>(h, x)", P, 18, {"x": ints(1, 3)}),
    "reduce_all_static": ("y = ReduceMean(h)", (3, 2, 2), 13, {}),
    "reduce_sum": ("y = ReduceSum(h, x)", P, 13, {"x": ints(1)}),
    "max": (pool("MaxPool", "2,2", "2,2"), P, 13, {}),
    "max_overlap": (pool("MaxPool", "3,3", "2,2", "pads=[1,1,1,1]"), P, 17, {}),
    "max_overlap_old": (pool("MaxPool", "3,3", "2,2", "pads=[1,1,1,1]"), P, 13, {}),
    "max_dense_old": (pool("MaxPool", "3,2", "1,1"), P, 10, {}),
    "max_nine": (pool("MaxPool", "3,3", "2,1", "ceil_mode=1"), P, 10, {}),
    "max_seven": (pool("MaxPool", "2,2", "2,2"), P, 7, {}),
    "max_eight_overlap": (pool("MaxPool", "3,3", "2,2", "pads=[1,1,1,1]"), P, 8, {}),
    "max_same": (pool("MaxPool", "3,3", "2,2", 'auto_pad="SAME_UPPER"'), P, 12, {}),
    "max_dilated": (pool("MaxPool", "2,2", "1,1", "dilations=[2,2]"), P, 12, {}),
    "max_gap": (pool("MaxPool", "2,2", "3,3"), P, 16, {}),
    "max_1d": (pool("MaxPool", "3", "2"), (1, 3, 9), 11, {}),
    "max_3d": (pool("MaxPool", "2,2,2", "1,1,1"), (1, 2, 3, 3, 4), 16, {}),
    "softmax": ("y = Softmax(h)", P, 13, {}),
    "softmax_axis": ("y = Softmax<axis=1>(h)", P, 13, {}),
    "softmax_old": ("y = Softmax<axis=2>(h)", P, 11, {}),
    "depth_to_space": ("y = DepthToSpace<blocksize=2>(h)", P, 11, {}),
    "depth_to_space_crd": ('y = DepthToSpace<blocksize=2, mode="CRD">(h)', (1, 8, 2, 3), 13, {}),
    "space_to_depth": ("y = SpaceToDepth<blocksize=2>(h)", (1, 3, 4, 6), 13, {}),
    "abs": ("y = Abs(h)", P, 13, {}),
    "abs_old": ("y = Abs(h)", P, 7, {}),
    "neg": ("y = Neg(h)", P, 13, {}),
    "erf": ("y = Erf(h)", P, 13, {}),
    "sqrt": ("a = Softplus(h) y = Sqrt(a)", P, 13, {}),
    "log": ("a = Softplus(h) y = Log(a)", P, 13, {}),
    "reciprocal": ("a = Exp(h) b = Add(a, c) y = Reciprocal(b)", P, 7, {"c": np.float32([1])}),
    "power": ("y = Pow(h, c)", P, 13, {"c": np.float32(2)}),
    "power_each": ("a = Softplus(h) y = Pow(a, c)", P, 7, {"c": w(4, 1, 1)}),
    "power_whole": ("y = Pow(h, c)", P, 13, {"c": np.int64(3)}),
    "expand": ("a = ReduceMean<axes=[1]>(h) y = Expand(a, s)", P, 13, {"s": ints(1, 5, 1, 1)}),
    "log_softmax": ("y = LogSoftmax<axis=1>(h)", P, 13, {}),
    "log_softmax_old": ("y = LogSoftmax<axis=2>(h)", P, 7, {}),
    "lrn": ("y = LRN<size=3, alpha=0.5, beta=0.6, bias=1.5>(h)", (1, 6, 3, 4), 13, {}),
    "lrn_wide": ("y = LRN<size=5, alpha=0.5>(h)", P, 7, {}),
    "instance_norm": (
        "y = InstanceNormalization<epsilon=0.01>(h, s, b)",
        P,
        13,
        {"s": w(4), "b": w(4)},
    ),
    "instance_norm_new": ("y = InstanceNormalization(h, s, b)", P, 18, {"s": w(4), "b": w(4)}),
    "layer_norm": ("y = LayerNormalization(h, s, b)", P, 17, {"s": w(7), "b": w(7)}),
    "layer_norm_axes": ("y = LayerNormalization<axis=2>(h, s)", P, 17, {"s": w(6, 7)}),
    "resize": ("y = Resize(h, , s)", P, 13, {"s": np.float32([1, 1, 2, 2])}),
    "resize_down": ("y = Resize(h, , s)", P, 13, {"s": np.float32([1, 1, 0.5, 0.4])}),
    "resize_channels": ("y = Resize(h, , s)", P, 13, {"s": np.float32([1, 2, 2, 1])}),
    "resize_ten": ('y = Resize<mode="linear">(h, s)', P, 10, {"s": np.float32([1, 1, 2, 1.5])}),
    "resize_3d": (
        'y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(h, , s)',
        (1, 2, 2, 3, 4),
        13,
        {"s": np.float32([1, 1, 3, 1.5, 2])},
    ),
    "resize_eleven": (
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(h, r, r, n)',
        P,
        11,
        {"r": np.zeros(0, np.float32), "n": ints(1, 4, 9, 14)},
    ),
    "resize_axes": (
        'y = Resize<axes=[3, 2], mode="cubic", antialias=1>(h, , , n)',
        P,
        18,
        {"n": ints(5, 9)},
    ),
    "resize_1d": ('y = Resize<mode="linear">(h, , s)', (1, 3, 5), 13, {"s": np.float32([1, 1, 2])}),
    "upsample": ('y = Upsample<mode="nearest">(h, s)', P, 9, {"s": np.float32([1, 1, 2, 3])}),
    "upsample_linear": ('y = Upsample<mode="linear">(h, s)', P, 9, {"s": np.float32([1, 1, 2, 2])}),
    "upsample_old": ("y = Upsample<scales=[1.0, 1.0, 2.0, 2.0]>(h)", P, 7, {}),
    "shared": ("a = Relu(h) b = Sigmoid(h) c = Mul(a, b) y = Add(c, h)", P, 13, {}),
}
FIXED_BATCH = {"concat", "reduce_all_static", "resize_eleven"}


def model_of(body, shape, opset, constants, fixed=False):
    """h is Identity(image), so that the gradient by h is that by the input."""
    dims = ",".join(["N", *map(str, shape[1:])] if not fixed else map(str, shape))
    text = f"g (float[{dims}] image) => (float y) {{ h = Identity(image) {body} }}"
    graph = onnx.parser.parse_graph(text)
    graph.output[0].type.tensor_type.ClearField("shape")
    for name, array in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    model.ir_version = 8
    return ir.from_proto(model)


def scope_of(model, **given):
    shapes = bind_inputs(model.graph, given)
    return Scope(model, model.graph, infer(model, shapes))


def opened(model):
    with session_source(model) as source:
        return open_session(source, level="disable_all")


def spread(shape, rng):
    """Distinct numbers well apart, so that no kink is near."""
    n = int(np.prod(shape))
    return ((rng.permutation(n) - n / 2 + 0.37) * (7 / n)).reshape(shape).astype(np.float32)


def close(found, wanted, scale):
    return abs(found - wanted) <= 1e-2 * abs(wanted) + 1e-3 * scale


def assert_agrees(model, found, x):
    """The adjoint against central differences of the model, at x."""
    rng = np.random.default_rng(3)
    forward, backward = opened(model), opened(found.model)
    seed = rng.standard_normal(run(forward, {"image": x})[0].shape).astype(np.float32)
    (gradient,) = run(backward, {"image": x, found.seeds["y"]: seed}, [found.gradients["h"]])
    assert gradient.shape == x.shape
    assert gradient.dtype == x.dtype

    def loss(at):
        return float(
            np.vdot(seed.astype(np.float64), run(forward, {"image": at})[0].astype(np.float64))
        )

    norm = float(np.linalg.norm(gradient))
    assert norm > 0
    for direction in (gradient, *rng.standard_normal((4, *x.shape))):
        d = (direction / np.linalg.norm(direction)).astype(np.float32)
        h = 1e-2
        numeric = (loss(x + h * d) - loss(x - h * d)) / (2 * h)
        analytic = float(np.vdot(gradient.astype(np.float64), d.astype(np.float64)))
        assert close(analytic, numeric, norm), (analytic, numeric)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_rule_agrees_with_finite_differences(case, batch):
    body, shape, opset, constants = CASES[case]
    fixed = case in FIXED_BATCH
    model = model_of(body, shape, opset, constants, fixed)
    before = ir.to_proto(model).SerializeToString()
    found = adjoint(scope_of(model), ["h"])
    assert isinstance(found, Adjoint), found
    assert ir.to_proto(model).SerializeToString() == before
    onnx.checker.check_model(ir.to_proto(found.model))
    x = spread(shape if fixed else (batch, *shape[1:]), np.random.default_rng(3))
    assert_agrees(model, found, x)


ANY_SIZE = {
    "conv": ("y = Conv<pads=[1,1,1,1]>(h, w)", 13, {"w": w(5, 4, 3, 3)}),
    "conv_stride": ("y = Conv<strides=[2,2], pads=[1,1,1,1]>(h, w)", 13, {"w": w(5, 4, 3, 3)}),
    "average": (pool("AveragePool", "2,2", "2,2"), 13, {}),
    "average_old": (pool("AveragePool", "2,2", "2,2"), 7, {}),
    "global_average": ("a = GlobalAveragePool(h) y = Mul(a, h)", 13, {}),
    "max": (pool("MaxPool", "2,2", "2,2"), 13, {}),
    "max_overlap": (pool("MaxPool", "3,3", "2,2", "pads=[1,1,1,1]"), 16, {}),
    "reduce_mean": ("a = ReduceMean<axes=[2,3]>(h) y = Sub(h, a)", 13, {}),
    "reduce_mean_all": ("a = ReduceMean<keepdims=0>(h) y = Mul(h, a)", 13, {}),
    "depth_to_space_crd": ('y = DepthToSpace<blocksize=2, mode="CRD">(h)', 13, {}),
    "lrn": ("y = LRN<size=3, alpha=0.5>(h)", 13, {}),
    "instance_norm": ("y = InstanceNormalization(h, s, b)", 13, {"s": w(4), "b": w(4)}),
    "resize": ("y = Resize(h, , s)", 13, {"s": np.float32([1, 1, 2, 3])}),
    "resize_half_pixel_for_nn": (
        'y = Resize<coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor">'
        "(h, r, s)",
        12,
        {"r": np.zeros(0, np.float32), "s": np.float32([1, 1, 4, 4])},
    ),
    "upsample": ("y = Upsample(h, s)", 9, {"s": np.float32([1, 1, 4, 2])}),
}


@pytest.mark.parametrize("case", ANY_SIZE)
@pytest.mark.parametrize("size", [(4, 6), (8, 4), (2, 2)])
def test_rule_holds_for_pictures_of_other_sizes(case, size):
    body, opset, constants = ANY_SIZE[case]
    model = model_of(body, ("N", 4, "H", "W"), opset, constants)
    found = adjoint(scope_of(model, image=(1, 4, 4, 6)), ["h"])
    assert isinstance(found, Adjoint), found
    assert_agrees(model, found, spread((2, 4, *size), np.random.default_rng(3)))


def test_a_matrix_does_not_pass_for_another_size():
    body = 'y = Resize<mode="linear">(h, , s)'
    model = model_of(body, ("N", 4, "H", "W"), 13, {"s": np.float32([1, 1, 2, 2])})
    found = adjoint(scope_of(model, image=(1, 4, 4, 6)), ["h"])
    assert isinstance(found, Adjoint), found
    feeds = {"image": w(1, 4, 8, 6), found.seeds["y"]: w(1, 4, 16, 12)}
    with pytest.raises(InputError):
        run(opened(found.model), feeds)


SAMPLING = {
    "nearest": [
        f'mode="nearest", nearest_mode="{rounding}"'
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ],
    "linear": ['mode="linear"'],
    "cubic": ['mode="cubic"', 'mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1'],
}
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([way for ways in SAMPLING.values() for way in ways]),
    st.sampled_from(COORDINATES),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.one_of(
        st.tuples(*[st.sampled_from([0.4, 0.5, 1, 1.3, 1.5, 2, 3, 4])] * 2),
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
    ),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@example(
    'mode="nearest", nearest_mode="round_prefer_floor"', "half_pixel", (3, 2), (1.3, 0.5), True, 0
)
def test_resizing_is_transposed(sampling, coordinates, size, target, by_scale, seed):
    """<R x, y> = <x, R' y>."""
    shape = (2, 3, *size)
    if by_scale:
        scales = np.float32([1, 1, *target])
        assume(all(int(n * s) >= 1 for n, s in zip(size, target, strict=True)))
        constants, operands = {"s": scales}, "h, , s"
    else:
        constants = {"s": ints(2, 3, *(max(int(n), 1) for n in target))}
        operands = "h, , , s"
    body = f'y = Resize<{sampling}, coordinate_transformation_mode="{coordinates}">({operands})'
    model = model_of(body, shape, 13, constants, fixed=True)
    found = adjoint(scope_of(model), ["h"])
    assert isinstance(found, Adjoint), found
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    (out,) = run(opened(model), {"image": x})
    y = rng.standard_normal(out.shape).astype(np.float32)
    (back,) = run(opened(found.model), {"image": x, found.seeds["y"]: y}, [found.gradients["h"]])
    assert back.shape == shape
    scale = np.linalg.norm(y) * np.linalg.norm(x)
    assert abs(np.vdot(out, y) - np.vdot(x, back)) <= 1e-5 * scale + 1e-6


REFUSED = {
    "no_rule": ("y = Sinh(h)", P, {}, "no rule for this operator"),
    "resize_batch": ("y = Resize(h, , s)", P, {"s": np.float32([2, 1, 2, 2])}, "open"),
    "resize_computed": (
        "a = Shape(h) b = Cast<to=1>(a) c = Div(b, b) y = Resize(h, , c)",
        P,
        {},
        "not constant",
    ),
    "resize_crop": (
        'y = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(h, r, s)',
        P,
        {"r": np.float32([0, 0, 0, 0, 1, 1, 1, 1]), "s": np.float32([1, 1, 2, 2])},
        "crops",
    ),
    "power_computed": ("y = Pow(h, h)", P, {}, "exponent"),
    "pad_edge": ('y = Pad<mode="edge">(h, p)', P, {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}, "mode"),
    "slice_backwards": (
        "y = Slice(h, s, e, a, t)",
        P,
        {"s": ints(5), "e": ints(0), "a": ints(3), "t": ints(-1)},
        "negative",
    ),
    "slice_of_the_batch": ("y = Slice(h, s, e)", P, {"s": ints(0), "e": ints(1)}, "open"),
    "rounded": ("a = Cast<to=7>(h) y = Cast<to=1>(a)", P, {}, "floats"),
    "clip_bound": ("m = ReduceMax<keepdims=0>(h) y = Clip(h, m)", P, {}, "no rule"),
    "prelu_slope": ("a = Sigmoid(h) y = PRelu(h, a)", P, {}, "no rule for its input 1"),
    "conv_weight": ("y = Conv(c, h)", P, {"c": w(1, 4, 6, 7)}, "no rule for its input 1"),
    "maxpool_columns": (pool("MaxPool", "2,2", "2,2", "storage_order=1"), P, {}, "column"),
    "only_shape": ("s = Shape(h) y = Cast<to=1>(s)", P, {}, "no float output depends on h"),
    "only_integers": ("y = ArgMax(h)", P, {}, "no float output depends on h"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused_with_a_reason(case):
    body, shape, constants, reason = REFUSED[case]
    model = model_of(body, shape, 13, constants)
    if case == "only_integers":
        model.graph.outputs[0].dtype = ir.DataType.INT64
    found = adjoint(scope_of(model), ["h"])
    assert isinstance(found, str)
    assert reason in found


def test_what_lies_before_the_wanted_values_needs_no_rule():
    model = model_of("a = Sinh(h) b = Relu(a) y = Sigmoid(b)", P, 13, {})
    found = adjoint(scope_of(model), ["a", "b"])
    assert isinstance(found, Adjoint)
    assert set(found.gradients) == {"a", "b"}
    assert [value.name for value in found.model.graph.inputs] == ["image", "y_seed"]
    assert {value.name for value in found.model.graph.outputs} == set(found.gradients.values())


def test_unknown_value_is_refused():
    found = adjoint(scope_of(model_of("y = Relu(h)", P, 13, {})), ["nowhere"])
    assert found == "nowhere is no value of the main graph"


def test_operands_of_an_add_share_their_gradient_and_an_output_gets_its_seed():
    model = model_of("a = Sigmoid(h) b = Tanh(h) y = Add(a, b)", P, 13, {})
    found = adjoint(scope_of(model), ["a", "b", "y"])
    assert isinstance(found, Adjoint)
    assert found.gradients["a"] == found.gradients["b"]
    x, seed = w(3, *P[1:]), w(3, *P[1:])
    feeds = {"image": x, found.seeds["y"]: seed}
    for gradient in run(opened(found.model), feeds):
        np.testing.assert_array_equal(gradient, seed)


def test_every_output_has_a_seed_and_their_gradients_add_up():
    model = model_of("a = Sigmoid(h) b = Tanh(h) y = Add(a, b)", P, 13, {})
    inner = next(v for node in model.graph for v in node.outputs if v.name == "b")
    inner.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(inner)
    found = adjoint(scope_of(model), ["b"])
    assert isinstance(found, Adjoint)
    seeds = {name: w(*P) for name in ("y", "b")}
    feeds = {"image": w(*P), **{found.seeds[name]: seed for name, seed in seeds.items()}}
    (gradient,) = run(opened(found.model), feeds)
    np.testing.assert_allclose(gradient, seeds["y"] + seeds["b"], rtol=1e-6)


def test_max_pool_gives_a_tie_to_one_place():
    model = model_of(pool("MaxPool", "2,2", "2,2"), (1, 1, 4, 4), 13, {})
    found = adjoint(scope_of(model), ["h"])
    assert isinstance(found, Adjoint)
    feeds = {"image": np.zeros((2, 1, 4, 4), np.float32), found.seeds["y"]: w(2, 1, 2, 2)}
    (gradient,) = run(opened(found.model), feeds)
    assert np.count_nonzero(gradient) == 8
    np.testing.assert_allclose(gradient.sum(), feeds[found.seeds["y"]].sum(), rtol=1e-5)


def test_a_pyramid_with_gates_holds_for_pictures_of_other_sizes():
    body = """
        a = Conv<strides=[2,2], pads=[1,1,1,1]>(h, w1) b = HardSwish(a)
        c = Conv<strides=[2,2], pads=[1,1,1,1]>(b, w2) m = GlobalAveragePool(c)
        i = HardSigmoid(m) d = Mul(c, i) e = Resize<coordinate_transformation_mode="asymmetric",
        nearest_mode="floor">(d, , s) f = Add(e, b) k = Concat<axis=1>(e, f)
        l = ConvTranspose<strides=[2,2]>(k, w3) y = Sigmoid(l)
    """
    weights = {"w1": w(5, 4, 3, 3) / 6, "w2": w(5, 5, 3, 3) / 6, "w3": w(10, 1, 2, 2) / 3}
    constants = {**weights, "s": np.float32([1, 1, 2, 2])}
    model = model_of(body, ("N", 4, "H", "W"), 14, constants)
    found = adjoint(scope_of(model, image=(1, 4, 8, 8)), ["h"])
    assert isinstance(found, Adjoint), found
    for size in ((8, 8), (4, 12), (16, 8)):
        x = np.random.default_rng(1).standard_normal((2, 4, *size)).astype(np.float32)
        assert_agrees(model, found, x)


# --- whole networks ------------------------------------------------------------------------------

ZOO = os.environ.get("GRAPHOPT_ZOO")
NETWORKS = {
    "vgg8_cifar10": 3,
    "resnet20_cifar10": 3,
    "cnn5x5_cifar10": 3,
    "squeezenet1_1": 1,
    "super_resolution10": 1,
    "mnist_cntk": 1,
    "lenet": 3,
}


def probed(model, names):
    """A clone with an input added to each named value."""
    clone = model.clone()
    values = {v.name: v for node in clone.graph for v in node.outputs}
    for name in names:
        value = values[name]
        probe = ir.Value(name=f"{name}_probe", type=ir.TensorType(ir.DataType.FLOAT))
        clone.graph.inputs.append(probe)
        moved = ir.node("Add", [value, probe])
        moved.outputs[0].name = f"{name}_moved"
        uses = [use for use in value.uses() if use.node is not moved]
        for use in uses:
            use.node.replace_input_with(use.idx, moved.outputs[0])
        clone.graph.insert_after(value.producer(), moved)
    return clone


@pytest.mark.skipif(ZOO is None, reason="GRAPHOPT_ZOO is not set")
@pytest.mark.parametrize("network", NETWORKS)
def test_network_agrees_with_finite_differences(network):
    model = ir.load(Path(ZOO) / "models" / f"{network}.onnx")
    scope = scope_of(model)
    names = [node.outputs[0].name for node in model.graph if is_op(node, "Conv")]
    found = adjoint(scope, names)
    assert isinstance(found, Adjoint), found
    shapes = bind_inputs(model.graph, {})
    if is_batch_dynamic(model.graph):
        shapes = with_batch(model.graph, shapes, NETWORKS[network])
    rng = np.random.default_rng(5)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    watched = model.clone()
    watched.graph.outputs.extend(
        v for node in watched.graph for v in node.outputs if v.name in names
    )
    outputs = [value.name for value in model.graph.outputs]
    values = dict(zip(outputs + names, run(opened(watched), feeds, outputs + names), strict=True))
    seeds = {o: rng.standard_normal(values[o].shape).astype(np.float32) for o in outputs}
    given = {found.seeds[o]: seed for o, seed in seeds.items()}
    kept = [found.gradients[name] for name in names]
    gradients = dict(zip(names, run(opened(found.model), feeds | given, kept), strict=True))
    forward = opened(probed(model, names))
    still = {f"{name}_probe": np.zeros_like(values[name]) for name in names}

    def slope(name, direction, h):
        ends = []
        for sign in (1, -1):
            moved = still | {f"{name}_probe": (sign * h * direction).astype(np.float32)}
            results = run(forward, feeds | moved, outputs)
            ends.append(
                sum(
                    np.vdot(seeds[o].astype(float), y.astype(float))
                    for o, y in zip(outputs, results, strict=True)
                )
            )
        return (ends[0] - ends[1]) / (2 * h)

    for name in names:
        g, norm = gradients[name], np.linalg.norm(values[name])
        assert g.shape == values[name].shape
        # Steps relative to the response: kinks (units that switch) want short ones, float32 long ones.
        steps = [norm * h for h in (3e-4, 1e-4, 3e-5, 1e-3)]
        random = rng.standard_normal(g.shape)
        for direction, slack in ((g, 0.0), (g * (random > 0), 0.0), (random, 0.05)):
            d = direction / np.linalg.norm(direction)
            wanted = float(np.vdot(g.astype(float), d))
            # A random direction has a slope of about |g| / sqrt(size), which can be near zero.
            bound = 1e-2 * abs(wanted) + slack * np.linalg.norm(g) / np.sqrt(g.size)
            assert any(abs(slope(name, d, h) - wanted) <= bound for h in steps), name
