"""What is known of a value's channels, and one step from known values to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.scope import Scope
from graphopt.runtime import Array


@dataclass(frozen=True, eq=False)
class ChannelMoments:
    """What is known of a value [N, C, ...]: mean [C] and variance [C] of its channels, float64."""

    mean: Array
    variance: Array


@dataclass(frozen=True)
class Step:
    """One output of one node, with what is known of the values before it (by name)."""

    node: ir.Node
    output: ir.Value
    scope: Scope
    known: Mapping[str, ChannelMoments]

    def operand(self, index: int) -> ChannelMoments | None:
        """What is known of an input."""
        value = self.value(index)
        return None if value is None else self.known.get(value.name or "")

    def value(self, index: int) -> ir.Value | None:
        """An input, None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def channels(self, array: Array) -> Array | None:
        """A constant operand as one number a channel [C] or [1]; None if it differs elsewhere."""
        rank = self.scope.rank(self.output)
        if rank is None or rank < 2 or array.ndim > rank:
            return None
        shape = (1,) * (rank - array.ndim) + array.shape
        if array.size != shape[1]:
            return None
        return np.asarray(array, np.float64).reshape(-1)


Rule = Callable[[Step], ChannelMoments | None]
