"""Merge multiplications and additions by constants that directly follow one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.affine import is_uniform
from graphopt.graph.constants import constant, is_overridable, is_splat, splat
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, follower, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal

Array = np.ndarray[Any, Any]

_FAMILIES = (("Mul", "Div"), ("Add", "Sub"))

_CANCELLATION = 64.0
"""Two addends may cancel down to this share of them: x + 12582912 - 12582912 rounds x, on purpose."""

FUSED_BY_RUNTIME = "it belongs to a {} that onnxruntime runs as one operator"


@dataclass(frozen=True)
class Step:
    """A Mul, Div, Add or Sub of `source` with a constant; swapped: the constant comes first."""

    node: ir.Node
    source: ir.Value
    constant: Array
    swapped: bool

    @classmethod
    def of(cls, node: ir.Node) -> Step | str | None:
        """The step at a node, why there is none, or None where two values at run time meet."""
        if len(node.inputs) != 2 or node.inputs[0] is None or node.inputs[1] is None:
            return None
        known = [constant(value) for value in node.inputs]
        if all(array is not None for array in known):
            return None  # for constant folding
        for index, array in enumerate(known):
            source = node.inputs[1 - index]
            if array is not None and source is not None:
                return cls(node, source, array, swapped=index == 0)
        if any(v is not None and v.is_initializer() and is_overridable(v) for v in node.inputs):
            return "the constant can be overridden by a caller (it is listed as a graph input)"
        return None

    @property
    def inverts(self) -> bool:
        """Whether the value is what is divided by or subtracted: k / x, k - x."""
        return self.swapped and self.node.op_type in ("Div", "Sub")

    @property
    def takes(self) -> bool:
        """Whether the constant is what is divided by or subtracted: x / k, x - k."""
        return not self.swapped and self.node.op_type in ("Div", "Sub")


@dataclass(frozen=True)
class MergeArithmetic(ExactRewrite):
    """Mul | Div by constants directly after one another  ==>  one; likewise Add | Sub.

        (x k) m = x (k m)       x / k / m = x / (k m)       m / (x / k) = (m k) / x
        (x + k) + m = x + (k + m)       m - (x - k) = (m + k) - x

    The constants may have any shapes, on either side, as long as the merged one is no larger than
    the larger of the two. Computed in float64, rounded once; integers wrap as they did. A Mul and
    an Add stay two nodes. Declines when the value in between is needed elsewhere, when the merged
    constant would be larger, overflow, underflow or come of a division by zero, when two addends
    cancel (the rounding between them may be meant), for integer divisions, and for the last factor
    of a Gelu written out, which onnxruntime recognises by it.
    """

    name = "merge-arithmetic"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per pair of neighbouring operations of one family."""
        for node in scope.graph:
            family = next((ops for ops in _FAMILIES if is_op(node, *ops)), None)
            second = None if family is None else Step.of(node)
            if family is None or not isinstance(second, Step):
                continue
            before = second.source.producer()
            if before is None or not is_op(before, *family):
                continue
            first = Step.of(before)
            if first is None:
                continue
            merged = first if isinstance(first, str) else _merged(scope, first, second)
            if isinstance(merged, str):
                yield self.decline(merged, before, node)
            else:
                yield Proposal(self.name, (before, node), merged)


def ends_gelu(step: Step) -> bool:
    """Whether it is the factor of x (1 + erf(x / sqrt(2))) / 2, or of its approximation by tanh."""
    half = {"Mul": 0.5, "Div": 2.0}.get(step.node.op_type)
    product = step.source.producer()
    if half is None or not np.all(step.constant == half) or not is_op(product, "Mul"):
        return False
    assert product is not None
    made_by = [None if value is None else value.producer() for value in product.inputs]
    sums = [node for node in made_by if node is not None and is_op(node, "Add")]
    addends = [value for node in sums for value in node.inputs if value is not None]
    return any(is_op(value.producer(), "Erf", "Tanh") for value in addends)


def _merged(scope: Scope, first: Step, second: Step) -> Callable[[], None] | str:
    """The edit that makes one operation of two, or why there is none."""
    if scope.opset < 7:  # broadcasting went by an `axis` attribute
        return f"opset {scope.opset} is older than 7"
    if first.node.graph is not scope.graph:
        return "the first operation stands outside this body"
    if follower(scope, first.node) is not second.node:
        return "the value in between is needed elsewhere too"
    if ends_gelu(first):
        return FUSED_BY_RUNTIME.format("Gelu")
    pair = Pair(first, second)
    array = _constant(pair)
    if isinstance(array, str):
        return array

    def edit() -> None:
        change = Edit(scope, MergeArithmetic.name)
        output = second.node.outputs[0]
        hint = output.name or pair.op_type
        merged = change.constant(array, f"{hint}_constant")
        operands = [merged, first.source] if pair.inverts else [first.source, merged]
        new = change.node(pair.op_type, operands, hint=hint, name=second.node.name)
        change.commit((first.node, second.node), {output: new})

    return edit


