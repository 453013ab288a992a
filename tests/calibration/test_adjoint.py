"""Every rule, and whole networks, against central finite differences of onnxruntime's forward."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.calibration.adjoint import Adjoint, adjoint
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
    "deconv_groups": ("y = ConvTranspose<group=2, strides=[2,2]>(h, w)", P, 7, {"w": w(4, 3, 2, 2)}),
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
        {"x": ints(0, 2)},
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
    "concat": ("a = Sigmoid(h) y = Concat<axis=1>(h, c, a)", (3, 4, 2, 2), 13, {"c": w(3, 3, 2, 2)}),
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
    "slice": ("y = Slice(h, s, e, a)", P, 13, {"s": ints(1, -3), "e": ints(3, 99), "a": ints(1, -1)}),
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
    "shared": ("a = Relu(h) b = Sigmoid(h) c = Mul(a, b) y = Add(c, h)", P, 13, {}),
}
FIXED_BATCH = {"concat", "reduce_all_static"}


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
    rng = np.random.default_rng(3)
    x = spread(shape if fixed else (batch, *shape[1:]), rng)
    forward, backward = opened(model), opened(found.model)
    seed = rng.standard_normal(run(forward, {"image": x})[0].shape).astype(np.float32)
    (gradient,) = run(backward, {"image": x, found.seeds["y"]: seed}, [found.gradients["h"]])
    assert gradient.shape == x.shape
    assert gradient.dtype == x.dtype

    def loss(at):
        return float(np.vdot(seed.astype(np.float64), run(forward, {"image": at})[0].astype(np.float64)))

    norm = float(np.linalg.norm(gradient))
    assert norm > 0
    for direction in (gradient, *rng.standard_normal((4, *x.shape))):
        d = (direction / np.linalg.norm(direction)).astype(np.float32)
        h = 1e-2
        numeric = (loss(x + h * d) - loss(x - h * d)) / (2 * h)
        analytic = float(np.vdot(gradient.astype(np.float64), d.astype(np.float64)))
        assert close(analytic, numeric, norm), (analytic, numeric)
