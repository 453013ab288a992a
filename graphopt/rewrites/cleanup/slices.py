"""Slices read and written, whichever form the operator set has for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, is_op
from graphopt.rewrites.cleanup.axes import integers, is_given

END = int(np.iinfo(np.int64).max)
"""An end beyond every axis."""

_FAR = int(np.iinfo(np.int32).max)


@dataclass(frozen=True)
class Cut:
    """What a Slice keeps of one axis. Negative numbers count from the end; END is the end itself."""

    start: int
    end: int
    step: int = 1

    def then(self, after: Cut) -> Cut | None:
        """x[self][after] as one cut of x, for steps of 1 and numbers counted from the front."""
        if self.step != 1 or after.step != 1 or self.start < 0 or after.start < 0:
            return None
        if after.end == END:
            return Cut(self.start + after.start, self.end)
        if self.end < 0 or after.end < 0:
            return None
        return Cut(self.start + after.start, min(self.end, self.start + after.end))


@dataclass(frozen=True)
class SliceView:
    """A Slice by constants. cuts: by axis, counted from the front."""

    node: ir.Node
    source: ir.Value
    cuts: dict[int, Cut]

    @classmethod
    def of(cls, node: ir.Node | None, scope: Scope) -> SliceView | None:
        """The view of a node; None for other nodes and for what is computed at run time."""
        if node is None or not is_op(node, "Slice") or node.graph is not scope.graph:
            return None
        source = node.inputs[0]
        rank = scope.rank(source)
        starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
        if source is None or rank is None or starts is None or ends is None:
            return None
        axes: tuple[int, ...] | None = tuple(range(len(starts)))
        if is_given(node, "axes", 3):
            axes = integers(node, "axes", 3)
        steps: tuple[int, ...] | None = (1,) * len(starts)
        if is_given(node, "steps", 4):
            steps = integers(node, "steps", 4)
        if axes is None or steps is None:
            return None
        if not len(axes) == len(starts) == len(ends) == len(steps):
            return None
        cuts = {}
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            size = scope.fixed_dim(source, axis)
            cuts[axis % rank] = _plain(Cut(start, end, step), size)
        return cls(node, source, cuts) if len(cuts) == len(axes) else None


def _plain(cut: Cut, size: int | None) -> Cut:
    """The same cut with ends beyond the axis as END, counted from the front where that is known."""
    if cut.step != 1:
        return cut
    start, end = cut.start, END if cut.end >= _FAR else cut.end
    if size is not None:
        start = min(start, size) if start >= 0 else max(start + size, 0)
        if end != END:
            end = min(end, size) if end >= 0 else max(end + size, 0)
        if end == size:
            end = END
    return Cut(start, end)


def make_slice(
    change: Edit, node: ir.Node, source: ir.Value, cuts: dict[int, Cut], scope: Scope
) -> ir.Value:
    """The Slice `node` with another source and other cuts."""
    axes = sorted(cuts)
    numbers = {
        "starts": [cuts[axis].start for axis in axes],
        "ends": [cuts[axis].end for axis in axes],
        "axes": axes,
        "steps": [cuts[axis].step for axis in axes],
    }
    if all(step == 1 for step in numbers["steps"]):
        del numbers["steps"]
    if scope.opset < 10:
        return change.like(node, [source], attributes=numbers)
    hint = node.outputs[0].name or node.op_type
    operands = [
        change.constant(np.asarray(values, np.int64), f"{hint}_{what}")
        for what, values in numbers.items()
    ]
    return change.like(node, [source, *operands])
