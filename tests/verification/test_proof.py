"""What passes, what does not, and what is said about it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import build

from graphopt.calibration.dataset import Batch, Dataset
from graphopt.verification.compare import Reference
from graphopt.verification.proof import EXACT_TOLERANCE, Limits, exact_tolerance, prove


@pytest.fixture
def reference(scaled, dataset) -> Reference:
    return Reference(scaled(1.0), dataset())


def test_the_same_model_passes_at_both_levels(reference, scaled):
    proof = prove(reference, scaled(1.0), Limits(EXACT_TOLERANCE))
    assert proof.passed
    assert proof.reason == ""
    assert [(check.name, check.level) for check in proof.checks] == [
        ("y", "disable_all"),
        ("z", "disable_all"),
        ("y", "enable_all"),
        ("z", "enable_all"),
    ]
    assert all(check.passed for check in proof.checks)
    assert not proof.noisy


@pytest.mark.parametrize(("factor", "passes"), [(1.019, True), (1.021, False), (0.5, False)])
def test_the_limit_on_the_error(reference, scaled, factor, passes):
    proof = prove(reference, scaled(factor), Limits(0.02))
    y = [check.passed for check in proof.checks if check.name == "y"]
    assert y == [passes, passes]
    if not passes:
        assert proof.reason.startswith("output 'y' is off by ")
        assert proof.reason.endswith(", more than 0.02")


def test_integer_outputs_count_under_a_tight_limit(scaled):
    """y is within the limit, but every rounding has tipped over."""
    samples = np.full((3, 4), 0.5 - 1e-6, np.float32)
    reference = Reference(scaled(1.0), Dataset((Batch({"x": samples}),), "data", ""))
    proof = prove(reference, scaled(1.00001), Limits(EXACT_TOLERANCE))
    assert not proof.passed
    assert proof.reason == "output 'z': 100.00% of its elements differ"


def test_a_few_ties_of_integer_outputs_may_tip_over(scaled):
    samples = np.zeros((500, 4), np.float32)
    samples[0, 0] = 0.5 - 1e-6
    reference = Reference(scaled(1.0), Dataset((Batch({"x": samples}),), "data", ""))
    found = reference.compare(scaled(1.00001)).distances["z"].mismatches
    assert found == 1 / 2000
    assert prove(reference, scaled(1.00001), Limits(EXACT_TOLERANCE)).passed


def test_integer_outputs_do_not_count_within_a_budget(reference, scaled):
    proof = prove(reference, scaled(1.3), Limits(0.5))
    assert proof.passed
    assert proof.checks[1].comparison.distances["z"].mismatches > 0.1


def test_no_limit_on_the_error(reference, scaled):
    assert prove(reference, scaled(1.5), Limits(None)).passed


def test_the_limit_on_the_drop(scaled):
    """Negated scores: every class is another, the metric falls from 1 to 0."""
    batch = Batch({"x": np.eye(4, dtype=np.float32)}, np.arange(4))
    reference = Reference(scaled(1.0), Dataset((batch,), "data", ""))
    proof = prove(reference, scaled(-1.0), Limits(None, 0.99))
    # argmax of -e_0 is 1, of the others 0.
    assert (proof.metric_before, proof.metric_after) == (1.0, 0.0)
    assert not proof.passed
    assert proof.reason == "the metric falls by 1.0000, more than 0.99"
    assert prove(reference, scaled(2.0), Limits(None, 0.0)).passed


def test_a_metric_that_rises_is_no_fall(scaled, dataset):
    reference = Reference(scaled(1.0), dataset(), metric=lambda o, b: float(abs(o["y"]).mean()))
    assert prove(reference, scaled(3.0), Limits(None, 0.0)).passed
    assert not prove(reference, scaled(0.3), Limits(None, 0.0)).passed


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_result_without_numbers_does_not_pass(reference, scaled, number):
    proof = prove(reference, scaled(number), Limits(None))
    assert not proof.passed
    assert proof.reason == "the result's output 'y' is NaN or infinite"


class TestOwnNoise:
    """The original may be off from itself between the levels; that much is nobody's fault."""

    @pytest.fixture
    def noisy(self, scaled, dataset) -> Reference:
        return Reference(scaled(1.0), dataset(), _own_noise={"y": 0.01, "z": 0.0})

    @pytest.mark.parametrize(("factor", "passes"), [(1.019, True), (1.021, False)])
    def test_twice_the_noise_is_allowed(self, noisy, scaled, factor, passes):
        proof = prove(noisy, scaled(factor), Limits(EXACT_TOLERANCE))
        assert [c.passed for c in proof.checks if c.name == "y"] == [passes, passes]
        assert proof.noisy == ({"y": 0.01} if passes else {})

    def test_it_is_no_excuse_for_another_output(self, noisy, scaled):
        proof = prove(noisy, scaled(1.2), Limits(EXACT_TOLERANCE))
        assert [c.passed for c in proof.checks if c.name == "z"] == [False, False]

    @pytest.mark.parametrize("noise", [0.06, 1.0, np.inf])
    def test_an_original_far_off_from_itself_excuses_nothing(self, scaled, dataset, noise):
        reference = Reference(scaled(1.0), dataset(), _own_noise={"y": noise, "z": noise})
        proof = prove(reference, scaled(1.001), Limits(EXACT_TOLERANCE))
        assert not proof.passed

    def test_it_is_not_asked_when_all_is_well(self, reference, scaled):
        prove(reference, scaled(1.0), Limits(EXACT_TOLERANCE))
        assert reference._own_noise is None


class TestExactTolerance:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [
            (TensorProto.FLOAT, 1e-4),
            (TensorProto.DOUBLE, 1e-4),
            (TensorProto.INT8, 1e-4),
            (TensorProto.FLOAT16, 5e-3),
            (TensorProto.BFLOAT16, 4e-2),
        ],
    )
    def test_follows_the_coarsest_float_type(self, dtype, tolerance):
        network = build("net (float[N,4] x) => (float[N,4] y) <float[4] k> { y = Mul (x, k) }")
        network.graph.initializer.append(helper.make_tensor("h", dtype, [1], [1.0]))
        assert exact_tolerance(ir.from_proto(network)) == tolerance

    def test_looks_into_bodies(self):
        branch = helper.make_graph(
            [helper.make_node("Cast", ["h"], ["o"], to=TensorProto.FLOAT)],
            "branch",
            [],
            [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])],
            [numpy_helper.from_array(np.ones(1, np.float16), "h")],
        )
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )
        assert exact_tolerance(ir.from_proto(helper.make_model(graph))) == 5e-3
