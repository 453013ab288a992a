"""The comparison with other optimizers, without any of them: its models, its judge, its tables, its meter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import exports
import numpy as np
import onnx
import peer_judge
import peer_runs
import peers
import pytest
from onnx import numpy_helper, parser
from peer_runs import ORIGINAL, PEERS, Contest, Trial
from runs import Result, Store

import graphopt
from graphopt import Options

BENCHMARKS = Path(peers.__file__).parent

linux = pytest.mark.skipif(sys.platform == "win32", reason="costs are read as POSIX has them")


def saved(path: Path, text: str, **weights: np.ndarray) -> Path:
    """A model from the text of its graph, opset 18, with float32 weights."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18, "own" : 1]> {text}')
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, path)
    return path


def operators(path: Path) -> Counter[str]:
    """How many nodes of each operator, but Constants."""
    counts = Counter(node.op_type for node in onnx.load(path).graph.node)
    del counts["Constant"]
    return counts


SCALED = "agraph (float[n, 4] x) => (float[n, 4] y) { y = Mul (x, s) }"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return saved(tmp_path / "original.onnx", SCALED, s=np.full(4, 2.0))


class TestJudge:
    def test_counts_nodes_of_bodies_and_weights_apart(self, tmp_path: Path) -> None:
        path = saved(
            tmp_path / "m.onnx",
            """agraph (float[2] x, bool c) => (float[2] y) {
                one = Constant <value = float {1.0}> ()
                a = own.Twice (x)
                y = If (c) <
                    then_branch = t () => (float[2] p) { p = Add (a, one) },
                    else_branch = e () => (float[2] q) { q = Relu (a) }
                >
            }""",
        )
        counted = peer_judge.counts(path)
        assert counted == {
            "nodes": 4,
            "weights": 1,
            "foreign": 1,
            "bn": 0,
            "bytes": path.stat().st_size,
        }

    def test_counts_the_bytes_of_external_data(self, original: Path, tmp_path: Path) -> None:
        path = tmp_path / "external.onnx"
        onnx.save(
            onnx.load(original), path, save_as_external_data=True, location="w", size_threshold=0
        )
        size = path.stat().st_size + (tmp_path / "w").stat().st_size
        assert peer_judge.counts(path)["bytes"] == size

    @pytest.mark.parametrize(("factor", "verdict"), [(2 * (1 + 3e-5), "ok"), (2.001, "wrong")])
    def test_a_result_beyond_the_tolerance_is_wrong(
        self, factor: float, verdict: str, original: Path, tmp_path: Path
    ) -> None:
        other = saved(tmp_path / "other.onnx", SCALED, s=np.full(4, factor))
        found = peer_judge.findings(original, other, seconds=0, threads=1)
        assert found["verdict"] == verdict
        assert found["error"] == pytest.approx(factor / 2 - 1, rel=0.02)

    def test_an_open_batch_that_is_fixed_is_invalid(self, original: Path, tmp_path: Path) -> None:
        fixed = saved(
            tmp_path / "fixed.onnx", SCALED.replace("[n, 4] x", "[1, 4] x"), s=np.full(4, 2.0)
        )
        found = peer_judge.findings(original, fixed, seconds=0, threads=1)
        assert found["verdict"] == "invalid"
        assert found["nodes"] == 1

    def test_what_onnxruntime_cannot_load_is_invalid(self, original: Path, tmp_path: Path) -> None:
        foreign = saved(tmp_path / "f.onnx", SCALED.replace("Mul (x, s)", "own.Mul (x, s)"))
        found = peer_judge.findings(original, foreign, seconds=0, threads=1)
        assert found["verdict"] == "invalid"
        assert found["foreign"] == 1

    def test_a_file_that_is_no_model_is_invalid(self, original: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"\x01\x02\x03")
        assert peer_judge.findings(original, broken, seconds=0, threads=1)["verdict"] == "invalid"

    def test_times_a_valid_result(self, original: Path, tmp_path: Path) -> None:
        other = saved(tmp_path / "other.onnx", SCALED, s=np.full(4, 2.0))
        found = peer_judge.findings(original, other, seconds=0.1, threads=1)
        for name in ("latency", "session"):
            assert found[name]["low"] <= found[name]["ratio"] <= found[name]["high"]


