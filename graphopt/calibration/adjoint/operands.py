"""What the rules share: lists as the opset wants them, shapes, masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.calibration.adjoint.tape import Step
from graphopt.graph.constants import constant
from graphopt.graph.scope import attribute_ints


def ints(step: Step, name: str, index: int, since: int) -> list[int] | None:
    """A list that is an attribute in old opsets and a (constant) input in new ones."""
    if step.tape.opset < since:
        found = attribute_ints(step.node, name)
        return None if found is None else list(found)
    value = step.optional(index)
    if value is None:
        return None
    array = constant(value)
    return step.refuse(f"{name} is not constant") if array is None else array.ravel().tolist()


def with_ints(
    step: Step,
    op_type: str,
    value: ir.Value,
    name: str,
    numbers: list[int],
    since: int,
    **more: int,
) -> ir.Value:
    """A node whose list is an attribute or an input, as the opset wants it."""
    if step.tape.opset < since:
        return step.tape.op(op_type, value, **{name: numbers}, **more)
    return step.tape.op(op_type, value, step.tape.constant(numbers), **more)


def sum_over(step: Step, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    """Sum over some axes, which are kept."""
    return with_ints(step, "ReduceSum", value, "axes", list(axes), 13, keepdims=1)


def pad_zeros(step: Step, value: ir.Value, begins: Sequence[int], ends: Sequence[int]) -> ir.Value:
    """Zeros around a value; negative numbers cut off."""
    pads = [*begins, *ends]
    return with_ints(step, "Pad", value, "pads", pads, 11) if any(pads) else value


def shaped_like(step: Step, value: ir.Value, forward: ir.Value) -> ir.Value:
    """The same elements in the shape of a forward value."""
    return step.tape.op("Reshape", value, step.tape.run_time_shape(forward))


def channels_apart(step: Step, value: ir.Value, forward: ir.Value) -> ir.Value:
    """Every channel of a value of a forward value's shape as a sample of its own."""
    tape, rank = step.tape, len(step.tape.shape(forward))
    shape = tape.run_time_shape(forward)
    if tape.opset >= 10:
        spatial = tape.op("Slice", shape, tape.constant([2]), tape.constant([rank]))
    else:
        spatial = tape.op("Slice", shape, axes=[0], starts=[2], ends=[rank])
    apart = tape.op("Concat", tape.constant([-1, 1]), spatial, axis=0)
    return tape.op("Reshape", value, apart)


def expanded(step: Step, value: ir.Value, forward: ir.Value) -> ir.Value:
    """Broadcast to the shape of a forward value."""
    if step.tape.opset >= 8:
        return step.tape.op("Expand", value, step.tape.run_time_shape(forward))
    return step.tape.op("Add", value, zeros_like(step, forward))


def zeros_like(step: Step, forward: ir.Value) -> ir.Value:
    """Zeros in the shape of a forward value."""
    tape = step.tape
    if tape.opset < 9:
        return tape.op("Mul", forward, tape.number(0, forward))
    fill = ir.tensor(np.zeros(1, tape.dtype(forward).numpy()))
    return tape.op("ConstantOfShape", tape.run_time_shape(forward), value=fill)


def unbroadcast(step: Step, value: ir.Value, forward: ir.Value) -> ir.Value:
    """Sum a value of the output's shape over the axes along which an operand was repeated."""
    have, want = step.tape.shape(step.y), step.tape.shape(forward)
    added = len(have) - len(want)
    axes = [a for a, n in enumerate(have) if a < added or (want[a - added] == 1 and n != 1)]
    if axes:
        value = sum_over(step, value, axes)
    return shaped_like(step, value, forward) if added else value


def as_mask(step: Step, condition: ir.Value) -> ir.Value:
    """A condition as ones and zeros."""
    return step.tape.op("Cast", condition, to=int(step.tape.dtype(step.y)))


def above(step: Step, value: ir.Value, bound: float | ir.Value = 0.0) -> ir.Value:
    """The condition value > bound."""
    limit = bound if isinstance(bound, ir.Value) else step.tape.number(bound, step.y)
    return step.tape.op("Greater", value, limit)


def affine(step: Step, value: ir.Value, scale: float, shift: float) -> ir.Value:
    """scale * value + shift."""
    tape = step.tape
    if scale != 1:
        value = tape.op("Mul", value, tape.number(scale, step.y))
    return tape.op("Add", value, tape.number(shift, step.y)) if shift != 0 else value
