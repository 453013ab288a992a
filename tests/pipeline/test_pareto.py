"""--pareto: several models between the original and the end of the budget, each proven."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx_text import build

from graphopt import Budget, InputError, VerificationError, frontier, proving
from graphopt.graph.io import digest, load

BUDGET = Budget(max_error=0.2)
GIVEN = {"deep.onnx", "data.npz", "held.npz"}
SCHEMES = ("input-bottleneck", "spatial")


@pytest.fixture
def deep(folder):
    """Three convolutions whose weights are all worth factoring."""
    rng = np.random.default_rng(0)
    fade = 0.7 ** np.arange(32)

    def fading():
        basis = np.linalg.qr(rng.standard_normal((32, 32)))[0] * fade
        core = rng.standard_normal((32, 32, 3, 3)) / 3
        return np.einsum("oruv,cr->ocuv", core, basis).astype(np.float32)

    text = """
    net (float[N,3,8,8] x) => (float[N,32,8,8] y)
    <float[32,3,1,1] stem, float[32,32,3,3] w1, float[32,32,3,3] w2, float[32,32,3,3] w3>
    {
        a = Conv (x, stem)  ra = Relu (a)
        b = Conv <pads = [1,1,1,1]> (ra, w1)  rb = Relu (b)
        c = Conv <pads = [1,1,1,1]> (rb, w2)  rc = Relu (c)
        y = Conv <pads = [1,1,1,1]> (rc, w3)
    }
    """
    weights = {"w1": fading(), "w2": fading(), "w3": fading()}
    onnx.save(build(text, weights=weights), "deep.onnx")
    return Path("deep.onnx")


@pytest.fixture
def go(run, deep, data):
    def optimized(**options):
        return run(deep, **{"budget": BUDGET, "data": data, "passes": SCHEMES, **options})

    return optimized


def written():
    return sorted(path.name for path in Path().iterdir() if path.name not in GIVEN)


THREE = ["deep.opt.1.onnx", "deep.opt.2.onnx", "deep.opt.3.onnx"]


def off(path, x):
    def outputs(model):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})[0].astype(np.float64)

    want = outputs("deep.onnx")
    return np.linalg.norm(outputs(path) - want) / np.linalg.norm(want)


def test_models_on_the_way_to_the_budget(go, pictures, folder):
    np.savez(folder / "held.npz", x=pictures[30:])
    report = go(pareto=3, eval_data="held.npz")
    assert written() == THREE
    points = report.frontier
    assert [point.file.path for point in points] == THREE
    macs = [point.after.macs for point in points]
    assert macs == sorted(set(macs), reverse=True)
    assert macs[0] < report.before.macs
    for point in points:
        assert point.file.sha256 == digest(load(Path(point.file.path)))
        assert point.error == pytest.approx(off(point.file.path, pictures[30:]), rel=1e-3)
        assert point.error <= BUDGET.max_error
        assert point.approximated >= 1
    errors = [point.error for point in points]
    assert errors == sorted(errors)
    assert report.output == points[-1].file
    assert report.after == points[-1].after


def test_the_last_one_is_what_there_is_without(go):
    go(output=Path("o.onnx"))
    go(output=Path("p.onnx"), pareto=2)
    assert Path("p.2.onnx").read_bytes() == Path("o.onnx").read_bytes()
    assert Path("p.1.onnx").read_bytes() != Path("o.onnx").read_bytes()


def test_the_same_again_and_with_resume(go):
    kept = Path("kept")
    reports = [go(pareto=3, resume=resume) for resume in (None, kept, kept)]
    assert reports[0].frontier == reports[1].frontier == reports[2].frontier


def test_without_data(run, deep):
    report = run(deep, budget=BUDGET, passes=SCHEMES, pareto=2)
    assert [point.file.path for point in report.frontier] == THREE[:2]


def test_within_a_drop(go, folder):
    (folder / "m.py").write_text(
        "def m(outputs, batch): return -float(abs(outputs['y'][:, 0]).mean())"
    )
    report = go(pareto=2, metric="m.py:m", budget=Budget(max_drop=0.01))
    assert len(report.frontier) == 2
    for point in report.frontier:
        assert point.metric_before - point.metric_after <= 0.01
    assert report.frontier[-1].metric_after == report.verification.metric_after


def test_a_dry_run_writes_none_of_them(go):
    report = go(pareto=3, dry_run=True)
    assert written() == []
    assert report.output is None
    assert [point.file.path for point in report.frontier] == THREE


def test_timed_one_by_one(go, monkeypatch):
    seen = []
    original = frontier.time_files

    def spy(source, path, *more):
        seen.append(path.name)
        return original(source, path, *more)

    monkeypatch.setattr(frontier, "time_files", spy)
    report = go(pareto=2, bench=True)
    if len(report.frontier) == 2:  # it may not be measured faster at all on a busy machine
        assert seen == THREE[:1]
        assert all(len(point.latency) == 2 for point in report.frontier)
        assert report.frontier[-1].latency == report.latency


def test_more_models_than_steps(run, wide, data):
    report = run(wide, data=data, budget=Budget(max_error=0.05), pareto=50)
    count = len(report.frontier)
    assert 1 <= count < 50
    assert len(list(Path().glob("wide.opt.*.onnx"))) == count
    note = f"--pareto 50: on the way to the budget there are only {count} distinct models"
    assert note in report.notes


def test_nothing_on_offer(run, two_layers, data):
    report = run(two_layers, data=data, budget=Budget(max_error=0.0), pareto=3)
    assert [point.file.path for point in report.frontier] == ["net.opt.1.onnx"]
    assert report.frontier[0].approximated == 0


def test_external_data_goes_with_each(run, deep, data):
    model = onnx.load(deep)
    onnx.save(model, "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    run(Path("big.onnx"), data=data, budget=BUDGET, passes=SCHEMES, pareto=2)
    for number in (1, 2):
        assert Path(f"big.opt.{number}.onnx.data").is_file()
        onnx.checker.check_model(f"big.opt.{number}.onnx")


class TestFailures:
    def test_one_that_fails_is_left_out(self, go, monkeypatch):
        original, count = frontier.prove, 0

        def prove(*arguments):
            nonlocal count
            count += 1
            found = original(*arguments)
            return found if count != 1 else replace(found, passed=False, reason="it is off")

        monkeypatch.setattr(frontier, "prove", prove)
        report = go(pareto=3)
        assert written() == THREE[1:]
        assert [point.file.path for point in report.frontier] == THREE[1:]
        assert "deep.opt.1.onnx was left out: it is off" in report.notes

    @pytest.mark.parametrize("where", ["prove", "time_files"])
    def test_an_interrupt_leaves_nothing(self, go, monkeypatch, where):
        original, count = getattr(frontier, where), 0

        def interrupt(*arguments):
            nonlocal count
            count += 1
            if count == 2:
                raise KeyboardInterrupt
            return original(*arguments)

        monkeypatch.setattr(frontier, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            go(pareto=3)
        assert written() == []

    def test_without_a_proof_of_the_last_there_is_nothing(self, go, monkeypatch):
        original = proving.prove
        monkeypatch.setattr(
            proving, "prove", lambda *a: replace(original(*a), passed=False, reason="off")
        )
        with pytest.raises(VerificationError):
            go(pareto=2, on_fail="stop")
        assert written() == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pareto": 1}, "--pareto 1 is not a number of models from 2 to 100"),
        ({"pareto": 101}, "--pareto 101 is not"),
        ({"pareto": 2, "budget": Budget()}, "--pareto needs --max-error or --max-drop"),
        ({"pareto": 2, "budget": Budget(speedup=2)}, "--pareto needs --max-error or --max-drop"),
        ({"pareto": 2, "in_place": True}, "--pareto writes several models"),
    ],
)
def test_what_makes_no_sense(go, options, complaint):
    with pytest.raises(InputError, match=complaint):
        go(**options)
    assert written() == []


def test_places_that_will_not_do(go, deep):
    Path("o.2.onnx").mkdir()
    with pytest.raises(InputError, match=r"o\.2\.onnx is a folder"):
        go(pareto=2, output=Path("o.onnx"))
    deep.rename("deep.1.onnx")
    with pytest.raises(InputError, match="no such file"):
        go(pareto=2)
    Path("deep.1.onnx").rename(deep)
    Path("p.1.onnx").hardlink_to(deep)
    with pytest.raises(InputError, match=r"p\.1\.onnx is the input"):
        go(pareto=2, output=Path("p.onnx"))
