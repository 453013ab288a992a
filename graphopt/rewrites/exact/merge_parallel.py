"""Merge convolutions, or fully connected layers, that read one value side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import is_splat, splat
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, attribute_int, is_op, only_use
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.parallel_layers import (
    Layer,
    common_tail,
    kinships,
    offset,
    read_layer,
    siblings,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MergeParallel(ExactRewrite):
    """Concat(Relu(Conv(x, V)), Relu(Conv(x, W)))  ==>  Relu(Conv(x, [V; W])).

        [V; W] x + [a; b] = [V x + a; W x + b]

    For convolutions of one value with the same kernel, strides, pads and dilations (the 1x1 reducers
    of an Inception module), and for fully connected layers of one value (query, key and value of an
    attention). Where the results stand in order in one Concat over channels, each behind the same
    activation, one layer takes their place there. Elsewhere a Split hands the parts out.

    Taken without measuring where the Concat vanishes. Every other form saves calls but no work, and
    a Split copies, so it is measured first: on onnxruntime's CPU it is often slower.
    Declines for grouped convolutions (the groups would interleave) and where a weight is not
    constant, or generated.
    Source: Jia et al. 2019, "TASO: Optimizing deep learning computation with automatic generation of
    graph substitutions".
    """

    gated: bool = True
    name = "merge-parallel"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per run of layers in a Concat, then one per group of layers that is left."""
        groups, declined = self._groups(scope)
        yield from declined
        for run in _runs(groups, scope):
            concat = only_use(run[0].output)  # a new one where another of its runs was taken
            if concat is not None:
                yield self._into_concat(run, concat, scope)
        if any(layer.node.graph is not scope.graph for group in groups for layer in group):
            groups, _ = self._groups(scope)
        for group in groups:
            yield self._split(group, scope)

    def _groups(self, scope: Scope) -> tuple[list[tuple[Layer, ...]], list[Finding]]:
        """Layers that can be one, and why others cannot."""
        groups: list[tuple[Layer, ...]] = []
        declined: list[Finding] = []
        for nodes in siblings(scope):
            read = [read_layer(node, scope) for node in nodes]
            found = zip(nodes, read, strict=True)
            declined += [self.decline(why, node) for node, why in found if isinstance(why, str)]
            for group in kinships([layer for layer in read if not isinstance(layer, str)]):
                reason = _obstacle(group, scope)
                if reason:
                    declined.append(self.decline(reason, *_nodes(group)))
                else:
                    groups.append(group)
        return groups, declined

    def _into_concat(self, run: Sequence[Layer], concat: ir.Node, scope: Scope) -> Finding:
        vanishes = len(run) == len(concat.inputs)
        return Proposal(
            self.name,
            (*_nodes(run), concat),
            partial(_replace_in_concat, scope, concat, run),
            {"layers": len(run), "into": "Concat"},
            gated=self.gated and not (vanishes and not any(layer.is_factor for layer in run)),
        )

    def _split(self, layers: Sequence[Layer], scope: Scope) -> Finding:
        length = common_tail(layers)
        cut = [layer.cut(length) for layer in layers]
        if scope.opset < 11 and _axis(cut[0], scope) < 0:
            return self.decline("the rank of the output is unknown", *_nodes(cut))
        return Proposal(
            self.name,
            _nodes(cut),
            partial(_replace_by_split, scope, cut),
            {"layers": len(cut), "into": "Split"},
            gated=self.gated,
        )


def _nodes(layers: Sequence[Layer]) -> tuple[ir.Node, ...]:
    return tuple(node for layer in layers for node in layer.nodes)


def _obstacle(layers: Sequence[Layer], scope: Scope) -> str:
    """Why layers of one kinship cannot be one; empty if they can."""
    if scope.opset < 7:
        return f"opset {scope.opset} is older than 7"
    if layers[0].group != 1:
        return "the channels of grouped convolutions would have to be interleaved"
    weights = [layer.weight for layer in layers]
    if any(map(is_splat, weights)) and not _are_one_number(weights):
        return "a weight is generated, and all together would have to be stored"
    return ""


def _runs(groups: Sequence[Sequence[Layer]], scope: Scope) -> list[list[Layer]]:
    """Layers of one group that are neighbouring operands of a Concat over channels, in its order."""
    endings = {layer.output: layer for group in groups for layer in group}
    runs: list[list[Layer]] = []
    for concat in scope.graph:
        if not is_op(concat, "Concat"):
            continue
        kind = partial(_kind, concat, scope.rank(concat.outputs[0]), endings)
        for found, values in groupby(concat.inputs, kind):
            run = [endings[value] for value in values if value is not None] if found else []
            if len(run) > 1:
                runs.append(run)
    return runs


