"""Reshapes to a target that is computed at run time, though a constant one would do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, attribute_int, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.cleanup.axes import operand
from graphopt.rewrites.cleanup.refined import refine
from graphopt.rewrites.cleanup.sizes import Dim, Evaluator, Size


@dataclass(frozen=True)
class SettleReshapes(ExactRewrite):
    """Reshape(x, computed target)  ==>  Reshape(x, constant target).

        Reshape(x, [n, 64]) = Reshape(x, [-1, 64])              n: not known
        Reshape(x, [N, 64, W]) = Reshape(x, [0, 64, 0])         N, W: dimensions 0 and 2 of x
        Reshape(x, [N, -1]) = Reshape(x, [0, 60])               x: [N, 3, 4, 5]

    An element of the target is a known number (Shape, Gather, Slice, Concat, arithmetic are
    followed, and the inferred shape of the result is asked), a copy of the same dimension of x, or
    unknown; one at most may be unknown. What computed the target is dead, if nothing else reads it,
    and the shape of the result, now better known, is inferred onwards.

    Declines when more elements are unknown, when one may be zero or less than -1. Where one is
    unknown and others are copied, it also declines unless the original left that one to be computed
    (-1): else an empty batch, from which nothing can be computed, would run no longer.
    Source: https://onnx.ai/onnx/operators/onnx__Reshape.html
    """

    name = "settle-reshapes"
    kind = "clean-up"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per Reshape to a target that is no constant."""
        evaluate = Evaluator(scope)
        for node in scope.graph:
            target = operand(node, 1)
            if not is_op(node, "Reshape") or target is None or constant(target) is not None:
                continue
            if target.producer() is None:
                continue  # fed: a caller may ask for anything
            settled = _settled(node, target, evaluate)
            if isinstance(settled, str):
                yield self.decline(settled, node)
            else:
                yield Proposal(self.name, (node,), self._edit(scope, node, settled))

    def _edit(self, scope: Scope, node: ir.Node, settled: _Settled) -> Callable[[], None]:
        def edit() -> None:
            change = Edit(scope, self.name, self.kind)
            hint = node.outputs[0].name or node.op_type
            shape = change.constant(np.asarray(settled.target, np.int64), f"{hint}_shape")
            new = change.node("Reshape", [node.inputs[0], shape], hint=hint, name=node.name)
            change.commit((node,), {node.outputs[0]: new})
            refine(scope, new, ir.Shape(settled.shape))

        return edit


_Element = int | Literal["copied", "open"]
"""A positive number, the input's dimension at the same place, or something that is not known."""


@dataclass(frozen=True)
class _Settled:
    """A constant target (0 means copy), and the shape that the result has for every input."""

    target: list[int]
    shape: list[int | str | None]


def _settled(node: ir.Node, target: ir.Value, evaluate: Evaluator) -> _Settled | str:
    """What to ask for instead, or why there is nothing."""
    result, asked = evaluate.dims(node.outputs[0]), evaluate(target)
    if asked is None and result is None:
        return "its target is computed at run time, and so is the number of its dimensions"
    given: Sequence[Size] = [None] * len(result or ()) if asked is None else asked.elements
    if result is None or len(result) != len(given):
        result = [None] * len(given)
    source = evaluate.dims(node.inputs[0]) or []
    strict = bool(attribute_int(node, "allowzero", 0))
    elements: list[_Element] = []
    shape: list[int | str | None] = []
    for axis, (size, outcome) in enumerate(zip(given, result, strict=True)):
        number = outcome if isinstance(outcome, int) else size
        if isinstance(number, int) and (number < -1 or (number == 0 and (strict or outcome == 0))):
            return "a dimension of its result is zero, or asked for by a number below -1"
        own = source[axis] if axis < len(source) else None
        if isinstance(number, int) and number > 0:
            elements.append(number)
        else:
            elements.append("open" if number == -1 else _copied(number, outcome, own))
        # An open size of 0 would copy, so only as the input has it or with allowzero is it kept.
        shape.append(_symbol(own if elements[-1] == "copied" else size if strict else None))
    if list(given).count(-1) == 1:
        rest = given.index(-1)
        elements[rest] = _rest(elements, rest, source) or elements[rest]
    stated = _stated(elements, source, inferred=-1 in given and not strict)
    if isinstance(stated, str):
        return stated
    known = [n if isinstance(n, int) else symbol for n, symbol in zip(elements, shape, strict=True)]
    return _Settled(stated, known)


def _symbol(size: Size) -> str | None:
    return size.symbol if isinstance(size, Dim) else None


def _copied(size: Size, outcome: Size, own: Size) -> _Element:
    """An element that may be a copy of `own`, the input's dimension at its place; 0 says so itself."""
    if size == 0:
        return own if isinstance(own, int) and own > 0 else "copied"
    same = any(isinstance(known, Dim) and known.same_as(own) for known in (size, outcome))
    return "copied" if same else "open"


def _rest(elements: Sequence[_Element], index: int, source: Sequence[Size]) -> int | None:
    """The number left to be computed for one element, if it is the same for every input."""
    others = [e for i, e in enumerate(elements) if i != index]
    kept = {i for i, e in enumerate(elements) if e == "copied"}
    left = [size for i, size in enumerate(source) if i not in kept]
    sizes = [size for size in left if isinstance(size, int)]
    if not source or "open" in others or len(sizes) != len(left):
        return None
    asked = math.prod(e for e in others if isinstance(e, int))
    number, remainder = divmod(math.prod(sizes), asked)
    return number if remainder == 0 and number > 0 else None


def _stated(
    elements: Sequence[_Element], source: Sequence[Size], *, inferred: bool
) -> list[int] | str:
    """The target: at most one element is left to be computed (-1).

    inferred: whether the original leaves one to be computed, and so fails on an empty batch too.
    """
    unknown = elements.count("open")
    copied = elements.count("copied")
    if unknown == 0 and copied == 1:
        # Whoever reads the file sees by a 0 what stays. By -1 it does not matter whether callers
        # keep to equal symbols; where the other dimensions agree, it does not anyway.
        agree = _rest([*elements, "open"], len(elements), source) == 1
        return [n if isinstance(n, int) else 0 if agree else -1 for n in elements]
    if unknown > 1:
        return "its target is computed at run time, and more than one element is unknown"
    if unknown and copied and not inferred:
        return "one element is unknown and others are copied: an empty batch would not run any more"
    return [n if isinstance(n, int) else -1 if n == "open" else 0 for n in elements]
