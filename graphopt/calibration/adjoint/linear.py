"""Rules of convolutions and matrix products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.calibration.adjoint.operands import affine, shaped_like, sum_over, unbroadcast
from graphopt.calibration.adjoint.tape import Found, Step
from graphopt.calibration.adjoint.windows import Window
from graphopt.graph.constants import Array, constant
from graphopt.graph.scope import attribute_float, attribute_int, attribute_ints


def conv(step: Step) -> Found:
    """The adjoint of a convolution."""
    tape, x, weight = step.tape, step.input(0), step.input(1)
    group, shape = attribute_int(step.node, "group", 1), tape.shape(weight)
    window = Window.of(step, shape[2:], x, step.y)
    array = constant(weight)
    sides = zip(window.extents * 2, (*window.begins, *window.ends), strict=True)
    pads = [extent - 1 - pad for extent, pad in sides]
    if array is None or any(s != 1 for s in window.strides) or min(pads) < 0:
        return {0: window.scatter(step, step.g, weight, group)}
    # Stride 1: a convolution with the flipped weight, which onnxruntime runs several times faster.
    flipped = tape.constant(_flipped(array, group))
    return {0: tape.op("Conv", step.g, flipped, dilations=window.dilations, pads=pads, group=group)}


def _flipped(weight: Array, group: int) -> Array:
    """[O, C/g, *kernel] -> [C, O/g, *kernel], every kernel turned round."""
    outputs, inputs, *kernel = weight.shape
    apart = weight.reshape(group, outputs // group, inputs, *kernel).swapaxes(1, 2)
    whole = apart.reshape(group * inputs, outputs // group, *kernel)
    turned: Array = np.flip(whole, tuple(range(2, weight.ndim)))
    return turned


def conv_transpose(step: Step) -> Found:
    """A convolution with the same weight."""
    weight = step.input(1)
    window = Window.of(step, step.tape.shape(weight)[2:], step.y, step.input(0))
    padding = attribute_ints(step.node, "output_padding") or (0,) * len(window.kernel)
    if any(n >= s for n, s in zip(padding, window.strides, strict=True)):
        step.refuse("its output padding is not smaller than its stride")
    return {
        0: step.tape.op(
            "Conv",
            step.g,
            weight,
            strides=window.strides,
            dilations=window.dilations,
            pads=[*window.begins, *window.ends],
            group=attribute_int(step.node, "group", 1),
        )
    }


def gemm(step: Step) -> Found:
    """y = alpha a b + beta c."""
    tape, node, (a, b) = step.tape, step.node, (step.input(0), step.input(1))
    alpha, beta = attribute_float(node, "alpha", 1.0), attribute_float(node, "beta", 1.0)
    turn_a, turn_b = attribute_int(node, "transA", 0), attribute_int(node, "transB", 0)

    def product(p: ir.Value, q: ir.Value, turn_p: int, turn_q: int) -> ir.Value:
        zero = () if tape.opset >= 11 else (tape.number([0], step.y),)
        return tape.op("Gemm", p, q, *zero, transA=turn_p, transB=turn_q, alpha=alpha)

    found = {}
    if 0 in step.active:
        found[0] = product(b, step.g, turn_b, 1) if turn_a else product(step.g, b, 0, 1 - turn_b)
    if 1 in step.active:
        found[1] = product(step.g, a, 1, turn_a) if turn_b else product(a, step.g, 1 - turn_a, 0)
    if 2 in step.active:
        found[2] = unbroadcast(step, affine(step, step.g, beta, 0), step.input(2))
    return found


def matmul(step: Step) -> Found:
    """y = a b, a stack of matrices: da = g b^T, db = a^T g."""
    tape, operands = step.tape, (step.input(0), step.input(1))
    ranks = [len(tape.shape(value)) for value in operands]
    if min(ranks) < 2:
        step.refuse("an operand is a vector")
    turned = [
        tape.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])
        for value, rank in zip(operands, ranks, strict=True)
    ]
    found = {}
    for i in step.active:
        factors = (step.g, turned[1]) if i == 0 else (turned[0], step.g)
        found[i] = _summed_stack(step, tape.op("MatMul", *factors), operands[i])
    return found


def _summed_stack(step: Step, value: ir.Value, forward: ir.Value) -> ir.Value:
    """Sum over the leading axes along which a matrix was repeated."""
    have, want = step.tape.shape(step.y)[:-2], step.tape.shape(forward)[:-2]
    added = len(have) - len(want)
    axes = [a for a, n in enumerate(have) if a < added or (want[a - added] == 1 and n != 1)]
    value = sum_over(step, value, axes) if axes else value
    return shaped_like(step, value, forward) if added else value
