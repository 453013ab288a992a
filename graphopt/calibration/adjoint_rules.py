"""How each operator hands a gradient back: g is the loss's gradient by the output y of node f(x).

A rule maps inputs (by index) to the gradients by them, or refuses; it may leave inputs out. Every
rule uses only operators of the model's own opset, and outputs rather than inputs where it can, so
that onnxruntime still fuses activations in the forward part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import Array, constant
from graphopt.graph.scope import (
    attribute_float,
    attribute_int,
    attribute_ints,
    attribute_string,
)
from graphopt.graph.shapes import Shape

if TYPE_CHECKING:
    from graphopt.calibration.adjoint import Step

Found = Mapping[int, ir.Value]
Rule = Callable[["Step"], Found]


# --- operands --------------------------------------------------------------------------------------


def _ints(step: Step, name: str, index: int, since: int) -> list[int] | None:
    """A list that is an attribute in old opsets and a (constant) input in new ones."""
    if step.tape.opset < since:
        found = attribute_ints(step.node, name)
        return None if found is None else list(found)
    value = step.optional(index)
    if value is None:
        return None
    array = constant(value)
    return step.refuse(f"{name} is not constant") if array is None else array.ravel().tolist()


def _with_ints(
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


def _sum_over(step: Step, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    return _with_ints(step, "ReduceSum", value, "axes", list(axes), 13, keepdims=1)


def _pad(step: Step, value: ir.Value, begins: Sequence[int], ends: Sequence[int]) -> ir.Value:
    """Zeros around a value; negative numbers cut off."""
    pads = [*begins, *ends]
    return _with_ints(step, "Pad", value, "pads", pads, 11) if any(pads) else value


def _like(step: Step, value: ir.Value, forward: ir.Value) -> ir.Value:
    """The same elements in the shape of a forward value."""
    return step.tape.op("Reshape", value, step.tape.run_time_shape(forward))


def _expanded(step: Step, value: ir.Value, forward: ir.Value) -> ir.Value:
    """Broadcast to the shape of a forward value."""
    if step.tape.opset >= 8:
        return step.tape.op("Expand", value, step.tape.run_time_shape(forward))
    return step.tape.op("Add", value, _zeros(step, forward))


def _zeros(step: Step, forward: ir.Value) -> ir.Value:
    tape = step.tape
    if tape.opset < 9:
        return tape.op("Mul", forward, tape.number(0, forward))
    fill = ir.tensor(np.zeros(1, tape.dtype(forward).numpy()))
    return tape.op("ConstantOfShape", tape.run_time_shape(forward), value=fill)


def _unbroadcast(step: Step, value: ir.Value, forward: ir.Value) -> ir.Value:
    """Sum a value of the output's shape over the axes along which an operand was repeated."""
    have, want = step.tape.shape(step.y), step.tape.shape(forward)
    added = len(have) - len(want)
    axes = [a for a, n in enumerate(have) if a < added or (want[a - added] == 1 and n != 1)]
    if axes:
        value = _sum_over(step, value, axes)
    return _like(step, value, forward) if added else value


def _mask(step: Step, condition: ir.Value) -> ir.Value:
    """A condition as ones and zeros."""
    return step.tape.op("Cast", condition, to=int(step.tape.dtype(step.y)))


def _above(step: Step, value: ir.Value, bound: float | ir.Value = 0.0) -> ir.Value:
    limit = bound if isinstance(bound, ir.Value) else step.tape.number(bound, step.y)
    return step.tape.op("Greater", value, limit)


def _affine(step: Step, value: ir.Value, scale: float, shift: float) -> ir.Value:
    """scale * value + shift."""
    tape = step.tape
    if scale != 1:
        value = tape.op("Mul", value, tape.number(scale, step.y))
    return tape.op("Add", value, tape.number(shift, step.y)) if shift != 0 else value


# --- arithmetic and activations --------------------------------------------------------------------


