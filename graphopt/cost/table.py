"""Measured latencies kept on disk, so that the same question is asked of the machine only once.

Besides saving time this makes decisions repeatable: a second run sees the same figures. Entries
are keyed by the structure of the two fragments, threads, onnxruntime version and CPU model, and
hold beside the timing what a model of latency can be fitted to. `GRAPHOPT_CACHE` overrides the
folder; a table that cannot be read or written is done without.
"""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from graphopt.cost.facts import Facts, NodeFacts
from graphopt.cost.latency import Timing

_FORMAT = 2


@dataclass(frozen=True)
class Sample:
    """One timing with what is known of the two small models that were timed."""

    before: Facts
    after: Facts
    timing: Timing


def cache_folder() -> Path:
    """Where the table lives: $GRAPHOPT_CACHE, else the user's cache folder."""
    given = os.environ.get("GRAPHOPT_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "graphopt"


def key_of(before: str, after: str, threads: int) -> str:
    """The key of a timing on this machine, from the fingerprints of the two small models."""
    return f"{before}:{after}:{_conditions(threads)}"


def _conditions(threads: int) -> str:
    return f"{threads}:{machine()}"


class LatencyTable:
    """Timings by key; loaded once, written after every new entry (atomically)."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / f"latency-v{_FORMAT}.json"
        self._entries = _read(self._path)

    def get(self, key: str) -> Timing | None:
        """The timing measured earlier under this key."""
        return _timing(self._entries.get(key))

    def is_careful(self, key: str) -> bool:
        """Whether that timing was taken with more than the usual effort."""
        entry = self._entries.get(key)
        return isinstance(entry, dict) and entry.get("careful") is True

    def samples(self, threads: int) -> list[Sample]:
        """The timings of this machine at a number of threads that come with facts, by key."""
        ending = f":{_conditions(threads)}"
        found = [
            _sample(self._entries[key]) for key in sorted(self._entries) if key.endswith(ending)
        ]
        return [sample for sample in found if sample is not None]

    def put(
        self,
        key: str,
        timing: Timing,
        before: Facts | None = None,
        after: Facts | None = None,
        *,
        careful: bool = False,
    ) -> None:
        """Remember a timing, on disk if possible. careful: it was taken with unusual effort."""
        entry: dict[str, object] = dict(asdict(timing))
        if careful:
            entry["careful"] = True
        if before is not None and after is not None:
            entry["before"] = [node.plain() for node in before]
            entry["after"] = [node.plain() for node in after]
        self._entries[key] = entry
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have added entries meanwhile: keep them.
            merged = _read(self._path) | self._entries
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".latency-")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(merged, file, separators=(",", ":"))
                os.replace(name, self._path)
            except OSError:
                os.unlink(name)
        except OSError:
            return


def _read(path: Path) -> dict[str, object]:
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _timing(entry: object) -> Timing | None:
    """The timing in an entry, if it is one: whatever a file holds, times are positive numbers."""
    if not isinstance(entry, dict):
        return None
    try:
        figures = {name: float(entry[name]) for name in Timing.__dataclass_fields__}
    except (KeyError, TypeError, ValueError):
        return None
    if not all(math.isfinite(figure) and figure > 0 for figure in figures.values()):
        return None
    return Timing(**figures | {"pairs": int(figures["pairs"])})  # type: ignore[arg-type]


def _sample(entry: object) -> Sample | None:
    timing = _timing(entry)
    if timing is None or not isinstance(entry, dict):
        return None
    try:
        before, after = (
            tuple(NodeFacts.read(node) for node in entry[side]) for side in ("before", "after")
        )
    except (KeyError, TypeError, ValueError):
        return None
    return Sample(before, after, timing)


@cache
def machine() -> str:
    """The CPU model and the onnxruntime version: what a measured time depends on."""
    import onnxruntime as ort

    return f"{cpu_model()} / onnxruntime {ort.__version__}"


def cpu_model() -> str:
    """The CPU's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
