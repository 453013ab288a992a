"""The parts of the benchmarks that need no network: figures, rows, the command line, the store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ablation
import approximate
import metrics
import numpy as np
import pytest
from harness import Score, divergence, speedup, speedup_text
from runs import Bench, Job, Result, Store

from graphopt.planning.budget import Budget
from graphopt.planning.method import Method


def report(*ratios: float) -> dict[str, Any]:
    latency = [{"ratio": r, "ratio_low": 0.8 * r, "ratio_high": 1.25 * r} for r in ratios]
    return {"latency": latency}


def done(ratio: float, value: float = 0.8) -> Result:
    return Result(
        "done", 3.0, 10**9, report(ratio), extra={"score": {"metric": "top1", "value": value}}
    )


def test_a_speedup_is_the_ratio_turned_over_with_its_interval() -> None:
    assert speedup_text(report(0.5)) == "2.00x [1.60, 2.50]"


def test_a_fixed_batch_has_no_second_speedup() -> None:
    assert speedup(report(0.5), 1) is None
    assert speedup_text(report(0.5), 1) == ""


@pytest.mark.parametrize(
    ("metric", "text", "drop"),
    [
        ("top1", "80.00%", "5.00 pt"),
        ("psnr_db", "0.800 dB", "0.050 dB"),
        ("text_mask_iou_vs_original", "0.800", "0.050"),
    ],
)
def test_a_score_says_its_unit(metric: str, text: str, drop: str) -> None:
    score = Score(metric, 0.8)
    assert score.text == text
    assert score.drop(Score(metric, 0.75)) == drop


def test_the_error_within_a_loss_of_decibels_costs_that_loss() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400_000)
    miss, added = rng.standard_normal((2, truth.size)) * 10 ** (-29.63 / 20)
    rms = math.sqrt(np.mean((truth + miss) ** 2))
    relative = metrics.error_within_db(0.1, psnr=29.63, rms=rms)
    output = truth + miss + added * relative * rms / math.sqrt(np.mean(added**2))
    assert 10 * math.log10(1 / np.mean((output - truth) ** 2)) == pytest.approx(29.53, abs=0.02)


def test_the_super_resolution_budget_is_a_valid_one() -> None:
    assert pytest.approx(0.008) == metrics.SUPER_RESOLUTION_ERROR


def test_divergence_takes_logits_and_probabilities_alike() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 50, 10)).astype(np.float32)
    powers = np.exp(logits)
    probabilities = powers / powers.sum(-1, keepdims=True)
    assert divergence(*logits) == pytest.approx(divergence(*probabilities), rel=1e-4)
    assert divergence(*logits) > 0
    assert divergence(logits[0], logits[0]) == 0


def test_every_row_has_a_key_of_its_own_and_a_valid_budget() -> None:
    assert len({row.key for row in approximate.ROWS}) == len(approximate.ROWS)
    for row in approximate.ROWS:
        Budget(**row.budget).check()


def test_the_baselines_name_switches_that_exist() -> None:
    for method in approximate.BASELINES.values():
        Method(**method)


def test_a_network_names_all_of_its_rows_and_a_limit_only_one() -> None:
    assert len(approximate.select_rows("vgg8_cifar10")) == 2
    assert [row.reach for row in approximate.select_rows("vgg8_cifar10@0.015,lenet")] == [4.0, 1.5]
    with pytest.raises(ValueError, match="no row vgg9"):
        approximate.select_rows("lenet,vgg9")


def test_a_network_of_the_ablation_has_a_speedup() -> None:
    assert ablation.parse_networks("vgg8_cifar10,lenet=1.5") == {"vgg8_cifar10": 3.0, "lenet": 1.5}
    with pytest.raises(ValueError, match="give lenet a speed-up"):
        ablation.parse_networks("lenet")


def test_the_ablation_switches_off_one_part_at_a_time() -> None:
    methods = dict(ablation.methods())
    assert methods.pop("all on") == {}
    assert all(list(method.values()) == [False] for method in methods.values())


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo.py").touch()
    monkeypatch.setenv("GRAPHOPT_ZOO", str(tmp_path))
    plain = approximate.parse([])
    assert (plain.rows, plain.ablation, plain.baselines) == (list(approximate.ROWS), {}, True)
    assert approximate.parse(["--ablation"]).ablation == ablation.SPEEDUPS
    assert not approximate.parse(["--no-baselines"]).baselines


@pytest.mark.parametrize(
    "wrong", [["--rows", "x"], ["--ablation", "x"], ["--large", "--ablation"], ["--json", "no/f"]]
)
def test_a_wrong_command_line_is_told(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo.py").touch()
    monkeypatch.setenv("GRAPHOPT_ZOO", str(tmp_path))
    with pytest.raises(SystemExit):
        approximate.parse(wrong)


def test_a_budget_out_of_reach_says_how_far_it_is() -> None:
    text = "a speed-up of 3x cannot be reached: 1.84x is the most"
    result = Result("out of reach", 1.0, complaint=text)
    assert approximate.lost_at(result, Score("top1", 0.9)) == "not reached (1.84x at most)"


def test_the_row_of_a_result() -> None:
    row = approximate.graphopt_row(approximate.Row("net", 3.0), done(0.5), Score("top1", 0.81))
    assert row == (
        "net",
        "max_drop 0.005",
        ">= 3x (missed)",
        "2.00x [1.60, 2.50]",
        "",
        "81.00% -> 80.00% (drop 1.00 pt)",
        "3",
        "1.0",
    )


def job(budget: float = 0.1) -> Job:
    return Job("net", Path("net.onnx"), "data.npz", {"max_error": budget})


def test_the_store_goes_on_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Store(path, "cpu\nversions").put("key", job(), done(0.5))
    again = Store(path, "cpu\nversions")
    assert again.get("key", job()) == done(0.5)
    assert again.get("key", job(0.2)) is None
    assert again.get("other", job()) is None


def test_the_store_keeps_no_failures(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.json", "cpu\nversions")
    store.put("key", job(), Result("failed", 1.0, complaint="killed"))
    assert store.get("key", job()) is None


class Recorded(Bench):
    """Answers what is asked for times a factor, instead of running anything."""

    factor = 1.2

    def run(self, key: str, job: Job, examine: Any = None) -> Result:
        return done(1 / (self.factor * job.budget["speedup"]))


def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path, tmp_path, Store(None, ""), 1, False)


def test_a_baseline_that_overshoots_is_asked_for_less(tmp_path: Path) -> None:
    row = approximate.ROWS[0]
    result = approximate.at_speedup(recorded(tmp_path), row, "baseline", {}, 3.0)
    assert result is not None
    assert speedup(result.report or {}) == pytest.approx(3.0)


def test_a_result_that_is_not_faster_has_no_baselines(tmp_path: Path) -> None:
    row = approximate.ROWS[0]
    assert approximate.at_speedup(recorded(tmp_path), row, "baseline", {}, 1.0) is None
