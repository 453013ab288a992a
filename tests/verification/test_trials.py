"""Trials of models that differ in a layer: the error of the whole, of what the layer reaches alone."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt.calibration.dataset import Batch, Dataset
from graphopt.graph.alike import alike
from graphopt.verification import trials as module
from graphopt.verification.compare import Reference
from graphopt.verification.trials import Trials

NET = """net (float[N,3,12,12] x) => (float[N,8,12,12] y, float[N,4] z)
    <float[8,3,3,3] w0, float[8] b0, float[8,8,3,3] w1, float[8,8,3,3] w2, float[8,8,1,1] w3,
     float[8,4] w4, float[4] b4>
    { a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, w1) d = Relu(c)
      e = Conv<pads=[1,1,1,1]>(d, w2) s = Add(e, r) y = Conv(s, w3)
      p = ReduceMean<axes=[2,3], keepdims=0>(d) z = Gemm(p, w4, b4) }"""

LAYERS = {"w0": "yz", "w1": "yz", "w2": "y", "w3": "y", "w4": "z"}
"""The outputs that each weight has a say in."""


@pytest.fixture
def proto() -> onnx.ModelProto:
    return build(NET)


@pytest.fixture
def reference(proto: onnx.ModelProto) -> Reference:
    rng = np.random.default_rng(0)
    pictures = [rng.standard_normal((n, 3, 12, 12)).astype(np.float32) for n in (3, 2)]
    dataset = Dataset(tuple(Batch({"x": picture}) for picture in pictures), "x", "random")
    return Reference(proto.SerializeToString(), dataset)


def changed(model: ir.Model, name: str, by: float = 0.1) -> ir.Model:
    clone = model.clone()
    value = clone.graph.initializers[name]
    array = value.const_value.numpy()
    noise = np.random.default_rng(1).standard_normal(array.shape).astype(array.dtype)
    value.const_value = ir.tensor(array + by * noise, name=name)
    return clone


def whole(reference: Reference, model: ir.Model) -> float:
    return reference.compare(ir.to_proto(model).SerializeToString()).error


ORDERS = [tuple(LAYERS), tuple(reversed(LAYERS)), ("w1", "w1", "w0", "w3", "w2")]


@pytest.mark.parametrize("emptied", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_the_error_is_that_of_the_whole_model(proto, reference, order, emptied) -> None:
    known = ir.from_proto(proto)
    tried = Trials(reference, known, emptied)
    for name, by in itertools.product(order, (0.01, 0.3)):
        model = changed(known, name, by)
        assert tried.error(model) == pytest.approx(whole(reference, model), rel=1e-4)


def test_nothing_changed_is_no_error(proto, reference) -> None:
    known = ir.from_proto(proto)
    assert Trials(reference, known).error(known.clone()) == 0


def test_only_what_a_layer_reaches_is_run(proto, reference, monkeypatch) -> None:
    pieces: list[set[str]] = []
    open_session = module.open_session

    def spy(source, **options):
        pieces.append({node.output[0] for node in onnx.load_from_string(source).graph.node})
        return open_session(source, **options)

    monkeypatch.setattr(module, "open_session", spy)
    known = ir.from_proto(proto)
    tried = Trials(reference, known)
    for name in LAYERS:
        tried.error(changed(known, name))
    every = {"a", "r", "c", "d", "e", "s", "y", "p", "z"}
    late = {"e", "s", "y"}
    assert pieces == [every, every - {"a", "r"}, late, {"y"}, {"z"}]


def test_captured_values_are_reached_too(reference) -> None:
    """A body reads what its node does not name: there the whole model is run."""
    text = NET.replace("z = Gemm(p, w4, b4)", "g = Gemm(p, w4, b4) z = Identity(g)")
    proto = build(text)
    body = "b () => (float[N,4] o) { o = Mul(g, g) }"
    graph = onnx.parser.parse_graph(body)
    (old,) = (node for node in proto.graph.node if node.output[0] == "z")
    true = onnx.numpy_helper.from_array(np.array(True), "true")
    proto.graph.initializer.append(true)
    old.CopyFrom(onnx.helper.make_node("If", ["true"], ["z"], then_branch=graph, else_branch=graph))
    mine = Reference(proto.SerializeToString(), reference.dataset)
    known = ir.from_proto(proto)
    model = changed(known, "w4")
    off = whole(mine, model)
    assert off > 0.01
    assert Trials(mine, known).error(model) == pytest.approx(off)


def test_alike_tells_weights_operators_and_attributes_apart(proto) -> None:
    known = ir.from_proto(proto)
    every = {"x", "a", "r", "c", "d", "e", "s", "y", "p", "z"}
    assert alike(known.graph, known.clone().graph) == every
    for name, differ in {"w2": {"e", "s", "y"}, "b4": {"z"}, "w1": every - {"x", "a", "r"}}.items():
        assert alike(known.graph, changed(known, name).graph) == every - differ
    clone = known.clone()
    node = next(n for n in clone.graph if n.outputs[0].name == "e")
    node.attributes["pads"] = ir.AttrInt64s("pads", [1, 1, 1, 1])
    assert alike(known.graph, clone.graph) == every - {"e", "s", "y"}
    clone = known.clone()
    next(n for n in clone.graph if n.outputs[0].name == "d").op_type = "Abs"
    assert alike(known.graph, clone.graph) == {"x", "a", "r", "c"}
