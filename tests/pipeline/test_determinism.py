"""Same input, same seed, same table of latencies: the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import build

from graphopt import Budget, Options, __version__, optimize
from graphopt.cost.latency import Timing
from graphopt.graph.scope import Scope
from graphopt.verification.guard import ReferenceGuard


def without_clock(report):
    """A report without what may differ: times, memory, and where the file went."""
    output = replace(report.output, path="")
    return replace(report, seconds={}, peak_memory_bytes=0, latency=(), output=output)


@pytest.mark.parametrize("bench", [False, True])
def test_exact_rewrites(run, two_layers, bench):
    reports = [run(two_layers, output=Path(f"{i}.onnx"), bench=bench) for i in range(2)]
    assert Path("0.onnx").read_bytes() == Path("1.onnx").read_bytes()
    assert without_clock(reports[0]) == without_clock(reports[1])


def test_a_budget_with_data(run, wide, data):
    budget = Budget(max_error=0.1)
    reports = [run(wide, data=data, budget=budget, output=Path(f"{i}.onnx")) for i in range(2)]
    assert any(entry.kind == "approximate" for entry in reports[0].rewrites)
    assert Path("0.onnx").read_bytes() == Path("1.onnx").read_bytes()
    assert without_clock(reports[0]) == without_clock(reports[1])


@pytest.fixture
def deep(folder):
    """Three convolutions, two of them around a sum, whose weights are all worth factoring."""
    rng = np.random.default_rng(0)
    fade = 0.6 ** np.arange(32)

    def fading(size):
        basis = np.linalg.qr(rng.standard_normal((32, 32)))[0] * fade
        core = rng.standard_normal((32, 32, size, size)) / size
        return np.einsum("oruv,cr->ocuv", core, basis).astype(np.float32)

    text = """
    net (float[N,3,8,8] x) => (float[N,32,8,8] y)
    <float[32,3,1,1] stem, float[32,32,3,3] w1, float[32,32,5,5] w2, float[32,32,3,3] w3>
    {
        a = Conv (x, stem)  ra = Relu (a)
        b = Conv <pads = [1,1,1,1]> (ra, w1)  rb = Relu (b)
        c = Conv <pads = [2,2,2,2]> (rb, w2)  s = Add (c, ra)  rs = Relu (s)
        y = Conv <pads = [1,1,1,1]> (rs, w3)
    }
    """
    weights = {"w1": fading(3), "w2": fading(5), "w3": fading(3)}
    onnx.save(build(text, weights=weights), "deep.onnx")
    return Path("deep.onnx")


def test_a_budget_with_data_over_several_layers(run, deep, data):
    """The whole fit in order, all schemes on offer."""
    budget = Budget(max_error=0.1)
    reports = [run(deep, data=data, budget=budget, output=Path(f"{i}.onnx")) for i in range(2)]
    assert sum(entry.kind == "approximate" for entry in reports[0].rewrites) > 1
    assert Path("0.onnx").read_bytes() == Path("1.onnx").read_bytes()
    assert without_clock(reports[0]) == without_clock(reports[1])


class Table:
    """In place of a stopwatch: every fragment has the time that a table has for its operators."""

    careful = None

    def __init__(self, *_, **__):
        pass

    def shares(self, scope, parts):
        return {}

    def rewritten(self, scope, nodes, rewrite, **_):
        clone = scope.model.clone()
        assert rewrite(Scope(clone, clone.graph, scope.infos))
        before, after = cost(scope.graph), cost(clone.graph)
        whole = cost(nodes)
        ratio = max((whole + after - before) / whole, 0.05)
        return Timing(whole, whole * ratio, ratio, ratio, ratio, 9)


def cost(nodes):
    weights = [n.inputs[1] for n in nodes if n.op_type == "Conv"]
    return float(sum(np.prod(w.const_value.shape) + 100 for w in weights))


def test_a_given_table_of_latencies(run, deep, data, monkeypatch):
    monkeypatch.setattr("graphopt.cost.stopwatch.Stopwatch", Table)
    monkeypatch.setattr("graphopt.cost.table.LatencyTable", lambda: None)
    monkeypatch.setattr(ReferenceGuard, "speedup", lambda self, model: 1 / cost(model.graph))
    budget = Budget(max_error=0.1)
    for i in range(2):
        report = run(deep, data=data, budget=budget, bench=True, output=Path(f"{i}.onnx"))
        assert any(entry.kind == "approximate" for entry in report.rewrites)
    assert Path("0.onnx").read_bytes() == Path("1.onnx").read_bytes()


def test_in_processes_that_hash_differently(wide, data, folder):
    for i in range(2):
        words = ["optimize", str(wide), "--data", data, "--max-error", "0.1", "-o", f"{i}.onnx"]
        subprocess.run(
            [sys.executable, "-m", "graphopt", *words, "--no-bench", "-q"],
            check=True,
            timeout=120,
            env={**os.environ, "PYTHONHASHSEED": str(i + 1)},
        )
    assert Path("0.onnx").read_bytes() == Path("1.onnx").read_bytes()


def test_the_seed_draws_the_inputs_and_the_split(run, two_layers, data):
    def figures(**options):
        report = run(two_layers, dry_run=True, **options)
        return [(c.max_abs, c.relative_l2) for c in report.verification.outputs]

    assert figures(seed=1) == figures(seed=1)
    assert figures(seed=1) != figures(seed=2)
    assert figures(seed=1, data=data) == figures(seed=1, data=data)
    assert figures(seed=1, data=data) != figures(seed=2, data=data)


def test_the_result_says_where_it_comes_from(run, two_layers):
    run(two_layers)
    props = {p.key: p.value for p in onnx.load("net.opt.onnx").metadata_props}
    assert "fuse-conv-bn 1" in props["graphopt.rewrites"].split(", ")
    assert props["graphopt.version"] == __version__


def test_a_second_run_inside_the_same_budget_keeps_within_it(run, wide, data):
    """Not again from its own output: the error would add up, so each run says its own."""
    budget = Budget(max_error=0.1)
    run(wide, data=data, budget=budget, output=Path("one.onnx"))
    report = optimize(
        Path("one.onnx"),
        Options(data=data, budget=budget, bench=False, output=Path("two.onnx")),
    )
    assert all(check.relative_l2 <= 0.1 for check in report.verification.outputs)
    assert report.after.macs <= report.before.macs
