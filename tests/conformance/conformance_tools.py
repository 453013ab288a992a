"""What the conformance tests share: running graphopt, and recounting its figures without it.

Nothing here is computed by graphopt's own code: costs and errors are taken again from the files
with plain onnx and onnxruntime, so that a test compares two independent answers.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from graphopt import Options, optimize
from graphopt.reporting.schema import Cost, OptimizeReport

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

MADE_BY_GRAPHOPT = ".opt.onnx"
"""In a complaint about a file: it is the result, so the fault is graphopt's."""

_FATAL = 4
_INTEGERS = ["int16", "int32", "int64", "uint16", "uint32", "uint64", "bool"]


@dataclass(frozen=True)
class Counted:
    """A model's cost, counted over the file. macs: at the shapes it was run with."""

    nodes: int
    parameters: int
    weight_bytes: int
    macs: int
    file_bytes: int
    operators: Mapping[str, int]


@dataclass(frozen=True)
class Result:
    """One run of graphopt: what went in, what came out, what it said."""

    original: Path
    optimized: Path
    report: OptimizeReport


def run_graphopt(original: Path, folder: Path, **options: Any) -> Result:
    """Optimize into `folder`; nothing is timed unless `bench=True` is given."""
    target = folder / f"{original.stem}.opt.onnx"
    settings = Options(output=target, **{"bench": False, **options})
    return Result(original, target, optimize(original, settings))


def load_by_path(path: Path) -> ModuleType:
    """A Python file as a module."""
    name = f"conformance_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def session(model: Path | bytes, *, optimized: bool = False) -> ort.InferenceSession:
    """An onnxruntime session on one thread, with all of its optimizations or none."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if optimized
        else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def relative_errors(
    original: Path, other: Path, feeds: Sequence[Feeds], *, optimized: bool = False
) -> dict[str, float]:
    """||y - y'|| / ||y|| of every float output over all feeds, the original unoptimized."""
    first, second = session(original), session(other, optimized=optimized)
    names = [output.name for output in first.get_outputs()]
    error, norm = Counter[str](), Counter[str]()
    for feed in feeds:
        pairs = zip(first.run(names, feed), second.run(names, feed), strict=True)
        for name, (y, z) in zip(names, pairs, strict=True):
            assert y.shape == z.shape
            assert y.dtype == z.dtype
            if y.dtype.kind == "f":
                error[name] += float(np.sum((y.astype(np.float64) - z) ** 2))
                norm[name] += float(np.sum(y.astype(np.float64) ** 2))
    return {name: math.sqrt(error[name] / norm[name]) for name in norm}


def interface(path: Path) -> list[tuple[str, bytes]]:
    """Names and types of what a caller feeds and gets."""
    graph = onnx.load(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    values = [v for v in graph.input if v.name not in stored]
    return [
        (v.name, v.type.SerializeToString(deterministic=True)) for v in [*values, *graph.output]
    ]


def operators(path: Path) -> Counter[str]:
    """Nodes by type, those of bodies included."""
    return Counter(node.op_type for node in _nodes(onnx.load(path).graph))


def foldable_batch_norms(path: Path) -> list[str]:
    """Batch normalizations directly behind a convolution whose output nothing else uses."""
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in _nodes(graph) for name in node.input)
    uses.update(value.name for value in graph.output)
    return [
        node.name or node.output[0]
        for node in graph.node
        if node.op_type == "BatchNormalization"
        and (before := makers.get(node.input[0])) is not None
        and before.op_type in ("Conv", "ConvTranspose")
        and uses[node.input[0]] == 1
    ]


def count(path: Path, feeds: Feeds) -> Counted:
    """Count a file's cost; shapes are those that onnxruntime sees when it runs on `feeds`."""
    model = onnx.load(path)
    nodes = list(_nodes(model.graph))
    tensors = [*model.graph.initializer]
    for node in nodes:
        if node.op_type == "Constant":
            tensors += [a.t for a in node.attribute if a.name == "value"]
    arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
    return Counted(
        nodes=len(nodes),
        parameters=sum(a.size for a in arrays if a.dtype.name not in _INTEGERS),
        weight_bytes=sum(a.nbytes for a in arrays),
        macs=_macs(model, feeds),
        file_bytes=path.stat().st_size,
        operators=Counter(node.op_type for node in nodes),
    )


def assert_figures_hold(report: OptimizeReport, before: Counted, after: Counted) -> None:
    """The report's totals are the recounted ones, and its entries add up to their difference."""
    for totals, counted in ((report.before, before), (report.after, after)):
        for name in ("nodes", "parameters", "weight_bytes", "macs", "file_bytes"):
            assert getattr(totals, name) == getattr(counted, name), name
        assert dict(totals.operators) == dict(counted.operators)
    for name in ("nodes", "parameters", "weight_bytes", "macs"):
        saved = sum(_saved(entry.before, entry.after, name) for entry in report.rewrites)
        assert saved == getattr(before, name) - getattr(after, name), name


def assert_verified(report: OptimizeReport, outputs: Sequence[str]) -> None:
    """Every output passed at both onnxruntime levels, with nothing rolled back to get there."""
    assert report.verification is not None
    assert report.verification.passed
    checked = [(check.name, check.level) for check in report.verification.outputs]
    assert sorted(checked) == sorted(
        (name, level) for name in outputs for level in ("disable_all", "enable_all")
    )
    assert all(check.passed for check in report.verification.outputs)
    assert report.verification.rolled_back == ()


def assert_second_run_is_idle(result: Result, folder: Path, **options: Any) -> None:
    """Optimizing the result finds nothing to do and copies it byte for byte."""
    again = run_graphopt(result.optimized, folder, **options)
    assert [(entry.name, entry.site) for entry in again.report.rewrites] == []
    assert again.optimized.read_bytes() == result.optimized.read_bytes()


def _saved(before: Cost, after: Cost, name: str) -> int:
    return int(getattr(before, name)) - int(getattr(after, name))


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            found += [inner for body in bodies for inner in _nodes(body)]
    return found


def _macs(model: onnx.ModelProto, feeds: Feeds) -> int:
    nodes = [n for n in model.graph.node if n.op_type in _COUNTED]
    shapes = _shapes(model, {name for n in nodes for name in (*n.input[:2], n.output[0])}, feeds)
    return sum(
        _COUNTED[n.op_type](n, *(shapes[name] for name in (*n.input[:2], n.output[0])))
        for n in nodes
    )


def _shapes(model: onnx.ModelProto, names: set[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    shapes |= {name: array.shape for name, array in feeds.items()}
    asked = sorted(names - shapes.keys())
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    have = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in asked if n not in have)
    arrays = session(probe.SerializeToString()).run(asked, feeds) if asked else []
    return shapes | {name: a.shape for name, a in zip(asked, arrays, strict=True)}


def _conv(_: onnx.NodeProto, __: Sequence[int], w: Sequence[int], y: Sequence[int]) -> int:
    return math.prod(y) * math.prod(w[1:])


def _transposed(_: onnx.NodeProto, x: Sequence[int], w: Sequence[int], __: Sequence[int]) -> int:
    return math.prod(x) * math.prod(w[1:])


def _matmul(_: onnx.NodeProto, x: Sequence[int], __: Sequence[int], y: Sequence[int]) -> int:
    return math.prod(y) * x[-1]


def _gemm(node: onnx.NodeProto, x: Sequence[int], __: Sequence[int], y: Sequence[int]) -> int:
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(y) * x[0 if turned else -1]


_COUNTED = {"Conv": _conv, "ConvTranspose": _transposed, "MatMul": _matmul, "Gemm": _gemm}
