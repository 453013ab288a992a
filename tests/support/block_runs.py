"""Blocks through the whole of graphopt: files in, reports and files out, and a gate that is told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt import Options, optimize
from graphopt.cost.latency import Timing
from graphopt.cost.stopwatch import Stopwatch
from graphopt.reporting.schema import OptimizeReport

RESHAPING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Transpose"}
PRODUCTS = {"Gemm", "MatMul"}


def saved(model: onnx.ModelProto, name: str = "block") -> Path:
    """The model as a file in the working folder, its nodes named after what they make."""
    for node in model.graph.node:
        node.name = node.name or f"make_{node.output[0]}"
    path = Path(f"{name}.onnx").absolute()
    onnx.save(model, path)
    return path


def optimized(path: Path, **options: Any) -> tuple[OptimizeReport, onnx.ModelProto]:
    """The report and the file that `graphopt optimize` leaves, nothing timed unless told to be."""
    report = optimize(path, Options(**{"bench": False, **options}))
    assert report.verification is None or report.verification.passed
    return report, onnx.load(path.with_suffix(".opt.onnx"))


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How often the main graph has each operator."""
    return Counter(node.op_type for node in model.graph.node)


def reasons(report: OptimizeReport, rewrite: str) -> list[str]:
    """Why a rewrite left sites alone."""
    return [entry.reason for entry in report.declined if entry.name == rewrite]


def measured(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """What is measured for the gate takes `ratio` of the time; no approximation is ever faster."""

    def rewritten(*_: Any, **told: Any) -> Timing:
        found = ratio if "batch" in told else 1.5
        return Timing(100.0, 100.0 * found, found, found, found, 9)

    monkeypatch.setattr(Stopwatch, "rewritten", rewritten)


def value_of(model: onnx.ModelProto, name: str, x: Any) -> Any:
    """A value of a model for an input."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    if name not in {output.name for output in copy.graph.output}:
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run([name], {"x": x})[0])