@linux
class TestMeter:
    def measured(self, seconds: int, *command: str) -> dict[str, Any]:
        meter = str(BENCHMARKS / "metered.py")
        done = subprocess.run(
            [sys.executable, "-I", "-S", meter, str(seconds), sys.executable, "-c", *command],
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def test_sees_memory_and_processor_time(self) -> None:
        idle = self.measured(60, "pass")
        busy = self.measured(60, "x = bytearray(200_000_000); sum(i * i for i in range(3_000_000))")
        assert busy["peak_bytes"] - idle["peak_bytes"] > 180_000_000
        assert busy["cpu_seconds"] > idle["cpu_seconds"]
        assert busy["code"] == 0

    def test_tells_how_it_ended(self) -> None:
        assert self.measured(60, "raise SystemExit(3)")["code"] == 3
        assert self.measured(1, "import time; time.sleep(60)")["code"] == -9


@linux
class TestContest:
    def contest(self, folder: Path, **options: Any) -> Contest:
        return Contest(
            folder, Store(folder / "kept.json", "cpu\nversions"), sys.executable, **options
        )

    def test_holds_graphopt_and_keeps_what_came_of_it(self, original: Path, tmp_path: Path) -> None:
        trial = Trial("net", original, "", {}, peer="graphopt", version="1", times=False)
        result = self.contest(tmp_path).held(trial, lambda: original)
        assert result.extra["verdict"] == "ok", result.extra
        assert result.extra["nodes"] == 1
        assert result.peak_bytes > 10_000_000

        def unwanted() -> Path:
            raise AssertionError("the model is not needed again")

        assert self.contest(tmp_path).held(trial, unwanted) == result
        with pytest.raises(AssertionError, match="not needed"):
            self.contest(tmp_path, again=frozenset({"graphopt"})).held(trial, unwanted)

    def test_a_peer_that_fails_is_a_result(self, original: Path, tmp_path: Path) -> None:
        original.write_bytes(b"\x01\x02\x03")
        trial = Trial("net", original, "", {}, peer="onnxscript", times=False)
        result = self.contest(tmp_path).held(trial, lambda: original)
        assert result.extra["verdict"] == "crash"
        assert "exit code 1" in result.extra["why"]

    def test_times_serve_where_none_are_asked_for_but_not_the_reverse(self, tmp_path: Path) -> None:
        contest = self.contest(tmp_path)
        timed, plain = (Trial("net", tmp_path, "", {}, times=times) for times in (True, False))
        contest.store.put("net, original", plain, Result("done", 1.0))
        assert contest.known(timed) is None
        contest.store.put("net, original", timed, Result("done", 2.0))
        assert contest.known(plain) == contest.known(timed) == Result("done", 2.0)


def result(nodes: int, *, foreign: int = 0, verdict: str = "ok", cpu: float = 2.0) -> Result:
    extra = {"verdict": verdict, "nodes": nodes, "foreign": foreign, "bn": 0, "bytes": 10**6}
    return Result("done", 3.0, 10**8, extra={**extra, "error": 1e-6, "cpu_seconds": cpu})


def test_only_valid_portable_results_of_others_are_the_measure() -> None:
    table = {
        ORIGINAL: result(100),
        "graphopt": result(60, cpu=1.0),
        "onnxsim": result(58),
        "onnxslim": result(50, verdict="wrong"),
        "onnxoptimizer": result(40, foreign=2),
        "ort-basic": result(30),
    }
    assert list(peers.valid_peers(table)) == ["onnxsim"]
    row = peers.reach_row("net", table)
    assert row[:6] == ("net", "60 > 58", "0 <= 0", "1e-06", "0.50", "1.00")


def test_a_row_flags_operators_that_no_standard_knows_and_failures() -> None:
    table = {
        ORIGINAL: result(9),
        "ort-extended": result(7, foreign=2),
        "onnxsim": Result(
            "done", 1.0, extra={"verdict": "crash", "why": "boom", "cpu_seconds": 1.0}
        ),
    }
    rows = list(peers.model_rows("net", table))
    assert [row[2] for row in rows] == ["9", "7 (2 own)", ""]
    assert rows[2][5] == "crash"
    assert list(peers.complaints({"net": table})) == ["net, onnxsim: crash: boom"]


def test_every_peer_is_called_with_both_files() -> None:
    for name, peer in PEERS.items():
        assert "," not in name
        call = peer_runs.command(name, Path("in.onnx"), Path("out.onnx"), "other-python")
        assert call[0] == (sys.executable if peer.own else "other-python")
        assert {"in.onnx", "out.onnx"} <= set(call)


def test_names_are_chosen_from_those_known() -> None:
    assert peers.chosen("b,a", ["a", "b", "c"]) == ["a", "b"]
    with pytest.raises(ValueError, match="there is no d"):
        peers.chosen("d", ["a"])


def test_a_peer_that_is_not_installed_has_no_version() -> None:
    assert list(peer_runs.installed(sys.executable, ["onnx", "no-such-package-here"])) == ["onnx"]


def test_the_light_models_get_weights(tmp_path: Path) -> None:
    path = exports.made("light_squeezenet+", tmp_path, None, small=False)
    model = onnx.load(path)
    assert not any(node.op_type == "ConstantOfShape" for node in model.graph.node)
    assert len(model.graph.initializer) > 50


def test_a_model_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="light_nothing cannot be made: FileNotFoundError"):
        exports.made("light_nothing", tmp_path, None, small=True)


