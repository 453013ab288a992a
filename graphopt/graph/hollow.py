"""A model without its weights: they are fed like inputs, so that to open it costs next to nothing.

A ResNet-50 takes longer to be written, parsed and laid out anew by onnxruntime than to answer a few
pictures. What is run once is therefore better run hollow: the same numbers but for rounding, from
the arrays that are in memory already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.graph.scope import is_op

if TYPE_CHECKING:
    from graphopt.runtime import Array

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that take a weight at run time as well as a constant one."""

_KEPT_BYTES = 1 << 12
"""Smaller weights stay where they are."""


@dataclass(frozen=True)
class Hollow:
    """A model whose large weights are inputs, and what to feed for them."""

    model: ir.Model
    weights: dict[str, Array]


def hollow(model: ir.Model) -> Hollow:
    """A clone of a model in which the layers' weights are inputs, and these weights by name.

    Only weights that nothing but layers use: others may have to be constants.
    """
    clone = model.clone()
    weights: dict[str, Array] = {}
    for name, value in list(clone.graph.initializers.items()):
        array = _weight(value)
        if array is None:
            continue
        weights[name] = array
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        del clone.graph.initializers[name]
        value.const_value = None
        if not value.is_graph_input():
            clone.graph.inputs.append(value)
    return Hollow(clone, weights)


def _weight(value: ir.Value) -> Array | None:
    tensor = value.const_value
    if tensor is None or tensor.nbytes < _KEPT_BYTES or value.is_graph_output():
        return None
    if not all(is_op(node, *_LAYERS) for node in value.consumers()):
        return None
    array = tensor.numpy()
    return array if array.dtype in (np.float16, np.float32, np.float64) else None
