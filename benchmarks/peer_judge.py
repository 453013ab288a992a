"""Says what an optimizer's result is worth against the original: a job as JSON in, the findings as JSON out.

A process of its own, since a broken model may take the process that runs it along.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

TOLERANCE = 1e-4
"""Relative L2 error up to which a result is the same function."""

STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Operator domains that every runtime knows. Those of model-local functions count as well."""

WEIGHTS = frozenset({"Constant", "ConstantOfShape"})
"""Nodes that are weights."""

_SEED = 7


def main() -> None:
    job = json.load(sys.stdin)
    original, result = Path(job["original"]), Path(job["result"])
    print(json.dumps(findings(original, result, job["seconds"], job["threads"])))


def findings(original: Path, result: Path, seconds: float, threads: int) -> dict[str, Any]:
    """The counts of the result, its verdict ("ok", "invalid", "wrong") and, given time, its speed."""
    found: dict[str, Any] = {}
    try:
        found |= counts(result)
        onnx.checker.check_model(str(result))
    except Exception as error:
        return {**found, "verdict": "invalid", "why": _line(error)}
    if result == original:
        found |= {"verdict": "ok", "error": 0.0}
    else:
        found |= compared(original, result, threads)
    if seconds and found["verdict"] == "ok" and result != original:
        found |= timed(original, result, seconds, threads)
    return found


def counts(path: Path) -> dict[str, int]:
    """Nodes of all graphs and functions, those no standard has, normalizations, bytes with data files.

    Nodes that hold or generate a weight are counted apart: an initializer in their place may be
    thousands of times as large, and none of them computes anything.
    """
    model = onnx.load(path, load_external_data=False)
    local = {function.domain for function in model.functions}
    nodes = [node for body in (model.graph, *model.functions) for node in _nodes(body.node)]
    beside = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return {
        "nodes": sum(node.op_type not in WEIGHTS for node in nodes),
        "weights": sum(node.op_type in WEIGHTS for node in nodes),
        "foreign": sum(node.domain not in STANDARD | local for node in nodes),
        "bn": sum(node.op_type == "BatchNormalization" for node in nodes),
        "bytes": sum(file.stat().st_size for file in (path, *map(path.parent.joinpath, beside))),
    }


def _nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(body.node)


def compared(original: Path, result: Path, threads: int) -> dict[str, Any]:
    """The largest relative error of an output, the original unoptimized, the result at both levels.

    An open batch is tried with one sample and with three: what works for one only is invalid.
    """
    from graphopt.calibration.synthetic import draw
    from graphopt.errors import InputError, VerificationError
    from graphopt.verification.compare import Reference

    model, shapes = _shapes(original)
    reference = Reference(original, draw(model.graph, shapes, _SEED, batches=2), threads)
    try:
        levels = [reference.compare(result, level) for level in ("disable_all", "enable_all")]
    except InputError as error:
        return {"verdict": "invalid", "why": _line(error)}
    except VerificationError as error:
        return {"verdict": "wrong", "why": _line(error)}
    distances = [distance for level in levels for distance in level.distances.values()]
    unequal = any(d.unequal for d in distances if d.squared_norm == 0 and d.squared_error == 0)
    error = max((d.relative_l2 for d in distances), default=0.0)
    return {"verdict": "wrong" if error > TOLERANCE or unequal else "ok", "error": error}


def timed(original: Path, result: Path, seconds: float, threads: int) -> dict[str, Any]:
    """Ratios to the original at ORT_ENABLE_ALL, interleaved: a run at batch 1, and creating the session."""
    from graphopt.calibration.synthetic import draw
    from graphopt.cost.latency import Effort, compare, compare_calls
    from graphopt.runtime import open_session

    model, shapes = _shapes(original)
    (batch,) = draw(model.graph, shapes, _SEED, batches=1).batches
    sessions = [open_session(path, threads=threads) for path in (original, result)]
    latency = compare(*sessions, batch.feeds, Effort(seconds, least=11, most=301))
    del sessions
    creation = compare_calls(
        lambda: open_session(original, threads=threads),
        lambda: open_session(result, threads=threads),
        Effort(seconds, least=7, most=51),
    )
    return {
        name: {"us": t.after_us, "ratio": t.ratio, "low": t.ratio_low, "high": t.ratio_high}
        for name, t in (("latency", latency), ("session", creation))
    }


def _shapes(path: Path) -> tuple[Any, Any]:
    """A model and shapes of its inputs that it accepts, batch 1 where it is open."""
    from graphopt.calibration.prepare import prepare
    from graphopt.graph.io import load

    model = load(path).model
    settled = prepare(model, data=None, eval_data=None, given={}, seed=_SEED, runnable=True)
    return model, settled.shapes


def _line(error: Exception) -> str:
    from graphopt.runtime import first_line

    return first_line(error)


if __name__ == "__main__":
    main()
