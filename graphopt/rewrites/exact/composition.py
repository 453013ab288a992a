"""Shared by the compositions: whether one operator in place of two is worth having."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.affine import compact, fits, is_uniform
from graphopt.factorize.compose import cancellation, rounded
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope

Array = np.ndarray[Any, Any]

_CLEARLY_CHEAPER = 0.9
"""Share of the MACs up to which one operator is taken to be faster without being measured."""

_MOST_CANCELLATION = 1000.0
"""Past this, what is left of the two weights is so small beside them that float32 does not tell it."""


@dataclass(frozen=True)
class Bill:
    """What the two cost together and what one in their place would: MACs and the bytes of the weights.

    per: what the MACs are counted for, where the size of the maps is unknown.
    """

    macs: tuple[int, int]
    stored: tuple[int, int]
    per: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether the MACs fall so far that it need not be measured."""
        return self.macs[1] <= _CLEARLY_CHEAPER * self.macs[0]

    def objection(self, grow: bool) -> str | None:
        """Why the two must stay, if they must. grow: the file may become bigger."""
        before, after = self.macs
        if after > before:
            return f"composed it would cost {after:,} MACs{self.per} instead of {before:,}"
        before, after = self.stored
        if after > before and not grow:
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
    kinds = {node.metadata_props.get("graphopt.kind") for node in nodes}
    return Edit(scope, rewrite, "approximate" if "approximate" in kinds else "exact")
