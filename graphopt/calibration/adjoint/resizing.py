"""Rules of resizing: linear and separable, y = x turned by a matrix along every axis.

A resize that only repeats elements is undone by average pooling, whatever the size. Any other is
undone by the transposed matrices, which onnxruntime's own Resize of an identity gives, so that they
follow its modes and roundings; these hold for the sizes in the scope only.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.calibration.adjoint.tape import Found, Step
from graphopt.errors import InputError
from graphopt.graph.constants import Array, constant
from graphopt.graph.io import session_source
from graphopt.graph.scope import attribute_ints, attribute_string
from graphopt.runtime import open_session, run

_PROBED_SIZE = 32
"""Long enough that roundings which depend on the size show."""

_MOST = 2048
"""The longest side of a matrix."""


def resize(step: Step) -> Found:
    """The transposed matrix along every axis."""
    node = step.node
    if attribute_string(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        step.refuse("it crops")
    if attribute_string(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        step.refuse("it keeps the aspect ratio")
    scales = _scales(step)
    if _repeats(step, scales):
        return {0: _pooled(step, [round(scale) for scale in scales])}
    g = step.g
    if step.tape.shape(step.input(0)) == step.tape.shape(step.y):
        return {0: g}  # onnxruntime copies, whatever the scales say
    for axis, scale in enumerate(scales):
        if scale != 1:
            g = _along(step, g, axis, _matrix(step, axis, scale))
    return {0: g}


def _scales(step: Step) -> list[float]:
    """The scale of every axis."""
    tape, node, x = step.tape, step.node, step.input(0)
    rank = len(tape.shape(x))
    scales = [1.0] * rank
    axes = attribute_ints(node, "axes") if tape.opset >= 18 else None
    axes = tuple(a % rank for a in axes) if axes else tuple(range(rank))
    if node.op_type == "Resize" and step.optional(3) is not None:
        for axis in axes:  # an open first axis stays as it is, or there are no sizes to rely on
            if tape.shape(x)[axis] != tape.shape(step.y)[axis]:
                scales[axis] = tape.size(step.y, axis) / tape.size(x, axis)
        return scales
    if "scales" in node.attributes:
        found = np.asarray(node.attributes["scales"].as_floats())
    else:
        array = constant(step.optional(2 if node.op_type == "Resize" and tape.opset >= 11 else 1))
        found = step.refuse("its scales are not constant") if array is None else array
    for axis, scale in zip(axes, found.ravel().tolist(), strict=True):
        scales[axis] = scale
    return scales


def _repeats(step: Step, scales: list[float]) -> bool:
    """Whether the resize repeats every element of the inner axes, at any size."""
    if attribute_string(step.node, "mode", "nearest") != "nearest" or len(scales) < 3:
        return False
    if scales[:2] != [1, 1] or not all(s >= 1 and s == round(s) for s in scales):
        return False
    return all(
        np.array_equal(
            _resized_identity(step, size, size * round(scale), scale),
            np.repeat(np.eye(size), round(scale), axis=0),
        )
        for scale in {*scales} - {1}
        for size in (2, 3, _PROBED_SIZE)
    )


def _pooled(step: Step, scales: list[int]) -> ir.Value:
    """The sum over every block."""
    tape, block = step.tape, scales[2:]
    mean = tape.op("AveragePool", step.g, kernel_shape=block, strides=block)
    return tape.op("Mul", mean, tape.number(math.prod(block), step.y))


def _matrix(step: Step, axis: int, scale: float) -> Array:
    """What the node does along an axis [out, in]."""
    fine, coarse = step.tape.size(step.y, axis), step.tape.size(step.input(0), axis)
    if max(fine, coarse) > _MOST:
        step.refuse(f"it is longer than {_MOST}")
    return _resized_identity(step, coarse, fine, scale)


def _along(step: Step, g: ir.Value, axis: int, matrix: Array) -> ir.Value:
    """The transpose of a matrix [out, in] along an axis."""
    tape, rank = step.tape, len(step.tape.shape(step.y))
    if rank > 1 and axis == rank - 2:
        return tape.op("MatMul", tape.number(matrix.T, step.y), g)
    order = [*(a for a in range(rank) if a != axis), axis]
    if axis != rank - 1:
        g = tape.op("Transpose", g, perm=order)
    g = tape.op("MatMul", g, tape.number(matrix, step.y))
    return g if axis == rank - 1 else tape.op("Transpose", g, perm=np.argsort(order).tolist())


def _resized_identity(step: Step, coarse: int, fine: int, scale: float) -> Array:
    """The resize along one axis as a matrix [out, in]: the node itself on an identity.

    The last axis is doubled, lest onnxruntime copy the identity where `fine` is `coarse`.
    """
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    x.shape = ir.Shape([coarse, 1, coarse, 1])
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))
    probe, constants = _like(step, x, y, [coarse, 1, fine, 2], [1.0, 1.0, scale, 2.0])
    opset = {"": step.tape.opset}
    graph = ir.Graph(
        [x], [y], nodes=[probe], initializers=constants, opset_imports=opset, name="probe"
    )
    model = ir.Model(graph, ir_version=step.tape.scope.model.ir_version)
    eye = np.eye(coarse, dtype=np.float32).reshape(coarse, 1, coarse, 1)
    try:
        with session_source(model) as source:
            session = open_session(source, level="disable_all")
        (found,) = run(session, {"x": eye})
    except InputError as error:
        step.refuse(str(error))
    if found.shape != (coarse, 1, fine, 2):
        step.refuse(f"{coarse} elements do not become {fine}")
    matrix: Array = found[:, 0, :, 0].T
    return matrix


def _like(
    step: Step, x: ir.Value, y: ir.Value, sizes: list[int], scales: list[float]
) -> tuple[ir.Node, list[ir.Value]]:
    """The node for other sizes, and the constants it takes."""
    node, opset = step.node, step.tape.opset
    attributes = [a for name, a in node.attributes.items() if name not in ("axes", "scales")]
    made: dict[str, ir.Value] = {}

    def fixed(name: str, array: Array) -> ir.Value:
        made[name] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        return made[name]

    wanted = np.asarray(scales, np.float32)
    left_out = None if opset >= 13 else fixed("nothing", np.zeros(0, np.float32))
    inputs: list[ir.Value | None]
    if node.op_type == "Resize" and step.optional(3) is not None:
        inputs = [x, left_out, left_out, fixed("sizes", np.asarray(sizes, np.int64))]
    elif node.op_type == "Resize" and opset >= 11:
        inputs = [x, left_out, fixed("scales", wanted)]
    elif "scales" in node.attributes:
        inputs = [x]
        attributes.append(ir.AttrFloat32s("scales", scales))
    else:
        inputs = [x, fixed("scales", wanted)]
    return ir.Node("", node.op_type, inputs, attributes, outputs=[y]), list(made.values())
