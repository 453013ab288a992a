"""Cut a few nodes out of a model as a small model of their own, to time them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer, true_inputs


def cut_out(scope: Scope, nodes: Collection[ir.Node], *, batch: int | None = None) -> ir.Model:
    """The nodes as a model with fixed input shapes; weights are shared, not copied.

    What the nodes read from outside becomes an input (or an initializer, if it is constant), what
    others read of them an output. `batch` replaces the first dimension of every input.

    Raises:
        ValueError: The shape of an input is unknown.
    """
    inside = set(nodes)
    ordered = [node for node in scope.graph if node in inside]
    mapping: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    clones: list[ir.Node] = []
    for node in ordered:
        for value in node.inputs:
            if value is None or value in mapping:
                continue
            array = constant(value)
            if array is not None:
                tensor = value.const_value or ir.tensor(np.asarray(array, order="C"))
                made = ir.Value(
                    name=value.name,
                    shape=ir.Shape(array.shape),
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
                initializers.append(made)
            else:
                made = _boundary(scope, value, batch)
                inputs.append(made)
            mapping[value] = made
        clone = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else mapping[value] for value in node.inputs],
            attributes=list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for old, new in zip(node.outputs, clone.outputs, strict=True):
            new.name = old.name
            new.type = old.type
            if batch is None:
                new.shape = old.shape
            mapping[old] = new
        clones.append(clone)
    outputs = [
        mapping[value]
        for node in ordered
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in inside for use in value.uses())
    ]
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=clones,
        initializers=initializers,
        opset_imports=dict(scope.model.graph.opset_imports),
        name="fragment",
    )
    return ir.Model(graph, ir_version=max(scope.model.ir_version, 4))


def changed_fragment(
    scope: Scope,
    nodes: Collection[ir.Node],
    rewrite: Callable[[Scope], bool],
    *,
    batch: int | None = None,
) -> tuple[ir.Model, ir.Model] | None:
    """Nodes cut out, and a copy of that with a rewrite applied.

    rewrite: changes the graph of the scope it is given; False if it finds nothing to change.
    None when the nodes cannot be cut out or changed.
    """
    try:
        before = cut_out(scope, nodes, batch=batch)
    except ValueError:
        return None
    after = before.clone()
    shapes = {v.name or "": tuple(v.shape.numpy()) for v in true_inputs(after.graph) if v.shape}
    infos = infer(after, shapes)
    for node in (*before.graph, *after.graph):
        for value in node.outputs:
            info = infos.get(value.name or "")
            if info is not None:
                value.shape, value.type = ir.Shape(info.shape), ir.TensorType(info.dtype)
    return (before, after) if rewrite(Scope(after, after.graph, infos)) else None


def _boundary(scope: Scope, value: ir.Value, batch: int | None) -> ir.Value:
    shape = scope.shape(value)
    info = scope.infos.get(value.name or "")
    if shape is None or info is None:
        raise ValueError(f"the shape of {value.name} is unknown")
    if batch is not None and shape:
        shape = (batch, *shape[1:])
    return ir.Value(name=value.name, shape=ir.Shape(shape), type=ir.TensorType(info.dtype))


def fingerprint(model: ir.Model) -> str:
    """A digest of a model's structure and shapes that does not depend on names or weight values.

    Two fragments with one fingerprint take the same time. Small integer constants (shapes, axes)
    count with their values.
    """
    order: dict[ir.Value, str] = {}
    lines: list[str] = [str(sorted(model.graph.opset_imports.items()))]
    for index, value in enumerate(model.graph.inputs):
        order[value] = f"i{index}"
        lines.append(f"i{index} {value.dtype} {value.shape}")
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        dims = tuple(tensor.shape.numpy())
        small = math.prod(dims) <= 16 and tensor.dtype == ir.DataType.INT64
        order[value] = f"c{tensor.dtype}{dims}{tensor.numpy().tolist() if small else ''}"
    for index, node in enumerate(model.graph):
        for slot, output in enumerate(node.outputs):
            order[output] = f"n{index}.{slot}"
        operands = [order.get(v, "-") if v is not None else "-" for v in node.inputs]
        attributes = sorted(f"{a.name}={a.value}" for a in node.attributes.values())
        lines.append(f"{node.domain}:{node.op_type}({operands}){attributes}")
    lines.append(str([order[value] for value in model.graph.outputs]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
