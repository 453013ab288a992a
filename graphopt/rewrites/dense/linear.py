"""Fully connected layers: convolutions of the size of the map that they read."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.constants import reshaped as reshaped_array
from graphopt.graph.edit import Edit
from graphopt.graph.scope import is_op
from graphopt.graph.views import LinearView
from graphopt.rewrites.dense.changes import hint_of, swapped
from graphopt.rewrites.dense.states import Map, Ruling, Site, with_result

_CONVOLVED = ("float32", "float16", "bfloat16")
"""Element types that Conv takes and onnxruntime runs it in."""


def connected(site: Site) -> Ruling:
    """Gemm, MatMul: on a flattened map [C, H, W] a Conv HxW 'valid', on one cell a Conv 1x1."""
    state, node = site.state(0), site.node
    if not isinstance(state, Map) or len(site.found()) > 1:
        raise site.refusal("multiplies by what is computed from the picture")
    if state.form == "last" and is_op(node, "MatMul"):
        weight = constant(node.inputs[1])
        if weight is None or weight.ndim != 2:
            raise site.refusal("multiplies places of the map by something that is no weight")
        return site.same(with_result(state, site.result()))
    if state.form != "flat" or state.rank != 2:
        raise site.refusal("multiplies along the width of a map")
    linear = LinearView.of(node)
    if isinstance(linear, str):
        raise site.refusal(f"is no plain layer: {linear}")
    if linear.weight.dtype.name not in _CONVOLVED:
        raise site.refusal(f"is of type {linear.weight.dtype}, which onnxruntime cannot convolve")
    outputs = int(linear.weight.shape[1])
    result = replace(state, channels=outputs, size=(1, 1))
    return site.same(result, swapped(node, lambda edit: _convolution(edit, linear, state)))


def _convolution(edit: Edit, linear: LinearView, state: Map) -> ir.Value:
    node, hint = linear.node, hint_of(linear.node)
    shape = (int(linear.weight.shape[1]), state.channels, *state.size)
    weight = reshaped_array(linear.weight.T, shape)
    operands = [node.inputs[0], edit.constant(weight, f"{hint}_weight")]
    if linear.bias is not None:
        operands.append(edit.constant(linear.bias, f"{hint}_bias"))
    kernel = {"kernel_shape": list(state.size)}
    return edit.node("Conv", operands, kernel, hint=hint, name=node.name)
