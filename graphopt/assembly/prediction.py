"""What the changes' own timings promised for the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from graphopt.graph.shapes import Shape
from graphopt.reporting.schema import Latency
from graphopt.rewrites.ledger import Applied


def with_prediction(
    latencies: Sequence[Latency],
    applied: Sequence[Applied],
    shapes: Mapping[str, Shape],
    whole_us: float | None = None,
) -> tuple[Latency, ...]:
    """The latencies with what the changes' own timings promised, where these were taken.

    shapes: of the inputs that the changes were timed at. whole_us: the original's time that theirs
    are shares of (None: what it is now). Promised: that time less what
    each change was measured to save on its own. Exact changes that were not timed count as nothing,
    since onnxruntime makes most of them itself; without a timing of every approximate one there is
    no prediction.
    """
    approximate = [_saved_us(change) for change in applied if change.kind == "approximate"]
    if not approximate or None in approximate:
        return tuple(latencies)
    saved = sum(_saved_us(change) or 0.0 for change in applied)
    return tuple(
        replace(latency, predicted_ratio=1 - saved / whole)
        if latency.input_shapes == dict(shapes) and saved < (whole := whole_us or latency.before_us)
        else latency
        for latency in latencies
    )


def _saved_us(change: Applied) -> float | None:
    if change.latency_before_us is None or change.latency_after_us is None:
        return None
    return change.latency_before_us - change.latency_after_us
