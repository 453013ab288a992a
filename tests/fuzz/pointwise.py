"""Steps without weights that keep the shape: activations whole and in pieces, and noise."""

from __future__ import annotations

import math

import numpy as np

from fuzz.builder import Builder, ImpossibleError, Value


def activation(b: Builder, x: Value) -> Value:
    """One standard operator that onnxruntime has for the type."""
    op = b.pick("Relu", "Clip", "Sigmoid", "Tanh", "PRelu")
    if b.store.dtype == np.float32 and b.rarely(2):
        op = b.pick("LeakyRelu", "HardSigmoid", "Elu", "HardSwish")
    if op == "Clip":
        return clip(b, x, b.pick(0.0, None, -1.0), b.pick(6.0, None, 1.0))
    if op == "LeakyRelu":
        return b.add(op, [x], alpha=b.pick(None, 0.2, 0.0))
    if op == "HardSigmoid":
        return b.add(op, [x], alpha=b.pick(None, 1 / 6), beta=b.pick(None, 0.5))
    if op == "PRelu":
        return b.add(op, [x, b.weight(b.factors((1,) * max(0, x.rank - 1)), "slope")])
    if op == "HardSwish":
        b.needs(14)
    return b.add(op, [x])


def two_activations(b: Builder, x: Value) -> Value:
    """One after the other, which may merge."""
    return activation(b, activation(b, x))


def clip(b: Builder, x: Value, low: float | None, high: float | None) -> Value:
    """A Clip in the form the operator set has."""
    if b.opset < 11:
        return b.add("Clip", [x], min=low, max=high)
    operands: list[Value | None] = [x]
    for bound in (low, high):
        operands.append(None if bound is None else b.scalar(bound))
    while operands[-1] is None:
        operands.pop()
    return b.add("Clip", operands)


def pieces(b: Builder, x: Value) -> Value:
    """An activation as exporters unfold it, or nearly so."""
    return b.pick(
        _swish,
        _hard_swish,
        _hard_sigmoid,
        _hard_swish_by_op,
        _relu_by_max,
        _clip_by_min,
        _gelu,
        _mish,
    )(b, x)


def _either(b: Builder, left: Value, right: Value) -> list[Value]:
    return b.pick([left, right], [right, left])


def _swish(b: Builder, x: Value) -> Value:
    inner = x if not b.rarely(4) else b.add("Mul", _either(b, x, b.scalar(b.pick(1.702, 1.0))))
    return b.add("Mul", _either(b, x, b.add("Sigmoid", [inner])))


def _shifted(b: Builder, x: Value) -> Value:
    """Clip(x + 3, 0, 6), or something like it."""
    shifted = b.add("Add", _either(b, x, b.scalar(b.pick(3.0, 3.0, 2.0))))
    if b.rarely(4):
        return b.add("Relu", [shifted])
    return clip(b, shifted, 0.0, b.pick(6.0, 6.0, 5.0, None))


def _sixth(b: Builder, x: Value) -> Value:
    if b.rarely(2):
        return b.add("Mul", _either(b, x, b.scalar(1 / 6)))
    return b.add("Div", [x, b.scalar(6.0)])


def _hard_swish(b: Builder, x: Value) -> Value:
    if b.rarely(2):
        return _sixth(b, b.add("Mul", _either(b, x, _shifted(b, x))))
    return b.add("Mul", _either(b, x, _sixth(b, _shifted(b, x))))


def _hard_sigmoid(b: Builder, x: Value) -> Value:
    return _sixth(b, _shifted(b, x))


def _hard_swish_by_op(b: Builder, x: Value) -> Value:
    alpha = b.pick(1 / 6, 1 / 6, 0.2)
    return b.add("Mul", _either(b, x, b.add("HardSigmoid", [x], alpha=alpha, beta=0.5)))


def _relu_by_max(b: Builder, x: Value) -> Value:
    b.needs(8)
    zero = b.scalar(b.pick(0.0, 0.0, 0.1)) if not b.rarely(3) else b.weight(b.random((1,), 0), "z")
    return b.add("Max", b.pick([x, zero], [zero, x], [x, zero, zero], [x]))


