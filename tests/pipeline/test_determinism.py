"""Same input, same seed, same table of latencies: the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from graphopt import Budget, Options, __version__, optimize


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
