"""Optimize every network of the zoo in a process of its own and print what came of it.

    GRAPHOPT_ZOO=/path/to/zoo python benchmarks/zoo.py [--models a,b] [--threads N] [--markdown]

Two tables: all networks without options, then three of them inside an error budget, with their
score before and after. Latency ratios are after / before (below 1 is faster), the median of
interleaved pairs with its 95 % interval. The latency cache starts empty; "s" is wall time of the
whole command, start-up and proof included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import TIMEOUT, Report, error, find_zoo, machine, print_table, score, tell

BUDGETED = ("vgg8_cifar10", "cnn5x5_cifar10", "super_resolution10")
MAX_ERROR = 0.05


@dataclass(frozen=True)
class Run:
    """One call of `graphopt optimize`: its report, or what it said when it failed."""

    name: str
    seconds: float
    report: Report | None
    complaint: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", help="only these, comma-separated")
    parser.add_argument("--threads", type=int, default=1, help="threads to measure with")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    args = parser.parse_args()
    folder = find_zoo(parser)
    names = sorted(path.stem for path in (folder / "models").glob("*.onnx"))
    if args.models:
        wanted = args.models.split(",")
        if unknown := sorted(set(wanted) - set(names)):
            parser.error(f"not in the zoo: {', '.join(unknown)} (it has {', '.join(names)})")
        names = [name for name in names if name in wanted]
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as scratch:
        return _benchmark(folder, names, Path(scratch), args.threads, markdown=args.markdown)


def _benchmark(
    zoo: Path, names: Sequence[str], scratch: Path, threads: int, *, markdown: bool
) -> int:
    print(machine(threads))
    plain = [optimize(zoo, name, scratch, ("--threads", str(threads))) for name in names]
    print_table("Without options (lossless)", LOSSLESS, map(lossless_row, plain), markdown=markdown)
    budget = ("--max-error", str(MAX_ERROR), "--threads", str(threads))
    rows, failed = [], [run for run in plain if run.report is None]
    for name in names:
        if name not in BUDGETED:
            continue
        run = optimize(zoo, name, scratch, (*budget, "--data", f"{zoo / 'zoo.py'}:{name}"))
        result = scratch / f"{name}.opt.onnx"
        scores = (score(zoo, name).text, score(zoo, name, result).text) if run.report else ("", "")
        rows.append(budgeted_row(run, *scores))
        failed += [run] if run.report is None else []
    if rows:
        print_table(f"--max-error {MAX_ERROR} --data zoo.py:NAME", BUDGET, rows, markdown=markdown)
    for run in failed:
        print(f"\n{run.name} failed: {run.complaint}")
    return 1 if failed else 0


def optimize(zoo: Path, name: str, scratch: Path, options: Sequence[str]) -> Run:
    """Run `graphopt optimize` on a network in a fresh process."""
    command = [sys.executable, "-m", "graphopt", "optimize"]
    command += [str(zoo / "models" / f"{name}.onnx"), "-o", str(scratch / f"{name}.opt.onnx")]
    tell(f"  {name} {' '.join(options[:2])} ...")
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [*command, "--json", *options],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "GRAPHOPT_CACHE": str(scratch / "cache")},
        )
    except subprocess.TimeoutExpired:
        return Run(name, TIMEOUT, None, f"not done after {TIMEOUT:.0f} s")
    seconds = time.perf_counter() - start
    tell("")
    if done.returncode:
        return Run(name, seconds, None, f"exit code {done.returncode}: {done.stderr.strip()}")
    return Run(name, seconds, json.loads(done.stdout))


LOSSLESS = ("model", "nodes", "BN", "MACs", "bytes", "latency ratio", "error", "s")


def lossless_row(run: Run) -> tuple[str, ...]:
    if run.report is None:
        return (run.name, "failed", "", "", "", "", "", f"{run.seconds:.1f}")
    before, after = run.report["before"], run.report["after"]
    return (
        run.name,
        change(before["nodes"], after["nodes"]),
        change(*(t["operators"].get("BatchNormalization", 0) for t in (before, after))),
        change(before["macs"], after["macs"]),
        change(before["file_bytes"], after["file_bytes"]),
        latency(run.report),
        f"{error(run.report):.1e}",
        f"{run.seconds:.1f}",
    )


BUDGET = ("model", "rewrites", "MACs", "bytes", "latency ratio", "error", "score", "s")


def budgeted_row(run: Run, before_score: str, after_score: str) -> tuple[str, ...]:
    if run.report is None:
        return (run.name, "failed", "", "", "", "", "", f"{run.seconds:.1f}")
    before, after = run.report["before"], run.report["after"]
    names = [r["name"] for r in run.report["rewrites"] if r["kind"] == "approximate"]
    counts = [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
    return (
        run.name,
        ", ".join(counts) or "none",
        change(before["macs"], after["macs"]),
        change(before["file_bytes"], after["file_bytes"]),
        latency(run.report),
        f"{error(run.report):.4f}",
        f"{before_score} -> {after_score}",
        f"{run.seconds:.1f}",
    )


def change(before: int, after: int) -> str:
    """`before -> after`, or one number where nothing changed."""
    numbers = [
        f"{n / 1e6:,.2f} M" if max(before, after) >= 1e6 else f"{n:,}" for n in (before, after)
    ]
    return numbers[0] if before == after else " -> ".join(numbers)


def latency(report: Report) -> str:
    """Every measured ratio with its interval, by batch size."""
    rows = [
        f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
        for row in report["latency"]
    ]
    if len(rows) == 1:
        return rows[0]
    return ", ".join(
        f"b{row['batch']}: {text}" for row, text in zip(report["latency"], rows, strict=True)
    )


if __name__ == "__main__":
    raise SystemExit(main())
