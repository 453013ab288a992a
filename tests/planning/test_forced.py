"""What is made of a structure that was asked for: candidates, prices, limits, and that it stays."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt.cost.latency import Timing
from graphopt.errors import BudgetError, InputError
from graphopt.factorize.weighting import Weighting
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import bind_inputs, infer
from graphopt.planning.budget import Budget
from graphopt.planning.forced import ForcedLayer, candidate_of, keep_to, priced, remarks
from graphopt.planning.guard import Measured
from graphopt.planning.ranks import parse, structures
from graphopt.planning.workshop import Workshop, identity_moments
from graphopt.progress import Silent
from graphopt.rewrites import APPROXIMATE
from graphopt.rewrites.base import Decline
from graphopt.rewrites.driver import Driver
from graphopt.rewrites.exact.compose_convs import ComposeConvs
from graphopt.rewrites.exact.compose_fcs import ComposeFcs
from graphopt.rewrites.exact.merge_branches import MergeBranches
from graphopt.rewrites.exact.merge_parallel import MergeParallel
from graphopt.rewrites.ledger import Ledger
from graphopt.rewrites.respecting import MARK, respecting

NET = """
net (float[1,8,9,9] x) => (float[1,6,9,9] y)
<float[12,8,3,3] v, float[12] b, float[6,12,1,1] p>
{ a = Conv <pads = [1,1,1,1]> (x, v, b)  r = Relu (a)  y = Conv (r, p) }
"""


def scope_of(text, **weights):
    model = ir.from_proto(build(text, weights=weights))
    return Scope(model, model.graph, infer(model, bind_inputs(model.graph, {})))


@pytest.fixture
def scope():
    return scope_of(NET)


def candidates(scope, text, moments=lambda layer: identity_moments(layer)):
    wanted = structures(parse(text), scope, APPROXIMATE, scope.graph)
    workshop = Workshop({s.layer.name: moments(s.layer) for s in wanted}, 16)
    return [candidate_of(structure, workshop) for structure in wanted]


def put(scope, text):
    """Put what is asked for into the model itself."""
    for candidate in candidates(scope, text):
        layer = ForcedLayer.of(candidate.realised)
        node = next(n for n in scope.graph if n.outputs[0].name == candidate.layer.name)
        layer.propose(scope, node).apply()


def weights(scope):
    return [n.inputs[1].const_value.shape.numpy() for n in scope.graph if n.op_type == "Conv"]


class TestCandidates:
    def test_what_the_report_will_say(self, scope):
        one, two = candidates(scope, "y=3,a=two-sided:2x5")
        assert one.options == {"rank_in": 2, "rank_out": 5, "forced": True}
        assert two.options == {"rank": 3, "forced": True}
        assert (one.rewrite, two.rewrite) == ("two-sided", "output-bottleneck")
        assert one.realised.propose(scope, one.layer.node).options == one.options

    def test_worthwhile_or_not(self, scope):
        """Ranks are no multiples of the block, and a structure may cost more than the layer."""
        (candidate,) = candidates(scope, "a=8")
        assert candidate.macs_ratio == pytest.approx(1 + 8 * 8 / (12 * 8 * 9))
        assert candidate.parameters_ratio == candidate.macs_ratio
        assert candidate.error < 1e-7

    def test_the_error_of_its_response(self, scope):
        (candidate,) = candidates(scope, "a=5")
        (composite,) = candidate.realised.factored.composite
        weight = candidate.layer.weight.reshape(12, -1).astype(np.float64)
        off = np.linalg.norm(composite - weight) / np.linalg.norm(weight)
        assert candidate.error == pytest.approx(off)
        assert 0.1 < off < 0.9

    def test_a_layer_that_answers_nothing(self):
        scope = scope_of(NET, v=np.zeros((12, 8, 3, 3), np.float32))
        (candidate,) = candidates(scope, "a=2")
        assert candidate.error == 0
        assert np.all(candidate.realised.factored.composite[0] == 0)

    def test_what_a_layer_sees_is_not_finite(self, scope):
        def moments(layer):
            (found,) = identity_moments(layer)
            return [replace(found, gram=np.full_like(found.gram, np.inf))]

        with pytest.raises(InputError, match="--ranks a: what it sees on the data is not finite"):
            candidates(scope, "a=3", moments)

    def test_outputs_that_are_not_mixed_are_fitted_each_on_its_own(self, scope):
        """In a metric of the outputs the factors would be mapped back by a matrix."""
        (structure,) = structures(
            parse("a=decoupled-pointwise-first:5"), scope, APPROXIMATE, scope.graph
        )
        layer = structure.layer
        metric = np.random.default_rng(0).standard_normal((12, 12))
        weighting = {layer.name: (Weighting.of(metric @ metric.T),)}
        moments = {layer.name: identity_moments(layer)}
        plain = candidate_of(structure, Workshop(moments, 16))
        candidate = candidate_of(structure, Workshop(moments, 16, weighting))
        assert candidate.error == plain.error < 0.9
        for one, other in zip(
            candidate.realised.factored.composite, plain.realised.factored.composite, strict=True
        ):
            np.testing.assert_array_equal(one, other)


class TestStaying:
    """A 1x1 of full rank before a 3x3 is dearer than the 3x3 alone: composing would take it away."""

    def driver(self, scope, *rewrites):
        driver = Driver(scope.model, dict(scope.infos), Ledger())
        driver.census.take()  # as after every change: shapes of what was put in
        driver.to_fixpoint(rewrites)
        return driver

    def test_every_node_is_marked(self, scope):
        put(scope, "a=decoupled:2")
        marks = [node.metadata_props.get(MARK) for node in scope.graph]
        assert marks == ["a"] * 5 + [None, None]

    def test_without_the_mark_it_is_composed_away(self, scope):
        put(scope, "a=8")
        assert weights(scope) == [(8, 8, 1, 1), (12, 8, 3, 3), (6, 12, 1, 1)]
        self.driver(scope, ComposeConvs())
        assert weights(scope) == [(12, 8, 3, 3), (6, 12, 1, 1)]

    def test_with_it_it_stays_and_that_is_said(self, scope):
        put(scope, "a=8")
        driver = self.driver(scope, *respecting([ComposeConvs()]))
        assert weights(scope) == [(8, 8, 1, 1), (12, 8, 3, 3), (6, 12, 1, 1)]
        assert [(d.rewrite, d.reason) for d in driver.declined] == [
            ("compose-convs", "it is as --ranks asked for it")
        ]
        assert all(isinstance(decline, Decline) for decline in driver.declined)

    def test_what_is_not_marked_is_composed(self):
        text = NET.replace("r = Relu (a)", "r = Relu (a)  s = Conv (r, q)").replace(
            "y = Conv (r, p)", "y = Conv (s, p)"
        )
        text = text.replace("float[6,12,1,1] p", "float[12,12,1,1] q, float[6,12,1,1] p")
        scope = scope_of(text)
        put(scope, "a=8")
        self.driver(scope, *respecting([ComposeConvs()]))
        assert weights(scope) == [(8, 8, 1, 1), (12, 8, 3, 3), (6, 12, 1, 1)]

    def test_parallel_terms_stay_apart(self):
        """Two terms of a layer of two outputs cost more than the layer."""
        text = """
        net (float[1,8,9,9] x) => (float[1,2,9,9] y) <float[2,8,3,3] w>
        { y = Conv <pads = [1,1,1,1]> (x, w) }
        """
        rewrites = (ComposeConvs(), MergeBranches())
        undone, kept = scope_of(text), scope_of(text)
        for scope in (undone, kept):
            put(scope, "y=decoupled:2")
        self.driver(undone, *rewrites)
        self.driver(kept, *respecting(rewrites))
        assert weights(undone) == [(2, 8, 3, 3)]
        assert sorted(weights(kept)) == [(2, 8, 1, 1)] * 2 + [(8, 1, 3, 3)] * 2

    def test_what_joins_nothing_is_left_as_it_is(self):
        rewrites = (ComposeConvs(), ComposeFcs(), MergeBranches(), MergeParallel())
        kept = respecting(rewrites)
        assert [rewrite.name for rewrite in kept] == [rewrite.name for rewrite in rewrites]
        assert kept[3] is rewrites[3]
        assert kept[0] is not rewrites[0]


class Guard:
    """Gives what it is told to."""

    def __init__(self, error=0.1, drop=None, expected=None, speedup=1.5):
        self.found, self.speed = Measured(error, drop, expected), speedup
        self.asked = []

    def fitting_error(self, model):
        self.asked.append("fitting")
        return self.found.error

    def held_out(self, model):
        self.asked.append("held out")
        return self.found

    def speedup(self, model):
        self.asked.append("speed")
        return self.speed


class TestLimits:
    @pytest.mark.parametrize(
        ("budget", "guard"),
        [
            (Budget(), Guard(error=9.0)),
            (Budget(max_error=0.1), Guard(error=0.1)),
            (Budget(max_drop=0.01), Guard(error=9.0, drop=0.01, expected=0.0)),
            (Budget(speedup=1.5), Guard(error=9.0)),
            (Budget(0.2, 0.1, 1.2), Guard(0.2, 0.1, 0.1, 1.2)),
        ],
    )
    def test_kept(self, budget, guard):
        keep_to(budget, guard, None)

    @pytest.mark.parametrize(
        ("budget", "guard", "complaint"),
        [
            (Budget(max_error=0.1), Guard(0.123), "off by 0.123, more than --max-error 0.1"),
            (Budget(max_error=0.1), Guard(math.nan), "off by nan"),
            (
                Budget(max_drop=0.01),
                Guard(0.3, 0.02, 0.015),
                "falls by 0.0200, more than --max-drop 0.01 (the outputs are off by 0.3)",
            ),
            (Budget(max_drop=0.01), Guard(0.3, 0.0, 0.015), "falls by 0.0150"),
            (Budget(speedup=2.0), Guard(), "1.50x as fast, not the 2x that --speedup asks for"),
            (Budget(max_error=0.5, speedup=2.0), Guard(), "1.50x as fast"),
            (Budget(max_error=0.05, speedup=1.2), Guard(), "more than --max-error 0.05"),
        ],
    )
    def test_broken(self, budget, guard, complaint):
        with pytest.raises(BudgetError) as error:
            keep_to(budget, guard, None)
        assert complaint in str(error.value)

    def test_nothing_is_measured_without_a_limit(self):
        guard = Guard()
        keep_to(Budget(), guard, None)
        assert guard.asked == []


SLOWER = Timing(100.0, 130.0, 1.3, 1.2, 1.4, 9)
FASTER = Timing(100.0, 50.0, 0.5, 0.4, 0.6, 9)


def stopwatch(timing, shares=True):
    share = Timing(1000.0, 300.0, 0.3, 0.29, 0.31, 9)
    return SimpleNamespace(
        shares=lambda scope, parts: dict.fromkeys(parts, share) if shares else {},
        rewritten=lambda scope, nodes, rewrite: timing,
    )


def planned(scope, text, timer, guard=None):
    return priced(candidates(scope, text), scope, guard or Guard(), timer, Silent())


class TestPrices:
    def test_nothing_is_turned_down(self, scope):
        plan, whole_us = planned(scope, "a=8,y=3", stopwatch(SLOWER), Guard(error=math.inf))
        assert [choice.layer for choice in plan] == ["a", "y"]
        assert [choice.measured for choice in plan] == [math.inf, math.inf]
        assert whole_us == 1000.0

    def test_times_are_shares_of_the_whole_model(self, scope):
        (choice,), _ = planned(scope, "a=3", stopwatch(FASTER))
        assert choice.timing.before_us == pytest.approx(300)
        assert choice.timing.after_us == choice.saved_us == pytest.approx(150)
        (choice,), whole_us = planned(scope, "a=3", stopwatch(FASTER, shares=False))
        assert (choice.timing, whole_us) == (FASTER, None)

    def test_without_measuring_there_are_no_times(self, scope):
        (choice,), whole_us = planned(scope, "a=3", None)
        assert (choice.timing, choice.saved_us, whole_us) == (None, 0.0, None)
        assert choice.error == choice.measured == 0.1


class TestRemarks:
    def test_a_structure_that_saves_nothing(self, scope):
        plan, _ = planned(scope, "a=8", None)
        assert list(remarks(plan)) == [
            "a: input-bottleneck 8 saves nothing (1.07 of the layer's multiplications, 1.07 of its "
            "weights); --ranks asked for it"
        ]

    def test_one_that_is_not_faster(self, scope):
        plan, _ = planned(scope, "a=two-sided:2x3", stopwatch(SLOWER))
        assert list(remarks(plan)) == [
            "a: two-sided 2x3 is not measurably faster (1.30 of the layer's time); --ranks asked "
            "for it"
        ]

    def test_one_that_pays(self, scope):
        plan, _ = planned(scope, "a=2", stopwatch(FASTER))
        assert list(remarks(plan)) == []
