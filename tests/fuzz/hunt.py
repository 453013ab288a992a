"""Looks for networks that break a property until time is up; every failure is shrunk and saved."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from onnx_text import Rewrite

from fuzz.checks import ALL, BrokenError, CannotRunError, check
from fuzz.graphs import THEMES, Case, as_text, graphs

BATCH = 60
"""Networks drawn from one seed; hypothesis draws more alike the longer it goes on."""

SHRINKING_SECONDS = 45.0


@dataclass(frozen=True)
class Failure:
    """A broken property and the smallest network found that breaks it."""

    what: str
    rewrites: frozenset[str]
    message: str
    theme: str
    case: Case

    def explains(self, broken: BrokenError) -> bool:
        """Whether another network probably breaks for the same reason."""
        return broken.what == self.what and self.rewrites <= set(broken.rewrites)


@dataclass
class Hunt:
    """What was tried and found."""

    graphs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    applied: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    repeated: int = 0
    seconds: float = 0.0

    def summary(self) -> str:
        """For people: one paragraph, then the failures."""
        kinds = ", ".join(f"{name} {count}" for name, count in self.applied.most_common())
        lines = [
            f"{self.graphs} networks in {self.seconds:.0f} s, "
            f"{self.skipped.total()} that onnxruntime does not run",
            f"rewrites applied, {self.applied.total()}: {kinds or 'none'}",
            f"failures: {len(self.failures)} ({self.repeated} more networks like them)",
        ]
        return "\n".join([*lines, *(f"  {f.theme}: {f.message}" for f in self.failures)])


def hunt(
    seconds: float,
    seed: int,
    themes: Sequence[str] = tuple(THEMES),
    rewrites: Sequence[Rewrite] = ALL,
    folder: Path | None = None,
) -> Hunt:
    """Draw networks of all themes in turn until time is up.

    folder: failures are saved there as they are found (the model, and a text that tells of it).
    """
    found, start = Hunt(), time.monotonic()
    while (left := seconds - (time.monotonic() - start)) > 0:
        theme = themes[seed % len(themes)]
        failure = batch(found, seed, theme, BATCH, rewrites, seconds=left)
        if failure is not None and folder is not None:
            save(failure, folder, len(found.failures))
        seed += 1
    found.seconds = time.monotonic() - start
    return found


def batch(
    found: Hunt,
    seed: int,
    theme: str,
    count: int,
    rewrites: Sequence[Rewrite] = ALL,
    seconds: float = math.inf,
) -> Failure | None:
    """So many networks of one seed; the first new failure among them, shrunk for a while."""
    worst: list[Failure] = []
    give_up = time.monotonic() + seconds

    @with_seed(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
    @given(graphs(theme))
    def body(case: Case) -> None:
        nonlocal give_up
        if time.monotonic() > give_up:
            return
        try:
            applied = check(case, rewrites)
        except CannotRunError as error:
            if not worst:
                found.graphs += 1
                found.skipped[str(error).split("\n", 1)[0][:120]] += 1
            return
        except BrokenError as error:
            if any(failure.explains(error) for failure in found.failures):
                found.repeated += not worst
                found.graphs += not worst
                return
            if worst and error.what != worst[0].what:
                return
            if not worst:
                give_up = time.monotonic() + SHRINKING_SECONDS
                found.graphs += 1
            failure = Failure(error.what, frozenset(error.rewrites), str(error), theme, case)
            if not worst or _weight(case) <= _weight(worst[0].case):
                worst[:] = [failure]
            raise
        if not worst:
            found.graphs += 1
            found.applied.update(applied)

    try:
        body()
    except Exception:  # BrokenError, or hypothesis' complaint that shrinking was given up
        if not worst:
            raise
    found.failures += worst
    return worst[0] if worst else None


def _weight(case: Case) -> tuple[int, int]:
    return len(case.model.graph.node), case.model.ByteSize()


def save(failure: Failure, folder: Path, number: int) -> None:
    """The model, and beside it what is wrong with it and how it reads as text."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(failure.case.model, folder / f"failure_{number}.onnx")
    feeds = [
        {name: list(array.shape) for name, array in feed.items()} for feed in failure.case.feeds
    ]
    (folder / f"failure_{number}.txt").write_text(
        f"{failure.message}\n\nfed {json.dumps(feeds)}\n\n{as_text(failure.case.model)}\n"
    )
