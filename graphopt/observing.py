"""Statistics that are gathered once: from the inputs, or from what an earlier run kept of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graphopt.calibration.collect import Collector, Probe, Sampled
from graphopt.factorize.moments import Moments
from graphopt.graph.scope import Scope
from graphopt.progress import Progress
from graphopt.records import Chapter
from graphopt.runtime import Array

_FIELDS = ("gram", "cross", "energy", "mean_input", "mean_output")
_METRICS = "metrics of the outputs"

Observed = tuple[dict[str, list[Moments]], dict[str, Sampled]]
"""By layer name: moments, one a group; and what was seen, with the responses."""


def observe(
    collector: Collector,
    scope: Scope,
    probes: Mapping[str, Probe],
    progress: Progress,
    chapter: Chapter | None,
) -> Observed:
    """Moments and responses of the layers; all of them from the chapter, or none."""
    known = None if chapter is None else _recalled(probes, len(collector.dataset.batches), chapter)
    if known is not None:
        return known
    seen = collector.original(scope.model, list(probes.values()), progress)
    moments: dict[str, list[Moments]] = {}
    for name, probe in probes.items():
        accumulators = seen[name].accumulators
        moments[name] = [accumulators.pop(0).moments() for _ in range(probe.geometry.group)]
        if chapter is not None:
            chapter.store(_key(name), _arrays(moments[name], seen[name]))
    return moments, seen


def kept_metrics(
    names: Sequence[str], gather: Callable[[], dict[str, Array]], chapter: Chapter | None
) -> dict[str, Array]:
    """The metric of the outputs [O, O] by layer name, from the chapter or gathered; may be empty."""
    if chapter is None:
        return gather()
    arrays = chapter.load(_METRICS)
    if arrays is not None and len(arrays) == len(names):
        return dict(zip(names, arrays.values(), strict=True))
    found = gather()
    if found:  # that there is none is found out quickly
        chapter.store(_METRICS, {str(i): found[name] for i, name in enumerate(names)})
    return found


def _key(layer: str) -> str:
    return f"layer {layer}"


def _recalled(probes: Mapping[str, Probe], batches: int, chapter: Chapter) -> Observed | None:
    """What the chapter holds of the layers; None if something is missing or damaged."""
    moments: dict[str, list[Moments]] = {}
    seen: dict[str, Sampled] = {}
    for name, probe in probes.items():
        arrays = chapter.load(_key(name))
        if arrays is None:
            return None
        groups = range(probe.geometry.group)
        try:
            moments[name] = [_moments(arrays, group) for group in groups]
            answers, skips = (
                [[arrays[f"{part} {i} {g}"] for g in groups] for i in range(batches)]
                if part == "response" or probe.skip is not None
                else []
                for part in ("response", "skip")
            )
        except KeyError:
            return None
        seen[name] = Sampled([], answers, skips)
    return moments, seen


def _moments(arrays: Mapping[str, Array], group: int) -> Moments:
    parts = {name: arrays[f"{name} {group}"] for name in _FIELDS}
    return Moments(**parts, samples=int(arrays[f"samples {group}"]))


def _arrays(moments: Sequence[Moments], seen: Sampled) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for group, found in enumerate(moments):
        arrays |= {f"{name} {group}": getattr(found, name) for name in _FIELDS}
        arrays[f"samples {group}"] = np.asarray(found.samples)
    for name, batches in (("response", seen.responses), ("skip", seen.skips)):
        for index, parts in enumerate(batches):
            arrays |= {f"{name} {index} {group}": part for group, part in enumerate(parts)}
    return arrays