def _add(step: Step) -> Found:
    return {i: _unbroadcast(step, step.g, step.input(i)) for i in step.active}


def _sub(step: Step) -> Found:
    signed = (step.g, step.tape.op("Neg", step.g))
    return {i: _unbroadcast(step, signed[i], step.input(i)) for i in step.active}


def _mul(step: Step) -> Found:
    return {
        i: _unbroadcast(step, step.tape.op("Mul", step.g, step.input(1 - i)), step.input(i))
        for i in step.active
    }


def _div(step: Step) -> Found:  # y = a / b: da = g / b, db = -g y / b
    tape = step.tape
    by_a = tape.op("Div", step.g, step.input(1))
    found = {0: by_a, 1: tape.op("Neg", tape.op("Mul", by_a, step.y))}
    return {i: _unbroadcast(step, found[i], step.input(i)) for i in step.active}


def _same(step: Step) -> Found:
    return {0: step.g}


def _cast(step: Step) -> Found:
    if not (step.tape.is_float(step.y) and step.tape.is_float(step.input(0))):
        step.refuse("it does not go from floats to floats")
    return {0: step.tape.op("Cast", step.g, to=int(step.tape.dtype(step.input(0))))}


def _dropout(step: Step) -> Found:
    training = step.optional(2)
    if training is not None:
        flag = constant(training)
        if flag is None or bool(flag.any()):
            step.refuse("it is in training mode")
    return {0: step.g}


def _pointwise(slope: Callable[[Step], ir.Value]) -> Rule:
    """The rule of y = f(x), element by element, from the slope f'(x)."""
    return lambda step: {0: step.tape.op("Mul", step.g, slope(step))}


def _relu(step: Step) -> ir.Value:
    if step.tape.opset >= 9:
        return step.tape.op("Sign", step.y)
    return _mask(step, _above(step, step.y))


def _leaky(step: Step) -> ir.Value:
    alpha = attribute_float(step.node, "alpha", 0.01)
    source = step.y if alpha >= 0 else step.input(0)
    return _affine(step, _mask(step, _above(step, source)), 1 - alpha, alpha)


def _prelu(step: Step) -> ir.Value:  # slope + mask (1 - slope)
    tape, slope = step.tape, step.input(1)
    rest = _affine(step, slope, -1, 1)
    return tape.op("Add", slope, tape.op("Mul", _mask(step, _above(step, step.input(0))), rest))


def _clip(step: Step) -> ir.Value:
    tape, tests = step.tape, []
    if tape.opset < 11:
        given = (step.node.attributes.get("min"), step.node.attributes.get("max"))
        low, high = (None if a is None else tape.number(a.as_float(), step.y) for a in given)
    else:
        low, high = step.optional(1), step.optional(2)
    if low is not None:
        tests.append(_above(step, step.y, low))
    if high is not None:
        tests.append(tape.op("Less", step.y, high))
    if not tests:
        return tape.number(1, step.y)
    return _mask(step, tests[0] if len(tests) == 1 else tape.op("And", *tests))


def _sigmoid(step: Step) -> ir.Value:
    return step.tape.op("Mul", step.y, _affine(step, step.y, -1, 1))


def _tanh(step: Step) -> ir.Value:
    return _affine(step, step.tape.op("Mul", step.y, step.y), -1, 1)


def _hard_sigmoid(step: Step) -> ir.Value:
    return _affine(step, _inside(step, step.y), attribute_float(step.node, "alpha", 0.2), 0)


def _inside(step: Step, value: ir.Value) -> ir.Value:
    """One where 0 < value < 1."""
    below = step.tape.op("Less", value, step.tape.number(1, step.y))
    return _mask(step, step.tape.op("And", _above(step, value), below))


def _hard_swish(step: Step) -> ir.Value:  # y = x h(x): h + x h'
    tape, x = step.tape, step.input(0)
    h = tape.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    return tape.op("Add", h, tape.op("Mul", _affine(step, x, 1 / 6, 0), _inside(step, h)))


