"""The reference: runs once, is kept, and is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_text import build

from graphopt.calibration.dataset import Batch, Dataset
from graphopt.errors import InputError, VerificationError
from graphopt.verification import compare
from graphopt.verification.compare import Reference


@pytest.fixture
def runs(monkeypatch) -> list:
    """Every session that was run."""
    seen = []
    real = compare.run

    def spy(session, feeds, outputs=None):
        seen.append(session)
        return real(session, feeds, outputs)

    monkeypatch.setattr(compare, "run", spy)
    return seen


def test_distances(scaled, dataset):
    found = Reference(scaled(1.0), dataset()).compare(scaled(1.5))
    assert found.error == pytest.approx(0.5, rel=1e-6)
    assert found.distances["y"].relative_l2 == found.error
    assert found.dtypes == {"y": "float32", "z": "int64"}
    assert found.distances["z"].mismatches > 0.5
    assert found.drop is None


def test_the_original_runs_once(scaled, dataset, runs):
    reference = Reference(scaled(1.0), dataset(4))
    reference.check()
    for _ in range(3):
        reference.compare(scaled(2.0))
    assert sum(session is reference.session for session in runs) == 4
    assert len(runs) == 4 + 3 * 4


def test_no_more_is_kept_than_the_cap(scaled, dataset, runs, monkeypatch):
    monkeypatch.setattr(compare, "_KEPT_BYTES", 2 * (3 * 4 * 4 + 3 * 4 * 8))
    reference = Reference(scaled(1.0), dataset(4))
    first, second = (reference.compare(scaled(2.0)) for _ in range(2))
    assert sum(session is reference.session for session in runs) == 4 + 2
    assert first.error == second.error


def test_own_noise_is_measured_once_and_small(scaled, dataset, runs):
    reference = Reference(scaled(1.0), dataset(4))
    assert reference.own_noise() == reference.own_noise() == {"y": 0.0, "z": 0.0}
    assert len(runs) == 8


class TestMetrics:
    def test_top1_needs_all_labels(self, scaled, dataset):
        assert not Reference(scaled(1.0), dataset()).has_metric
        labelled = dataset(2, labels=True)
        assert Reference(scaled(1.0), labelled).has_metric
        half = Dataset((*labelled.batches, *dataset(1).batches), "data", "")
        assert not Reference(scaled(1.0), half).has_metric

    def test_top1_is_averaged_over_samples(self, scaled):
        """3 of 3 and 0 of 1: 0.75, not the mean of the batches."""
        right, wrong = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[:1]
        batches = (Batch({"x": right[:3]}, np.arange(3)), Batch({"x": wrong}, np.array([2])))
        found = Reference(scaled(1.0), Dataset(batches, "data", "")).compare(scaled(-1.0))
        assert found.metric_before == 0.75
        assert found.metric_after == 0.0  # the negated scores are largest at another class
        assert found.drop == 0.75

    def test_a_metric_of_the_users(self, scaled, dataset):
        def total(outputs, batch):
            assert set(outputs) == {"y", "z"}
            assert set(batch) == {"x", "labels"}
            return float(np.abs(outputs["y"]).sum())

        found = Reference(scaled(1.0), dataset(labels=True), metric=total).compare(scaled(0.5))
        assert found.metric_after == pytest.approx(found.metric_before / 2, rel=1e-6)

    def test_one_that_fails_is_an_input_error_at_once(self, scaled, dataset):
        with pytest.raises(InputError, match="the metric raised ZeroDivisionError"):
            Reference(scaled(1.0), dataset(), metric=lambda o, b: 1 / 0).check()

    def test_one_that_is_nan_for_the_result_fails_the_result(self, scaled, dataset):
        """Not a number is no fall of zero."""

        def metric(outputs, batch):
            return np.nan if outputs["y"].max() > batch["x"].max() else 1.0

        reference = Reference(scaled(1.0), dataset(), metric=metric)
        reference.check()
        with pytest.raises(VerificationError, match="the metric is nan"):
            reference.compare(scaled(2.0))

    def test_labels_without_a_classification(self, dataset):
        network = build("net (float[N,4] x) => (int64[N,4] y) { y = Cast <to = 7> (x) }")
        with pytest.raises(InputError, match="no output is a classification"):
            Reference(network.SerializeToString(), dataset(labels=True)).check()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
class TestNumbers:
    def test_an_original_without_numbers(self, scaled, dataset, bad):
        with pytest.raises(VerificationError, match="the original's output 'y' is NaN or infinite"):
            Reference(scaled(bad), dataset()).check()
        with pytest.raises(VerificationError, match="the original's output 'y' is NaN or infinite"):
            Reference(scaled(bad), dataset()).compare(scaled(1.0))

    def test_a_result_without_numbers(self, scaled, dataset, bad):
        with pytest.raises(VerificationError, match="the result's output 'y' is NaN or infinite"):
            Reference(scaled(1.0), dataset()).compare(scaled(bad))


def test_outputs_of_another_name(scaled, dataset):
    network = build("net (float[N,4] x) => (float[N,4] other) { other = Relu (x) }")
    with pytest.raises(VerificationError, match="not named as the original's"):
        Reference(scaled(1.0), dataset()).compare(network.SerializeToString())


def test_outputs_of_another_shape(dataset):
    one = build("net (float[N,4] x) => (float[N,4] y) { y = Relu (x) }")
    two = build("net (float[N,4] x) => (float[a,b] y) { y = Transpose (x) }")
    with pytest.raises(
        VerificationError, match=r"output 'y' has shape \(4, 3\) instead of \(3, 4\)"
    ):
        Reference(one.SerializeToString(), dataset()).compare(two.SerializeToString())


def test_outputs_that_are_no_tensors(dataset):
    network = build("net (float[N,4] x) => (seq(float[N,4]) y) { y = SequenceConstruct (x) }")
    with pytest.raises(VerificationError, match="is not a tensor and cannot be compared"):
        Reference(network.SerializeToString(), dataset()).check()


def test_a_model_that_cannot_be_opened(scaled, dataset):
    with pytest.raises(InputError, match="onnxruntime cannot load the model"):
        Reference(scaled(1.0), dataset()).compare(b"no model")
