"""Menus and prices, with a stopwatch and a guard whose answers are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.cost.latency import Timing
from graphopt.cost.recall import Recall
from graphopt.cost.table import LatencyTable
from graphopt.graph.io import session_source
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.planning.choices import context_of, place, price, with_candidates
from graphopt.planning.menus import layers_of, menus
from graphopt.planning.workshop import Workshop, identity_moments
from graphopt.progress import Silent
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.kernel_chain import KernelChain
from graphopt.rewrites.base import Decline, Proposal
from graphopt.runtime import open_session, run

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


LAYERS = {"conv1": "c1", "conv2": "c2", "conv3": "y"}


@dataclass(eq=False)
class Fake:
    """A candidate, and what it is made into: it changes nothing but the name of its layer."""

    error: float
    macs_ratio: float = 0.5
    rewrite: str = "fake"
    label: str = ""
    layer: Any = None

    @property
    def candidate(self):
        return self

    @property
    def realised(self):
        return self

    @property
    def sketch(self):
        return self

    def propose(self, scope, node):
        def edit():
            node.name = f"{self.rewrite}:{self.error}:{self.label}"

        return Proposal(self.rewrite, (node,), edit)


fake = Fake


@dataclass
class FakeGuard:
    """The output error is `factor` times the weight error of the candidates in the model."""

    factor: float = 2.0
    power: float = 1.0
    rounding: float = 0.0
    asked: list[list[str]] = field(default_factory=list)

    def fitting_error(self, model):
        found = [n.name for n in model.graph if ":" in (n.name or "")]
        self.asked.append(found)
        total = sum(float(name.split(":")[1]) ** self.power for name in found)
        return self.factor * total + self.rounding

    def held_out(self, model):
        raise AssertionError("prices are about fitting inputs")

    def speedup(self, model):
        raise AssertionError("a candidate is timed alone")


@dataclass
class FakeStopwatch:
    """Answers by the candidate's label: 'ratio,ratio_high', or 'none'."""

    before_us: float = 200.0
    seen: list[tuple[str, ...]] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    careful: Any = None

    def shares(self, scope, parts):
        """Of a model that takes 1000 us, and twice that when a part is timed later."""
        found = {}
        for index, (name, nodes) in enumerate(parts.items()):
            assert nodes[0].op_type == "Conv"
            if name in self.parts:
                whole, share = 1000.0 * (index + 1), self.parts[name]
                found[name] = Timing(whole, whole * share, share, share, share, 9)
        return found

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
    offered = {LAYERS[name]: list(candidates) for name, candidates in offers}
    for layer, candidates in offered.items():
        for candidate in candidates:
            candidate.layer = SimpleNamespace(name=layer)
    guard = guard or FakeGuard()
    prices = price(scope, offered, offered.items(), guard, stopwatch, Silent())
    return {
        o.layer: [(c.candidate.error, c.saved_us, c.error) for c in o.choices]
        for o in prices.options
    }, list(prices.declined)


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


def test_a_machine_that_slows_down_does_not_change_the_order(scope):
    """Candidates were timed at different minutes; what they save is a share of one layer's time."""

    class Drifting(FakeStopwatch):
        def rewritten(self, *args, **more):
            self.before_us *= 1.5
            return super().rewritten(*args, **more)

    candidates = [
        fake(0.5, label="0.4,0.4"),
        fake(0.3, label="0.5,0.5"),
        fake(0.1, label="0.7,0.7"),
    ]
    found, _ = priced(scope, [("conv1", candidates)], stopwatch=Drifting())
    saved = [saved for _, saved, _ in found["c1"]]
    assert saved == pytest.approx([one * 375 for one in (0.6, 0.5, 0.3)]), "between 300 and 450 us"


def test_candidates_that_look_best_are_timed_again(scope):
    """A lucky one among many falls back, what is then best is timed as well, the others are not."""

    truth = {"lucky": 0.9, "next": 0.6, "fine": 0.5, "worse": 0.1}

    class Careful(FakeStopwatch):
        def rewritten(self, scope, nodes, rewrite, **_: Any):
            clone = scope.model.clone()
            assert rewrite(Scope(clone, clone.graph, scope.infos))
            (name,) = [n.name.split(":")[0] for n in clone.graph if ":" in (n.name or "")]
            self.seen.append((name,))
            ratio = truth[name]
            return Timing(200.0, 200.0 * ratio, ratio, ratio, ratio, 99)

    careful = Careful()
    offers = [
        fake(0.10, rewrite="lucky", label="0.2,0.3"),
        fake(0.11, rewrite="next", label="0.55,0.6"),
        fake(0.12, rewrite="worse", label="0.9,0.95"),
        fake(0.50, rewrite="fine", label="0.15,0.2"),
    ]
    found, _ = priced(scope, [("conv1", offers)], stopwatch=FakeStopwatch(careful=careful))
    assert sorted(careful.seen) == [("fine",), ("lucky",), ("next",)]
    saved = {error: saved for error, saved, _ in found["c1"]}
    assert saved == pytest.approx({0.10: 20.0, 0.11: 80.0, 0.12: 20.0, 0.50: 100.0})


