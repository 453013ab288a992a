"""What a layer is replaced by: stages of convolutions in a row, or parallel rows that are summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope
from graphopt.graph.views import with_weights
from graphopt.rewrites.approximate.layer import Carries, Layer, swapped

Array = np.ndarray[Any, Any]

_NOISE = 65_537
"""Random numbers drawn for a sketch; larger weights repeat them (a prime, so not row for row)."""

WORTHWHILE_MACS_RATIO = 0.97
"""A candidate that saves less than this is not offered."""


@dataclass(frozen=True)
class StageShape:
    """One convolution of a replacement, per group of the layer, without its weights.

    group: groups inside one group of the layer (its input channels, for a depthwise stage).
    """

    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    carries: Carries
    group: int = 1

    @property
    def parameters(self) -> int:
        """Elements of the weight [outputs, inputs / group, *kernel]."""
        return self.outputs * (self.inputs // self.group) * int(np.prod(self.kernel, dtype=int))


Row = tuple[StageShape, ...]


@dataclass(frozen=True)
class Factored:
    """Rows of (stage, weight per group of the layer); their sum replaces the layer.

    weights[row][stage][group]: [outputs, inputs / group, *kernel], float64.
    compose: multiplies them out.
    """

    rows: tuple[Row, ...]
    weights: tuple[tuple[tuple[Array, ...], ...], ...]
    compose: Callable[[], tuple[Array, ...]]

    @property
    def composite(self) -> tuple[Array, ...]:
        """Per group the [O, C * taps] weight that all of it together amounts to.

        Made when it is asked for: it is as large as the layer that was taken apart to be smaller.
        """
        return self.compose()


def through(factored: Factored, matrices: Sequence[Array]) -> Factored:
    """The same structure with its outputs mapped by a matrix [O, O] per group.

    Every row ends in a stage with the layer's outputs, whose weight takes the matrix in.
    """
    weights = tuple(
        (
            *stages[:-1],
            tuple(
                np.tensordot(matrix, weight, axes=1)
                for matrix, weight in zip(matrices, stages[-1], strict=True)
            ),
        )
        for stages in factored.weights
    )

    def composite() -> tuple[Array, ...]:
        return tuple(m @ c for m, c in zip(matrices, factored.composite, strict=True))

    return Factored(factored.rows, weights, composite)


def sketched(layer: Layer, rows: tuple[Row, ...]) -> Factored:
    """The rows with random weights, to be timed: what a structure takes does not depend on them.

    Of ordinary size, since zeros and denormal numbers are computed at another speed.
    """
    noise = np.random.default_rng(0).standard_normal(_NOISE, np.float32)

    def weight(stage: StageShape) -> Array:
        shape = (stage.outputs, stage.inputs // stage.group, *stage.kernel)
        drawn: Array = np.resize(noise, shape)
        return drawn * np.float32((stage.outputs / stage.parameters) ** 0.5)

    weights = tuple(tuple((weight(stage),) * layer.group for stage in row) for row in rows)
    return Factored(rows, weights, tuple)


def scatters(layer: Layer, stage: StageShape) -> bool:
    """Whether a stage is a ConvTranspose: the pointwise ones of a transposed layer are not."""
    return layer.transposed and any(stage.carries.strides)


def samples(layer: Layer, stage: StageShape) -> bool:
    """Whether a stage is a DeformConv: the pointwise ones of a deformable layer are not."""
    return layer.deformable and any(stage.carries.strides)


def _expressible(layer: Layer, row: Row) -> bool:
    """Whether a row computes what its composite says, if the layer is deformable.

    Offsets move a whole kernel, not the factors of one, and what is sampled at different positions
    must not be mixed before.
    """
    if not layer.deformable:
        return True
    index = next((i for i, stage in enumerate(row) if samples(layer, stage)), None)
    if index is None:
        return False
    before, sampling, after = row[:index], row[index], row[index + 1 :]
    yes = (True,) * len(layer.kernel)
    return (
        sampling.kernel == layer.kernel
        and sampling.carries == Carries(yes, yes)
        and not any(samples(layer, stage) for stage in after)
        and all(set(stage.kernel) == {1} for stage in (*before, *after))
        and all(layer.apart > 0 and stage.group % layer.apart == 0 for stage in before)
    )


def cost(layer: Layer, rows: Sequence[Row]) -> tuple[float, float]:
    """(MACs, parameters) of the rows over those of the layer.

    Sampling is not counted. Infinite where the rows are no replacement for a deformable layer.
    """
    if not all(_expressible(layer, row) for row in rows):
        return math.inf, math.inf
    macs = parameters = 0
    for row in rows:
        size = layer.input_size
        for stage in row:
            before, size = size, layer.sizes(stage.kernel, stage.carries, size)
            at = before if scatters(layer, stage) else size
            macs += stage.parameters * int(np.prod(at, dtype=int))
            parameters += stage.parameters
    whole = layer.outputs * layer.inputs * layer.taps
    everything = Carries((True,) * len(layer.kernel), (True,) * len(layer.kernel))
    final = layer.sizes(layer.kernel, everything, layer.input_size)
    if layer.transposed:
        final = layer.input_size
    return macs / max(whole * int(np.prod(final, dtype=int)), 1), parameters / max(whole, 1)


def put(
    scope: Scope, node: ir.Node, rewrite: str, layer: Layer, factored: Factored, bias: Array | None
) -> None:
    """Replace `node` (the layer, or its copy in another graph) by the rows.

    The bias [O] goes on the last stage of the last row only: what the first stages see as padding
    stays zero, so borders are exact. Rows are summed with Add, which onnxruntime fuses.
    """
    change = Edit(scope, rewrite, kind="approximate")
    hint = node.outputs[0].name or "layer"
    total: ir.Value | None = None
    for number, (row, weights) in enumerate(zip(factored.rows, factored.weights, strict=True)):
        value = node.inputs[0]
        for index, (stage, parts) in enumerate(zip(row, weights, strict=True)):
            last = index == len(row) - 1
            ends = last and number == len(factored.rows) - 1
            tag = f"{hint}_{number}{index}" if len(factored.rows) > 1 else f"{hint}_{index}"
            value = _stage(
                change, layer, stage, node, value, parts, bias if ends else None, tag,
                node.name if ends and total is None else None,
            )  # fmt: skip
        total = value if total is None else change.node("Add", [total, value], hint=hint)
    assert total is not None
    change.commit((node,), {node.outputs[0]: total})


def _stage(
    change: Edit,
    layer: Layer,
    stage: StageShape,
    node: ir.Node,
    value: ir.Value | None,
    parts: Sequence[Array],
    bias: Array | None,
    hint: str,
    name: str | None,
) -> ir.Value:
    weight = np.concatenate(parts).astype(layer.weight.dtype)
    if not layer.kernel:
        weight = np.ascontiguousarray(weight.T)
    elif scatters(layer, stage):
        weight = swapped(weight, layer.group)
    stored, added = change.constant(weight, f"{hint}_weight"), None
    if bias is not None:
        added = change.constant(bias.astype(layer.weight.dtype), f"{hint}_bias")
    if samples(layer, stage):
        operands = with_weights(node, value, stored, added)
        return change.node("DeformConv", operands, _attributes(layer, stage), hint=hint, name=name)
    operands = [value, stored] if added is None else [value, stored, added]
    if not layer.kernel:
        op_type = "MatMul" if bias is None else "Gemm"
        return change.node(op_type, operands, hint=hint, name=name)
    op_type = "ConvTranspose" if scatters(layer, stage) else "Conv"
    return change.node(op_type, operands, _attributes(layer, stage), hint=hint, name=name)


def _attributes(layer: Layer, stage: StageShape) -> dict[str, Any]:
    rank = len(layer.kernel)
    axes = range(rank)
    strides = [layer.strides[a] if stage.carries.strides[a] else 1 for a in axes]
    dilations = [layer.dilations[a] if stage.kernel[a] > 1 else 1 for a in axes]
    pads = [layer.pads[a] if stage.carries.pads[a % rank] else 0 for a in range(2 * rank)]
    attributes: dict[str, Any] = {"kernel_shape": list(stage.kernel)}
    if scatters(layer, stage):
        more = [layer.output_padding[a] if stage.carries.strides[a] else 0 for a in axes]
        if any(more):
            attributes["output_padding"] = more
    if any(s != 1 for s in strides):
        attributes["strides"] = strides
    if any(d != 1 for d in dilations):
        attributes["dilations"] = dilations
    if any(pads):
        attributes["pads"] = pads
    if layer.group * stage.group != 1:
        attributes["group"] = layer.group * stage.group
    if samples(layer, stage) and layer.offset_group != 1:
        attributes["offset_group"] = layer.offset_group
    return attributes
