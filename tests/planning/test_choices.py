"""Menus and prices, with a stopwatch and a guard whose answers are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.cost.latency import Timing
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.planning.choices import apply, context_of, menus, price, with_candidates
from graphopt.progress import Silent
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.kernel_pair import KernelPair
from graphopt.rewrites.base import Candidate, Decline, Menu, Proposal

SHAPE = (1, 16, 10, 10)


@pytest.fixture
def scope():
    """conv1 5x5, Relu, conv2 3x3, conv3 1x1, each 16 -> 16."""
    rng = np.random.default_rng(0)
    constants, nodes = [], []
    for name, source, output, size in (
        ("conv1", "x", "c1", 5),
        ("conv2", "r1", "c2", 3),
        ("conv3", "c2", "y", 1),
    ):
        weight = rng.standard_normal((16, 16, size, size)).astype(np.float32) / (4 * size)
        constants.append(numpy_helper.from_array(weight, f"w_{name}"))
        pads = [size // 2] * 4
        inputs = [source, f"w_{name}"]
        nodes.append(helper.make_node("Conv", inputs, [output], name=name, pads=pads))
    nodes.insert(1, helper.make_node("Relu", ["c1"], ["r1"], name="relu"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = ir.serde.deserialize_model(proto)
    return Scope(model, model.graph, infer(model, {"x": SHAPE}))


def node_of(scope, name):
    return next(node for node in scope.graph if node.name == name)


def fake(error, *, macs_ratio=0.5, rewrite="fake", label=""):
    """A candidate that changes nothing but the name of its layer, so that a guard can tell it."""

    def propose(scope, node):
        def edit():
            node.name = f"{rewrite}:{error}:{label}"

        return Proposal(rewrite, (node,), edit)

    return Candidate(
        rewrite, {}, macs_ratio=macs_ratio, parameters_ratio=1.0, error=error, propose=propose
    )


@dataclass
class FakeGuard:
    """The output error is `factor` times the weight error of the candidates in the model."""

    factor: float = 2.0
    rounding: float = 0.0
    asked: list[list[str]] = field(default_factory=list)

    def fitting_error(self, model):
        found = [n.name for n in model.graph if ":" in (n.name or "")]
        self.asked.append(found)
        return self.factor * sum(float(name.split(":")[1]) for name in found) + self.rounding

    def held_out(self, model):
        raise AssertionError("prices are about fitting inputs")

    def speedup(self, model):
        raise AssertionError("a candidate is timed alone")


@dataclass
class FakeStopwatch:
    """Answers by the candidate's label: 'ratio,ratio_high', or 'none'."""

    before_us: float = 200.0
    seen: list[tuple[str, ...]] = field(default_factory=list)

    def rewritten(self, scope, nodes, rewrite, **_: Any):
        self.seen.append(tuple(node.name for node in nodes))
        clone = scope.model.clone()
        assert rewrite(Scope(clone, clone.graph, scope.infos))
        (label,) = [n.name.split(":")[2] for n in clone.graph if ":" in (n.name or "")]
        if label == "none":
            return None
        ratio, high = map(float, label.split(","))
        after = 3 * self.before_us * ratio  # medians may drift apart; the ratio is what counts
        return Timing(self.before_us, after, ratio, ratio, high, 9)


def priced(scope, offers, guard=None, stopwatch=None):
    """offers: (node name, candidates) pairs."""
    offered = [Menu(node_of(scope, name), tuple(candidates)) for name, candidates in offers]
    found, declined = price(scope, offered, guard or FakeGuard(), stopwatch, Silent())
    return {
        o.layer: [(c.candidate.error, c.saved_us, c.error) for c in o.choices] for o in found
    }, (declined)


def test_slower_candidates_are_dropped(scope):
    stopwatch = FakeStopwatch()
    candidates = [
        fake(0.5, label="0.4,0.45"),
        fake(0.4, label="0.95,1.0"),  # perhaps faster, not measurably
        fake(0.3, label="1.2,1.3"),
        fake(0.2, label="none"),
        fake(0.1, label="0.9,0.99"),
    ]
    found, declined = priced(scope, [("conv1", candidates)], stopwatch=stopwatch)
    assert [(error, saved) for error, saved, _ in found["c1"]] == [
        (0.5, pytest.approx(200 * 0.6)),
        (0.1, pytest.approx(200 * 0.1)),
    ]
    assert declined == []
    assert stopwatch.seen == [("conv1", "relu")] * 5, "timed with the activation that is fused"


def test_a_layer_without_a_faster_candidate_says_so(scope):
    offers = [
        ("conv1", [fake(0.5, label="1.1,1.2"), fake(0.4, label="none")]),
        ("conv1", [fake(0.5, rewrite="other", label="0.5,0.6")]),
        ("conv2", [fake(0.5, label="1.1,1.2")]),
    ]
    guard = FakeGuard()
    found, declined = priced(scope, offers, guard, FakeStopwatch())
    reason = "no candidate is measurably faster than the layer"
    assert declined == [Decline("fake", ("conv1",), reason), Decline("fake", ("conv2",), reason)]
    assert list(found) == ["c1"]
    assert len(guard.asked) == 1, "what is slower is not worth measuring the error of"


