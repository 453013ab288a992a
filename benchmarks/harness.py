"""What the benchmarks share: the zoo, its scores, the machine, tables.

Needs graphopt only to name the CPU; results and scores come from processes of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

TIMEOUT = 1800.0
"""Seconds that one run may take."""

_LIBRARIES = ("graphopt", "onnx", "onnxruntime", "onnx-ir", "onnxscript", "numpy", "scipy")

Report = dict[str, Any]


def find_zoo(parser: argparse.ArgumentParser) -> Path:
    """The folder that GRAPHOPT_ZOO names, or a complaint about the command line."""
    zoo = os.environ.get("GRAPHOPT_ZOO")
    if not zoo or not (Path(zoo) / "zoo.py").is_file():
        parser.error("GRAPHOPT_ZOO does not name the folder of the zoo (with zoo.py in it)")
    return Path(zoo).resolve()


@dataclass(frozen=True)
class Score:
    """What `zoo.py score` says about a file, on samples that graphopt never sees."""

    metric: str
    value: float

    @property
    def text(self) -> str:
        return f"{self.value:.2%}" if self.metric == "top1" else f"{self.value:.3f}{self._unit}"

    def drop(self, after: Score) -> str:
        """How far another score lies below this one, in points, dB or as it is."""
        lost = self.value - after.value
        return f"{100 * lost:.2f} pt" if self.metric == "top1" else f"{lost:.3f}{self._unit}"

    @property
    def _unit(self) -> str:
        return " dB" if self.metric.endswith("_db") else ""


def score(zoo: Path, name: str, file: Path | None = None) -> Score:
    """Score a file as the network `name` (None: the original)."""
    command = [sys.executable, str(zoo / "zoo.py"), "score", name]
    done = subprocess.run(
        command if file is None else [*command, str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    return Score(found["metric"], found["value"])


@dataclass(frozen=True)
class Fidelity:
    """How a classifier's outputs compare with the original's.

    divergence: mean KL(original || other), nats. agreement: share of samples with the same winner.
    """

    divergence: float
    agreement: float


def fidelity(zoo: Path, name: str, file: Path) -> Fidelity:
    """Compare a file with the original on the zoo's scoring samples."""
    module = _load(zoo / "zoo.py")
    samples, _ = (
        module._cifar("test761", *module._CIFAR[name])
        if name in module._CIFAR
        else module._imagenet("eval")
        if name == "squeezenet1_1"
        else module._mnist("eval")
    )
    original, other = (
        module._run(module._session(path), samples)[0].reshape(len(samples), -1)
        for path in (module.model_path(name), file)
    )
    same = original.argmax(1) == other.argmax(1)
    return Fidelity(divergence(original, other), float(same.mean()))


def divergence(original: np.ndarray, other: np.ndarray) -> float:
    """Mean KL(original || other) in nats; rows are logits or probabilities [N, classes]."""
    p, q = (
        np.maximum(_probabilities(rows.astype(np.float64)), 1e-12) for rows in (original, other)
    )
    return float((p * (np.log(p) - np.log(q))).sum(1).mean())


def _probabilities(rows: np.ndarray) -> np.ndarray:
    if rows.min() >= 0 and np.allclose(rows.sum(1), 1, atol=1e-3):
        return rows
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def error(report: Report) -> float:
    """The largest relative error over outputs and onnxruntime levels."""
    return max(
        (row["relative_l2"] or 0.0 for row in report["verification"]["outputs"]), default=0.0
    )


def speedup(report: Report, batch: int = 0) -> float | None:
    """Measured before / after at the report's batch of this index, None where it has none."""
    rows = report["latency"]
    return 1 / rows[batch]["ratio"] if batch < len(rows) else None


def speedup_text(report: Report, batch: int = 0) -> str:
    """The speed-up with its 95 % interval: the report's ratios turned over."""
    median = speedup(report, batch)
    if median is None:
        return ""
    row: Mapping[str, float] = report["latency"][batch]
    return f"{median:.2f}x [{1 / row['ratio_high']:.2f}, {1 / row['ratio_low']:.2f}]"


def machine(threads: int) -> str:
    """The machine, the threads and the versions, one a line."""
    from graphopt.cost.table import cpu_model

    versions = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{cpu_model()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, "
        f"load {load:.1f} at the start, {threads} thread{'s' * (threads > 1)}\n"
        f"Python {platform.python_version()}, {versions}"
    )


def tell(text: str) -> None:
    """Show what is being run, on a terminal line that the next call overwrites."""
    print(f"{text:<78}", end="\r", file=sys.stderr, flush=True)


def print_table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, markdown: bool
) -> None:
    table = [tuple(head), *map(tuple, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in table]
    print(f"\n{'### ' * markdown}{title}\n")
    if markdown:
        lines.insert(1, ["-" * width for width in widths])
        print("\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)
    else:
        print("\n".join("  ".join(line).rstrip() for line in lines), flush=True)


def _load(path: Path) -> ModuleType:
    """A Python file as a module, under a name that hides no other."""
    spec = importlib.util.spec_from_file_location(f"benchmarked_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
