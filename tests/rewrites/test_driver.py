"""The driver: permits, gates, keys that hold across runs, and a ledger that adds up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import build, has, rewrite

from graphopt.cost.census import Census
from graphopt.graph.shapes import bind_inputs, infer
from graphopt.rewrites import CLEANUP, EXACT, all_rewrites
from graphopt.rewrites.base import OptionValue, WholeModelPass
from graphopt.rewrites.driver import Driver, Verdict
from graphopt.rewrites.exact.fc_to_conv import FcToConv
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm
from graphopt.rewrites.gate import MeasuredGate
from graphopt.rewrites.ledger import Ledger, Permit
from graphopt.rewriting import finished, rewrite_exactly

REWRITES = (*CLEANUP, *EXACT)


@pytest.fixture
def model() -> onnx.ModelProto:
    return build(
        """net (float[1,3,8,8] x) => (float[1,6] y)
        <float[4,3,3,3] w, float[4] g, float[4] b, float[4] mean, float[4] var,
         float[5,4,3,3] w2, float[5] g2, float[5] b2, float[5] mean2, float[5] var2, float[80,6] f>
        { c = Conv(x, w) n = BatchNormalization(c, g, b, mean, var) r = Relu(n) i = Identity(r)
          d = Conv(i, w2) m = BatchNormalization(d, g2, b2, mean2, var2) s = Relu(m)
          t = Clip(s, , six) q = Flatten(t) y = MatMul(q, f) }""",
        weights={"six": np.float32(6)},
    )


def test_nothing_is_gated_in_without_a_measurement(model: onnx.ModelProto) -> None:
    result = rewrite(model, *REWRITES, gate=MeasuredGate(None))
    assert result.ops == ["Conv", "Relu", "Conv", "Clip", "Flatten", "MatMul"]
    assert has(result.reasons, "not measured")


def test_a_gate_that_refuses(model: onnx.ModelProto) -> None:
    result = rewrite(model, FcToConv(), gate=lambda *_: Verdict(False, "because"))
    assert [(d.rewrite, d.reason) for d in result.declined] == [("fc-to-conv", "because")]
    assert "MatMul" in result.ops


def test_same_input_same_bytes(model: onnx.ModelProto) -> None:
    """Also from one model in memory, as rollback does it."""
    source = ir.from_proto(model)
    infos = infer(source, bind_inputs(source.graph, {}))
    runs = [
        rewrite_exactly(source, REWRITES, infos, lambda *_: Verdict(True), Permit())
        for _ in range(2)
    ]
    keys = [[change.key for change in done.applied] for done in runs]
    assert keys[0] == keys[1]
    files = [ir.to_proto(finished(done, "1")).SerializeToString() for done in runs]
    assert files[0] == files[1]


def test_every_limit_gives_a_valid_model(model: onnx.ModelProto) -> None:
    """Blame bisects over them: each prefix of the changes is a model of its own."""
    whole = rewrite(model, *REWRITES)
    for limit in range(len(whole.applied) + 1):
        part = rewrite(model, *REWRITES, permit=Permit(limit=limit))
        assert [c.key for c in part.applied] == [c.key for c in whole.applied[:limit]]
        onnx.checker.check_model(part.proto, full_check=True)


def test_a_blocked_change_is_not_made(model: onnx.ModelProto) -> None:
    whole = rewrite(model, FuseConvBatchNorm())
    key = whole.applied[0].key
    rest = rewrite(model, FuseConvBatchNorm(), permit=Permit(blocked=frozenset([key])))
    assert [change.key for change in rest.applied] == [whole.applied[1].key]
    assert rest.ops.count("BatchNormalization") == 1


def test_the_ledger_adds_up(model: onnx.ModelProto) -> None:
    """Sums over the changes are the difference of the totals."""
    source = ir.from_proto(model)
    known = infer(source, bind_inputs(source.graph, {}))
    before = Census(source, dict(known)).take().total()
    done = rewrite_exactly(source, REWRITES, known, lambda *_: Verdict(True), Permit())
    after = Census(done.model, dict(done.scope.infos)).take().total()
    for what in ("nodes", "parameters", "weight_bytes", "macs"):
        saved = sum(getattr(c.before, what) - getattr(c.after, what) for c in done.applied)
        assert saved == getattr(before, what) - getattr(after, what), what


@dataclass(frozen=True)
class RenameInFunctions(WholeModelPass):
    """Relu  ==>  Abs, in functions only."""

    name = "rename-in-functions"

    def run(self, model: ir.Model) -> dict[str, OptionValue]:
        for function in model.functions.values():
            for node in function:
                node.op_type = node.op_type.replace("Relu", "Abs")
        return {}


def test_a_change_inside_a_function_is_one() -> None:
    model = build("net (float[3] x) => (float[3] y) { y = Neg(x) }", domains=["own"])
    body = onnx.helper.make_node("Relu", ["a"], ["b"])
    opset = onnx.helper.make_opsetid("", 17)
    function = onnx.helper.make_function("own", "F", ["a"], ["b"], [body], [opset])
    model.functions.append(function)
    driver = Driver(ir.from_proto(model), {}, Ledger())
    driver.to_fixpoint([RenameInFunctions()])
    assert [change.name for change in driver.ledger.applied] == ["rename-in-functions"]


def test_names_are_unique_and_documented() -> None:
    rewrites = all_rewrites()
    names = [rewrite.name for rewrite in rewrites]
    assert len(names) == len(set(names))
    assert all(type(rewrite).__doc__ for rewrite in rewrites)
