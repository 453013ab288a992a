"""The width that channels are padded to by onnxruntime's blocked convolution on this machine.

Ranks are paid rounded up to it: 16 with AVX-512, 8 with AVX2. Found by asking onnxruntime what it
makes of a convolution, not by the name of the CPU: the saved optimized graph of a 3-channel
convolution has its weight padded to one block.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

_FALLBACK = 4
"""Where convolutions are not blocked at all, a multiple of 4 keeps vector units busy."""


@cache
def channel_block() -> int:
    """Output channels of one block of onnxruntime's NCHWc convolution (16, 8, ...)."""
    import onnx
    import onnxruntime as ort

    weight = ir.Value(name="w", const_value=ir.tensor(np.ones((3, 32, 3, 3), np.float32)))
    x = ir.Value(name="x", shape=ir.Shape((1, 32, 16, 16)), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Conv", [x, weight], attributes={"pads": [1, 1, 1, 1]})
    output = node.outputs[0]
    output.name, output.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x], [output], nodes=[node], initializers=[weight], opset_imports={"": 13}, name="probe"
    )
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=8))
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "probe.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(path)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(path)
    widths = [t.dims[0] for t in optimized.graph.initializer if len(t.dims) == 4]
    return widths[0] if widths and widths[0] > 3 else _FALLBACK