def _kind(
    concat: ir.Node, rank: int | None, endings: Mapping[ir.Value, Layer], value: ir.Value | None
) -> object:
    """What an operand of a Concat has in common with those that can be one layer with it."""
    layer = None if value is None else endings.get(value)
    if layer is None or only_use(layer.output) is not concat:
        return None
    axis, channels = attribute_int(concat, "axis", 1), layer.channel_axis
    if axis != channels and (rank is None or axis % rank != channels % rank):
        return None
    return (layer.kin, layer.function(len(layer.tail)))


def _axis(layer: Layer, scope: Scope) -> int:
    """The channel axis of the output, counted from the front if the rank is known."""
    rank = 2 if is_op(layer.node, "Gemm") else scope.rank(layer.node.outputs[0])
    return layer.channel_axis if layer.channel_axis == 1 or rank is None else rank - 1


def _replace_in_concat(scope: Scope, concat: ir.Node, run: Sequence[Layer]) -> None:
    change = Edit(scope, MergeParallel.name)
    merged = _emit(change, scope, run)
    operands, first = list(concat.inputs), concat.inputs.index(run[0].output)
    operands[first : first + len(run)] = [merged]
    whole = merged if len(operands) == 1 else change.like(concat, operands)
    change.commit((*_nodes(run), concat), {concat.outputs[0]: whole})


def _replace_by_split(scope: Scope, layers: Sequence[Layer]) -> None:
    change = Edit(scope, MergeParallel.name)
    operands: list[ir.Value | None] = [_emit(change, scope, layers)]
    sizes = [layer.channels for layer in layers]
    attributes: dict[str, int | list[int]] = {"axis": _axis(layers[0], scope)}
    hint = f"{layers[0].output.name or layers[0].node.op_type}_parts"
    if scope.opset < 13:
        attributes["split"] = sizes
    else:
        operands.append(change.constant(np.asarray(sizes, np.int64), f"{hint}_sizes"))
    split = change.node("Split", operands, attributes, hint=hint).producer()
    assert split is not None
    split.resize_outputs(len(layers))
    parts = zip(layers, split.outputs, strict=True)
    change.commit(_nodes(layers), {layer.output: part for layer, part in parts})


def _emit(change: Edit, scope: Scope, layers: Sequence[Layer]) -> ir.Value:
    """One layer for all of them, with one of what follows each of them."""
    first = layers[0]
    node = first.node
    hint = node.outputs[0].name or node.op_type
    weight = _joined([layer.weight for layer in layers], first.weight_axis)
    operands: list[ir.Value | None] = [node.inputs[0], change.constant(weight, f"{hint}_weight")]
    bias = _bias(layers)
    if bias is not None:
        operands.append(change.constant(bias, f"{hint}_bias"))
    if is_op(node, "Gemm"):
        value = change.node("Gemm", operands, hint=hint, name=node.name)
    else:
        value = change.like(node, operands)
    for index, after in enumerate(first.tail):
        if is_op(after, "Add"):
            offsets = [
                offset(layer.tail[index], layer.node.outputs[0], layer.channels, scope)
                for layer in layers
            ]
            joined = _joined([array for array in offsets if array is not None], 0)
            value = change.like(after, [value, change.constant(joined, f"{hint}_offset")])
        else:
            value = change.like(after, [value, *after.inputs[1:]])
    return value


def _bias(layers: Sequence[Layer]) -> Array | None:
    """The biases of all, with zeros where there is none; None if no layer has any."""
    if all(layer.bias is None for layer in layers):
        return None
    return _joined(
        [
            splat(layer.weight.dtype.type(0), (layer.channels,))
            if layer.bias is None
            else layer.bias
            for layer in layers
        ],
        0,
    )


def _joined(arrays: Sequence[Array], axis: int) -> Array:
    if not _are_one_number(arrays):
        return np.concatenate(arrays, axis)
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    return splat(arrays[0].flat[0], tuple(shape))


def _are_one_number(arrays: Sequence[Array]) -> bool:
    return all(is_splat(a) and a.flat[0] == arrays[0].flat[0] for a in arrays)
