"""Runs of `graphopt.optimize` in processes of their own, kept in a file so that they need not be repeated.

As a script it is the process: a job as JSON on standard input, what came of it on standard output.
Unlike the command line it can be told a `Method`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness import TIMEOUT, Report, tell

Outcome = Literal["done", "out of reach", "failed"]


@dataclass(frozen=True)
class Job:
    """One call of `optimize`. budget, method: the fields of Budget and Method that are not default."""

    name: str
    model: Path
    data: str
    budget: dict[str, float]
    method: dict[str, bool] = field(default_factory=dict)
    metric: str | None = None
    threads: int = 1

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it another job: not where the files lie."""
        return {
            "name": self.name,
            "budget": self.budget,
            "method": self.method,
            "threads": self.threads,
        }


@dataclass(frozen=True)
class Result:
    """What came of a job. seconds: wall time of the whole process. peak_bytes: of its memory.

    extra: what a benchmark found out about the written file.
    """

    outcome: Outcome
    seconds: float
    peak_bytes: int = 0
    report: Report | None = None
    complaint: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def shortcoming(self) -> str:
        """What a table says where there is no report."""
        if self.outcome == "failed":
            return "failed"
        most = re.search(r"(\d+\.\d+x) is the most", self.complaint)
        return f"not reached ({most[1]} at most)" if most else "not reached"


class Store:
    """Results by key, written to a file after each (None: only remembered)."""

    def __init__(self, path: Path | None, machine: str) -> None:
        self._path = path
        self._content: dict[str, Any] = {"machine": machine, "runs": {}}
        if path is not None and path.is_file():
            self._content = json.loads(path.read_text())
            if self._content["machine"].splitlines()[1:] != machine.splitlines()[1:]:
                tell(f"{path} has results of other versions, which are kept\n")

    def get(self, key: str, job: Job) -> Result | None:
        """The result of the same job; failures other than a budget out of reach are not kept."""
        entry = self._content["runs"].get(key)
        if entry is None or entry["job"] != job.identity:
            return None
        return Result(**entry["result"])

    def put(self, key: str, job: Job, result: Result) -> None:
        if result.outcome == "failed":
            return
        self._content["runs"][key] = {"job": job.identity, "result": asdict(result)}
        if self._path is not None:
            part = self._path.with_name(self._path.name + ".part")
            part.write_text(json.dumps(self._content, indent=1) + "\n")
            part.replace(self._path)


Examine = Callable[[Path], dict[str, Any]]
"""Finds out about the written file what goes into `Result.extra`."""


@dataclass(frozen=True)
class Bench:
    """Where jobs run: one folder with one latency cache, so that a candidate is measured once."""

    zoo: Path
    scratch: Path
    store: Store
    threads: int
    markdown: bool

    def run(self, key: str, job: Job, examine: Examine | None = None) -> Result:
        """What came of a job, from the store if it was run before."""
        key = f"{key}, {job.threads} thread{'s' * (job.threads > 1)}"
        known = self.store.get(key, job)
        if known is not None:
            return known
        tell(f"  {key} ...")
        output = self.scratch / f"{job.name}.opt.onnx"
        result = run(job, output, self.scratch / "cache")
        if result.outcome == "done" and examine is not None:
            result = replace(result, extra=examine(output))
        tell("")
        if result.outcome == "failed":
            result = replace(result, complaint=f"{key}: {result.complaint}")
        self.store.put(key, job, result)
        return result


def of_zoo(zoo: Path, name: str, budget: dict[str, float], threads: int, **more: Any) -> Job:
    """A job on a network of the zoo, with the data of its reader."""
    model, data = zoo / "models" / f"{name}.onnx", f"{zoo / 'zoo.py'}:{name}"
    return Job(name, model, data, budget, threads=threads, **more)


def run(job: Job, output: Path, cache: Path) -> Result:
    """Run a job in a fresh process; the model goes to `output`."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps({**asdict(job), "output": str(output)}, default=str),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "GRAPHOPT_CACHE": str(cache)},
        )
    except subprocess.TimeoutExpired:
        return Result("failed", TIMEOUT, complaint=f"not done after {TIMEOUT:.0f} s")
    seconds = time.perf_counter() - start
    if done.returncode:
        return Result("failed", seconds, complaint=_last_words(done))
    return Result(seconds=seconds, **json.loads(done.stdout.splitlines()[-1]))


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    last = done.stderr.strip().rpartition("\n")[2]
    return f"exit code {done.returncode}: {last or 'it said nothing (killed?)'}"


def main() -> None:
    from graphopt.errors import BudgetError, GraphoptError
    from graphopt.options import Options
    from graphopt.pipeline import optimize
    from graphopt.planning.budget import Budget
    from graphopt.planning.method import Method
    from graphopt.reporting.schema import report_to_dict

    job = json.load(sys.stdin)
    options = Options(
        budget=Budget(**job["budget"]),
        method=Method(**job["method"]),
        data=job["data"],
        metric=job["metric"],
        threads=job["threads"],
        output=Path(job["output"]),
    )
    said: dict[str, Any] = {}
    try:
        said["report"] = report_to_dict(optimize(Path(job["model"]), options))
        said["outcome"] = "done"
    except GraphoptError as error:
        said["outcome"] = "out of reach" if isinstance(error, BudgetError) else "failed"
        said["complaint"] = str(error)
    print(json.dumps({**said, "peak_bytes": _peak_bytes()}))


def _peak_bytes() -> int:
    """Largest resident size of this process.

    Linux counts the memory of the process that started it into ru_maxrss, so VmHWM goes first.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
