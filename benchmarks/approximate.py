"""What the approximate rewrites gain on trained networks, against the usual ways at the same latency.

    GRAPHOPT_ZOO=/path/to/zoo python benchmarks/approximate.py [--rows a,b] [--json FILE] [--markdown]
    ... --ablation [NETWORK[=SPEEDUP],...]   what each part of the method is worth
    ... --large                              wall time and peak memory on large networks

Data come from the zoo's readers, scores from its `score()`, on samples that graphopt never sees. A
speed-up is before / after as graphopt's report has it: both files at ORT_ENABLE_ALL, interleaved, the
median with its 95 % interval. The three baselines get the same data and are asked for the speed-up
that graphopt measured (once more, for less, if they overshoot it by 5 %); a cell says what they lose and
how fast they then are.

With --json FILE all results are kept there with their reports; a run that is in it is not run
again, so an interrupted benchmark goes on where it stopped. "s" is the wall time of graphopt's process. The
latency table is shared by all runs of a call, and empty at its start.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import Score, find_zoo, machine, print_table, score, speedup, speedup_text
from metrics import SUPER_RESOLUTION_ERROR
from runs import Bench, Job, Result, Store, of_zoo


@dataclass(frozen=True)
class Row:
    """A network, what it may lose, and the speed-up at batch 1 that is meant to be reached."""

    network: str
    reach: float
    budget: dict[str, float] = field(default_factory=lambda: {"max_drop": 0.005})
    metric: str | None = None

    @property
    def key(self) -> str:
        return f"{self.network}@{next(iter(self.budget.values())):g}"


TEXT_MASK_IOU = f"{Path(__file__).with_name('metrics.py')}:text_mask_iou"

ROWS = (
    Row("vgg8_cifar10", 3.0),
    Row("vgg8_cifar10", 4.0, {"max_drop": 0.015}),
    Row("cnn5x5_cifar10", 3.0),
    Row("super_resolution10", 2.5, {"max_error": SUPER_RESOLUTION_ERROR}),
    Row("resnet20_cifar10", 1.4),
    Row("resnet56_cifar10", 1.6),
    Row("cifar5x5_winml", 1.5, {"max_drop": 0.003}),
    Row("lenet", 1.5, {"max_drop": 0.003}),
    Row("mnist_cntk", 1.5, {"max_drop": 0.003}),
    Row("ppocrv3_det", 1.2, {"max_drop": 0.03}, TEXT_MASK_IOU),
    Row("squeezenet1_1", 1.2),
)

_OFF = {"asymmetric": False, "output_metric": False, "polish": False}
BASELINES = {
    "weights only, uniform": {**_OFF, "activation_aware": False, "global_choice": False},
    "weights only, global": {**_OFF, "activation_aware": False},
    "activation-aware": _OFF,
}
"""What the usual ways switch off. Without activations there are no moments that shrinkage could touch."""

_NEAR = 1.05
"""How far beyond the target a speed-up still counts as the same."""

HEAD = (
    "model",
    "budget",
    "reach",
    "speed-up, batch 1",
    "batch 8",
    "score",
    "s",
    "GB",
)


def main() -> int:
    args = parse(sys.argv[1:])
    threads = args.threads or (2 if args.large else 1)
    about = machine(threads)
    print(about, flush=True)
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as scratch:
        store = Store(args.json, about)
        bench = Bench(args.zoo, Path(scratch), store, threads, args.markdown)
        if args.large:
            from large import large

            results = large(bench)
        elif args.ablation:
            from ablation import ablate

            results = ablate(bench, args.ablation)
        else:
            results = compare(bench, args.rows, baselines=args.baselines)
    failed = [result for result in results if result.outcome == "failed"]
    for result in failed:
        print(f"\nfailed: {result.complaint}")
    return 1 if failed else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, with `rows`, `ablation` and `zoo` made into what they name."""
    from ablation import SPEEDUPS, parse_networks

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", help="only these: NETWORK or NETWORK@LIMIT, comma-separated")
    parser.add_argument(
        "--no-baselines", dest="baselines", action="store_false", help="leave out the usual ways"
    )
    parser.add_argument("--threads", type=int, help="threads to measure with (1; with --large 2)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep results, go on from them")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--ablation", nargs="?", const=",".join(SPEEDUPS), metavar="NETWORKS")
    other.add_argument("--large", action="store_true", help="time and memory of large networks")
    args = parser.parse_args(arguments)
    try:
        args.rows = select_rows(args.rows)
        args.ablation = parse_networks(args.ablation) if args.ablation else {}
    except ValueError as error:
        parser.error(str(error))
    if args.json and not args.json.resolve().parent.is_dir():
        parser.error(f"{args.json}: no such folder")
    args.zoo = find_zoo(parser)
    return args


