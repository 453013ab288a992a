"""Running a model piece by piece gives what running it whole gives, whatever is rewritten ahead."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt.calibration import walk as module
from graphopt.calibration.dataset import Batch, Dataset
from graphopt.calibration.walk import Walk
from graphopt.runtime import open_session, run

NETWORK = """
net (float[N,4,6,6] x) => (float[N,4,6,6] y)
<float[4,4,1,1] w1, float[4,4,1,1] w2, float[4,4,1,1] w3>
{
    a = Conv (x, w1)
    b = Relu (a)
    c = Conv (b, w2)
    d = Add (c, x)
    e = Sigmoid (d)
    f = Conv (e, w3)
    y = Mul (f, b)
}
"""
ORDER = ("x", "b", "c", "e", "f")


@pytest.fixture
def proto():
    rng = np.random.default_rng(0)
    return build(
        NETWORK,
        weights={f"w{i}": rng.standard_normal((4, 4, 1, 1)).astype(np.float32) for i in (1, 2, 3)},
    )


@pytest.fixture
def dataset():
    rng = np.random.default_rng(1)
    batches = [
        Batch({"x": rng.standard_normal((n, 4, 6, 6)).astype(np.float32)}) for n in (3, 5, 2)
    ]
    return Dataset(tuple(batches), "data", "")


@pytest.fixture
def sessions(monkeypatch):
    """How many nodes every session that was opened had."""
    opened = []
    original = module.extract

    def spy(graph, inputs, outputs):
        found = original(graph, inputs, outputs)
        opened.append(len(found))
        return found

    monkeypatch.setattr(module, "extract", spy)
    return opened


def whole(proto, name, batch):
    clone = type(proto)()
    clone.CopyFrom(proto)
    del clone.graph.output[:]
    clone.graph.output.add().name = name
    return run(open_session(clone.SerializeToString()), batch.feeds)[0]


def check(walker, model, proto, name, dataset):
    values_of = walker.onto(model, [name])
    for index, batch in enumerate(dataset.batches):
        expected = batch.feeds["x"] if name == "x" else whole(proto, name, batch)
        np.testing.assert_allclose(values_of(index)[name], expected, rtol=1e-5, atol=1e-6)


def test_piece_by_piece(proto, dataset, sessions):
    model = ir.from_proto(proto)
    walker = Walk(dataset, 1)
    for name in ORDER:
        check(walker, model, proto, name, dataset)
    assert sessions == [2, 1, 2, 1], "every node has run once"


def test_what_is_needed_later_is_kept(proto, dataset):
    """x is wanted by the sum long after the first convolution, b by the last product."""
    walker = Walk(dataset, 1)
    model = ir.from_proto(proto)
    for name in ORDER:
        check(walker, model, proto, name, dataset)
    check(walker, model, proto, "y", dataset)


def test_beyond_the_cap_it_starts_from_the_inputs(proto, dataset, sessions):
    model = ir.from_proto(proto)
    walker = Walk(dataset, 1, most_bytes=0)
    for name in ORDER:
        check(walker, model, proto, name, dataset)
    assert sessions == [2, 3, 5, 6]


def test_the_part_ahead_may_change(proto, dataset):
    model = ir.from_proto(proto)
    walker = Walk(dataset, 1)
    check(walker, model, proto, "b", dataset)
    weight = model.graph.initializers["w2"]
    doubled = 2 * weight.const_value.numpy()
    weight.const_value = ir.tensor(doubled, name="w2")
    check(walker, model, ir.to_proto(model), "e", dataset)


def test_bodies_are_run_from_the_inputs(dataset, sessions):
    """Values that a body captures are not among a node's inputs."""
    proto = build(
        """
        net (float[N,4,6,6] x) => (float[N,4,6,6] y)
        <bool[1] yes = {1}>
        {
            a = Relu (x)
            b = Neg (a)
            c = If (yes) <then_branch = t () => (float[N,4,6,6] p) { p = Add (a, b) },
                          else_branch = e () => (float[N,4,6,6] q) { q = Identity (a) }>
            y = Abs (c)
        }
        """
    )
    model = ir.from_proto(proto)
    walker = Walk(dataset, 1)
    for name in ("a", "b", "c", "y"):
        check(walker, model, proto, name, dataset)


def test_the_model_is_left_alone(proto, dataset):
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString()
    check(Walk(dataset, 1), model, proto, "e", dataset)
    assert ir.to_proto(model).SerializeToString() == before


def test_what_came_before_can_be_had_again(proto, dataset):
    model = ir.from_proto(proto)
    walker = Walk(dataset, 1)
    for name in (*ORDER, ORDER[0], ORDER[-1], ORDER[1]):
        check(walker, model, proto, name, dataset)
