"""`--ranks`: just what was named is put in, fitted, proven, reported; limits hold or nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_text import build

from graphopt import Budget, BudgetError, InputError, VerificationError
from graphopt.graph.scope import Scope
from graphopt.planning.forced import ForcedLayer
from graphopt.planning.guard import Measured
from graphopt.planning.method import Method
from graphopt.rewrites import all_rewrites
from graphopt.rewrites.base import ExactRewrite, Proposal
from graphopt.rewrites.respecting import MARK
from graphopt.verification.guard import ReferenceGuard


def shapes(path):
    """Shapes of the weights of all layers, in order."""
    graph = onnx.load(path).graph
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return [dims[n.input[1]] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]


def outputs(path, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].astype(np.float64)


def forced(report):
    return [entry for entry in report.rewrites if entry.kind == "approximate"]


@pytest.fixture
def deep(folder):
    """Three 3x3 convolutions with activations between, weights of slowly falling spectrum."""
    rng = np.random.default_rng(5)
    falling = np.geomspace(1, 0.05, 24)

    def weight(outputs, inputs):
        rows = rng.standard_normal((outputs, 9, inputs)) * falling[:inputs]
        basis = np.linalg.qr(rng.standard_normal((inputs, inputs)))[0]
        return (rows @ basis).transpose(0, 2, 1).reshape(outputs, inputs, 3, 3) / inputs

    text = """
    net (float[N,3,8,8] x) => (float[N,24,8,8] y)
    <float[24,3,3,3] u, float[24,24,3,3] v, float[24,24,3,3] w>
    {
        a = Conv <pads = [1,1,1,1]> (x, u)  ra = Relu (a)
        b = Conv <pads = [1,1,1,1]> (ra, v)  rb = Relu (b)
        y = Conv <pads = [1,1,1,1]> (rb, w)
    }
    """
    weights = {"v": weight(24, 24).astype(np.float32), "w": weight(24, 24).astype(np.float32)}
    onnx.save(build(text, weights=weights), "deep.onnx")
    return Path("deep.onnx")


class TestWithoutABudget:
    def test_just_that_is_done_and_said(self, run, deep, pictures):
        report = run(deep, ranks="b=7")
        assert shapes("deep.opt.onnx") == [
            (24, 3, 3, 3),
            (7, 24, 1, 1),
            (24, 7, 3, 3),
            (24, 24, 3, 3),
        ]
        (entry,) = forced(report)
        assert (entry.name, entry.site) == ("input-bottleneck", ("b",))
        assert entry.options == {"rank": 7, "forced": True}
        assert entry.before.parameters - entry.after.parameters == 24 * 24 * 9 - 7 * (24 + 24 * 9)
        check = report.verification
        assert check.passed
        assert check.tolerance is None
        assert all(0.01 < c.relative_l2 < 1 for c in check.outputs)
        assert entry.measured_error == pytest.approx(check.outputs[0].relative_l2, rel=1e-3)
        want, got = outputs(deep, pictures), outputs("deep.opt.onnx", pictures)
        assert np.linalg.norm(got - want) < 0.9 * np.linalg.norm(want)

    def test_the_notes(self, run, deep):
        notes = run(deep, ranks="b=7").notes
        assert (
            "--ranks without --max-error or --max-drop: the error is measured, not limited" in notes
        )
        assert any(note.startswith("no data to fit to") for note in notes)

    def test_a_structure_that_saves_nothing_stays_and_is_noted(self, run, deep):
        report = run(deep, ranks="b=24")
        assert (24, 24, 1, 1) in shapes("deep.opt.onnx")
        assert report.after.parameters == report.before.parameters + 24 * 24
        assert any("b: input-bottleneck 24 saves nothing" in note for note in report.notes)
        assert all(check.relative_l2 < 1e-5 for check in report.verification.outputs)
        first = Path("deep.opt.onnx").read_bytes()
        again = run("deep.opt.onnx", output=Path("again.onnx"))
        assert Path("again.onnx").read_bytes() == first
        assert "it is as --ranks asked for it" in {d.reason for d in again.declined}

    def test_the_nodes_tell_what_they_are(self, run, deep):
        run(deep, ranks="b=7,y=spatial:9")
        marks = [
            {prop.key: prop.value for prop in node.metadata_props}.get(MARK)
            for node in onnx.load("deep.opt.onnx").graph.node
        ]
        assert marks == [None, None, "b", "b", None, "y", "y"]

    def test_the_same_bytes_every_time_and_nothing_to_do_afterwards(self, run, deep):
        run(deep, ranks="b=7,y=two-sided:5x6")
        first = Path("deep.opt.onnx").read_bytes()
        run(deep, ranks="y=two-sided:5x6,b=7")
        assert Path("deep.opt.onnx").read_bytes() == first
        run("deep.opt.onnx", output=Path("again.onnx"))
        assert Path("again.onnx").read_bytes() == first

    def test_what_was_factored_is_not_factored_again(self, run, deep):
        run(deep, ranks="b=7")
        with pytest.raises(InputError, match="already factored by graphopt"):
            run("deep.opt.onnx", ranks="b=7", dry_run=True)

    @pytest.mark.parametrize(
        "name", ["make_c", "c", "n"], ids=["node", "output in the file", "output once fused"]
    )
    def test_a_fused_layer_by_any_of_its_names(self, run, two_layers, name):
        run(two_layers, ranks=f"{name}=2")
        assert shapes("net.opt.onnx") == [(2, 3, 1, 1), (4, 2, 3, 3), (4, 4, 3, 3)]

    @pytest.mark.parametrize(
        ("ranks", "made"),
        [
            ("fc=3", [(20, 3), (3, 10)]),
            ("c=spatial:2", [(2, 6, 3, 1), (8, 2, 1, 3)]),
            ("c=spatial-transposed:2", [(2, 6, 1, 3), (8, 2, 3, 1)]),
            ("c=output-bottleneck:1", [(1, 6, 3, 3), (8, 1, 1, 1)]),
            ("c=two-sided:1x1", [(1, 6, 1, 1), (1, 1, 3, 3), (8, 1, 1, 1)]),
            ("c=decoupled:1", [(6, 1, 3, 3), (8, 6, 1, 1)]),
            ("k=kernel-pair:1", [(1, 6, 3, 3), (8, 1, 3, 3)]),
            ("k=5", [(5, 6, 1, 1), (8, 5, 5, 5)]),
        ],
    )
    def test_every_scheme(self, run, folder, ranks, made):
        text = """
        net (float[N,6,9,9] x, float[N,20] f) =>
            (float[N,8,9,9] c, float[N,8,9,9] k, float[N,10] y)
        <float[8,6,3,3] v, float[8,6,5,5] w, float[20,10] m, float[10] b>
        { c = Conv <pads = [1,1,1,1]> (x, v)  k = Conv <pads = [2,2,2,2]> (x, w)  y = Gemm (f, m, b) }
        """
        network = build(text)
        for node, name in zip(network.graph.node, ("c", "k", "fc"), strict=True):
            node.name = name
        onnx.save(network, "all.onnx")
        report = run("all.onnx", ranks=ranks)
        assert report.verification.passed
        found = shapes("all.opt.onnx")
        assert [shape for shape in found if shape in made] == made


class TestFits:
    def test_data_are_fitted_to_without_a_budget_too(self, run, deep, folder):
        """Inputs that fill a few directions only: a fit to them beats one to the weights by far."""
        rng = np.random.default_rng(1)
        few = rng.standard_normal((60, 1, 8, 8)) * rng.standard_normal((1, 3, 1, 1))
        np.savez("few.npz", x=few.astype(np.float32))
        ranks, error = "b=6,y=6", {}
        for data in (None, "few.npz"):
            report = run(deep, ranks=ranks, data=data, eval_data="few.npz")
            error[data] = report.verification.outputs[0].relative_l2
            blind = any(note.startswith("no data to fit to") for note in report.notes)
            assert blind == (data is None)
        assert error["few.npz"] < 0.7 * error[None]

    def test_all_together_they_are_fitted_to_what_they_will_see(self, run, deep, data):
        """The second layer makes good for the first: better than each fitted on its own."""
        found = {}
        for asymmetric in (True, False):
            method = Method(asymmetric=asymmetric, polish=False)
            report = run(deep, ranks="b=8,y=12", data=data, eval_data=data, method=method)
            found[asymmetric] = report.verification.outputs[0].relative_l2
        assert found[True] < 0.98 * found[False]

    def test_resuming(self, run, deep, data):
        budget = Budget(max_error=0.9)
        kept = Path("kept")
        run(deep, ranks="b=7", data=data, budget=budget, resume=kept)
        first = Path("deep.opt.onnx").read_bytes()
        report = run(deep, ranks="b=7", data=data, budget=budget, resume=kept)
        assert Path("deep.opt.onnx").read_bytes() == first
        assert any(note.startswith("went on from the statistics") for note in report.notes)
        # Another layer's statistics are not taken for this one's.
        run(deep, ranks="y=7", data=data, budget=budget, resume=kept)
        other = Path("deep.opt.onnx").read_bytes()
        run(deep, ranks="y=7", data=data, budget=budget)
        assert Path("deep.opt.onnx").read_bytes() == other


class TestLimits:
    def test_an_error_that_holds(self, run, deep, data):
        report = run(deep, ranks="b=12", data=data, budget=Budget(max_error=0.9))
        assert report.verification.tolerance == 0.9
        assert not any("not limited" in note for note in report.notes)
        assert len(forced(report)) == 1, "and nothing else, though the budget has room"

    def test_an_error_that_does_not(self, run, deep, data, folder):
        before = sorted(folder.iterdir())
        with pytest.raises(BudgetError, match=r"off by 0\.\d+, more than --max-error 0\.001"):
            run(deep, ranks="b=3", data=data, budget=Budget(max_error=0.001))
        assert sorted(folder.iterdir()) == before

    def test_a_drop(self, run, deep, data, folder):
        (folder / "m.py").write_text(
            "def m(outputs, batch): return -float(abs(outputs['y']).max())"
        )
        drop = {"data": data, "metric": "m.py:m"}
        report = run(deep, ranks="b=24", budget=Budget(max_drop=0.01), **drop)
        assert report.verification.metric_before is not None
        (folder / "m.py").write_text("def m(outputs, batch): return float(abs(outputs['y']).sum())")
        with pytest.raises(BudgetError, match=r"falls by .*, more than --max-drop 0\.01"):
            run(deep, ranks="b=3", budget=Budget(max_drop=0.01), **drop)

    def test_a_speedup(self, run, deep, data, folder):
        before = sorted(folder.iterdir())
        with pytest.raises(
            BudgetError, match=r"x as fast, not the 1e\+06x that --speedup asks for"
        ):
            run(deep, ranks="b=7", data=data, bench=True, budget=Budget(speedup=1e6))
        assert sorted(folder.iterdir()) == before

    def test_limits_that_only_the_proof_finds_broken(self, run, deep, data, folder, monkeypatch):
        """What was asked for is not dropped to make the rest pass."""
        monkeypatch.setattr(ReferenceGuard, "held_out", lambda self, model: Measured(0.0, 0.0))
        before = sorted(folder.iterdir())
        with pytest.raises(
            BudgetError, match=r"--ranks breaks a limit: output 'y' is off by 0\.\d+,"
        ):
            run(deep, ranks="b=3", data=data, budget=Budget(max_error=0.001))
        assert sorted(folder.iterdir()) == before


@dataclass(frozen=True)
class Wrong(ExactRewrite):
    """Conv  ==>  Conv that computes no numbers."""

    name: ClassVar[str] = "wrong"

    def propose(self, scope: Scope) -> Iterator[Proposal]:
        for node in scope.graph:
            if node.outputs[0].name == "a" and "test.wrong" not in node.metadata_props:
                yield Proposal(self.name, (node,), lambda node=node: spoil(node))


def spoil(node: ir.Node) -> None:
    value = node.inputs[1]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(np.inf), name=value.name)
    node.metadata_props["test.wrong"] = "yes"


class TestWhenTheProofFails:
    def test_an_exact_culprit_is_dropped_and_the_ranks_stay(self, run, deep, monkeypatch):
        monkeypatch.setattr("graphopt.selection.all_rewrites", lambda: (*all_rewrites(), Wrong()))
        report = run(deep, ranks="b=7")
        assert [dropped.name for dropped in report.verification.rolled_back] == ["wrong"]
        assert len(forced(report)) == 1

    def test_ranks_that_compute_no_numbers(self, run, deep, folder, monkeypatch):
        def broken(realised):
            return ForcedLayer(
                realised.candidate, realised.factored, np.full(24, np.nan, np.float32)
            )

        monkeypatch.setattr(ForcedLayer, "of", staticmethod(broken))
        before = sorted(folder.iterdir())
        with pytest.raises(VerificationError, match=r"NaN or infinite; .* at b is to blame"):
            run(deep, ranks="b=7")
        assert sorted(folder.iterdir()) == before


def test_measured_like_any_other(run, deep):
    """Faster or not: it is in the file, and its time beside that of the layer in the report."""
    report = run(deep, ranks="b=23", bench=True)
    (entry,) = forced(report)
    assert entry.before.latency_us > 0
    assert entry.after.latency_us > 0
    assert len(report.latency) == 2
    assert (23, 24, 1, 1) in shapes("deep.opt.onnx")