@dataclass(frozen=True)
class Pair:
    """m o (k o x), two steps of one family, seen as k^a m^b x^p (or a k + b m + p x), all +-1."""

    first: Step
    second: Step

    @property
    def multiplies(self) -> bool:
        """Whether it is products rather than sums."""
        return self.first.node.op_type in _FAMILIES[0]

    @property
    def signs(self) -> tuple[int, int]:
        """a and b."""
        a = -1 if self.first.takes != self.second.inverts else 1
        return a, -1 if self.second.takes else 1

    @property
    def inverts(self) -> bool:
        """Whether p is -1: the merged constant is divided by, or subtracted from it, the value."""
        return self.first.inverts != self.second.inverts

    @property
    def op_type(self) -> str:
        """The merged operator."""
        giving, taking = _FAMILIES[0 if self.multiplies else 1]
        return taking if self.inverts or self.signs == (-1, -1) else giving

    @property
    def divides_by_zero(self) -> bool:
        """Whether a constant that is a divisor, before or after, is zero somewhere."""
        k = self.first.takes or self.signs[0] < 0
        return bool(
            (k and np.any(self.first.constant == 0))
            or (self.second.takes and np.any(self.second.constant == 0))
        )

    def combine(self, k: Array, m: Array) -> Array:
        """The merged constant in the arithmetic of the operands' type; integers wrap."""
        join, part = (np.multiply, np.divide) if self.multiplies else (np.add, np.subtract)
        a, b = self.signs
        with np.errstate(over="ignore", under="ignore"):
            if a == b:  # x / k / m = x / (k m)
                return np.asarray(join(k, m))
            return np.asarray(part(k, m) if a > b else part(m, k))


def _constant(pair: Pair) -> Array | str:
    k, m = pair.first.constant, pair.second.constant
    if k.dtype != m.dtype:
        return f"constants of types {k.dtype} and {m.dtype}"
    shape = np.broadcast_shapes(k.shape, m.shape)
    if math.prod(shape) > max(k.size, m.size):
        return "the merged constant would be larger than either"
    if any(is_splat(a) and a.size > b.size and not is_uniform(b) for a, b in ((k, m), (m, k))):
        return "a generated constant would have to be stored"
    uniform = is_uniform(k) and is_uniform(m)
    if uniform:  # one number each, however many there are
        k, m = k.flat[:1], m.flat[:1]
    if is_floating(k):
        merged = _rounded(pair, k, m)
    elif k.dtype.kind not in "iu":
        merged = f"a constant of type {k.dtype}"
    elif "Div" in (pair.first.node.op_type, pair.second.node.op_type):
        merged = "divisions of integers round"
    else:
        merged = pair.combine(k, m)
    return splat(merged[0], shape) if uniform and not isinstance(merged, str) else merged


def _rounded(pair: Pair, k: Array, m: Array) -> Array | str:
    """The merged constant of floats, rounded once, or why it is not usable."""
    wide_k, wide_m = k.astype(np.float64), m.astype(np.float64)
    if not (np.all(np.isfinite(wide_k)) and np.all(np.isfinite(wide_m))):
        return "a constant is not finite"
    if pair.multiplies and pair.divides_by_zero:
        return "it divides by zero"
    exact = pair.combine(wide_k, wide_m)
    if not pair.multiplies and np.any(
        np.abs(exact) * _CANCELLATION < np.abs(wide_k) + np.abs(wide_m)
    ):
        return "the constants cancel each other, and with them the rounding in between"
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(k.dtype)
    vanished = pair.multiplies and np.any((exact == 0) & (wide_k != 0) & (wide_m != 0))
    if vanished or not survives(exact, rounded):
        return f"the merged constant is out of the range of {k.dtype}"
    return rounded


def is_floating(array: Array) -> bool:
    """Whether the elements are floats, bfloat16 included."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


def survives(exact: Array, rounded: Array) -> bool:
    """Whether rounding kept every element: none overflowed or got lost among the subnormals."""
    one, two = rounded.dtype.type(1), rounded.dtype.type(2)
    unit = float(np.nextafter(one, two)) - 1.0  # np.finfo does not know bfloat16
    if not np.all(np.isfinite(rounded)):
        return False
    return bool(np.all(np.abs(rounded.astype(np.float64) - exact) <= unit * np.abs(exact)))