def _clip_by_min(b: Builder, x: Value) -> Value:
    b.needs(8)
    low, high = b.scalar(b.pick(0.0, -1.0)), b.scalar(b.pick(6.0, 1.0, -2.0))
    if b.rarely(2):
        return b.add("Min", _either(b, b.add("Max", _either(b, x, low)), high))
    return b.add("Max", _either(b, b.add("Min", _either(b, x, high)), low))


def _gelu(b: Builder, x: Value) -> Value:
    b.needs(9)
    if b.store.dtype == np.float64:
        raise ImpossibleError("onnxruntime has no Erf of this type")
    root = math.sqrt(2.0)
    if b.rarely(2):
        inner = b.add("Div", [x, b.scalar(b.pick(root, root, 1.0))])
    else:
        inner = b.add("Mul", _either(b, x, b.scalar(1 / root)))
    grown = b.add("Add", _either(b, b.add("Erf", [inner]), b.scalar(1.0)))
    if b.rarely(2):
        return b.add("Mul", _either(b, b.add("Mul", _either(b, x, grown)), b.scalar(0.5)))
    return b.add("Mul", _either(b, b.add("Mul", _either(b, x, b.scalar(0.5))), grown))


def _mish(b: Builder, x: Value) -> Value:
    if b.store.dtype != np.float32:
        raise ImpossibleError("onnxruntime has no Softplus of this type")
    return b.add("Mul", _either(b, x, b.add("Tanh", [b.add("Softplus", [x])])))


def noise(b: Builder, x: Value) -> Value:
    """What exporters leave behind, with no effect or nearly none."""
    return b.pick(_identity, _cast, _dropout, _dropout_training, _arithmetic, _one_input)(b, x)


def _identity(b: Builder, x: Value) -> Value:
    return b.add("Identity", [x])


def _cast(b: Builder, x: Value) -> Value:
    if b.store.dtype == np.float32 and b.rarely(2):
        wide = int(b.add("Cast", [x], to=11).dtype)  # to double and back
        return b.add("Cast", [Value(b.nodes[-1].output[0], x.shapes, wide)], to=b.dtype)
    return b.add("Cast", [x], to=b.dtype)


def _dropout(b: Builder, x: Value) -> Value:
    if b.opset < 12:
        return b.add("Dropout", [x], ratio=b.pick(None, 0.3))
    ratio = b.pick(None, 0.3, 0.0)
    operand = None if ratio is None else b.initializer(np.asarray(ratio, np.float32))
    training = b.initializer(np.asarray(False)) if b.rarely(2) else None
    operands: list[Value | None] = [x, operand, training]
    while operands[-1] is None:
        operands.pop()
    return b.add("Dropout", operands)


def _dropout_training(b: Builder, x: Value) -> Value:
    """In training mode; seeded, so that every session draws the same numbers."""
    b.needs(12)
    if b.is_body or not b.rarely(3):
        raise ImpossibleError("seldom")
    ratio = b.initializer(np.asarray(b.pick(0.5, 0.0), np.float32))
    return b.add("Dropout", [x, ratio, b.initializer(np.asarray(True))], seed=7)


def _arithmetic(b: Builder, x: Value) -> Value:
    op, number = b.pick(("Mul", 1.0), ("Add", 0.0), ("Sub", 0.0), ("Div", 1.0))
    operands = [x, b.scalar(number)]
    return b.add(op, operands if op in ("Sub", "Div") or b.rarely(2) else operands[::-1])


def _one_input(b: Builder, x: Value) -> Value:
    op = b.pick("Concat", "Sum", "Max")
    if op == "Max":
        b.needs(8)
    return b.add("Concat", [x], axis=b.pick(1, 0)) if op == "Concat" else b.add(op, [x])


def together(b: Builder, x: Value, other: Value) -> Value:
    """Two values of the same shape in one."""
    if x.shapes != other.shapes or x.dtype != other.dtype:
        raise ImpossibleError("shapes differ")
    op = b.pick("Add", "Mul", "Sub", "Concat", "Max", "Sum")
    if op == "Max":
        b.needs(8)
    attributes = {"axis": b.pick(1, 0) if x.rank > 1 else 0} if op == "Concat" else {}
    return b.add(op, _either(b, x, other), **attributes)
