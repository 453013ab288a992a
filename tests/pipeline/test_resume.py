"""--resume: a run goes on from what an earlier one gathered, to the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import build

from graphopt import Budget, InputError, evidence, proving
from graphopt.calibration.collect import Collector
from graphopt.planning.fitting import Refitter
from graphopt.records import Records
from graphopt.verification.guard import ReferenceGuard

BUDGET = Budget(max_error=0.1)
KEPT = Path("kept")
SCHEMES = ("input-bottleneck", "spatial")
COSTLY = (
    (Collector, "original"),
    (evidence, "sensitivities"),
    (ReferenceGuard, "fitting_error"),
    (ReferenceGuard, "held_out"),
)


@pytest.fixture
def deep(folder):
    """Two convolutions in a row, both worth factoring, the second one in two groups."""
    rng = np.random.default_rng(0)
    fade = 0.6 ** np.arange(32)

    def fading(inputs):
        basis = np.linalg.qr(rng.standard_normal((inputs, inputs)))[0] * fade[:inputs]
        core = rng.standard_normal((32, inputs, 3, 3)) / 3
        return np.einsum("oruv,cr->ocuv", core, basis).astype(np.float32)

    text = """
    net (float[N,3,8,8] x) => (float[N,32,8,8] y)
    <float[32,3,1,1] stem, float[32,32,3,3] w1, float[32,16,3,3] w2>
    {
        a = Conv (x, stem)  ra = Relu (a)
        b = Conv <pads = [1,1,1,1]> (ra, w1)  rb = Relu (b)
        y = Conv <pads = [1,1,1,1], group = 2> (rb, w2)
    }
    """
    onnx.save(build(text, weights={"w1": fading(32), "w2": fading(16)}), "deep.onnx")
    return Path("deep.onnx")


@pytest.fixture
def calls(monkeypatch):
    """Names of the costly functions that were called."""
    seen: list[str] = []

    def spy(owner, name):
        original = getattr(owner, name)

        def told(*arguments, **more):
            seen.append(name)
            return original(*arguments, **more)

        monkeypatch.setattr(owner, name, told)

    for owner, name in COSTLY:
        spy(owner, name)
    return seen


def without_clock(report):
    output = replace(report.output, path="")
    return replace(report, seconds={}, peak_memory_bytes=0, output=output, notes=())


@pytest.fixture
def go(run, deep, data):
    """go(name, resume) -> (the bytes written, the report)."""

    def optimized(resume=None, **options):
        options = {"budget": BUDGET, "data": data, "passes": SCHEMES, **options}
        report = run(deep, output=Path("o.onnx"), resume=resume, **options)
        return Path("o.onnx").read_bytes(), report

    return optimized


def test_with_and_without_are_the_same_bytes(go, calls):
    plain, report = go()
    assert sum(entry.kind == "approximate" for entry in report.rewrites) > 1
    assert {name for _, name in COSTLY} == set(calls)
    first, kept = go(KEPT)
    calls.clear()
    second, resumed = go(KEPT)
    assert calls == []
    assert plain == first == second
    assert without_clock(report) == without_clock(kept) == without_clock(resumed)
    assert report.notes == kept.notes
    assert resumed.notes == (*report.notes, "went on from the statistics in kept")


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (Collector, "original", 0),
        (evidence, "sensitivities", 0),
        (ReferenceGuard, "fitting_error", 3),
        (ReferenceGuard, "held_out", 2),
        (Refitter, "fit", 1),
        (proving, "apply_plan", 0),
    ],
)
def test_an_interrupted_run_goes_on(go, monkeypatch, owner, name, after):
    plain, report = go()
    count = 0
    original = getattr(owner, name)

    def interrupt(*arguments, **more):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        return original(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            go(KEPT)
    assert not [path for path in KEPT.iterdir() if path.name.startswith(".")]
    resumed, again = go(KEPT)
    assert resumed == plain
    assert without_clock(again) == without_clock(report)


def test_an_interrupt_while_a_file_is_written(go, monkeypatch):
    plain, _ = go()

    def half(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", half)
        with pytest.raises(KeyboardInterrupt):
            go(KEPT)
    assert sorted(path.name for path in KEPT.iterdir()) == ["run.json"]
    assert go(KEPT)[0] == plain


def test_another_budget_goes_on_from_the_same_statistics(go, calls):
    go(KEPT)
    plain, _ = go(budget=Budget(max_error=0.3))
    calls.clear()
    assert go(KEPT, budget=Budget(max_error=0.3))[0] == plain
    assert "original" not in calls


class TestAnotherRun:
    @pytest.mark.parametrize(
        ("options", "what"),
        [
            ({"seed": 1}, "fitting data, held-out data, seed"),
            ({"passes": SCHEMES[:1]}, "rewrites"),
            ({"metric": "m.py:m"}, "metric"),
        ],
    )
    def test_is_refused(self, go, folder, options, what):
        (folder / "m.py").write_text("def m(outputs, batch): return 0.0")
        go(KEPT)
        before = {path: path.read_bytes() for path in KEPT.iterdir()}
        with pytest.raises(InputError) as refused:
            go(KEPT, **options)
        assert str(refused.value) == (
            f"kept holds the statistics of another run (not the same: {what}): give another folder"
        )
        assert {path: path.read_bytes() for path in KEPT.iterdir()} == before

    def test_of_another_model(self, go, run, wide, data):
        go(KEPT)
        with pytest.raises(InputError, match=r"not the same: model\)"):
            run(wide, data=data, budget=BUDGET, passes=SCHEMES, resume=KEPT)

    def test_with_one_other_sample(self, go, pictures):
        go(KEPT)
        pictures[0, 0, 0, 0] += 1
        np.savez("data.npz", x=pictures)
        with pytest.raises(InputError, match=r"not the same: (fitting|held-out) data"):
            go(KEPT)


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        *(("*.npz", damage) for damage in ("cut", "flipped", "empty", "nonsense")),
        *(("figures.json", damage) for damage in ("cut", "nonsense")),
        *(("run.json", damage) for damage in ("cut", "nonsense")),
    ],
)
def test_damaged_files_are_gathered_anew(go, pattern, damage):
    plain, _ = go(KEPT)
    for path in KEPT.glob(pattern):
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 0xFF])
        path.write_bytes(
            {
                "cut": content[:middle],
                "flipped": content[:middle] + flipped + content[middle + 1 :],
                "empty": b"",
                "nonsense": b'{"a": [[1]]}',
            }[damage]
        )
    if pattern == "run.json" and damage == "nonsense":
        with pytest.raises(InputError, match="another run"):
            go(KEPT)
        return
    again, report = go(KEPT)
    assert again == plain
    assert any("was damaged: what it held was gathered anew" in note for note in report.notes)
    clean, report = go(KEPT)
    assert clean == plain
    assert not any("damaged" in note for note in report.notes)


def test_arrays_of_objects_are_never_unpickled(go):
    plain, _ = go(KEPT)
    for path in KEPT.glob("*.npz"):
        np.savez(path, **{"gram 0": np.array([print], dtype=object)})
    again, report = go(KEPT)
    assert again == plain
    assert any("damaged" in note for note in report.notes)


def test_a_folder_that_takes_no_more_is_done_without(go, monkeypatch):
    plain, _ = go()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    again, report = go(KEPT)
    assert again == plain
    assert "not everything could be kept in kept: No space left on device" in report.notes


def test_folders_that_will_not_do(tmp_path):
    taken, other = tmp_path / "file", tmp_path / "other"
    taken.write_text("")
    other.mkdir()
    (other / "letter.txt").write_text("")
    with pytest.raises(InputError, match="cannot keep statistics in"):
        Records.open(taken, {})
    with pytest.raises(InputError, match="holds other files"):
        Records.open(other, {})


def test_infinite_and_missing_figures_are_kept(tmp_path):
    figures, folder = (float("inf"), None, 0.1), tmp_path / "new" / "kept"
    Records.open(folder, {}).chapter("").put("a", figures)
    assert Records.open(folder, {}).chapter("").get("a") == figures
    assert Records.open(folder, {}).chapter("other").get("a") is None


@pytest.mark.parametrize(
    "options", [{"data": None}, {"budget": Budget()}, {"data": None, "budget": Budget()}]
)
def test_there_must_be_something_to_keep(go, options):
    with pytest.raises(InputError, match="--resume needs --data and a budget"):
        go(KEPT, **options)
    assert not KEPT.exists()
