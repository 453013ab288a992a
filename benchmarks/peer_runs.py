"""graphopt and its peers: how each is called, each in a process of its own, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import TIMEOUT, tell
from runs import Job, Result, Store

_METER = Path(__file__).with_name("metered.py")
_JUDGE = Path(__file__).with_name("peer_judge.py")

_ONNXSCRIPT = """
import sys, onnx, onnxscript.optimizer
onnx.save(onnxscript.optimizer.optimize(onnx.load(sys.argv[1])), sys.argv[2])
"""
_ONNXRUNTIME = """
import sys, onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 4
options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, sys.argv[3])
options.optimized_model_filepath = sys.argv[2]
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


@dataclass(frozen=True)
class Peer:
    """An optimizer. distribution: what it is installed as. call: its arguments for Python, but the files.

    own: it runs in this Python and not in that of the peers. extra: arguments behind the files.
    portable: it is a tool for any runtime; onnxruntime's own results are only a reference.
    """

    distribution: str
    call: tuple[str, ...]
    extra: tuple[str, ...] = ()
    own: bool = False
    portable: bool = True


PEERS = {
    "graphopt": Peer(
        "graphopt",
        ("-m", "graphopt", "optimize", "-q", "--no-verify", "--no-bench", "-o"),
        own=True,
    ),
    "graphopt+proof": Peer("graphopt", ("-m", "graphopt", "optimize", "-q", "-o"), own=True),
    "onnxsim": Peer("onnxsim", ("-m", "onnxsim")),
    "onnxslim": Peer("onnxslim", ("-m", "onnxslim")),
    "onnxoptimizer": Peer("onnxoptimizer", ("-m", "onnxoptimizer")),
    "onnxscript": Peer("onnxscript", ("-c", _ONNXSCRIPT)),
    "ort-basic": Peer("onnxruntime", ("-c", _ONNXRUNTIME), ("ORT_ENABLE_BASIC",), portable=False),
    "ort-extended": Peer(
        "onnxruntime", ("-c", _ONNXRUNTIME), ("ORT_ENABLE_EXTENDED",), portable=False
    ),
}
"""All as they are by default; graphopt without its proof and its measurements, which none of the others
makes, and with both: only then does it take what has to be measured first."""

ORIGINAL = "original"
"""The model itself, judged like a result."""


def installed(python: str, distributions: list[str]) -> dict[str, str]:
    """The versions that a Python has of these; those it has not are left out."""
    code = (
        "import json, sys\n"
        "from importlib.metadata import version, PackageNotFoundError\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [python, "-c", code, *distributions], capture_output=True, text=True, check=True
    )
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


@dataclass(frozen=True)
class Trial(Job):
    """One optimizer on one model. times: whether its result is timed as well."""

    peer: str = ORIGINAL
    version: str = ""
    times: bool = True
    small: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it another trial."""
        names = ("name", "peer", "version", "times", "small", "threads")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Contest:
    """Where trials run. folder: of the models. scratch: of results, and of graphopt's latency table.

    again: peers whose kept results are not good enough. seconds: that each timing takes, about.
    """

    scratch: Path
    store: Store
    peer_python: str
    again: frozenset[str] = frozenset()
    seconds: float = 3.0

    def known(self, trial: Trial) -> Result | None:
        """A kept result; one with times serves where none are asked for."""
        if trial.peer in self.again:
            return None
        for times in {True, trial.times}:
            same = Trial(**{**vars(trial), "times": times})
            found = self.store.get(_key(trial), same)
            if found is not None:
                return found
        return None

    def held(self, trial: Trial, model: Callable[[], Path]) -> Result:
        """What came of a trial, from the store if it was held before. model: makes its file."""
        known = self.known(trial)
        if known is not None:
            return known
        tell(f"  {_key(trial)} ...")
        result = self._hold(trial, model())
        tell("")
        self.store.put(_key(trial), trial, result)
        return result

    def _hold(self, trial: Trial, original: Path) -> Result:
        if trial.peer == ORIGINAL:
            return Result("done", 0.0, extra=self._judged(trial, original, original))
        for left in self.scratch.glob("result.onnx*"):
            left.unlink()
        target = self.scratch / "result.onnx"
        cost, complaint = self._metered(command(trial.peer, original, target, self.peer_python))
        extra: dict[str, Any] = {"cpu_seconds": cost["cpu_seconds"]}
        if cost["code"] or not target.is_file():
            late = cost["seconds"] >= TIMEOUT
            extra |= {"verdict": "crash", "why": "not done in time" if late else complaint}
        else:
            extra |= self._judged(trial, original, target)
        target.unlink(missing_ok=True)
        return Result("done", cost["seconds"], cost["peak_bytes"], extra=extra)

    def _metered(self, call: list[str]) -> tuple[dict[str, Any], str]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(_METER), str(int(TIMEOUT)), *call],
            capture_output=True,
            text=True,
            check=True,
            cwd=self.scratch,
            env={**os.environ, "GRAPHOPT_CACHE": str(self.scratch / "cache")},
        )
        cost: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        last = done.stderr.strip().rpartition("\n")[2]
        return cost, f"exit code {cost['code']}: {last or 'it said nothing'}"[:300]

    def _judged(self, trial: Trial, original: Path, result: Path) -> dict[str, Any]:
        job = {"original": str(original), "result": str(result), "threads": trial.threads}
        done = subprocess.run(
            [sys.executable, str(_JUDGE)],
            input=json.dumps({**job, "seconds": self.seconds if trial.times else 0}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            return {"verdict": "invalid", "why": f"running it ended with {done.returncode}: {last}"}
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def command(name: str, source: Path, target: Path, peer_python: str) -> list[str]:
    """How a peer is called in a fresh process."""
    peer = PEERS[name]
    python = sys.executable if peer.own else peer_python
    files = [str(target), str(source)] if peer.call[-1] == "-o" else [str(source), str(target)]
    return [python, *peer.call, *files, *peer.extra]


def _key(trial: Trial) -> str:
    return f"{trial.name}, {trial.peer}"
