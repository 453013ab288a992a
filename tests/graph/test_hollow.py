"""Models whose weights are fed: the same answers from a file that holds hardly anything."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import LEVELS, build, run

from graphopt.graph.hollow import hollow

PLAIN = """net (float[N,8,9,9] x) => (float[N,10] y)
    <float[32,8,3,3] w, float[32] b, float[10,1568] g, float[1568] s>
    { c = Conv(x, w, b) r = Relu(c) f = Flatten(r) h = Mul(f, s) y = Gemm<transB=1>(h, g) }"""


def opened(text: str = PLAIN, **options: object) -> tuple[onnx.ModelProto, ir.Model]:
    proto = build(text, **options)
    return proto, ir.from_proto(proto)


@pytest.mark.parametrize("level", LEVELS)
def test_it_answers_the_same_when_its_weights_are_fed(level: object) -> None:
    proto, model = opened()
    emptied = hollow(model)
    assert set(emptied.weights) == {"w", "g"}  # b is small, and s no layer's
    x = {"x": np.random.default_rng(0).normal(size=(2, 8, 9, 9)).astype(np.float32)}
    found = run(ir.to_proto(emptied.model), {**x, **emptied.weights}, level)
    np.testing.assert_allclose(found[0], run(proto, x, level)[0], rtol=2e-5, atol=2e-5)


def test_the_file_holds_none_of_them() -> None:
    proto, model = opened()
    emptied = ir.to_proto(hollow(model).model)
    onnx.checker.check_model(emptied, full_check=True)
    assert [value.name for value in emptied.graph.input] == ["x", "w", "g"]
    assert emptied.ByteSize() < proto.ByteSize() - 4 * (32 * 72 + 10 * 1568) + 200


def test_the_model_is_not_touched() -> None:
    _, model = opened()
    before = ir.to_proto(model).SerializeToString()
    hollow(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_weight_that_another_operator_reads_stays() -> None:
    _, model = opened(PLAIN.replace("y = Gemm", "u = ReduceSum(w) y = Gemm"))
    assert set(hollow(model).weights) == {"g"}


def test_a_weight_with_a_default_that_is_an_input_already() -> None:
    proto, _ = opened()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [32, 8, 3, 3]))
    emptied = hollow(ir.from_proto(proto))
    assert [value.name for value in emptied.model.graph.inputs] == ["x", "w", "g"]
    assert set(emptied.weights) == {"w", "g"}