def test_layers_are_compared_by_their_shares_of_the_whole_model(scope):
    """The second layer was timed when the machine was half as fast, which its share does not show."""
    stopwatch = FakeStopwatch(parts={"c1": 0.3, "c2": 0.2})
    offers = [(name, [fake(0.5, label="0.4,0.45")]) for name in ("conv1", "conv2")]
    found, _ = priced(scope, offers, stopwatch=stopwatch)
    saved = {layer: entry[0][1] for layer, entry in found.items()}
    assert saved["c1"] / saved["c2"] == pytest.approx(1.5)
    assert saved["c1"] == pytest.approx(0.3 * 0.6 * 1250), "of the lower quartile of 1000 and 2000"


def test_a_layer_without_a_faster_candidate_says_so(scope):
    offers = [
        (
            "conv1",
            [
                fake(0.5, label="1.1,1.2"),
                fake(0.4, label="none"),
                fake(0.5, rewrite="other", label="0.5,0.6"),
            ],
        ),
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


@dataclass(frozen=True)
class FakeRecall(Recall):
    """Knows what FakeStopwatch would have measured; `pairs` 0 for a prediction."""

    pairs: int = 9

    def rewritten(self, scope, nodes, rewrite, **_: Any):
        found = FakeStopwatch().rewritten(scope, nodes, rewrite)
        return None if found is None else replace(found, pairs=self.pairs)


@pytest.mark.parametrize("pairs", [9, 0])
def test_without_a_stopwatch_the_table_answers_and_macs_fill_the_gaps(scope, pairs):
    candidates = [
        fake(0.5, label="0.4,0.4"),
        fake(0.4, label="1.1,1.1"),
        fake(0.3, label="none", macs_ratio=0.25),
    ]
    for candidate in candidates:
        candidate.layer = SimpleNamespace(name="c1")
    recall = FakeRecall(LatencyTable(), pairs=pairs)
    offered = [("c1", candidates)]
    (option,) = price(scope, ["c1"], offered, FakeGuard(), recall, Silent()).options
    first, last = option.choices
    assert first.saved_us == pytest.approx(200 * 0.6)
    assert (first.timing is not None) == (pairs > 0), "only what was measured is reported as such"
    assert (last.candidate.error, last.timing) == (0.3, None)
    assert last.saved_us > 0


def test_a_candidate_with_more_macs_is_dropped_without_a_stopwatch(scope):
    found, declined = priced(scope, [("conv1", [fake(0.5, macs_ratio=1.0)])])
    assert found == {}
    assert len(declined) == 1


def test_a_few_candidates_are_measured_the_best_and_the_worst_among_them(scope):
    guard = FakeGuard(factor=3.0)
    errors = [0.5, 0.01, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.03]
    found, _ = priced(scope, [("conv1", [fake(e) for e in errors])], guard)
    assert [error for _, _, error in found["c1"]] == [pytest.approx(3 * e) for e in errors]
    asked = [float(name.split(":")[1]) for (name,) in guard.asked]
    assert len(asked) == 5
    assert asked == sorted(asked)
    assert (asked[0], asked[-1]) == (0.01, 0.5)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_between_measured_candidates_a_power_law_is_read_off_exactly(scope, power):
    errors = list(np.geomspace(1e-3, 0.5, 17))
    guard = FakeGuard(factor=0.7, power=power)
    found, _ = priced(scope, [("conv1", [fake(e) for e in errors])], guard)
    assert len(guard.asked) == 5
    assert [error for _, _, error in found["c1"]] == [pytest.approx(0.7 * e**power) for e in errors]


def test_output_errors_never_fall_where_response_errors_rise(scope):
    """Measured: 4, 1, 2 for ever coarser fits. Noise must not make a coarse fit look good."""

    class Bumpy(FakeGuard):
        def fitting_error(self, model):
            super().fitting_error(model)
            return {0.1: 0.4, 0.2: 0.1, 0.3: 0.2, 0.4: 0.5}[float(self.asked[-1][0].split(":")[1])]

    found, _ = priced(scope, [("conv1", [fake(e) for e in (0.3, 0.1, 0.4, 0.2)])], Bumpy())
    by_error = {own: error for own, _, error in found["c1"]}
    assert by_error == pytest.approx({0.1: 0.4, 0.2: 0.4, 0.3: 0.4, 0.4: 0.5})


def test_all_schemes_of_a_layer_are_on_one_menu(scope):
    guard = FakeGuard()
    offers = [("conv1", [fake(0.5), fake(0.4, rewrite="b")]), ("conv2", [fake(0.1)])]
    found, _ = priced(scope, offers, guard)
    assert {layer: len(choices) for layer, choices in found.items()} == {"c1": 2, "c2": 1}
    assert len(guard.asked) == 3


def test_candidates_that_are_exact_up_to_rounding(scope):
    guard = FakeGuard(factor=2.0, rounding=1e-6)
    found, _ = priced(scope, [("conv1", [fake(0.3), fake(2e-8), fake(0.0)])], guard)
    errors = [error for _, _, error in found["c1"]]
    assert errors == pytest.approx([0.6, 1e-6, 1e-6], rel=0.1)
    assert errors == sorted(errors, reverse=True)


def test_a_layer_that_does_not_reach_the_output_costs_nothing(scope):
    found, _ = priced(scope, [("conv1", [fake(0.5), fake(0.1)])], FakeGuard(factor=0.0))
    assert [error for _, _, error in found["c1"]] == pytest.approx([0.0, 0.0], abs=1e-8)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_candidate_without_a_finite_response_error_is_dropped(scope, bad):
    guard = FakeGuard()
    found, declined = priced(scope, [("conv1", [fake(bad), fake(0.2), fake(0.1)])], guard)
    assert found["c1"] == [(0.2, ANY, pytest.approx(0.4)), (0.1, ANY, pytest.approx(0.2))]
    assert declined == []
    assert len(guard.asked) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_layer_whose_candidate_does_not_run_is_declined(scope, bad):
    # Its errors would be infinite or, times zero, no number at all: nothing to sort by.
    offers = [("conv1", [fake(0.5), fake(0.0), fake(0.3, rewrite="b")])]
    found, declined = priced(scope, offers, FakeGuard(rounding=bad))
    assert found == {}
    assert [(d.rewrite, d.site) for d in declined] == [("fake", ("conv1",)), ("b", ("conv1",))]
    assert {d.reason for d in declined} == {
        "the outputs are not finite, or no longer zero, with a candidate in place"
    }


def offered(scope, *schemes):
    """Layer name -> candidates fitted to the weights alone."""
    layers, declined = layers_of(scope, schemes)
    (pointwise,) = declined
    assert pointwise.site == ("conv3",)
    assert "no kernel larger than 1x1" in pointwise.reason
    workshop = Workshop({layer.name: identity_moments(layer) for layer in layers}, 4)
    return {menu.layer: menu.candidates for menu in menus(layers, schemes, workshop)}


def test_the_menus_of_a_graph(scope):
    found = offered(scope, InputBottleneck(), KernelChain())
    assert list(found) == ["c1", "c2"], "nothing here applies to a 1x1 convolution"
    assert {c.rewrite for c in found["c1"]} == {"input-bottleneck", KernelChain().name}
    assert {c.rewrite for c in found["c2"]} == {"input-bottleneck"}


def test_candidates_are_put_into_a_clone(scope):
    found = offered(scope, InputBottleneck())
    picks = [candidates[0].realised for candidates in found.values()]
    made = with_candidates(scope, picks)
    assert [n.op_type for n in made.graph] == ["Conv", "Conv", "Relu", "Conv", "Conv", "Conv"]
    assert [n.op_type for n in scope.graph] == ["Conv", "Relu", "Conv", "Conv"]
    assert with_candidates(scope, []).graph is not scope.graph
    values = [o.name for n in made.graph for o in n.outputs]
    assert len(set(values)) == len(values)
    assert {"c1", "r1", "c2", "y"} <= set(values), "what later layers see keeps its name"


def test_candidates_can_be_put_in_in_any_order(scope):
    found = offered(scope, InputBottleneck())
    picks = [candidates[-1].realised for candidates in found.values()]
    x = {"x": np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)}
    results = []
    for order in (picks, picks[::-1]):
        with session_source(with_candidates(scope, order)) as source:
            results.append(run(open_session(source), x)[0])
    assert np.array_equal(*results)


