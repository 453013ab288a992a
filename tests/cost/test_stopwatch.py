from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.cost import stopwatch as module
from graphopt.cost import table as table_module
from graphopt.cost.channel_block import channel_block
from graphopt.cost.latency import Effort, Timing
from graphopt.cost.recall import Recall
from graphopt.cost.stopwatch import Stopwatch
from graphopt.cost.table import LatencyTable
from graphopt.errors import InputError
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer

FAST = Effort(seconds=0.0, least=3, most=3)


def scope_of(*, known=True, op="Conv", domain=""):
    constants = [numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w")]
    nodes = [
        helper.make_node(op, ["x", "w"], ["c"], name="layer", domain=domain),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        constants,
    )
    opsets = [helper.make_opsetid("", 13)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    model = ir.serde.deserialize_model(proto)
    infos = infer(model, {"x": (1, 4, 8, 8)})
    return Scope(model, model.graph, infos if known else {})


def depthwise(scope):
    """A rewrite for the sake of it: the convolution becomes a cheaper one of the same shape."""
    node = next(n for n in scope.graph if n.name == "layer")
    change = Edit(scope, "test")
    weight = change.constant(np.ones((4, 1, 3, 3), np.float32), "w1")
    made = change.node("Conv", [node.inputs[0], weight], {"group": 4}, hint="c")
    change.commit((node,), {node.outputs[0]: made})
    return True


@pytest.fixture
def watch(tmp_path):
    return Stopwatch(LatencyTable(tmp_path / "table.json"), effort=FAST)


@pytest.fixture
def closed(monkeypatch):
    """No session may be opened any more."""

    def refuse(*_, **__):
        raise AssertionError("a session was opened")

    return lambda: monkeypatch.setattr(module, "open_session", refuse)


def nodes_of(scope):
    return list(scope.graph)[:1]


def test_a_rewrite_is_timed_in_a_fragment_and_the_model_left_alone(watch):
    scope = scope_of()
    timing = watch.rewritten(scope, nodes_of(scope), depthwise)
    assert isinstance(timing, Timing)
    assert timing.pairs == 3
    assert timing.before_us > 0 < timing.after_us
    assert timing.ratio_low <= timing.ratio <= timing.ratio_high
    assert [n.name for n in scope.graph] == ["layer", "relu"]
    assert list(scope.graph.initializers) == ["w"]


def test_the_second_time_the_table_answers(watch, closed, tmp_path):
    scope = scope_of()
    first = watch.rewritten(scope, nodes_of(scope), depthwise)
    closed()
    assert watch.rewritten(scope, nodes_of(scope), depthwise) == first
    # And so it does for another process and another model of the same structure.
    again = Stopwatch(LatencyTable(tmp_path / "table.json"), effort=FAST)
    other = scope_of()
    assert again.rewritten(other, nodes_of(other), depthwise) == first


def test_a_quick_answer_is_not_careful_enough(watch, closed, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SURE", Effort(seconds=0.0, least=5, most=5, careful=True))
    scope = scope_of()
    assert watch.rewritten(scope, nodes_of(scope), depthwise).pairs == 3
    timing = watch.careful.rewritten(scope, nodes_of(scope), depthwise)
    assert timing.pairs == 5
    closed()
    for table in (watch.table, LatencyTable(tmp_path / "table.json")):
        again = Stopwatch(table, effort=FAST)
        assert again.careful.rewritten(scope, nodes_of(scope), depthwise) == timing
        assert again.rewritten(scope, nodes_of(scope), depthwise) == timing


@pytest.mark.parametrize("what", ["threads", "nodes", "batch", "machine"])
def test_another_question_is_measured_again(watch, closed, monkeypatch, what):
    scope = scope_of()
    watch.rewritten(scope, nodes_of(scope), depthwise)
    closed()
    nodes, batch = nodes_of(scope), None
    if what == "threads":
        watch = Stopwatch(watch.table, threads=2, effort=FAST)
    elif what == "nodes":
        nodes = list(scope.graph)
    elif what == "batch":
        batch = 8
    else:
        monkeypatch.setattr(table_module, "machine", lambda: "another")
    with pytest.raises(AssertionError, match="a session was opened"):
        watch.rewritten(scope, nodes, depthwise, batch=batch)


def test_none_where_a_shape_is_unknown(watch, closed):
    scope = scope_of(known=False)
    closed()
    assert watch.rewritten(scope, nodes_of(scope), depthwise) is None
    assert watch.alone(scope, nodes_of(scope)) is None


def test_none_where_there_is_nothing_to_rewrite(watch, closed):
    scope = scope_of()
    closed()
    assert watch.rewritten(scope, nodes_of(scope), lambda fragment: False) is None


def test_none_where_the_fragment_does_not_run_and_nothing_is_remembered(watch, monkeypatch):
    def refuse(*_, **__):
        raise InputError("onnxruntime cannot load the model")

    scope = scope_of()
    with monkeypatch.context() as patch:
        patch.setattr(module, "open_session", refuse)
        assert watch.rewritten(scope, nodes_of(scope), depthwise) is None
        assert watch.alone(scope, nodes_of(scope)) is None
    assert watch.rewritten(scope, nodes_of(scope), depthwise) is not None


def test_an_operator_that_onnxruntime_does_not_know(watch):
    scope = scope_of(op="Surprise", domain="com.example")
    assert watch.alone(scope, nodes_of(scope)) is None


def test_nodes_alone(watch, closed):
    scope = scope_of()
    alone = watch.alone(scope, nodes_of(scope))
    assert alone is not None
    assert alone > 0
    closed()
    assert watch.alone(scope, nodes_of(scope)) == alone


def test_shares_of_the_whole_model(watch, closed):
    scope = scope_of()
    parts = {"layer": nodes_of(scope), "all": list(scope.graph)}
    shares = watch.shares(scope, parts)
    assert sorted(shares) == ["all", "layer"]
    for share in shares.values():
        assert share.ratio > 0
        assert share.measured
    closed()
    assert watch.shares(scope, parts) == shares
    assert Recall(watch.table).shares(scope, parts) == shares
    assert Recall(watch.table, threads=2).shares(scope, parts) == {}


def test_no_shares_of_what_cannot_be_cut_out_or_run(watch):
    assert watch.shares(scope_of(known=False), {"layer": nodes_of(scope_of())}) == {}
    unheard = scope_of(op="Unheard", domain="of")
    assert watch.shares(unheard, {"layer": nodes_of(unheard)}) == {}


def test_the_fragment_gets_the_batch_asked_for(watch, monkeypatch):
    seen = []

    def compare(before, after, feeds, effort):
        seen.append({name: array.shape for name, array in feeds.items()})
        return Timing(1.0, 1.0, 1.0, 1.0, 1.0, 3)

    monkeypatch.setattr(module, "compare", compare)
    scope = scope_of()
    for batch in (None, 1, 8):
        watch.rewritten(scope, nodes_of(scope), depthwise, batch=batch)
    # 1 is what was declared: the table knows it.
    assert seen == [{"x": (1, 4, 8, 8)}, {"x": (8, 4, 8, 8)}]


def test_the_channel_block_is_a_power_of_two_asked_for_once(monkeypatch):
    channel_block.cache_clear()
    block = channel_block()
    assert block >= 4
    assert block & (block - 1) == 0

    def refuse(*_, **__):
        raise AssertionError("asked again")

    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    assert channel_block() == block


def test_without_blocked_convolutions_ranks_are_multiples_of_four(monkeypatch):
    import onnx

    plain = helper.make_graph(
        [], "g", [], [], [numpy_helper.from_array(np.ones((3, 32, 3, 3), np.float32), "w")]
    )
    monkeypatch.setattr(onnx, "load", lambda _: helper.make_model(plain))
    channel_block.cache_clear()
    try:
        assert channel_block() == 4
    finally:
        channel_block.cache_clear()
