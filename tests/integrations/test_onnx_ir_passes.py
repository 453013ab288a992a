from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphopt.integrations.onnx_ir_passes import as_pass
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm


def conv_bn() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
        {
            c = Conv<pads = [1, 1, 1, 1]>(x, w)
            y = BatchNormalization(c, s, b, m, v)
        }
        """
    )
    for name, shape in {"w": (4, 3, 3, 3), "s": 4, "b": 4, "m": 4, "v": 4}.items():
        values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_a_rewrite_works_in_a_sequence_of_passes():
    proto = conv_bn()
    model = ir.from_proto(proto)
    result = ir.passes.Sequential(as_pass(FuseConvBatchNorm()))(model)
    fused = ir.to_proto(result.model)
    assert result.modified
    assert [node.op_type for node in fused.graph.node] == ["Conv"]
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(fused, x), run(proto, x), rtol=1e-4, atol=1e-5)


def test_it_says_so_when_nothing_changed():
    model = ir.from_proto(conv_bn())
    once = as_pass(FuseConvBatchNorm())
    assert once(model).modified
    assert not once(model).modified