def _elu(step: Step) -> ir.Value:  # y + alpha where x <= 0
    tape, alpha = step.tape, attribute_float(step.node, "alpha", 1.0)
    mask = _mask(step, _above(step, step.input(0)))
    rest = tape.op("Mul", _affine(step, step.y, 1, alpha), _affine(step, mask, -1, 1))
    return tape.op("Add", mask, rest)


def _softmax(step: Step) -> Found:  # y (g - sum(g y))
    tape, rank = step.tape, len(step.tape.shape(step.y))
    axis = attribute_int(step.node, "axis", -1 if tape.opset >= 13 else 1) % rank
    axes = [axis] if tape.opset >= 13 else list(range(axis, rank))
    inner = _sum_over(step, tape.op("Mul", step.g, step.y), axes)
    return {0: tape.op("Mul", step.y, tape.op("Sub", step.g, inner))}


def _batch_norm(step: Step) -> Found:  # g scale / sqrt(variance + epsilon), per channel
    tape, node = step.tape, step.node
    if attribute_int(node, "training_mode", 0) or not attribute_int(node, "spatial", 1):
        step.refuse("it is in training mode, or not per channel")
    variance = _affine(step, step.input(4), 1, attribute_float(node, "epsilon", 1e-5))
    scale = tape.op("Div", step.input(1), tape.op("Sqrt", variance))
    shape = tape.constant([-1, *(1,) * (len(tape.shape(step.y)) - 2)])
    return {0: tape.op("Mul", step.g, tape.op("Reshape", scale, shape))}


# --- moving elements -------------------------------------------------------------------------------


def _reshape(step: Step) -> Found:
    return {0: _like(step, step.g, step.input(0))}


def _transpose(step: Step) -> Found:
    rank = len(step.tape.shape(step.y))
    perm = attribute_ints(step.node, "perm") or tuple(reversed(range(rank)))
    return {0: step.tape.op("Transpose", step.g, perm=np.argsort(perm).tolist())}


def _concat(step: Step) -> Found:
    tape, inputs = step.tape, [step.input(i) for i in range(len(step.node.inputs))]
    axis = attribute_int(step.node, "axis", 1) % len(tape.shape(step.y))
    sizes = [tape.size(value, axis) for value in inputs]
    if len(inputs) == 1:
        return {0: step.g}
    if tape.opset < 13:
        return dict(
            enumerate(tape.node("Split", [step.g], {"axis": axis, "split": sizes}, len(sizes)))
        )
    operands = [step.g, tape.constant(sizes)]
    return dict(enumerate(tape.node("Split", operands, {"axis": axis}, len(sizes))))


def _split(step: Step) -> Found:
    pairs = zip(step.received, step.node.outputs, strict=True)
    parts = [_zeros(step, value) if g is None else g for g, value in pairs]
    return {0: step.tape.op("Concat", *parts, axis=attribute_int(step.node, "axis", 0))}


def _slice(step: Step) -> Found:
    """Put zeros between the picked elements, then around them."""
    tape, shape = step.tape, step.tape.shape(step.input(0))
    starts, ends = _ints(step, "starts", 1, 10) or [], _ints(step, "ends", 2, 10) or []
    axes = _ints(step, "axes", 3, 10) or list(range(len(starts)))
    steps = _ints(step, "steps", 4, 10) or [1] * len(starts)
    g, counts = step.g, list(tape.shape(step.y))
    begins, after = [0] * len(shape), [0] * len(shape)
    for axis, start, end, stride in zip(
        (a % len(shape) for a in axes), starts, ends, steps, strict=True
    ):
        if start == 0 and end >= 2**31 - 1 and stride == 1:
            continue
        if stride < 1:
            step.refuse("a step is negative")
        size = tape.size(step.input(0), axis)
        begins[axis] = min(start + size if start < 0 else start, size)
        if stride > 1:
            g = _spread(step, g, counts, axis, stride)
            counts[axis] *= stride
        after[axis] = size - begins[axis] - counts[axis]
    return {0: _pad(step, g, begins, after)}