class TestChannelsLast:
    @pytest.fixture(autouse=True)
    def _needs_keras(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("torch", reason="PyTorch is not installed (torch==2.13.0)")
        monkeypatch.setenv("KERAS_BACKEND", "torch")
        pytest.importorskip("keras", reason="Keras is not installed (extra `models`)")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", exports.KERAS)
    def test_an_export_comes_out_with_one_transpose(self, name: str, tmp_path: Path) -> None:
        """And computes what it did: verified, or the run would have failed."""
        path = exports.made(f"keras-{name}", tmp_path, None, small=True)
        before = operators(path)
        assert before["Transpose"] > 100
        graphopt.optimize(path, Options(output=tmp_path / "out.onnx", bench=False))
        after = operators(tmp_path / "out.onnx")
        assert after["Transpose"] == 1
        assert after["Conv"] == before["Conv"]
        assert after.total() < 0.35 * before.total()


class TestNetworks:
    @pytest.fixture(autouse=True)
    def _needs_torch(self) -> None:
        pytest.importorskip("torch", reason="PyTorch is not installed (torch==2.13.0)")

    def test_every_network_of_the_exports_is_there(self) -> None:
        from networks_torch import NETWORKS

        assert tuple(NETWORKS) == exports.TORCH

    @pytest.mark.parametrize("name", exports.TORCH)
    def test_a_small_one_answers_sanely(self, name: str) -> None:
        import torch
        from networks_torch import NETWORKS, module_of

        module, picture = module_of(NETWORKS[name], small=True)
        with torch.no_grad():
            first, second = module(picture), module(picture.flip(3))
        assert first.shape == (1, 1000)
        assert torch.isfinite(first).all()
        assert 1e-3 < float(first.std()) < 1e3
        assert not torch.allclose(first, second, rtol=1e-3)

    def test_published_parameters(self) -> None:
        """In the published size: figures of the papers' usual PyTorch versions, without auxiliary heads."""
        from networks_torch import NETWORKS

        wanted = {"mobilenet_v2": 3_504_872, "densenet121": 7_978_856, "resnet50": 25_557_032}
        for name, count in wanted.items():
            module = NETWORKS[name].build(1)
            assert sum(p.numel() for p in module.parameters()) == count, name
