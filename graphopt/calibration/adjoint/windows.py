"""How kernels slide, for convolutions and pooling alike."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.calibration.adjoint.tape import Step
from graphopt.graph.scope import attribute_ints, attribute_string
from graphopt.graph.shapes import Shape


@dataclass(frozen=True)
class Window:
    """How a kernel slides from `size` (the fine side) to `count` positions (the coarse side)."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    begins: Shape
    ends: Shape
    size: Shape
    count: Shape

    @classmethod
    def of(cls, step: Step, kernel: Shape, fine: ir.Value, coarse: ir.Value) -> Window:
        """The window of a node, its padding made explicit."""
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
        """How far a kernel reaches on each axis, dilation included."""
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
