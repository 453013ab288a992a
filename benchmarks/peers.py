"""graphopt and its peers side by side, each in a fresh process on each model, failures included.

    python benchmarks/peers.py [--models a,b] [--peers a,b] [--json FILE] [--no-latency] [--markdown]

Installs nothing: the peers come with the extra `peers`, or live in another Python (--peer-python), so
that what they require cannot collide. Models: see exports.py; GRAPHOPT_ZOO adds the zoo's. PyTorch makes
the exports, Keras on PyTorch (extra `models`) those whose channels come last.

nodes: of all graphs and bodies but Constant and ConstantOfShape, with "(n own)" those that no standard
knows. BN: BatchNormalizations left. error: relative L2, the original at ORT_DISABLE_ALL, the worse of the
result at that level and at ORT_ENABLE_ALL; "wrong" beyond 1e-4, "invalid" if onnx.checker refuses it or
it cannot be run (at batch 1 and 3 where the batch is open), "crash" if there is no result. s, CPU s, MB:
wall time, processor time and peak memory of the whole process. latency, session: of running it and of
creating a session, as ratios to the original at ORT_ENABLE_ALL, interleaved, with 95 % intervals; the best
session is that of the peers' results that are as fast as graphopt's.

With --json FILE results are kept there, and a trial that is in it is not held again (--again PEERS: those
are).
"""

from __future__ import annotations

import argparse
import compileall
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import exports
from harness import find_zoo, machine, print_table
from peer_runs import ORIGINAL, PEERS, Contest, Trial, installed
from runs import Result, Store

import graphopt

Results = Mapping[str, Result]
"""What came of each optimizer on one model, and of the original."""

HEAD = (
    "model",
    "optimizer",
    "nodes",
    "BN",
    "bytes",
    "error",
    "s",
    "CPU s",
    "MB",
    "latency",
    "session",
)
REACH = ("model", "nodes", "BN", "error", "CPU s / onnxsim", "MB / onnxsim", "latency", "session")


def main() -> int:
    args = parse(sys.argv[1:])
    about = machine(args.threads)
    versions = versions_of(args.peers, args.peer_python)
    print(
        about,
        ", ".join(f"{PEERS[name].distribution} {v}" for name, v in versions.items()),
        sep="\n",
    )
    if missing := [name for name in args.peers if name not in versions]:
        print(f"not installed, left out: {', '.join(missing)} (extra `peers`, --peer-python)")
    # pip has compiled the peers' modules when it installed them.
    compileall.compile_dir(Path(graphopt.__file__).parent, quiet=2)
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as scratch:
        store = Store(args.json, about)
        contest = Contest(
            Path(scratch), store, args.peer_python, frozenset(args.again), args.seconds
        )
        tables, failed = {}, []
        for name in args.models:
            try:
                tables[name] = hold(args, contest, name, versions)
            except ValueError as error:
                failed.append(str(error))
    rows = [row for name, results in tables.items() for row in model_rows(name, results)]
    print_table("Side by side", HEAD, rows, markdown=args.markdown)
    reached = [
        reach_row(name, results) for name, results in tables.items() if "graphopt" in results
    ]
    if reached:
        print_table("graphopt and the best of the peers", REACH, reached, markdown=args.markdown)
    for line in (*complaints(tables), *failed):
        print(f"\n{line}", end="")
    print()
    return 1 if failed else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, with `models`, `peers` and `again` made into lists of names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", help="only these, comma-separated")
    parser.add_argument("--peers", help=f"only these of {', '.join(PEERS)}, comma-separated")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="the Python that has the peers"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads to measure with")
    parser.add_argument("--small", action="store_true", help="exports with few channels")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="of models; made ones stay there"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="that each timing takes, about")
    parser.add_argument("--no-latency", dest="times", action="store_false", help="time no results")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep results, go on from them")
    parser.add_argument(
        "--again", default="", metavar="PEERS", help="whose kept results are not used"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    args = parser.parse_args(arguments)
    args.zoo = find_zoo(parser) if os.environ.get("GRAPHOPT_ZOO") else None
    for path in filter(None, (args.json and args.json.resolve().parent, args.keep)):
        if not path.is_dir():
            parser.error(f"{path}: no such folder")
    try:
        args.models = chosen(args.models, exports.names(args.zoo))
        args.peers = chosen(args.peers, list(PEERS))
        args.again = chosen(args.again, [*PEERS, ORIGINAL]) if args.again else []
    except ValueError as error:
        parser.error(str(error))
    return args


def chosen(text: str | None, known: list[str]) -> list[str]:
    """The names in a comma-separated text, in the order of `known`; all of them for None.

    Raises:
        ValueError: A name that is not known.
    """
    if text is None:
        return known
    wanted = set(text.split(","))
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"there is no {', '.join(unknown)} (there are {', '.join(known)})")
    return [name for name in known if name in wanted]


