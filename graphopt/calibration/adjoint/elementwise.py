"""Rules of arithmetic."""

from __future__ import annotations

from graphopt.calibration.adjoint.operands import affine, unbroadcast
from graphopt.calibration.adjoint.tape import Found, Step
from graphopt.graph.constants import constant
from graphopt.graph.scope import attribute_float, attribute_int


def add(step: Step) -> Found:
    """The gradient as it is, for every operand."""
    return {i: unbroadcast(step, step.g, step.input(i)) for i in step.active}


def sub(step: Step) -> Found:
    """The second operand gets the negative."""
    signed = (step.g, step.tape.op("Neg", step.g))
    return {i: unbroadcast(step, signed[i], step.input(i)) for i in step.active}


def mul(step: Step) -> Found:
    """Each operand gets the gradient times the other."""
    return {
        i: unbroadcast(step, step.tape.op("Mul", step.g, step.input(1 - i)), step.input(i))
        for i in step.active
    }


def div(step: Step) -> Found:
    """y = a / b: da = g / b, db = -g y / b."""
    tape = step.tape
    by_a = tape.op("Div", step.g, step.input(1))
    found = {0: by_a, 1: tape.op("Neg", tape.op("Mul", by_a, step.y))}
    return {i: unbroadcast(step, found[i], step.input(i)) for i in step.active}


def negative(step: Step) -> Found:
    """For y = -x."""
    return {0: step.tape.op("Neg", step.g)}


def same(step: Step) -> Found:
    """For y = x."""
    return {0: step.g}


def cast(step: Step) -> Found:
    """Cast back; only from floats to floats."""
    if not (step.tape.is_float(step.y) and step.tape.is_float(step.input(0))):
        step.refuse("it does not go from floats to floats")
    return {0: step.tape.op("Cast", step.g, to=int(step.tape.dtype(step.input(0))))}


def dropout(step: Step) -> Found:
    """For y = x; not in training mode."""
    training = step.optional(2)
    if training is not None:
        flag = constant(training)
        if flag is None or bool(flag.any()):
            step.refuse("it is in training mode")
    return {0: step.g}


def power(step: Step) -> Found:
    """e g x^(e - 1), for a constant exponent e."""
    tape, x, exponent = step.tape, step.input(0), constant(step.input(1))
    if exponent is None:
        step.refuse("its exponent is not constant")
    number = exponent.astype(tape.dtype(x).numpy())
    slope = tape.op("Pow", x, tape.number(number - 1, x))
    slope = tape.op("Mul", slope, tape.number(number, x))
    return {0: unbroadcast(step, tape.op("Mul", step.g, slope), x)}


def batch_norm(step: Step) -> Found:
    """g scale / sqrt(variance + epsilon), per channel."""
    tape, node = step.tape, step.node
    if attribute_int(node, "training_mode", 0) or not attribute_int(node, "spatial", 1):
        step.refuse("it is in training mode, or not per channel")
    variance = affine(step, step.input(4), 1, attribute_float(node, "epsilon", 1e-5))
    scale = tape.op("Div", step.input(1), tape.op("Sqrt", variance))
    shape = tape.constant([-1, *(1,) * (len(tape.shape(step.y)) - 2)])
    return {0: tape.op("Mul", step.g, tape.op("Reshape", scale, shape))}
