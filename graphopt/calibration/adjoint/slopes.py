"""Activations: the slope f'(x) of y = f(x), element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from graphopt.calibration.adjoint.operands import above, affine, as_mask
from graphopt.calibration.adjoint.tape import Rule, Step
from graphopt.graph.scope import attribute_float, attribute_string


def pointwise(slope: Callable[[Step], ir.Value]) -> Rule:
    """The rule of y = f(x), element by element, from the slope f'(x)."""
    return lambda step: {0: step.tape.op("Mul", step.g, slope(step))}


def relu(step: Step) -> ir.Value:
    """One where y > 0."""
    if step.tape.opset >= 9:
        return step.tape.op("Sign", step.y)
    return as_mask(step, above(step, step.y))


def absolute(step: Step) -> ir.Value:
    """The sign of x."""
    tape, x = step.tape, step.input(0)
    if tape.opset >= 9:
        return tape.op("Sign", x)
    return affine(step, as_mask(step, above(step, x)), 2, -1)


def leaky(step: Step) -> ir.Value:
    """One where x > 0, alpha elsewhere."""
    alpha = attribute_float(step.node, "alpha", 0.01)
    source = step.y if alpha >= 0 else step.input(0)
    return affine(step, as_mask(step, above(step, source)), 1 - alpha, alpha)


def prelu(step: Step) -> ir.Value:
    """slope + mask (1 - slope)."""
    tape, slope = step.tape, step.input(1)
    rest = affine(step, slope, -1, 1)
    return tape.op("Add", slope, tape.op("Mul", as_mask(step, above(step, step.input(0))), rest))


def clip(step: Step) -> ir.Value:
    """One strictly between the bounds."""
    tape, tests = step.tape, []
    if tape.opset < 11:
        given = (step.node.attributes.get("min"), step.node.attributes.get("max"))
        low, high = (None if a is None else tape.number(a.as_float(), step.y) for a in given)
    else:
        low, high = step.optional(1), step.optional(2)
    if low is not None:
        tests.append(above(step, step.y, low))
    if high is not None:
        tests.append(tape.op("Less", step.y, high))
    if not tests:
        return tape.number(1, step.y)
    return as_mask(step, tests[0] if len(tests) == 1 else tape.op("And", *tests))


def sigmoid(step: Step) -> ir.Value:
    """y (1 - y)."""
    return step.tape.op("Mul", step.y, affine(step, step.y, -1, 1))


def tanh(step: Step) -> ir.Value:
    """1 - y^2."""
    return affine(step, step.tape.op("Mul", step.y, step.y), -1, 1)


def hard_sigmoid(step: Step) -> ir.Value:
    """alpha where 0 < y < 1."""
    return affine(step, _inside(step, step.y), attribute_float(step.node, "alpha", 0.2), 0)


def _inside(step: Step, value: ir.Value) -> ir.Value:
    """One where 0 < value < 1."""
    below = step.tape.op("Less", value, step.tape.number(1, step.y))
    return as_mask(step, step.tape.op("And", above(step, value), below))


def hard_swish(step: Step) -> ir.Value:
    """y = x h(x): h + x h'."""
    tape, x = step.tape, step.input(0)
    h = tape.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    return tape.op("Add", h, tape.op("Mul", affine(step, x, 1 / 6, 0), _inside(step, h)))


def elu(step: Step) -> ir.Value:
    """One where x > 0, y + alpha elsewhere."""
    tape, alpha = step.tape, attribute_float(step.node, "alpha", 1.0)
    mask = as_mask(step, above(step, step.input(0)))
    rest = tape.op("Mul", affine(step, step.y, 1, alpha), affine(step, mask, -1, 1))
    return tape.op("Add", mask, rest)


def erf(step: Step) -> ir.Value:
    """2 exp(-x^2) / sqrt(pi)."""
    tape, x = step.tape, step.input(0)
    bell = tape.op("Exp", tape.op("Neg", tape.op("Mul", x, x)))
    return affine(step, bell, 2 / math.sqrt(math.pi), 0)


def gelu(step: Step) -> ir.Value:
    """y = x P(x): P + x P', P the normal distribution or its approximation by a tanh."""
    tape, x = step.tape, step.input(0)
    square = tape.op("Mul", x, x)
    if attribute_string(step.node, "approximate", "none") == "none":
        chance = affine(step, tape.op("Erf", affine(step, x, math.sqrt(0.5), 0)), 0.5, 0.5)
        bell = tape.op("Exp", affine(step, square, -0.5, 0))
        density = affine(step, bell, 1 / math.sqrt(2 * math.pi), 0)
    else:
        k, c = math.sqrt(2 / math.pi), 0.044715
        t = tape.op("Tanh", tape.op("Mul", x, affine(step, square, k * c, k)))
        chance = affine(step, t, 0.5, 0.5)
        rest = affine(step, tape.op("Mul", t, t), -0.5, 0.5)
        density = tape.op("Mul", rest, affine(step, square, 3 * k * c, k))
    return tape.op("Add", chance, tape.op("Mul", x, density))


def mish(step: Step) -> ir.Value:
    """y = x t, t = tanh(softplus(x)): t + x (1 - t^2) sigmoid(x)."""
    tape, x = step.tape, step.input(0)
    t = tape.op("Tanh", tape.op("Softplus", x))
    rest = affine(step, tape.op("Mul", t, t), -1, 1)
    return tape.op("Add", t, tape.op("Mul", tape.op("Mul", x, rest), tape.op("Sigmoid", x)))


def swish(step: Step) -> ir.Value:
    """y = x s, s = sigmoid(a x): s + a x s (1 - s) = s + a y (1 - s)."""
    tape, alpha = step.tape, attribute_float(step.node, "alpha", 1.0)
    s = tape.op("Sigmoid", affine(step, step.input(0), alpha, 0))
    return tape.op("Add", s, tape.op("Mul", affine(step, step.y, alpha, 0), affine(step, s, -1, 1)))


def sqrt(step: Step) -> ir.Value:
    """1 / (2 y)."""
    return step.tape.op("Div", step.tape.number(0.5, step.y), step.y)


def reciprocal(step: Step) -> ir.Value:
    """-y^2."""
    return step.tape.op("Neg", step.tape.op("Mul", step.y, step.y))
