"""What the table answers when nothing may be measured."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.cost import stopwatch as module
from graphopt.cost import table as table_module
from graphopt.cost.latency import Effort, Timing
from graphopt.cost.model import LEAST_SAMPLES
from graphopt.cost.recall import Recall
from graphopt.cost.stopwatch import Stopwatch
from graphopt.cost.table import LatencyTable, key_of
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer


def scope_of(channels, size=8):
    shape = (1, channels, size, size)
    weight = np.random.default_rng(0).standard_normal((channels, channels, 3, 3))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="layer", pads=[1] * 4)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = ir.serde.deserialize_model(proto)
    return Scope(model, model.graph, infer(model, {"x": shape}))


def split(rank):
    """A rewrite: the 3x3 convolution behind a 1x1 one of `rank` channels."""

    def rewrite(scope):
        node = scope.graph[0]
        channels = scope.shape(node.inputs[0])[1]
        change, noise = Edit(scope, "test"), np.random.default_rng(1)
        first = noise.standard_normal((rank, channels, 1, 1)).astype(np.float32)
        second = noise.standard_normal((channels, rank, 3, 3)).astype(np.float32)
        inner = change.node("Conv", [node.inputs[0], change.constant(first, "a")], hint="inner")
        operands = [inner, change.constant(second, "b")]
        change.commit(
            (node,),
            {node.outputs[0]: change.node("Conv", operands, {"pads": [1] * 4}, hint="outer")},
        )
        return True

    return rewrite


def times(channels, rank):
    """A made-up machine: 10 us, and 1000 MACs a microsecond."""
    before, after = 9 * channels * channels, rank * channels * 10
    ratio = (10 + after * 0.064) / (10 + before * 0.064)
    return Timing(10 + before * 0.064, 10 + after * 0.064, ratio, ratio, ratio, 9)


GRID = [(c, r) for c in (16, 32, 48, 64, 96) for r in (8, 16, 24, 32, 40, 48)]


@pytest.fixture
def filled(monkeypatch):
    """Fills the table with some of GRID, by a stopwatch that measures nothing."""
    monkeypatch.setattr(module, "open_session", lambda *_, **__: None)

    def fill(questions):
        watch = Stopwatch(LatencyTable(), effort=Effort(0, 1, 1))
        for channels, rank in questions:
            made = times(channels, rank)
            monkeypatch.setattr(module, "compare", lambda *_, made=made: made)
            scope = scope_of(channels)
            assert watch.rewritten(scope, list(scope.graph), split(rank)) == made
        return Recall(LatencyTable())

    return fill


def asked(recall, channels, rank):
    scope = scope_of(channels)
    return recall.rewritten(scope, list(scope.graph), split(rank))


def test_what_was_measured_is_known(filled):
    recall = filled(GRID[:3])
    assert asked(recall, *GRID[1]) == times(*GRID[1])
    assert asked(recall, *GRID[1]).measured
    assert asked(recall, *GRID[7]) is None, "too few timings for a model"


def test_what_was_not_is_predicted(filled):
    rest, known = GRID[::5], [q for q in GRID if q not in GRID[::5]]
    recall = filled(known)
    assert len(known) >= LEAST_SAMPLES
    for question in rest:
        found = asked(recall, *question)
        assert not found.measured
        assert found.ratio == found.ratio_low == found.ratio_high
        assert found.ratio == pytest.approx(times(*question).ratio, rel=0.15)
        assert found.before_us == pytest.approx(times(*question).before_us, rel=0.15)
    assert asked(recall, *known[0]) == times(*known[0])


def test_other_threads_and_machines_know_nothing(filled, monkeypatch):
    recall = filled(GRID)
    assert recall.model is not None
    assert asked(Recall(LatencyTable(), threads=2), *GRID[0]) is None
    monkeypatch.setattr(table_module, "machine", lambda: "another")
    assert asked(Recall(LatencyTable()), *GRID[0]) is None


def test_one_table_makes_one_model_whatever_its_order(filled, cache):
    first = filled(GRID).model
    (path,) = cache.iterdir()
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(entries.items()))))
    assert Recall(LatencyTable()).model == first


def test_none_where_there_is_nothing_to_rewrite(filled):
    scope = scope_of(16)
    assert filled(GRID).rewritten(scope, list(scope.graph), lambda fragment: False) is None


@pytest.mark.parametrize("facts", [None, 3, [3], [["Conv", [1], [0], [1], 1]], "absent"])
def test_entries_without_facts_still_answer(filled, cache, facts):
    filled(GRID)
    (path,) = cache.iterdir()
    entries = json.loads(path.read_text())
    for entry in entries.values():
        if facts == "absent":
            del entry["before"]
        else:
            entry["before"] = facts
    path.write_text(json.dumps(entries))
    recall = Recall(LatencyTable())
    assert recall.table.samples(1) == []
    assert recall.model is None
    assert asked(recall, *GRID[3]) == times(*GRID[3])


@pytest.mark.parametrize("figure", ["x", None, float("nan"), -1.0, 0])
def test_times_that_are_none_are_not_known(filled, cache, figure):
    filled(GRID[:1])
    (path,) = cache.iterdir()
    entries = json.loads(path.read_text())
    for entry in entries.values():
        entry["before_us"] = figure
    path.write_text(json.dumps(entries))
    assert asked(Recall(LatencyTable()), *GRID[0]) is None


def test_the_key_names_both_models_the_threads_and_the_machine():
    assert key_of("a", "b", 2) == f"a:b:2:{table_module.machine()}"
