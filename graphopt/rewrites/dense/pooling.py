"""Global pooling: over the window it is a pooling of the original size; over the picture it stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import attribute_int, attribute_ints, attribute_string, is_op
from graphopt.rewrites.cleanup.axes import integers, is_given
from graphopt.rewrites.dense.changes import TO_FIRST, TO_LAST, hint_of, swapped, with_axis
from graphopt.rewrites.dense.states import SPACE_AXES, Context, Map, Ruling, Site, with_result

Kind = Literal["Average", "Max"]

_POOLED = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""What onnxruntime has both poolings of."""


def global_pool(site: Site) -> Ruling:
    """GlobalAveragePool, GlobalMaxPool."""
    return pooled(site, site.map("map"), "Max" if is_op(site.node, "GlobalMaxPool") else "Average")


def reduced(site: Site) -> Ruling:
    """Reductions: over all of space a mean or a maximum is a pooling; over channels they are local."""
    state, node = site.map(), site.node
    axes = integers(node, "axes", 1) if is_given(node, "axes", 1) else None
    if not axes:
        raise site.refusal("reduces over all axes, or over axes that are not known")
    at = sorted(axis % state.rank for axis in axes)
    if at == list(SPACE_AXES[state.form]) and at:
        if not is_op(node, "ReduceMean", "ReduceMax"):
            raise site.refusal("reduces over space, which is no pooling")
        return pooled(site, state, "Max" if is_op(node, "ReduceMax") else "Average")
    if at != [state.channel_axis] or (state.form == "flat" and not state.is_one_cell):
        raise site.refusal("reduces over axes that are neither all of space nor the channels")
    result = without_channels(site, state, keeps=bool(attribute_int(node, "keepdims", 1)))
    if state.form != "flat" or axes == (1,):
        return site.same(result)
    return site.same(result, with_axis(node, "axes", 1))


def without_channels(site: Site, state: Map, *, keeps: bool) -> Map:
    """What a reduction over the channels leaves."""
    if keeps:
        return with_result(state, site.result())
    return replace(state, channels=1, form="labels", rank=state.rank - 1)


def spans_the_map(site: Site, state: Map) -> bool:
    """Whether a pooling of a given size covers the whole map, which is then known to be so large."""
    node = site.node
    return (
        site.sized
        and not state.is_one_cell
        and is_op(node, "AveragePool", "MaxPool")
        and attribute_ints(node, "kernel_shape") == state.size
        and not any(attribute_ints(node, "pads") or ())
        and set(attribute_ints(node, "dilations") or (1,)) == {1}
        and attribute_string(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and site.result()[2:] == (1, 1)
    )


def pooled(site: Site, state: Map, kind: Kind) -> Ruling:
    """A pooling over the whole map: of the original size at every place, or global if it weights a map."""
    node = site.node
    named = is_op(node, "AveragePool", "MaxPool")
    if node in site.wide:
        context = Context(frozenset({node}))
        return site.same(
            context, swapped(node, lambda e: _global(e, node, kind)) if named else None
        )
    shape = site.result()
    form = state.form if len(shape) == 4 else "flat"
    result = replace(state, size=(1, 1), form=form, rank=len(shape), pools=frozenset({node}))
    if not site.sized:
        doubt = "pools a map of open size: give --shape, the size that the network is for"
        return replace(site.same(result), doubt=site.refusal(doubt))
    if named and (attribute_ints(node, "strides") or (1, 1)) == (1, 1):
        return site.same(result)
    if node.inputs[0] is not None and node.inputs[0].dtype not in (None, *_POOLED):
        doubt = "pools a type that onnxruntime has no pooling of a given size for"
        return replace(site.same(result), doubt=site.refusal(doubt))
    keeps = attribute_int(node, "keepdims", 1) == 1
    return site.same(result, swapped(node, lambda e: _sized(e, node, kind, state, keeps=keeps)))


def _global(edit: Edit, node: ir.Node, kind: Kind) -> ir.Value:
    return edit.node(f"Global{kind}Pool", [node.inputs[0]], hint=hint_of(node), name=node.name)


def _sized(edit: Edit, node: ir.Node, kind: Kind, state: Map, *, keeps: bool) -> ir.Value:
    value, hint, last = node.inputs[0], hint_of(node), state.form == "last"
    if last:
        value = edit.node("Transpose", [value], {"perm": TO_FIRST}, hint=hint)
    kernel = {"kernel_shape": list(state.size)}
    value = edit.node(f"{kind}Pool", [value], kernel, hint=hint, name=node.name)
    if last and keeps:
        value = edit.node("Transpose", [value], {"perm": TO_LAST}, hint=hint)
    return value