def _spread(step: Step, g: ir.Value, counts: Sequence[int], axis: int, stride: int) -> ir.Value:
    """Put stride - 1 zeros behind every element along an axis."""
    sizes = [0 if a == 0 and axis else n for a, n in enumerate(counts)]  # 0: as it is
    apart = step.tape.constant([*sizes[: axis + 1], 1, *sizes[axis + 1 :]])
    zeros = [0] * (len(sizes) + 1)
    zeros[axis + 1] = stride - 1
    g = _pad(step, step.tape.op("Reshape", g, apart), [0] * len(zeros), zeros)
    joined = [*sizes[:axis], counts[axis] * stride, *sizes[axis + 1 :]]
    return step.tape.op("Reshape", g, step.tape.constant(joined))


def _pad_rule(step: Step) -> Found:
    """Cut the padding off: the same pads, negative."""
    tape = step.tape
    if attribute_string(step.node, "mode", "constant") != "constant":
        step.refuse("its mode is not constant")
    if tape.opset < 11:
        pads = [-n for n in attribute_ints(step.node, "pads") or ()]
        return {0: tape.op("Pad", step.g, pads=pads)}
    axes = step.optional(3)
    less = tape.op("Neg", step.input(1))
    return {0: tape.op("Pad", step.g, less, *(() if axes is None else (None, axes)))}


