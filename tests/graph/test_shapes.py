"""Concrete shapes: binding open dimensions, inference that distrusts the file, onnxruntime's help."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx_text import build, listed

from graphopt.errors import InputError
from graphopt.graph.shapes import (
    annotate_node,
    bind_inputs,
    infer,
    is_batch_dynamic,
    with_batch,
)


def graph(text: str, **options: object) -> ir.Graph:
    return ir.from_proto(build(text, **options)).graph


def test_open_dimensions() -> None:
    net = graph("net (float[N,C,H,W] x, float[N,7] z, float[T,5] s) => (float y) { y = Size(x) }")
    bound = bind_inputs(net, {}, batch=2, size=32)
    assert bound == {"x": (2, 3, 32, 32), "z": (2, 7), "s": (2, 5)}


def test_one_symbol_is_one_number() -> None:
    net = graph("net (float[N,L] x, float[L,N] z) => (float y) { y = Size(x) }")
    bound = bind_inputs(net, {}, batch=2, size=9)
    assert bound == {"x": (2, 9), "z": (9, 2)}


def test_given_shapes_win() -> None:
    net = graph("net (float[N,3,H,W] x) => (float y) { y = Size(x) }")
    assert bind_inputs(net, {"x": (4, 3, 5, 6)}) == {"x": (4, 3, 5, 6)}


@pytest.mark.parametrize("given", [(1, 4, 5, 6), (1, 3, 5)])
def test_given_shape_that_contradicts(given: tuple[int, ...]) -> None:
    net = graph("net (float[N,3,H,W] x) => (float y) { y = Size(x) }")
    with pytest.raises(InputError, match="takes Nx3xHxW, not 1x"):
        bind_inputs(net, {"x": given})


def test_input_without_a_rank() -> None:
    net = graph("net (float[N] x) => (float y) { y = Size(x) }")
    net.inputs[0].shape = None
    with pytest.raises(InputError, match="no declared shape: give --shape x:"):
        bind_inputs(net, {})
    assert bind_inputs(net, {"x": (2, 3)}) == {"x": (2, 3)}


def test_overridable_initializers_are_not_bound() -> None:
    model = listed(build("net (float[4] x) => (float[4] y) <float[4] w> { y = Mul(x, w) }"), "w")
    assert bind_inputs(ir.from_proto(model).graph, {}) == {"x": (4,)}


def test_batch() -> None:
    net = graph("net (float[N,3] x, float[2,3] z) => (float y) { y = Size(x) }")
    assert not is_batch_dynamic(net)
    assert with_batch(net, {"x": (1, 3), "z": (2, 3)}, 8) == {"x": (8, 3), "z": (2, 3)}
    assert is_batch_dynamic(graph("net (float[N,3] x) => (float y) { y = Size(x) }"))
    assert not is_batch_dynamic(graph("net () => (float[1] y) <int64[1] s> { y = Cast<to=1>(s) }"))


def test_inference_distrusts_declared_shapes() -> None:
    model = build(
        "net (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w>"
        "{ c = Conv(x, w) y = Relu(c) }"
    )
    wrong = onnx.helper.make_tensor_value_info("c", 1, [1, 4, 99, 99])
    model.graph.value_info.append(wrong)
    infos = infer(ir.from_proto(model), {"x": (2, 3, 8, 8)})
    assert infos["c"].shape == (2, 4, 6, 6)
    assert infos["c"].dtype == ir.DataType.FLOAT
    assert infos["w"].shape == (4, 3, 3, 3)
    assert infos["x"].shape == (2, 3, 8, 8)


def test_onnxruntime_fills_what_inference_cannot_know() -> None:
    """The number of ones depends on the data; for the reshape nobody but a run can tell."""
    model = build(
        """net (float[4] x) => (float[A,B] y)
        { o = NonZero(x) s = Shape(o) f = Cast<to=1>(o) y = Reshape(f, s) }"""
    )
    infos = infer(ir.from_proto(model), {"x": (4,)})
    assert infos["y"].shape == (1, 4)


def test_only_shapes_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values themselves would be in memory all at once."""
    from graphopt import runtime

    asked = []
    run = runtime.run

    def spied(*args: object) -> list[object]:
        asked.extend(run(*args))  # type: ignore[arg-type]
        return asked

    monkeypatch.setattr(runtime, "run", spied)
    model = build(
        """net (float[64,64] x) => (float[A,B] y)
        { o = NonZero(x) s = Shape(x) f = Cast<to=1>(o) g = Reshape(x, s) h = MatMul(g, x) y = Exp(h) }"""
    )
    infos = infer(ir.from_proto(model), {"x": (64, 64)})
    assert infos["f"].shape == (2, 4096)
    assert infos["y"].shape == (64, 64)
    assert asked
    assert all(array.ndim == 1 and array.size == 2 for array in asked)


def test_a_model_nobody_can_run_leaves_holes() -> None:
    model = build(
        "net (float[4] x) => (float[4] y) { a = Abs(x) b = my.Mystery(a) y = Relu(b) }",
        domains=["my"],
    )
    infos = infer(ir.from_proto(model), {"x": (4,)})
    assert infos["a"].shape == (4,)
    assert "b" not in infos


def test_inference_leaves_the_model_alone() -> None:
    model = ir.from_proto(build("net (float[N,4] x) => (float[M,4] y) { a = Abs(x) y = Relu(a) }"))
    before = ir.to_proto(model).SerializeToString()
    infer(model, {"x": (2, 4)})
    assert ir.to_proto(model).SerializeToString() == before


def test_a_new_node_keeps_symbols() -> None:
    x = ir.Value(name="x", shape=ir.Shape(["N", 3, 8, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", shape=ir.Shape([4, 3, 3, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Conv", [x, w])
    node.outputs[0].name = "y"
    annotate_node(node, 17)
    assert [str(d) for d in node.outputs[0].shape] == ["N", "4", "6", "6"]
    assert node.outputs[0].dtype == ir.DataType.FLOAT
