"""Shared by the compositions: whether one operator in place of two is worth having."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.affine import compact, fits, is_uniform
from graphopt.factorize.compose import cancellation, rounded
from graphopt.graph.edit import Edit, is_approximate
from graphopt.graph.scope import Scope

Array = np.ndarray[Any, Any]

_CLEARLY_CHEAPER = 0.9
"""Share of the MACs up to which one operator is taken to be faster without being measured."""

MOST_MORE = 1_000_000
"""So many more MACs take longer than another operator does: not measured. Of 250 pairs of depthwise,
asymmetric and 1x1 convolutions none with 0.2 million more was faster as one."""

SPARE_BYTES = 1 << 16
"""What the weights of one operator may grow by where it is measured faster than two."""

_MOST_CANCELLATION = 1000.0
"""Past this, what is left of the two weights is so small beside them that float32 does not tell it."""


@dataclass(frozen=True)
class Bill:
    """What the two cost together and what one in their place would: MACs and the bytes of the weights.

    per: what the MACs are counted for, where the size of the maps is unknown. spare: bytes that the
    weights may grow by, if it is measured that they are worth it.
    """

    macs: tuple[int, int]
    stored: tuple[int, int]
    per: str = ""
    spare: int = 0

    @property
    def is_clear(self) -> bool:
        """Whether the MACs fall so far that it need not be measured."""
        return self.macs[1] <= _CLEARLY_CHEAPER * self.macs[0]

    @property
    def grows(self) -> bool:
        """Whether the weights would take more bytes."""
        return self.stored[1] > self.stored[0]

    @property
    def may_pay(self) -> bool:
        """Whether more MACs in one operator might still be faster than fewer in two."""
        return not self.per and self.macs[1] <= self.macs[0] + MOST_MORE

    def objection(self, grow: bool, dearer: bool = False) -> str | None:
        """Why the two must stay, if they must.

        grow: the file may become bigger. dearer: more MACs are no objection, if they may pay.
        """
        before, after = self.macs
        if after > before and not (dearer and self.may_pay):
            return f"composed it would cost {after:,} MACs{self.per} instead of {before:,}"
        before, after = self.stored
        if after > before + self.spare and not grow:
            return f"composed its weights would take {after:,} bytes instead of {before:,}"
        return None


@dataclass(frozen=True)
class Composed:
    """Weight and bias of one operator in place of two, rounded once to the weights' type."""

    weight: Array
    bias: Array | None

    @classmethod
    def of(cls, weight: Array, bias: Array | None, factors: tuple[Array, Array]) -> Composed | str:
        """From the float64 weight and bias and the weights they come from, or why they are no use."""
        if cancellation(*factors, weight) > _MOST_CANCELLATION:
            return "the two weights cancel each other: what is left of them is rounding"
        dtype = factors[0].dtype
        narrow = rounded(weight, dtype)
        if bias is not None:
            bias = rounded(compact(bias) if is_uniform(weight) else bias, dtype)
        if not (fits(narrow) and fits(bias)):
            return f"the composed weights are too large for {dtype}"
        return cls(narrow, bias)

    def operands(self, change: Edit, hint: str) -> list[ir.Value]:
        """The constants of the new operator."""
        made = [change.constant(self.weight, f"{hint}_weight")]
        if self.bias is not None:
            made.append(change.constant(self.bias, f"{hint}_bias"))
        return made


def kept_between(scope: Scope, before: ir.Node) -> str | None:
    """Why the output of the first of two nodes must stay, if it must."""
    value = before.outputs[0]
    if before.graph is not scope.graph:
        return "the first one stands outside this body"
    if value.is_graph_output() or len(tuple(value.uses())) != 1:
        return "the output in between is needed elsewhere too"
    return None


def edit_of(scope: Scope, rewrite: str, *nodes: ir.Node) -> Edit:
    """An edit whose new node is marked as approximate if one of these nodes is: what graphopt has
    factored is not factored again."""
    return Edit(scope, rewrite, "approximate" if any(map(is_approximate, nodes)) else "exact")