def versions_of(peers: Sequence[str], peer_python: str) -> dict[str, str]:
    """The version of each peer that is installed where it is looked for."""
    found = {}
    for python, own in ((sys.executable, True), (peer_python, False)):
        wanted = {name: PEERS[name].distribution for name in peers if PEERS[name].own is own}
        versions = installed(python, sorted(set(wanted.values()))) if wanted else {}
        found |= {name: versions[d] for name, d in wanted.items() if d in versions}
    return {name: found[name] for name in peers if name in found}


def hold(
    args: argparse.Namespace, contest: Contest, name: str, versions: Mapping[str, str]
) -> dict[str, Result]:
    """All trials on one model.

    Raises:
        ValueError: The model cannot be made here.
    """
    folder = (args.keep or contest.scratch).resolve()

    def model() -> Path:
        return exports.made(name, folder, args.zoo, small=args.small)

    results = {}
    for peer, version in {ORIGINAL: "", **versions}.items():
        trial = Trial(
            name, folder / f"{name}.onnx", "", {}, threads=args.threads,
            peer=peer, version=version, times=args.times, small=args.small,
        )  # fmt: skip
        results[peer] = contest.held(trial, model)
    if args.keep is None:
        (folder / f"{name}.onnx").unlink(missing_ok=True)
    return results


def model_rows(name: str, results: Results) -> Iterator[tuple[str, ...]]:
    """One row for the original, one for each optimizer."""
    for optimizer, result in results.items():
        found = result.extra
        foreign = f" ({found['foreign']} own)" if found.get("foreign") else ""
        verdict = found["verdict"]
        size = f"{found['bytes'] / 1e6:.2f} MB" if "bytes" in found else ""
        yield (
            name,
            optimizer,
            f"{found['nodes']}{foreign}" if "nodes" in found else "",
            str(found.get("bn", "")),
            size,
            " ".join(
                ([] if verdict == "ok" else [verdict])
                + ([f"{found['error']:.0e}"] if optimizer != ORIGINAL and "error" in found else [])
            ),
            *(cost_cells(result) if optimizer != ORIGINAL else ("", "", "")),
            ratio_cell(found.get("latency")),
            ratio_cell(found.get("session")),
        )


def cost_cells(result: Result) -> tuple[str, str, str]:
    cpu = result.extra["cpu_seconds"]
    return f"{result.seconds:.1f}", f"{cpu:.1f}", f"{result.peak_bytes / 1e6:.0f}"


def ratio_cell(timing: Mapping[str, float] | None) -> str:
    if timing is None:
        return ""
    return f"{timing['ratio']:.2f} [{timing['low']:.2f}, {timing['high']:.2f}]"


def valid_peers(results: Results) -> dict[str, Result]:
    """The others' results that compute the same with operators that every runtime has."""
    return {
        name: result
        for name, result in results.items()
        if name in PEERS
        and PEERS[name].portable
        and not PEERS[name].own
        and result.extra["verdict"] == "ok"
        and not result.extra["foreign"]
    }


def reach_row(name: str, results: Results) -> tuple[str, ...]:
    """graphopt's figures, and the least of the peers' valid results; `>` where it is behind."""
    ours, others = results["graphopt"], valid_peers(results)
    sim = results.get("onnxsim")

    def against_best(key: str) -> str:
        best = min((r.extra[key] for r in others.values()), default=None)
        mine = ours.extra.get(key)
        if mine is None or best is None:
            return "" if mine is None else str(mine)
        return f"{mine} {'>' if mine > best else '<='} {best}"

    def ratio(value: float, other: float) -> str:
        return f"{value / other:.2f}" if other else ""

    # What opens fast because onnxruntime can do little about it, and so runs slowly, is no example.
    sessions = [
        r.extra["session"]["ratio"]
        for r in others.values()
        if "session" in r.extra and r.extra["latency"]["low"] <= ours.extra["latency"]["high"]
    ]
    session = f"{ours.extra['session']['ratio']:.2f}" if "session" in ours.extra else ""
    return (
        name,
        against_best("nodes"),
        against_best("bn"),
        f"{ours.extra['error']:.0e}" if ours.extra["verdict"] == "ok" else ours.extra["verdict"],
        ratio(ours.extra["cpu_seconds"], sim.extra["cpu_seconds"]) if sim else "",
        ratio(ours.peak_bytes, sim.peak_bytes) if sim else "",
        ratio_cell(ours.extra.get("latency")),
        f"{session} (best {min(sessions):.2f})" if session and sessions else session,
    )


def complaints(tables: Mapping[str, Results]) -> Iterator[str]:
    """Why there is no valid result, for each that is none."""
    for name, results in tables.items():
        for optimizer, result in results.items():
            if "why" in result.extra:
                yield f"{name}, {optimizer}: {result.extra['verdict']}: {result.extra['why']}"


if __name__ == "__main__":
    raise SystemExit(main())
