"""A rewrite that computes something else is found, named, and dropped (or stops the run)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx_text import build

from graphopt import Budget, VerificationError, evidence
from graphopt.graph.scope import Scope
from graphopt.planning.guard import Measured
from graphopt.rewrites import APPROXIMATE, all_rewrites
from graphopt.rewrites.base import ExactRewrite, Proposal, WholeModelPass
from graphopt.verification.guard import ReferenceGuard
from graphopt.verification.proof import Proof


def perturb(node: ir.Node, factor: float) -> None:
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=value.name)
    node.metadata_props["test.perturbed"] = "yes"


@dataclass(frozen=True)
class Wrong(ExactRewrite):
    """Conv  ==>  Conv with weights 1 % larger: not the same function."""

    name: ClassVar[str] = "wrong"
    outputs: tuple[str, ...] = ("d",)
    factor: float = 1.01

    def propose(self, scope: Scope) -> Iterator[Proposal]:
        for node in scope.graph:
            fresh = "test.perturbed" not in node.metadata_props
            if node.op_type == "Conv" and node.outputs[0].name in self.outputs and fresh:
                yield Proposal(self.name, (node,), lambda node=node: perturb(node, self.factor))


@dataclass(frozen=True)
class WrongPass(WholeModelPass):
    """Every Conv  ==>  Conv with weights 1 % larger, in one go."""

    name: ClassVar[str] = "wrong-pass"

    def run(self, model: ir.Model) -> dict:
        for node in model.graph:
            if node.op_type == "Conv" and "test.perturbed" not in node.metadata_props:
                perturb(node, 1.01)
        return {}


@pytest.fixture
def also(monkeypatch):
    """Add rewrites, before or after the real ones."""

    def add(*rewrites, first: bool = False) -> None:
        found = (*rewrites, *all_rewrites()) if first else (*all_rewrites(), *rewrites)
        monkeypatch.setattr("graphopt.selection.all_rewrites", lambda: found)

    return add


def weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
    arrays = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    return next(array for array in arrays if array.shape == shape)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("factor", [1.01, 0.0, -1.0, np.inf])
def test_the_culprit_is_dropped_and_the_rest_applied(run, also, two_layers, first, factor):
    also(Wrong(factor=factor), first=first)
    report = run(two_layers)
    assert report.verification is not None
    assert report.verification.passed
    (dropped,) = report.verification.rolled_back
    assert dropped.name == "wrong"
    assert "is to blame" in dropped.reason
    names = {entry.name for entry in report.rewrites}
    assert "fuse-conv-bn" in names
    assert "wrong" not in names
    nodes = [node.op_type for node in onnx.load("net.opt.onnx").graph.node]
    assert nodes == ["Conv", "Relu", "Conv", "GlobalAveragePool", "Flatten"]
    assert np.array_equal(weight("net.opt.onnx", (4, 4, 3, 3)), weight("net.onnx", (4, 4, 3, 3)))


def test_the_site_is_named(run, also, folder):
    text = """
    net (float[1,3,4,4] x) => (float[1,3,4,4] y) <float[3,3,1,1] w, float[3,3,1,1] v>
    { c = Conv (x, w)  r = Relu (c)  y = Conv (r, v) }
    """
    network = build(text)
    for node, name in zip(network.graph.node, ("first", "act", "second"), strict=True):
        node.name = name
    onnx.save(network, "named.onnx")
    also(Wrong(outputs=("y",)))
    report = run("named.onnx")
    (dropped,) = report.verification.rolled_back
    assert dropped.site == ("second",)
    assert dropped.reason == "wrong at second is to blame"


def test_two_culprits_are_both_dropped(run, also, two_layers):
    also(Wrong(outputs=("c", "d")), first=True)
    report = run(two_layers)
    assert report.verification.passed
    assert [dropped.name for dropped in report.verification.rolled_back] == ["wrong", "wrong"]
    assert len({dropped.site for dropped in report.verification.rolled_back}) == 2
    assert "fuse-conv-bn" in {entry.name for entry in report.rewrites}


def test_a_wrong_pass_over_the_whole_model(run, also, two_layers):
    also(WrongPass())
    report = run(two_layers)
    (dropped,) = report.verification.rolled_back
    assert (dropped.name, dropped.site, dropped.reason) == (
        "wrong-pass",
        (),
        "wrong-pass is to blame",
    )
    assert report.verification.passed


def test_the_only_change_is_dropped_and_the_input_copied(run, also, two_layers):
    also(Wrong())
    report = run(two_layers, passes=("wrong",))
    assert report.rewrites == ()
    assert Path("net.opt.onnx").read_bytes() == two_layers.read_bytes()


def test_within_a_budget_nobody_is_to_blame(run, also, two_layers, data):
    also(Wrong())
    report = run(two_layers, data=data, budget=Budget(max_error=0.1))
    assert report.verification.rolled_back == ()
    assert "wrong" in {entry.name for entry in report.rewrites}


@pytest.fixture
def trusting(monkeypatch):
    """A search whose measurements promise too much: every plan seems to keep the budget."""
    monkeypatch.setattr(ReferenceGuard, "held_out", lambda self, model: Measured(0.0, 0.0))


def test_an_approximate_culprit_is_dropped(run, wide, data, trusting):
    budget = Budget(max_error=0.05)
    report = run(wide, data=data, budget=budget)
    assert report.verification.passed
    assert all(check.relative_l2 <= 0.05 for check in report.verification.outputs)
    dropped = report.verification.rolled_back
    assert dropped
    assert {entry.name for entry in dropped} <= {scheme.name for scheme in APPROXIMATE}
    assert len({entry.name for entry in dropped}) == len(dropped), "none is tried again"
    for entry in dropped:
        assert "is to blame" in entry.reason
    kept = {(entry.name, entry.site) for entry in report.rewrites if entry.kind == "approximate"}
    assert not kept & {(entry.name, entry.site) for entry in dropped}


def test_an_approximate_culprit_is_found_behind_exact_changes(run, two_layers, data, monkeypatch):
    """Both layers are factored far too coarsely, one scheme is on offer, the fusion stays."""
    monkeypatch.setattr(evidence, "channel_block", lambda: 1)
    monkeypatch.setattr(ReferenceGuard, "held_out", lambda self, model: Measured(0.0, 0.0))
    passes = ("fuse-conv-bn", "remove-noops", "input-bottleneck")
    report = run(two_layers, data=data, passes=passes, budget=Budget(max_error=1e-3))
    assert report.verification.passed
    assert {entry.name for entry in report.verification.rolled_back} == {"input-bottleneck"}
    assert len({entry.site for entry in report.verification.rolled_back}) == 2
    names = {entry.name for entry in report.rewrites}
    assert "fuse-conv-bn" in names
    assert "input-bottleneck" not in names


def test_stop_names_an_approximate_culprit(run, wide, data, trusting, folder):
    before = sorted(folder.iterdir())
    with pytest.raises(VerificationError, match=r"is to blame\. Nothing was written"):
        run(wide, data=data, budget=Budget(max_error=0.05), on_fail="stop")
    assert sorted(folder.iterdir()) == before


def test_stop_writes_nothing_and_names_rewrite_and_site(run, also, two_layers, folder):
    also(Wrong())
    with pytest.raises(VerificationError) as caught:
        run(two_layers, on_fail="stop")
    message = str(caught.value)
    assert "output 'y' is off by " in message
    assert "wrong at make_d is to blame" in message
    assert message.endswith("Nothing was written")
    assert [file.name for file in folder.iterdir()] == ["net.onnx"]


def test_stop_in_place_leaves_the_input(run, also, two_layers):
    also(Wrong())
    before = two_layers.read_bytes()
    with pytest.raises(VerificationError):
        run(two_layers, on_fail="stop", in_place=True)
    assert two_layers.read_bytes() == before


def test_a_fault_that_is_in_no_rewrite_blames_none(run, two_layers, folder, monkeypatch):
    def always_off(reference, candidate, limits):
        return Proof((), False, "output 'y' is off by 1, more than 0.0001")

    monkeypatch.setattr("graphopt.proving.prove", always_off)
    with pytest.raises(VerificationError, match="even with nothing rewritten"):
        run(two_layers)
    assert [file.name for file in folder.iterdir()] == ["net.onnx"]


def test_rollback_gives_up_in_the_end(run, also, two_layers, folder, monkeypatch):
    """A result that never holds: some change is dropped each time, but not for ever."""
    calls = []

    def never(reference, candidate, limits):
        calls.append(candidate)
        empty = (
            Path("net.onnx").read_bytes() == Path(candidate).read_bytes()
            if isinstance(candidate, Path)
            else False
        )
        return Proof((), empty, "" if empty else "output 'y' is off")

    monkeypatch.setattr("graphopt.proving.prove", never)
    monkeypatch.setattr("graphopt.proving.first_bad", lambda count, passes: 1)
    report = run(two_layers)
    assert report.rewrites == ()
    assert Path("net.opt.onnx").read_bytes() == two_layers.read_bytes()
    assert len(report.verification.rolled_back) >= 2


def test_what_onnxruntime_itself_cannot_load_is_not_made(run, folder, capfd):
    """Its fusions fail on a valid graph: an Add of two convolutions, the first an output as well."""
    network = build(
        """net (float[1,3,6,6] x) => (float[1,3,6,6] y, float[1,3,6,6] b)
        <float[3,1,3,3] w, float[3,1,1,1] k, float[3] s, float[3] t, float[3] m, float[3] var>
        { a = Relu(x) c = Conv<group=3, pads=[1,1,1,1]>(a, w) e = Conv<group=3>(a, k, "")
          b = BatchNormalization(e, s, t, m, var) d = Add(c, b)
          n = BatchNormalization(a, s, t, m, var) y = Add(d, n) }"""
    )
    onnx.save(network, "refused.onnx")
    report = run("refused.onnx")
    assert report.verification.passed
    assert report.verification.rolled_back
    assert "EP Error" not in capfd.readouterr().out
