"""What a budget promises about the written file, checked with onnxruntime alone."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from graphopt import Budget, BudgetError, InputError
from graphopt.calibration.dataset import Dataset


def outputs(path, x, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].astype(np.float64)


@pytest.mark.parametrize("error", [0.03, 0.2])
def test_max_error_holds_on_the_held_out_data(run, wide, pictures, data, error):
    np.savez("held.npz", x=pictures[30:])
    report = run(wide, data=data, eval_data="held.npz", budget=Budget(max_error=error))
    want, got = (outputs(path, pictures[30:]) for path in (wide, "wide.opt.onnx"))
    off = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 1e-4 < off <= error
    (plain, _) = report.verification.outputs
    assert plain.level == "disable_all"
    assert plain.relative_l2 == pytest.approx(off, rel=1e-3)
    assert report.verification.tolerance == error


def test_a_larger_budget_saves_no_less(run, wide, data):
    left = [
        run(wide, data=data, dry_run=True, budget=Budget(max_error=error)).after.macs
        for error in (0.0001, 0.05, 0.3)
    ]
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0]


def test_without_a_budget_nothing_is_approximated_but_told(run, wide):
    report = run(wide)
    assert all(entry.kind != "approximate" for entry in report.rewrites)
    assert report.budget.bound_by is None
    assert report.available
    assert all(offer.macs_ratio < 1 for offer in report.available)


def test_max_drop_holds(run, wide, pictures, folder):
    (folder / "m.py").write_text(
        "def m(outputs, batch): return -float(abs(outputs['y'][:, 0]).mean())"
    )
    np.savez("d.npz", x=pictures)
    report = run(wide, data="d.npz", metric="m.py:m", budget=Budget(max_drop=0.002))
    check = report.verification
    assert check.metric_before - check.metric_after <= 0.002
    assert check.tolerance is None


@pytest.mark.parametrize("passes", [None, ("fuse-conv-bn",), ("kernel-pair",)])
def test_a_speedup_is_kept_or_refused(run, wide, data, folder, passes):
    before = sorted(folder.iterdir())
    with pytest.raises(BudgetError, match=r"1e\+06x cannot be reached"):
        run(wide, data=data, bench=True, passes=passes, budget=Budget(speedup=1e6))
    assert sorted(folder.iterdir()) == before


def test_a_speedup_needs_measuring(run, wide, data):
    with pytest.raises(InputError, match="drop --no-bench"):
        run(wide, data=data, budget=Budget(speedup=1.5))


def test_the_held_out_samples_are_not_fitted_to(run, wide, data, pictures, monkeypatch):
    """Sensitivities and shares are measured on the fitting part only."""
    from graphopt.verification.guard import ReferenceGuard

    seen: list[Dataset] = []
    original = ReferenceGuard.fitting_error

    def spy(self, model):
        seen.append(self.fitting.reference.dataset)
        held = {batch.feeds["x"].tobytes() for batch in self.evaluation.dataset.batches}
        used = {batch.feeds["x"].tobytes() for batch in self.fitting.reference.dataset.batches}
        assert not held & used
        return original(self, model)

    monkeypatch.setattr(ReferenceGuard, "fitting_error", spy)
    run(wide, data=data, budget=Budget(max_error=0.1))
    assert seen


def test_a_large_network_is_tried_less_and_keeps_its_budget(
    run, wide, data, pictures, monkeypatch
) -> None:
    """What counts as large is lowered to this network; the full effort is the other run."""
    from graphopt.planning import search_effort
    from graphopt.planning.fitting import Refitter
    from graphopt.verification.guard import ReferenceGuard

    tried: list[int] = []
    fitted: list[int] = []
    fitting_error, fit = ReferenceGuard.fitting_error, Refitter.fit

    def try_alone(self, model):
        tried.append(self.fitting.reference.dataset.samples)
        return fitting_error(self, model)

    def fit_whole(self, plan):
        fitted.append(len(plan))
        return fit(self, plan)

    monkeypatch.setattr(ReferenceGuard, "fitting_error", try_alone)
    monkeypatch.setattr(Refitter, "fit", fit_whole)
    np.savez("held.npz", x=pictures[30:])
    effort = []
    for large in (False, True):
        if large:
            monkeypatch.setattr(search_effort, "_TRIAL_MACS", 1.0)
            monkeypatch.setattr(search_effort, "_FITTING_MULTIPLICATIONS", 1.0)
        tried.clear()
        fitted.clear()
        run(wide, data=data, eval_data="held.npz", budget=Budget(max_error=0.1))
        want, got = (outputs(path, pictures[30:]) for path in (wide, "wide.opt.onnx"))
        assert 1e-4 < np.linalg.norm(got - want) / np.linalg.norm(want) <= 0.1
        effort.append((len(tried), max(tried), len(fitted)))
    (usual, samples, fits), (fewer, few_samples, fewer_fits) = effort
    assert fewer < usual
    assert few_samples == 4 < samples
    assert fewer_fits <= 3 < fits + 1
