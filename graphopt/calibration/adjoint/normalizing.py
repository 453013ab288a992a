"""Rules of normalization by statistics of the input itself."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.calibration.adjoint.operands import affine, shaped_like, sum_over, with_ints
from graphopt.calibration.adjoint.tape import Found, Step
from graphopt.graph.scope import attribute_float, attribute_int


def instance_norm(step: Step) -> Found:
    """Normalized over the spatial axes of every sample and channel."""
    tape, rank = step.tape, len(step.tape.shape(step.y))
    per_channel = tape.constant([-1, *(1,) * (rank - 2)])
    scaled = tape.op("Mul", step.g, tape.op("Reshape", step.input(1), per_channel))
    return {0: _standardized(step, scaled, range(2, rank))}


def layer_norm(step: Step) -> Found:
    """Normalized over the last axes."""
    if any(gradient is not None for gradient in step.received[1:]):
        step.refuse("its statistics are used")
    rank = len(step.tape.shape(step.y))
    axis = attribute_int(step.node, "axis", -1) % rank
    scaled = step.tape.op("Mul", step.g, step.input(1))
    return {0: _standardized(step, scaled, range(axis, rank))}


def _standardized(step: Step, g: ir.Value, axes: Sequence[int]) -> ir.Value:
    """z = (x - mean) / deviation: (g - mean(g) - z mean(g z)) / deviation."""
    tape, x = step.tape, step.input(0)

    def mean(value: ir.Value) -> ir.Value:
        return with_ints(step, "ReduceMean", value, "axes", list(axes), 18, keepdims=1)

    def centred(value: ir.Value) -> ir.Value:
        return tape.op("Sub", value, mean(value))

    rest = centred(x)
    variance = mean(tape.op("Mul", rest, rest))
    epsilon = attribute_float(step.node, "epsilon", 1e-5)
    deviation = tape.op("Sqrt", affine(step, variance, 1, epsilon))
    z = tape.op("Div", rest, deviation)
    along = tape.op("Mul", z, mean(tape.op("Mul", g, z)))
    return tape.op("Div", tape.op("Sub", centred(g), along), deviation)


def local_response(step: Step) -> Found:
    """y = x / d^beta, d = bias + alpha a(x^2): g / d^beta - 2 alpha beta x a'(g y / d).

    a is the mean over neighbouring channels, zeros beyond the ends; a' its transpose.
    """
    tape, node, x = step.tape, step.node, step.input(0)
    size = attribute_int(node, "size", 1)
    alpha, beta = attribute_float(node, "alpha", 1e-4), attribute_float(node, "beta", 0.75)
    before, after = (size - 1) // 2, size // 2
    rows = tape.constant([0, 1, tape.size(x, 1), -1])

    def averaged(value: ir.Value, first: int, last: int) -> ir.Value:
        flat = tape.op("Reshape", value, rows)
        pads, kernel = [first, 0, last, 0], [size, 1]
        flat = tape.op("AveragePool", flat, kernel_shape=kernel, pads=pads, count_include_pad=1)
        return shaped_like(step, flat, x)

    squares = averaged(tape.op("Mul", x, x), before, after)
    d = affine(step, squares, alpha, attribute_float(node, "bias", 1.0))
    direct = tape.op("Mul", step.g, tape.op("Pow", d, tape.number(-beta, step.y)))
    shared = averaged(tape.op("Div", tape.op("Mul", step.g, step.y), d), after, before)
    indirect = affine(step, tape.op("Mul", x, shared), 2 * alpha * beta, 0)
    return {0: tape.op("Sub", direct, indirect)}


def log_softmax(step: Step) -> Found:
    """g - exp(y) sum(g)."""
    tape = step.tape
    total = sum_over(step, step.g, _softmax_axes(step))
    return {0: tape.op("Sub", step.g, tape.op("Mul", tape.op("Exp", step.y), total))}


def softmax(step: Step) -> Found:
    """y (g - sum(g y))."""
    tape = step.tape
    inner = sum_over(step, tape.op("Mul", step.g, step.y), _softmax_axes(step))
    return {0: tape.op("Mul", step.y, tape.op("Sub", step.g, inner))}


def _softmax_axes(step: Step) -> list[int]:
    """The axes that share a sum."""
    tape, rank = step.tape, len(step.tape.shape(step.y))
    axis = attribute_int(step.node, "axis", -1 if tape.opset >= 13 else 1) % rank
    return [axis] if tape.opset >= 13 else list(range(axis, rank))
