"""Concrete shapes: of the inputs (dynamic dimensions bound) and of every value that follows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from graphopt.errors import GraphoptError, InputError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """Element type and static shape of a value."""

    dtype: ir.DataType
    shape: Shape


def true_inputs(graph: ir.Graph) -> list[ir.Value]:
    """The inputs a caller must feed: graph inputs that have no initializer."""
    return [value for value in graph.inputs if not value.is_initializer()]


def dimension(value: ir.Value, axis: int) -> int | None:
    """A declared static dimension of a value, or None."""
    if value.shape is None or axis >= len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) and size >= 0 else None


def is_batch_dynamic(graph: ir.Graph) -> bool:
    """Whether every input leaves its first axis open."""
    inputs = true_inputs(graph)
    return bool(inputs) and all(
        value.shape is not None and len(value.shape) > 0 and dimension(value, 0) is None
        for value in inputs
    )


def bind_inputs(
    graph: ir.Graph, given: Mapping[str, Shape], *, batch: int = 1, size: int = 224
) -> dict[str, Shape]:
    """A concrete shape for every input: as given, else as declared with open dimensions filled in.

    An open first axis gets `batch`, an open second axis of a picture 3 channels, other open axes
    `size`. Dimensions of one symbolic name get one number.

    Raises:
        InputError: An input has no declared rank and none was given, or a given shape contradicts
            the declared one.
    """
    symbols: dict[str, int] = {}
    bound: dict[str, Shape] = {}
    for value in true_inputs(graph):
        name = value.name or ""
        if name in given:
            _check_declared(value, given[name])
            bound[name] = given[name]
            continue
        if value.shape is None:
            raise InputError(
                f"input {name!r} has no declared shape: give --shape {name}:1x3x224x224"
            )
        dims: list[int] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int) and dim >= 0:
                dims.append(dim)
                continue
            picture = len(value.shape) >= 4
            default = batch if axis == 0 else (3 if axis == 1 and picture else size)
            symbol = getattr(dim, "value", None)
            dims.append(symbols.setdefault(symbol, default) if symbol else default)
        bound[name] = tuple(dims)
    return bound


def with_batch(graph: ir.Graph, shapes: Mapping[str, Shape], batch: int) -> dict[str, Shape]:
    """The same input shapes at another batch size (where the first axis is open)."""
    return {
        value.name or "": (
            (batch, *shapes[value.name or ""][1:])
            if dimension(value, 0) is None and shapes[value.name or ""]
            else shapes[value.name or ""]
        )
        for value in true_inputs(graph)
    }


def infer(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[str, TensorInfo]:
    """Element type and shape of every value of the main graph for these input shapes.

    onnx shape inference with data propagation; declared shapes of intermediate values are not
    trusted (exporters get them wrong). Where that leaves holes, onnxruntime runs the model once
    and is asked. Values that stay unknown are left out.
    """
    clone = model.clone()
    _forget_shapes(clone.graph)
    for value in true_inputs(clone.graph):
        value.shape = ir.Shape(inputs[value.name or ""])
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(clone)
    known = _static_infos(clone.graph)
    missing = [
        output.name or ""
        for node in clone.graph
        for output in node.outputs
        if output.name and output.name not in known
    ]
    if missing:
        known |= _ask_onnxruntime(clone, inputs, missing)
    return known


def infer_node(node: ir.Node, known: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Shapes of one node's outputs from those of its inputs (for nodes a rewrite just made)."""
    from graphopt.graph.constants import constant

    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or value.name is None:
            continue
        array = constant(value)
        info = known.get(value.name)
        if array is not None:
            dtype = ir.DataType.from_numpy(array.dtype)
            types[value.name] = onnx.helper.make_tensor_type_proto(int(dtype), array.shape)
            if array.size <= 64 and value.const_value is not None:
                data[value.name] = onnx.numpy_helper.from_array(np.asarray(array, order="C"))
        elif info is not None:
            types[value.name] = onnx.helper.make_tensor_type_proto(int(info.dtype), info.shape)
        else:
            return {}
    graph = node.graph
    version = graph.opset_imports.get(node.domain, 0) if isinstance(graph, ir.Graph) else 0
    infos: dict[str, TensorInfo] = {}
    for name, proto in _output_types(node, version, types, data).items():
        tensor = proto.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        if tensor.HasField("shape") and all(d >= 0 for d in dims):
            infos[name] = TensorInfo(ir.DataType(tensor.elem_type), tuple(dims))
    return infos


