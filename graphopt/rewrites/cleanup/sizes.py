"""Sizes that a model computes at run time (Shape, Gather, Concat, ...), as far as they are known before.

A vector of integers is followed back to the constants and to the dimensions it is made of. Only
what holds for every input counts: declared numbers and symbols, never the bound shapes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import Scope, attribute_int, is_op
from graphopt.rewrites.cleanup.axes import integers, is_given, operand


@dataclass(frozen=True)
class Dim:
    """An open dimension: one axis of one value, and every other axis that has the same symbol."""

    symbol: str | None
    value: ir.Value
    axis: int

    def same_as(self, other: Size) -> bool:
        """Whether another size is the same for every input."""
        if not isinstance(other, Dim):
            return False
        if self.symbol is not None and self.symbol == other.symbol:
            return True
        return self.value is other.value and self.axis == other.axis


Size: TypeAlias = "int | Dim | None"
"""A number, an open dimension, or something else that is not known."""

_LONGEST = 64
_LARGEST = 2**31
_DEEPEST = 64
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


@dataclass(frozen=True)
class Sizes:
    """A scalar (one element) or a vector of integers."""

    elements: tuple[Size, ...]
    is_vector: bool

    @property
    def numbers(self) -> list[int] | None:
        """The elements, if all are known."""
        known = [n for n in self.elements if isinstance(n, int)]
        return known if len(known) == len(self.elements) else None


@dataclass
class Evaluator:
    """Evaluates values of one graph, each once."""

    scope: Scope
    _known: dict[ir.Value, Sizes | None] = field(default_factory=dict)
    _depth: int = 0

    def __call__(self, value: ir.Value | None) -> Sizes | None:
        """What is known of a scalar or vector; None where not even its length is."""
        if value is None or self._depth > _DEEPEST:
            return None
        if value not in self._known:
            self._depth += 1
            self._known[value] = _constant(value) or self._computed(value) or self._length(value)
            self._depth -= 1
        return self._known[value]

    def dims(self, value: ir.Value | None) -> list[Size] | None:
        """The dimensions of a value; None where its rank is unknown."""
        rank = self.scope.rank(value)
        if value is None or rank is None or not self._is_trusted(value):
            return None
        dims: list[Size] = []
        for axis in range(rank):
            size = self.scope.dim(value, axis)
            dims.append(size if isinstance(size, int) else Dim(size, value, axis))
        return dims

    def _is_trusted(self, value: ir.Value) -> bool:
        """Whether its inferred shape holds for every input."""
        in_main = value.graph is self.scope.model.graph
        if in_main and value.is_graph_input():
            return True  # onnxruntime checks it
        return not self._sizes_are_overridable and (in_main or not self._bodies_are_fed)

    @cached_property
    def _sizes_are_overridable(self) -> bool:
        """Whether a caller may override integers, which shape inference takes for constant."""
        return any(
            value.is_initializer() and value.dtype in _INTEGERS
            for value in self.scope.model.graph.inputs
        )

    @cached_property
    def _bodies_are_fed(self) -> bool:
        """Whether there are bodies (of Loop, Scan) with inputs, whose shapes onnxruntime does not check."""
        return any(graph.inputs for graph in self.scope.model.graph.subgraphs())

    def _length(self, value: ir.Value) -> Sizes | None:
        """A scalar or vector of which nothing but the length is known."""
        dims = self.dims(value)
        if dims is None or len(dims) > 1:
            return None
        length = dims[0] if dims else 1
        if not isinstance(length, int) or length > _LONGEST:
            return None
        return Sizes((None,) * length, is_vector=bool(dims))

    def _computed(self, value: ir.Value) -> Sizes | None:
        node = value.producer()
        if node is None or not is_op(node, node.op_type) or value is not node.outputs[0]:
            return None
        evaluate = _EVALUATORS.get(node.op_type)
        found = None if evaluate is None else evaluate(node, self)
        if found is None or len(found.elements) > _LONGEST:
            return None
        return found if all(_fits(n) for n in found.elements) else None


def _constant(value: ir.Value) -> Sizes | None:
    array = constant(value)
    if array is None or array.ndim > 1 or array.size > _LONGEST:
        return None
    if array.dtype not in (np.int32, np.int64):
        return None
    return Sizes(tuple(int(n) for n in array.reshape(-1)), array.ndim == 1)


def _fits(size: Size) -> bool:
    return not isinstance(size, int) or -_LARGEST < size < _LARGEST


def _shape(node: ir.Node, of: Evaluator) -> Sizes | None:
    dims = of.dims(node.inputs[0])
    if dims is None:
        return None
    start, end = attribute_int(node, "start", 0), attribute_int(node, "end", len(dims))
    return Sizes(tuple(dims[start:end]), is_vector=True)


def _size(node: ir.Node, of: Evaluator) -> Sizes | None:
    dims = of.dims(node.inputs[0])
    numbers = None if dims is None else Sizes(tuple(dims), is_vector=True).numbers
    return None if numbers is None else Sizes((math.prod(numbers),), is_vector=False)


def _gather(node: ir.Node, of: Evaluator) -> Sizes | None:
    data, indices = of(node.inputs[0]), of(node.inputs[1])
    if data is None or indices is None or not data.is_vector:
        return None
    picked, count = indices.numbers, len(data.elements)
    if picked is None or not all(-count <= index < count for index in picked):
        return None
    return Sizes(tuple(data.elements[index] for index in picked), indices.is_vector)


def _slice(node: ir.Node, of: Evaluator) -> Sizes | None:
    data = of(node.inputs[0])
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    axes = integers(node, "axes", 3) if is_given(node, "axes", 3) else (0,)
    steps = integers(node, "steps", 4) if is_given(node, "steps", 4) else (1,)
    if data is None or not data.is_vector or axes not in ((0,), (-1,)):
        return None
    if starts is None or ends is None or steps is None or 0 in steps:
        return None
    if len(starts) != 1 or len(ends) != 1 or len(steps) != 1:
        return None
    return Sizes(data.elements[starts[0] : ends[0] : steps[0]], is_vector=True)


def _unsqueeze(node: ir.Node, of: Evaluator) -> Sizes | None:
    data, axes = of(node.inputs[0]), integers(node, "axes", 1)
    if data is None or data.is_vector or axes not in ((0,), (-1,)):
        return None
    return Sizes(data.elements, is_vector=True)


def _squeeze(node: ir.Node, of: Evaluator) -> Sizes | None:
    data = of(node.inputs[0])
    axes = integers(node, "axes", 1) if is_given(node, "axes", 1) else ()
    if data is None or axes is None or len(data.elements) != 1:
        return None
    return Sizes(data.elements, is_vector=False)


def _reshape(node: ir.Node, of: Evaluator) -> Sizes | None:
    data, target = of(node.inputs[0]), constant(operand(node, 1))
    if data is None or target is None or target.size > 1:
        return None
    return Sizes(data.elements, is_vector=target.size == 1)


def _concat(node: ir.Node, of: Evaluator) -> Sizes | None:
    parts = [of(value) for value in node.inputs]
    found = [part for part in parts if part is not None and part.is_vector]
    if len(found) != len(parts):
        return None
    return Sizes(tuple(size for part in found for size in part.elements), is_vector=True)


def _identity(node: ir.Node, of: Evaluator) -> Sizes | None:
    return of(node.inputs[0])


def _cast(node: ir.Node, of: Evaluator) -> Sizes | None:
    source, result = node.inputs[0], attribute_int(node, "to", 0)
    if source is None or source.dtype not in _INTEGERS or result not in _INTEGERS:
        return None
    return of(source)


def _reduce_prod(node: ir.Node, of: Evaluator) -> Sizes | None:
    data = of(node.inputs[0])
    axes = integers(node, "axes", 1) if is_given(node, "axes", 1) else ()
    if data is None or not data.is_vector or axes not in ((), (0,), (-1,)):
        return None
    if axes == () and attribute_int(node, "noop_with_empty_axes", 0):
        return None
    product = None if data.numbers is None else math.prod(data.numbers)
    return Sizes((product,), is_vector=bool(attribute_int(node, "keepdims", 1)))


def _arithmetic(compute: Callable[[int, int], int | None], neutral: int) -> _Evaluate:
    """Element by element; what is neutral on the right hands an open dimension on."""

    def evaluate(node: ir.Node, of: Evaluator) -> Sizes | None:
        a, b = of(node.inputs[0]), of(node.inputs[1])
        if a is None or b is None:
            return None
        count = max(len(a.elements), len(b.elements))
        if not {len(a.elements), len(b.elements)} <= {1, count}:
            return None
        wide = [size.elements * (count if len(size.elements) == 1 else 1) for size in (a, b)]
        results: list[Size] = []
        for left, right in zip(*wide, strict=True):
            if isinstance(left, int) and isinstance(right, int):
                results.append(compute(left, right))
            else:
                results.append(left if right == neutral else None)
        return Sizes(tuple(results), a.is_vector or b.is_vector)

    return evaluate


def _quotient(a: int, b: int) -> int | None:
    return a // b if a >= 0 and b > 0 else None


_Evaluate = Callable[[ir.Node, Evaluator], Sizes | None]

_EVALUATORS: dict[str, _Evaluate] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Concat": _concat,
    "Identity": _identity,
    "Cast": _cast,
    "ReduceProd": _reduce_prod,
    "Add": _arithmetic(operator.add, 0),
    "Sub": _arithmetic(operator.sub, 0),
    "Mul": _arithmetic(operator.mul, 1),
    "Div": _arithmetic(_quotient, 1),
}