def test_a_layer_is_found_by_its_output(scope):
    found = offered(scope, InputBottleneck())
    clone = scope.model.clone()
    place(Scope(clone, clone.graph, scope.infos), found["c2"][0].realised)
    assert [n.name for n in clone.graph if n.name in ("conv1", "conv2", "conv3")] == [
        "conv1",
        "conv2",
        "conv3",
    ]
    assert len(clone.graph) == 5


def test_real_candidates_are_priced_by_what_they_do_to_the_outputs(scope):
    """Without a stopwatch and with a guard that really measures."""
    x = {"x": np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)}

    def outputs(model):
        with session_source(model) as source:
            return run(open_session(source), x)[0]

    class Guard(FakeGuard):
        def fitting_error(self, model):
            wanted = outputs(scope.model)
            return float(np.linalg.norm(outputs(model) - wanted) / np.linalg.norm(wanted))

    found = offered(scope, InputBottleneck())
    prices = price(scope, found, found.items(), Guard(), None, Silent())
    options, declined = prices.options, list(prices.declined)
    assert declined == []
    assert [option.layer for option in options] == ["c1", "c2"]
    for option in options:
        for choice in option.choices:
            alone = Guard().fitting_error(with_candidates(scope, [choice.candidate.realised]))
            assert choice.error == pytest.approx(alone, rel=1e-3)
            assert choice.saved_us > 0


def test_the_context_of_a_layer(scope):
    assert [n.name for n in context_of(scope, node_of(scope, "conv1"))] == ["conv1", "relu"]
    assert [n.name for n in context_of(scope, node_of(scope, "conv2"))] == ["conv2"]
    scope.graph.outputs.append(node_of(scope, "conv1").outputs[0])
    assert [n.name for n in context_of(scope, node_of(scope, "conv1"))] == ["conv1"]
