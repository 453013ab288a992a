"""Measured latencies kept on disk, so that the same question is asked of the machine only once.

Besides saving time this makes decisions repeatable: a second run sees the same figures. Entries
are keyed by the structure of the two fragments, threads, onnxruntime version and CPU model.
`GRAPHOPT_CACHE` overrides the folder; a table that cannot be read or written is done without.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path

from graphopt.cost.latency import Timing

_FORMAT = 1


def cache_folder() -> Path:
    """Where the table lives: $GRAPHOPT_CACHE, else the user's cache folder."""
    given = os.environ.get("GRAPHOPT_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "graphopt"


class LatencyTable:
    """Timings by key; loaded once, written after every new entry (atomically)."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / f"latency-v{_FORMAT}.json"
        self._entries: dict[str, dict[str, float]] = _read(self._path)

    def get(self, key: str) -> Timing | None:
        """The timing measured earlier under this key."""
        entry = self._entries.get(key)
        try:
            return None if entry is None else Timing(**entry)  # type: ignore[arg-type]
        except TypeError:
            return None

    def put(self, key: str, timing: Timing) -> None:
        """Remember a timing, on disk if possible."""
        self._entries[key] = asdict(timing)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have added entries meanwhile: keep them.
            merged = _read(self._path) | self._entries
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".latency-")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(merged, file)
                os.replace(name, self._path)
            except OSError:
                os.unlink(name)
        except OSError:
            return


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


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