def annotate_node(node: ir.Node, version: int) -> None:
    """Give the outputs of a new node type and shape, symbols kept, where its inputs have theirs.

    version: of the operator set.
    """
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or value.name is None:
            continue
        if value.dtype is None or value.shape is None:
            return
        dims = [d if isinstance(d, int) else d.value for d in value.shape]
        types[value.name] = onnx.helper.make_tensor_type_proto(int(value.dtype), dims)
        if value.const_value is not None and value.const_value.size <= 64:
            data[value.name] = onnx.numpy_helper.from_array(value.const_value.numpy())
    found = _output_types(node, version, types, data)
    for output in node.outputs:
        proto = found.get(output.name or "")
        if proto is not None and proto.HasField("tensor_type"):
            output.type = ir.serde.deserialize_type_proto_for_type(proto)
            output.shape = ir.serde.deserialize_type_proto_for_shape(proto)


def _output_types(
    node: ir.Node,
    version: int,
    types: Mapping[str, onnx.TypeProto],
    data: Mapping[str, onnx.TensorProto],
) -> Mapping[str, onnx.TypeProto]:
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        found: Mapping[str, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),
            dict(types),
            dict(data),
            opset_imports=[onnx.helper.make_opsetid(node.domain, version)],
        )
    except Exception:  # an operator onnx does not know, or inputs it makes no sense of
        return {}
    return found


def _check_declared(value: ir.Value, given: Shape) -> None:
    if value.shape is None:
        return
    fits = len(value.shape) == len(given) and all(
        not (isinstance(declared, int) and declared >= 0) or declared == size
        for declared, size in zip(value.shape, given, strict=True)
    )
    if not fits:
        wanted = "x".join(str(d) for d in value.shape) or "a scalar"
        got = "x".join(map(str, given))
        raise InputError(f"input {value.name!r} takes {wanted}, not {got}")


def _forget_shapes(graph: ir.Graph) -> None:
    for value in _values(graph):
        value.shape = None


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    return (output for node in graph.all_nodes() for output in node.outputs)


def _static_infos(graph: ir.Graph) -> dict[str, TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    outputs = (output for node in graph for output in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *outputs):
        shape, dtype = value.shape, value.dtype
        if value.const_value is not None:
            shape = ir.Shape(value.const_value.shape.numpy())
            dtype = value.const_value.dtype
        if value.name and shape is not None and dtype is not None:
            dims = [d for d in shape if isinstance(d, int) and d >= 0]
            if len(dims) == len(shape):
                infos[value.name] = TensorInfo(dtype, tuple(dims))
    return infos


def _ask_onnxruntime(
    model: ir.Model, inputs: Mapping[str, Shape], names: list[str]
) -> dict[str, TensorInfo]:
    """Run once with the shapes of the named values as extra outputs.

    Not the values themselves, unless their type is unknown as well: all at once they may take many
    times the memory of the model.
    """
    from graphopt.graph.io import session_source
    from graphopt.runtime import open_session, run

    wanted = set(names)
    asked = {}
    known = {output.name for output in model.graph.outputs}
    for node, value in [(n, output) for n in model.graph for output in n.outputs]:
        if value.name not in wanted:
            continue
        output = value
        if value.dtype is not None:
            asking = ir.node("Shape", [value])
            output = asking.outputs[0]
            output.name, output.dtype = f"{value.name}/graphopt_shape", ir.DataType.INT64
            model.graph.insert_after(node, asking)
        if output.name not in known:
            model.graph.outputs.append(output)
        asked[value.name] = output.name or "", value.dtype
    feeds = {
        value.name or "": np.ones(
            inputs[value.name or ""], (value.dtype or ir.DataType.FLOAT).numpy()
        )
        for value in true_inputs(model.graph)
    }
    try:
        with session_source(model) as source:
            session = open_session(source, level="disable_all", shapes_first=True)
            arrays = run(session, feeds, [output for output, _ in asked.values()])
    except GraphoptError:
        return {}
    found = {}
    for (name, (_, dtype)), array in zip(asked.items(), arrays, strict=True):
        if dtype is not None:
            found[name] = TensorInfo(dtype, tuple(int(size) for size in array))
        elif isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
            found[name] = TensorInfo(ir.DataType.from_numpy(array.dtype), tuple(array.shape))
    return found
