"""Makes a network dense: opens the size of its picture, and its outputs become maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from graphopt.errors import InputError
from graphopt.graph.scope import Scope, attribute_ints, is_op
from graphopt.graph.shapes import Shape, dimension, infer, true_inputs
from graphopt.rewrites.dense.changes import TO_FIRST
from graphopt.rewrites.dense.states import (
    CHANNEL_AXIS,
    SPACE_AXES,
    Extent,
    Form,
    Map,
    NotDenseError,
)
from graphopt.rewrites.dense.walk import Walk, walk

_BATCH = 2
"""An open batch is looked at with two samples, so that it cannot be taken for an axis of length one."""

_ARITHMETIC = ("Cast", "Sub", "Div", "Mul", "Add")
"""What prepares a picture before its channels are moved."""


@dataclass(frozen=True)
class Dense:
    """A dense network: maps of answers to windows of a picture.

    picture: its input; axes: of height and width in it. window: the size that one answer is about.
    outputs: by name, as they are at that size. changed: whether anything had to be changed.
    """

    picture: str
    axes: tuple[int, ...]
    window: Extent
    outputs: Mapping[str, Map]
    changed: bool

    @cached_property
    def stride(self) -> Extent:
        """Pixels from one window to the next: every output moves by whole cells."""
        height, width = (
            math.lcm(*(state.stride[axis].numerator for state in self.outputs.values()))
            for axis in (0, 1)
        )
        return height, width

    def cells(self, name: str) -> Extent:
        """How many cells of an output lie between one window and the next."""
        height, width = (
            int(step / stride)
            for step, stride in zip(self.stride, self.outputs[name].stride, strict=True)
        )
        return height, width

    @cached_property
    def inexact(self) -> str | None:
        """Why cells are not what the original answers on their windows; None where they are."""
        return next((state.inexact for state in self.outputs.values() if state.inexact), None)


def make_dense(model: ir.Model, bound: Mapping[str, Shape], *, sized: bool) -> Dense:
    """Change a model in place, so that its picture may be larger and its outputs are maps then.

        Flatten -> Gemm [K, O]     ==>  Conv HxW 'valid'      W[o, c, i, j] = W_fc[(c H + i) W + j, o]
        GlobalAveragePool          ==>  AveragePool HxW, stride 1
        Flatten -> Softmax         ==>  Softmax over the channels

    bound: the shape of the input that the network is looked at with. sized: whether its height and
    width are what the network is for, or just what it happens to run with; then only a network
    that is dense already passes, and is left as it is. Where something is changed, shapes of
    intermediate values are forgotten.
    Source: Long et al. 2015, "Fully convolutional networks for semantic segmentation"; Sermanet et
    al. 2014, "OverFeat".

    Raises:
        InputError: It has no dense form; the message says which node is in the way.
    """
    picture = _picture(model.graph)
    form: Form = "last" if _is_channels_last(picture) else "map"
    axes = SPACE_AXES[form]
    shape = bound[picture.name or ""]
    size = (shape[axes[0]], shape[axes[1]])
    start = Map(channels=shape[CHANNEL_AXIS[form] or 1], size=size, form=form)
    scope, found = _walked(model, picture, shape, start, sized=sized)
    outputs = {
        output.name or "": state
        for output in model.graph.outputs
        if isinstance(state := found.states.get(output), Map)
    }
    for change in found.changes:
        change(scope)
    opened = _open(model.graph, picture, axes, outputs)
    changed = bool(found.changes) or opened
    if changed:
        common_passes.RemoveUnusedNodesPass()(model)
        _forget_shapes(model.graph)
    return Dense(picture.name or "", axes, size, outputs, changed)


def is_sized(graph: ir.Graph) -> bool:
    """Whether the one input has a height and a width of its own."""
    picture = _picture(graph)
    return all(dimension(picture, axis) is not None for axis in (1, 2, 3))


def _picture(graph: ir.Graph) -> ir.Value:
    inputs = true_inputs(graph)
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise InputError(f"--dense needs a network with one input, a picture (inputs: {names})")
    (picture,) = inputs
    if picture.shape is None or len(picture.shape) != 4:
        found = "of unknown rank" if picture.shape is None else f"of rank {len(picture.shape)}"
        raise InputError(f"--dense needs a picture [N, C, H, W]: input {picture.name!r} is {found}")
    return picture


def _is_channels_last(value: ir.Value) -> bool:
    """Whether all that reads the picture (behind arithmetic) first moves its channels forward."""
    readers = [use.node for use in value.uses()]
    return bool(readers) and all(
        attribute_ints(node, "perm") == TO_FIRST
        if is_op(node, "Transpose")
        else is_op(node, *_ARITHMETIC) and _is_channels_last(node.outputs[0])
        for node in readers
    )


def _walked(
    model: ir.Model, picture: ir.Value, shape: Shape, start: Map, *, sized: bool
) -> tuple[Scope, Walk]:
    """The walk over the network; where the batch is open with several samples, if that runs."""
    name = picture.name or ""
    batch = dimension(picture, 0)
    infos = infer(model, {name: (batch or _BATCH, *shape[1:])})
    if batch is None and any(output.name not in infos for output in model.graph.outputs):
        infos = infer(model, {name: shape})
    scope = Scope(model, model.graph, infos)
    try:
        return scope, walk(scope, picture, start, sized=sized)
    except NotDenseError as error:
        raise InputError(f"--dense: this network cannot be dense: {error}") from error


def _open(
    graph: ir.Graph, picture: ir.Value, axes: tuple[int, ...], outputs: Mapping[str, Map]
) -> bool:
    """Give the sizes of the picture and of the maps names; whether any had a number instead."""
    names = _fresh(graph)
    assert picture.shape is not None
    dims = list(picture.shape)
    for axis, size in zip(axes, ("height", "width"), strict=True):
        if isinstance(dims[axis], int):
            dims[axis] = ir.SymbolicDim(names(size))
    changed = dims != list(picture.shape)
    if changed:
        picture.shape = ir.Shape(dims)
    for output in graph.outputs:
        state = outputs.get(output.name or "")
        if state is None or output.shape is None or _is_open(output.shape, state):
            continue
        space = [ir.SymbolicDim(names(f"{output.name}_{size}")) for size in ("height", "width")]
        channels = {"labels": [], "last": [state.channels]}.get(state.form)
        shape = (
            [dims[0], *space, *channels]
            if channels is not None
            else [dims[0], state.channels, *space]
        )
        output.shape, changed = ir.Shape(shape), True
    return changed


def _is_open(shape: ir.Shape, state: Map) -> bool:
    """Whether a declared shape is that of a map of any size already."""
    rank = 3 if state.form == "labels" else 4
    axes = (1, 2) if state.form in ("labels", "last") else (2, 3)
    return len(shape) == rank and not any(isinstance(shape[axis], int) for axis in axes)


def _fresh(graph: ir.Graph) -> Callable[[str], str]:
    """Names for dimensions that no value of the graph has yet."""
    values = [*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)]
    dims = (dim for value in values if value.shape is not None for dim in value.shape)
    taken = {dim.value for dim in dims if isinstance(dim, ir.SymbolicDim)}

    def fresh(hint: str) -> str:
        name, count = hint, 1
        while name in taken:
            count += 1
            name = f"{hint}_{count}"
        taken.add(name)
        return name

    return fresh


def _forget_shapes(graph: ir.Graph) -> None:
    """They were those of the original size."""
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
