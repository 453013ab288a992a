"""Real networks that other people trained: nothing lost, nothing left to do, figures that hold."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import Budget
from graphopt.calibration.dataset import split
from graphopt.calibration.readers import read
from graphopt.graph.io import load

NETWORKS = (
    "cifar5x5_winml",
    "cnn5x5_cifar10",
    "lenet",
    "mnist_cntk",
    "ppocrv3_det",
    "resnet20_cifar10",
    "resnet50_stem",
    "resnet56_cifar10",
    "squeezenet1_1",
    "super_resolution10",
    "ultraface_rfb320",
    "vgg8_cifar10",
)
PICTURE = {"ppocrv3_det": (1, 3, 224, 224)}
"""What graphopt settles on where every dimension is open."""

BUDGETED = ("vgg8_cifar10", "cnn5x5_cifar10", "super_resolution10")
MAX_ERROR = 0.05

Result = Any  # conformance_tools.Result


def _ones(result: Result, name: str) -> Mapping[str, np.ndarray]:
    """A feed of one sample, in the shapes the report's figures are about."""
    graph = onnx.load(result.original).graph
    stored = {tensor.name for tensor in graph.initializer}
    (value,) = (v for v in graph.input if v.name not in stored)
    declared = [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    return {value.name: np.ones(PICTURE.get(name, tuple(declared)), np.float32)}


def _outputs(path: Path) -> list[str]:
    return [value.name for value in onnx.load(path).graph.output]


def test_the_zoo_is_the_one_these_tests_know(zoo: Path) -> None:
    assert sorted(path.stem for path in (zoo / "models").glob("*.onnx")) == sorted(NETWORKS)


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lossless(
    name: str, zoo: Path, tools: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """A network optimized without options (but for --no-bench)."""
    return tools.run_graphopt(zoo / "models" / f"{name}.onnx", tmp_path_factory.mktemp(name))


class TestWithoutOptions:
    def test_is_verified_at_both_levels(self, lossless: Result, tools: ModuleType) -> None:
        tools.assert_verified(lossless.report, _outputs(lossless.original))

    def test_leaves_no_batch_normalization(self, lossless: Result, tools: ModuleType) -> None:
        assert tools.operators(lossless.optimized)["BatchNormalization"] == 0

    def test_keeps_the_interface(self, lossless: Result, tools: ModuleType) -> None:
        assert tools.interface(lossless.optimized) == tools.interface(lossless.original)

    def test_changes_nothing_the_second_time(
        self, lossless: Result, tools: ModuleType, tmp_path: Path
    ) -> None:
        tools.assert_second_run_is_idle(lossless, tmp_path)

    def test_figures_are_those_of_the_files(
        self, lossless: Result, name: str, tools: ModuleType
    ) -> None:
        feed = _ones(lossless, name)
        before, after = (tools.count(p, feed) for p in (lossless.original, lossless.optimized))
        tools.assert_figures_hold(lossless.report, before, after)
        assert after.nodes <= before.nodes
        assert after.macs <= before.macs

    def test_keeps_the_score_on_a_few_samples(
        self, lossless: Result, name: str, scoring: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pages = scoring._pages  # zoo.py limits classifiers only, and these pages are large
        monkeypatch.setattr(scoring, "_pages", lambda part: islice(pages(part), 2))
        _assert_same_score(scoring, name, lossless.optimized, limit=100)

    @pytest.mark.slow
    def test_keeps_the_score(self, lossless: Result, name: str, scoring: ModuleType) -> None:
        _assert_same_score(scoring, name, lossless.optimized, limit=None)


def _assert_same_score(scoring: ModuleType, name: str, optimized: Path, limit: int | None) -> None:
    before, after = (scoring.score(name, path, limit) for path in (None, optimized))
    assert before["samples"] == after["samples"]
    assert after["value"] == pytest.approx(before["value"], abs=5e-5)


@pytest.mark.parametrize("name", ["cifar5x5_winml"], indirect=True)
def test_with_timing_the_second_run_is_idle_too(
    name: str, zoo: Path, tools: ModuleType, tmp_path: Path
) -> None:
    """With measuring on, fully connected layers are a matter of what is faster."""
    (tmp_path / "again").mkdir()
    result = tools.run_graphopt(zoo / "models" / f"{name}.onnx", tmp_path, bench=True)
    tools.assert_verified(result.report, _outputs(result.original))
    assert [row.batch for row in result.report.latency] == [1, 8]
    assert all(0 < r.ratio_low <= r.ratio <= r.ratio_high for r in result.report.latency)
    judged = [d for d in result.report.declined if d.name == "fc-to-conv"] + [
        r for r in result.report.rewrites if r.name == "fc-to-conv"
    ]
    assert judged
    tools.assert_second_run_is_idle(result, tmp_path / "again", bench=True)


@pytest.fixture(scope="module", params=BUDGETED)
def budgeted(
    request: pytest.FixtureRequest,
    zoo: Path,
    tools: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Result:
    return tools.run_graphopt(
        zoo / "models" / f"{request.param}.onnx",
        tmp_path_factory.mktemp(request.param),
        data=f"{zoo / 'zoo.py'}:{request.param}",
        budget=Budget(max_error=MAX_ERROR),
        bench=True,
    )


class TestInsideABudget:
    pytestmark = pytest.mark.slow

    def test_computes_less(self, budgeted: Result) -> None:
        assert budgeted.report.after.macs < budgeted.report.before.macs
        assert "approximate" in {entry.kind for entry in budgeted.report.rewrites}

    def test_figures_are_those_of_the_files(self, budgeted: Result, tools: ModuleType) -> None:
        feed = _ones(budgeted, budgeted.original.stem)
        before, after = (tools.count(p, feed) for p in (budgeted.original, budgeted.optimized))
        tools.assert_figures_hold(budgeted.report, before, after)

    def test_held_out_error_is_within_the_budget(
        self, budgeted: Result, zoo: Path, tools: ModuleType
    ) -> None:
        report = budgeted.report
        assert report.verification is not None
        data = read(
            f"{zoo / 'zoo.py'}:{budgeted.original.stem}", load(budgeted.original).model.graph
        )
        parts = split(data, report.seed)
        assert parts.held_out.samples == report.verification.samples.held_out
        assert parts.fitting.samples == report.verification.samples.fitting
        feeds = [batch.feeds for batch in parts.held_out.batches]
        for level in ("disable_all", "enable_all"):
            errors = tools.relative_errors(
                budgeted.original, budgeted.optimized, feeds, optimized=level == "enable_all"
            )
            reported = {
                row.name: row.relative_l2
                for row in report.verification.outputs
                if row.level == level
            }
            assert max(errors.values()) <= MAX_ERROR
            assert reported == pytest.approx(errors, rel=1e-4)

    def test_the_latency_is_measured(self, budgeted: Result) -> None:
        assert budgeted.report.latency
        assert all(0 < r.ratio_low <= r.ratio <= r.ratio_high for r in budgeted.report.latency)

    def test_keeps_the_interface(self, budgeted: Result, tools: ModuleType) -> None:
        assert tools.interface(budgeted.optimized) == tools.interface(budgeted.original)