def _depth_to_space(step: Step) -> Found:
    tape, block = step.tape, attribute_int(step.node, "blocksize", 1)
    if attribute_string(step.node, "mode", "DCR") == "DCR":
        return {0: tape.op("SpaceToDepth", step.g, blocksize=block)}
    _, channels, height, width = tape.shape(step.y)
    blocks = tape.constant([-1, channels, height // block, block, width // block, block])
    apart = tape.op("Reshape", step.g, blocks)
    return {0: _like(step, tape.op("Transpose", apart, perm=[0, 1, 3, 5, 2, 4]), step.input(0))}


def _space_to_depth(step: Step) -> Found:
    block = attribute_int(step.node, "blocksize", 1)
    return {0: step.tape.op("DepthToSpace", step.g, blocksize=block)}


# --- reductions and windows ------------------------------------------------------------------------


def _reduce(step: Step, *, since: int, mean: bool) -> Found:
    tape, x = step.tape, step.input(0)
    rank = len(tape.shape(x))
    axes = sorted(a % rank for a in _ints(step, "axes", 1, since) or ())
    if not axes and attribute_int(step.node, "noop_with_empty_axes", 0):
        return {0: step.g}
    axes, g = axes or list(range(rank)), step.g
    if not attribute_int(step.node, "keepdims", 1):
        g = _with_ints(step, "Unsqueeze", g, "axes", axes, 13)
    if mean:
        g = _affine(step, g, 1 / tape.volume(x, axes), 0)
    return {0: _expanded(step, g, x)}


def _global_average(step: Step) -> Found:
    x = step.input(0)
    count = step.tape.volume(x, range(2, len(step.tape.shape(x))))
    return {0: _expanded(step, _affine(step, step.g, 1 / count, 0), x)}


@dataclass(frozen=True)
class _Window:
    """How a kernel slides from `size` (the fine side) to `count` positions (the coarse side)."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    begins: Shape
    ends: Shape
    size: Shape
    count: Shape

    @classmethod
    def of(cls, step: Step, kernel: Shape, fine: ir.Value, coarse: ir.Value) -> _Window:
        node, rank = step.node, len(kernel)
        size, count = step.tape.shape(fine)[2:], step.tape.shape(coarse)[2:]
        strides = attribute_ints(node, "strides") or (1,) * rank
        dilations = attribute_ints(node, "dilations") or (1,) * rank
        pads = attribute_ints(node, "pads") or (0,) * (2 * rank)
        mode = attribute_string(node, "auto_pad", "NOTSET")
        if mode != "NOTSET" or "output_shape" in node.attributes:
            extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
            whole = zip(extents, strides, size, count, strict=True)
            total = [max((n - 1) * s + e - full, 0) for e, s, full, n in whole]
            if mode == "VALID":
                total = [0] * rank
            if node.op_type == "ConvTranspose" and any(n % 2 for n in total):
                step.refuse("its padding is uneven and not explicit")
            less, more = [n // 2 for n in total], [n - n // 2 for n in total]
            pads = (*more, *less) if mode == "SAME_LOWER" else (*less, *more)
        return cls(kernel, strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]), size, count)

    @property
    def extents(self) -> Shape:
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def scatter(self, step: Step, g: ir.Value, weight: ir.Value, group: int = 1) -> ir.Value:
        """From the coarse to the fine side: the adjoint of a convolution with this weight."""
        lacking = [
            size - ((n - 1) * s + extent - b - e)
            for size, n, s, extent, b, e in zip(
                self.size,
                self.count,
                self.strides,
                self.extents,
                self.begins,
                self.ends,
                strict=True,
            )
        ]
        ends = [e + max(-n, 0) for e, n in zip(self.ends, lacking, strict=True)]
        extra = [max(n, 0) for n in lacking]
        return step.tape.op(
            "ConvTranspose",
            g,
            weight,
            strides=self.strides,
            dilations=self.dilations,
            pads=[*self.begins, *ends],
            output_padding=extra if any(extra) else None,
            group=group,
        )


def _conv(step: Step) -> Found:
    tape, x, weight = step.tape, step.input(0), step.input(1)
    group, shape = attribute_int(step.node, "group", 1), tape.shape(weight)
    window = _Window.of(step, shape[2:], x, step.y)
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


def _conv_transpose(step: Step) -> Found:
    weight = step.input(1)
    window = _Window.of(step, step.tape.shape(weight)[2:], step.y, step.input(0))
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


def _gemm(step: Step) -> Found:  # y = alpha a b + beta c
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
        found[2] = _unbroadcast(step, _affine(step, step.g, beta, 0), step.input(2))
    return found


def _matmul(step: Step) -> Found:
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
    value = _sum_over(step, value, axes) if axes else value
    return _like(step, value, forward) if added else value


def _channelwise(step: Step, g: ir.Value, window: _Window) -> ir.Value:
    """Spread every element over its window, channel by channel; channels count as samples."""
    flat = step.tape.op("Reshape", g, step.tape.constant([-1, 1, *window.count]))
    ones = step.tape.number(np.ones((1, 1, *window.kernel)), step.y)
    return _like(step, window.scatter(step, flat, ones), step.input(0))


def _average_pool(step: Step) -> Found:
    window = _Window.of(
        step, attribute_ints(step.node, "kernel_shape") or (), step.input(0), step.y
    )
    padded = bool(attribute_int(step.node, "count_include_pad", 0))
    shares = np.ones(window.count)
    for axis, count in enumerate(window.count):  # windows count what is inside, or inside the pads
        begin, size = window.begins[axis], window.size[axis]
        starts = np.arange(count)[:, None] * window.strides[axis] - begin
        at = starts + np.arange(window.kernel[axis]) * window.dilations[axis]
        low, high = (-begin, size + window.ends[axis]) if padded else (0, size)
        inside = ((at >= low) & (at < high)).sum(axis=1)
        shares /= np.expand_dims(inside, tuple(a for a in range(len(window.count)) if a != axis))
    uniform = float(shares.flat[0]) if np.ptp(shares) == 0 else shares
    g = step.tape.op("Mul", step.g, step.tape.number(uniform, step.y))
    return {0: _channelwise(step, g, window)}


def _max_pool(step: Step) -> Found:
    window = _Window.of(
        step, attribute_ints(step.node, "kernel_shape") or (), step.input(0), step.y
    )
    return {0: _by_taps(step, window) if step.tape.opset < 9 else _by_index(step, window)}


def _by_index(step: Step, window: _Window) -> ir.Value:
    """Scatter to the places MaxPool names. Windows that overlap write to layers of their own."""
    tape, x = step.tape, step.input(0)
    if attribute_int(step.node, "storage_order", 0):
        step.refuse("its storage order is column-major")
    if len(step.node.outputs) < 2:
        step.node.resize_outputs(2)
    index = step.node.outputs[1]
    index.name = index.name or tape.fresh("adjoint_indices")
    layers = [-(-extent // s) for extent, s in zip(window.extents, window.strides, strict=True)]
    one, flat = math.prod(layers) == 1, tape.constant([-1])
    size = tape.op("ReduceProd", tape.run_time_shape(x), keepdims=1)
    if not one and tape.opset < 16:
        layer = np.zeros(window.count, np.int64)
        for axis, n in enumerate(layers):
            at = np.arange(window.count[axis]) % n
            others = tuple(a for a in range(len(layers)) if a != axis)
            layer = layer * n + np.expand_dims(at, others)
        index = tape.op("Add", index, tape.op("Mul", tape.constant(layer), size))
        size = tape.op("Mul", size, tape.constant([math.prod(layers)]))
    fill = ir.tensor(np.zeros(1, tape.dtype(x).numpy()))
    zeros = tape.op("ConstantOfShape", size, value=fill)
    places = (tape.op("Reshape", index, flat), tape.op("Reshape", step.g, flat))
    kind = "ScatterElements" if tape.opset >= 11 else "Scatter"
    add = "add" if not one and tape.opset >= 16 else None
    found = tape.op(kind, zeros, *places, axis=0, reduction=add)
    if not one and tape.opset < 16:
        found = tape.op("Reshape", found, tape.constant([math.prod(layers), -1]))
        found = _sum_over(step, found, [0])
    return _like(step, found, x)


def _by_taps(step: Step, window: _Window) -> ir.Value:
    """Before MaxPool names places: compare every tap with the maximum; ties share.

    Convolutions with one-hot kernels [taps, 1, *kernel] cut the taps out and put them back.
    """
    tape, x, taps = step.tape, step.input(0), math.prod(window.kernel)
    pick = tape.number(np.eye(taps).reshape(taps, 1, *window.kernel), x)
    geometry = {"strides": window.strides, "dilations": window.dilations}

    def cut(value: ir.Value) -> ir.Value:
        return tape.op("Conv", value, pick, pads=[*window.begins, *window.ends], **geometry)

    def alone(value: ir.Value, size: Shape) -> ir.Value:
        return tape.op("Reshape", value, tape.constant([-1, 1, *size]))

    inside = cut(tape.number(np.ones((1, 1, *window.size)), x))
    below = tape.op("Less", cut(alone(x, window.size)), alone(step.y, window.count))
    share = tape.op("Mul", _mask(step, tape.op("Not", below)), inside)
    weight = tape.op("Div", alone(step.g, window.count), _sum_over(step, share, [1]))
    return _like(step, window.scatter(step, tape.op("Mul", share, weight), pick), x)


RULES: Mapping[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _pointwise(_clip),
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _pointwise(_elu),
    "Exp": _pointwise(lambda step: step.y),
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": _pointwise(_hard_sigmoid),
    "HardSwish": _pointwise(_hard_swish),
    "Identity": _same,
    "LeakyRelu": _pointwise(_leaky),
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "PRelu": _pointwise(_prelu),
    "Pad": _pad_rule,
    "ReduceMean": lambda step: _reduce(step, since=18, mean=True),
    "ReduceSum": lambda step: _reduce(step, since=13, mean=False),
    "Relu": _pointwise(_relu),
    "Reshape": _reshape,
    "Sigmoid": _pointwise(_sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _pointwise(lambda step: step.tape.op("Sigmoid", step.input(0))),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _sub,
    "Sum": _add,
    "Tanh": _pointwise(_tanh),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