def select_rows(text: str | None) -> list[Row]:
    """The rows that `--rows` names, in the table's order.

    Raises:
        ValueError: A name that is no row's.
    """
    if text is None:
        return list(ROWS)
    wanted = set(text.split(","))
    known = {name for row in ROWS for name in (row.network, row.key)}
    if unknown := sorted(wanted - known):
        raise ValueError(
            f"no row {', '.join(unknown)} (there are {', '.join(r.key for r in ROWS)})"
        )
    return [row for row in ROWS if {row.network, row.key} & wanted]


def compare(bench: Bench, rows: Sequence[Row], *, baselines: bool) -> list[Result]:
    """Print graphopt's figures and those of the baselines at the same speed-up; all results."""
    results, main_rows, baseline_rows = [], [], []
    for row in rows:
        before = score(bench.zoo, row.network)
        job = of_zoo(bench.zoo, row.network, row.budget, bench.threads, metric=row.metric)
        found = _scored(bench, f"{row.key}, graphopt", job)
        results.append(found)
        main_rows.append(graphopt_row(row, found, before))
        target = speedup(found.report) if found.report else None
        if not baselines or target is None:
            continue
        cells = []
        for label, method in BASELINES.items():
            result = at_speedup(bench, row, label, method, target)
            results += [] if result is None else [result]
            cells.append("nothing to reach" if result is None else lost_at(result, before))
        baseline_rows.append((row.network, budget_text(row.budget), lost_at(found, before), *cells))
    print_table("Inside a budget", HEAD, main_rows, markdown=bench.markdown)
    if baseline_rows:
        head = ("model", "budget", "graphopt", *BASELINES)
        title = "Score lost at the same speed-up"
        print_table(title, head, baseline_rows, markdown=bench.markdown)
    return results


def at_speedup(
    bench: Bench, row: Row, label: str, method: dict[str, bool], target: float
) -> Result | None:
    """The result of a method that is nearest to a speed-up; None where that is none.

    A search stops at the first plan that it measures as fast enough, which may be well beyond the
    target: it is then asked once more, for as much less, lest it pays for speed that is not compared.
    """
    asked = round(target, 3)
    if asked <= 1:
        return None
    first = _asked(bench, row, label, method, asked)
    reached = speedup(first.report) if first.report else None
    less = round(target * target / reached, 3) if reached else 0.0
    if reached is None or reached < _NEAR * target or less <= 1:
        return first
    second = _asked(bench, row, f"{label}, again", method, less)
    again = speedup(second.report) if second.report else None
    if again is None:
        return first
    return min((again, second), (reached, first), key=lambda at: abs(math.log(at[0] / target)))[1]


def _asked(bench: Bench, row: Row, label: str, method: dict[str, bool], asked: float) -> Result:
    budget = {"speedup": asked}
    job = of_zoo(bench.zoo, row.network, budget, bench.threads, method=method)
    return _scored(bench, f"{row.key}, {label}", job)


def _scored(bench: Bench, key: str, job: Job) -> Result:
    def examine(file: Path) -> dict[str, Any]:
        return {"score": asdict(score(bench.zoo, job.name, file))}

    return bench.run(key, job, examine)


def graphopt_row(row: Row, result: Result, before: Score) -> tuple[str, ...]:
    head = (row.network, budget_text(row.budget))
    tail = (f"{result.seconds:.0f}", f"{result.peak_bytes / 1e9:.1f}")
    reach = f">= {row.reach:g}x"
    if result.report is None:
        return (*head, reach, result.shortcoming, "", "", *tail)
    reached = speedup(result.report) or 0.0
    after = Score(**result.extra["score"])
    return (
        *head,
        reach if reached >= row.reach else f"{reach} (missed)",
        speedup_text(result.report, 0),
        speedup_text(result.report, 1),
        f"{before.text} -> {after.text} (drop {before.drop(after)})",
        *tail,
    )


def lost_at(result: Result, before: Score) -> str:
    """`drop @ speed-up`, or how far a baseline came."""
    if result.report is None:
        return result.shortcoming
    after = Score(**result.extra["score"])
    return f"{before.drop(after)} @ {speedup(result.report) or 0.0:.2f}x"


def budget_text(budget: dict[str, float]) -> str:
    """`max_drop 0.005`, by the limit's name."""
    return ", ".join(f"{name} {value:g}" for name, value in budget.items())


if __name__ == "__main__":
    raise SystemExit(main())
