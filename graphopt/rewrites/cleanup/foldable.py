"""Whether the library's constant folding could change anything about a model.

Importing it takes longer than rewriting a small model, and a run of it infers every shape anew. What
it does with each operator: `onnxscript/optimizer/_constant_folding.py`. In doubt the answer is yes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
import onnx_ir as ir

from graphopt.graph.annotate import is_settled, symbols_of
from graphopt.graph.scope import has_bodies, is_op

_REPLACED = (
    "Cast", "CastLike", "ConcatFromSequence", "Constant", "Expand", "Identity", "If",
    "SequenceAt", "SequenceConstruct", "Shape", "Size", "SplitToSequence",
)  # fmt: skip
"""Operators it may replace whatever their inputs are, or where its knowledge of shapes begins."""

_TRACED = ("Abs", "Add", "Concat", "Gather", "Reshape", "Squeeze")
"""Operators through which it follows a shape, from one of those above or from a constant."""

_FIRST_DROPOUT = 12
"""Operator set from which on it knows what a Dropout is."""

_MOST_ELEMENTS = 20
"""Of a constant that inference gets to see."""


def may_fold(model: ir.Model, should_fold: Callable[[ir.Node], bool | None]) -> bool:
    """Whether folding has anything to do, when overridable initializers count as inputs.

    should_fold: what the library would ask before it evaluates a node.
    """
    if model.functions or has_bodies(model):
        return True
    symbols = symbols_of(model.graph)
    opset = model.graph.opset_imports.get("", 0)
    return any(_may_replace(node, opset, should_fold) for node in model.graph) or any(
        not all(is_settled(output, symbols) for output in node.outputs if output.name)
        and _knows_more(node, model.graph.opset_imports.get(node.domain))
        for node in model.graph
    )


def _may_replace(node: ir.Node, opset: int, should_fold: Callable[[ir.Node], bool | None]) -> bool:
    if is_op(node, *_REPLACED) or (is_op(node, "Dropout") and opset >= _FIRST_DROPOUT):
        return True
    inputs = [value for value in node.inputs if value is not None]
    traced = is_op(node, *_TRACED)
    if all(_is_constant(value) for value in inputs):
        return traced or should_fold(node) is not False
    if is_op(node, "Concat"):
        return len(inputs) == 1 or any(0 in (value.shape or ()) for value in inputs)
    if is_op(node, "Reshape") and len(inputs) == 2 and _is_constant(inputs[1]):
        return _has_shape(*inputs)
    return traced and _is_constant(inputs[0])


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def _has_shape(value: ir.Value, target: ir.Value) -> bool:
    """Whether a value has the shape that a constant says already."""
    if value.shape is None or target.const_value is None:
        return False
    wanted: list[int] = target.const_value.numpy().tolist()
    return list(value.shape) == wanted


def _knows_more(node: ir.Node, version: int | None) -> bool:
    """Whether inference, asked as the library does, says more of a node's outputs than they do."""
    inputs = [value for value in node.inputs if value is not None]
    if version is None or any(value.type is None for value in inputs):
        return False
    types, data = {}, {}
    for value in inputs:
        assert value.type is not None
        types[value.name or ""] = proto = ir.serde.serialize_type(value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(proto, value.shape)
        if value.const_value is not None and value.const_value.size <= _MOST_ELEMENTS:
            data[value.name or ""] = ir.serde.serialize_tensor(value.const_value)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        found: Mapping[str | None, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), types, data
        )
    except Exception:  # an operator onnx does not know, or inputs it makes no sense of
        return False
    for output in node.outputs:
        proto = found.get(output.name)
        if proto is not None and (
            output.type != ir.serde.deserialize_type_proto_for_type(proto)
            or _adds(ir.serde.deserialize_type_proto_for_shape(proto), output.shape)
        ):
            return True
    return False


def _adds(inferred: ir.Shape | None, known: ir.Shape | None) -> bool:
    """Whether an inferred shape says something that the known one leaves open."""
    if inferred is None or known is None:
        return inferred is not None
    return any(
        not isinstance(old, int)
        and (isinstance(new, int) or (old.value is None and new.value is not None))
        for old, new in zip(known, inferred, strict=False)
    )