def test_without_a_stopwatch_macs_stand_in_for_time(scope):
    offers = [("conv1", [fake(0.5, macs_ratio=0.25)]), ("conv2", [fake(0.5, macs_ratio=0.5)])]
    found, declined = priced(scope, offers)
    (_, first, _), (_, second, _) = *found["c1"], *found["c2"]
    assert first / second == pytest.approx((25 * 0.75) / (9 * 0.5))
    assert declined == []
    assert all(c.timing is None for c in price(scope, [], FakeGuard(), None, Silent())[0])


def test_a_candidate_with_more_macs_is_dropped_without_a_stopwatch(scope):
    found, declined = priced(scope, [("conv1", [fake(0.5, macs_ratio=1.0)])])
    assert found == {}
    assert len(declined) == 1


def test_errors_are_the_layers_sensitivity_times_the_weight_error(scope):
    guard = FakeGuard(factor=3.0)
    found, _ = priced(scope, [("conv1", [fake(e) for e in (0.5, 0.4, 0.3, 0.01)])], guard)
    assert [error for _, _, error in found["c1"]] == [
        pytest.approx(3 * e) for e in (0.5, 0.4, 0.3, 0.01)
    ]
    assert guard.asked == [["fake:0.3:"]], "one measurement a layer, of the lower median"


def test_both_rewrites_of_a_layer_are_on_one_menu(scope):
    guard = FakeGuard()
    offers = [("conv1", [fake(0.5)]), ("conv2", [fake(0.1)]), ("conv1", [fake(0.4, rewrite="b")])]
    found, _ = priced(scope, offers, guard)
    assert {layer: len(choices) for layer, choices in found.items()} == {"c1": 2, "c2": 1}
    assert len(guard.asked) == 2


def test_rounding_is_not_taken_for_sensitivity(scope):
    # Two candidates are exact up to rounding; 1e-6 / 1e-8 would be a sensitivity of 100.
    guard = FakeGuard(factor=2.0, rounding=1e-6)
    found, _ = priced(scope, [("conv1", [fake(0.3), fake(2e-8), fake(1e-8)])], guard)
    assert [error for _, _, error in found["c1"]] == pytest.approx([0.6, 4e-8, 2e-8], rel=1e-3)
    guard = FakeGuard(rounding=1e-6)
    found, _ = priced(scope, [("conv1", [fake(2e-8), fake(0.0)])], guard)
    assert [error for _, _, error in found["c1"]] == [2e-8, 0.0]
    assert guard.asked == []


def test_a_layer_that_does_not_reach_the_output_costs_nothing(scope):
    found, _ = priced(scope, [("conv1", [fake(0.5)])], FakeGuard(factor=0.0))
    assert [error for _, _, error in found["c1"]] == [0.0]


def test_a_layer_whose_candidate_does_not_run_is_declined(scope):
    # Its errors would be infinite or, times zero, no number at all: nothing to sort by.
    offers = [("conv1", [fake(0.5), fake(0.0)]), ("conv1", [fake(0.3, rewrite="b")])]
    found, declined = priced(scope, offers, FakeGuard(factor=math.inf))
    assert found == {}
    assert [(d.rewrite, d.site) for d in declined] == [("fake", ("conv1",)), ("b", ("conv1",))]
    assert {d.reason for d in declined} == {
        "the outputs are not finite, or no longer zero, with a candidate in place"
    }


def test_the_menus_of_a_graph(scope):
    found, declined = menus(scope, [InputBottleneck(), KernelPair()], 4)
    assert [(m.node.name, m.candidates[0].rewrite) for m in found] == [
        ("conv1", "input-bottleneck"),
        ("conv1", "kernel-pair"),
        ("conv2", "input-bottleneck"),
    ]
    reason = "a 1x1 convolution has no larger kernel to put behind it"
    assert declined == [Decline("input-bottleneck", ("conv3",), reason)]


def test_candidates_are_put_into_a_clone(scope):
    found, _ = menus(scope, [InputBottleneck()], 4)
    picks = [(m.node.outputs[0].name, m.candidates[0]) for m in found]
    made = with_candidates(scope, picks)
    assert [n.op_type for n in made.graph] == ["Conv", "Conv", "Relu", "Conv", "Conv", "Conv"]
    assert [n.op_type for n in scope.graph] == ["Conv", "Relu", "Conv", "Conv"]
    assert with_candidates(scope, []).graph is not scope.graph
    values = [o.name for n in made.graph for o in n.outputs]
    assert len(set(values)) == len(values)


def test_a_layer_is_found_by_its_output(scope):
    found, _ = menus(scope, [InputBottleneck()], 4)
    clone = scope.model.clone()
    apply(Scope(clone, clone.graph, scope.infos), "c2", found[1].candidates[0])
    assert [n.name for n in clone.graph if n.name in ("conv1", "conv2", "conv3")] == [
        "conv1",
        "conv2",
        "conv3",
    ]
    assert len(clone.graph) == 5


def test_the_context_of_a_layer(scope):
    assert [n.name for n in context_of(scope, node_of(scope, "conv1"))] == ["conv1", "relu"]
    assert [n.name for n in context_of(scope, node_of(scope, "conv2"))] == ["conv2"]
    scope.graph.outputs.append(node_of(scope, "conv1").outputs[0])
    assert [n.name for n in context_of(scope, node_of(scope, "conv1"))] == ["conv1"]
