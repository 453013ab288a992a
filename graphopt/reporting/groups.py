"""Long lists made short: rewrites and declined sites grouped, layers ranked, shares summed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graphopt.reporting.schema import (
    AuditReport,
    Declined,
    Kind,
    LayerAudit,
    RewriteEntry,
    Saving,
    Totals,
)

_VARIANTS = {"ConvTranspose": "transposed", "DeformConv": "deformable", "ConvInteger": "integer"}

_KIND_ORDER: dict[Kind, int] = {"clean-up": 0, "exact": 1, "approximate": 2}


@dataclass(frozen=True)
class RewriteGroup:
    """All places where one rewrite was applied. Differences are after - before: saved is < 0."""

    name: str
    kind: Kind
    sites: int
    nodes: int
    macs: int
    parameters: int


@dataclass(frozen=True)
class DeclinedGroup:
    """All places where one rewrite stopped for the same reason."""

    name: str
    reason: str
    sites: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class LayerGroup:
    """All layers of one kind (see `layer_kind`)."""

    kind: str
    layers: int
    macs: int
    parameters: int


@dataclass(frozen=True)
class Potential:
    """MACs left (after / before) if each layer took its best saving within `weight_error`."""

    weight_error: float
    macs_ratio: float


def group_rewrites(entries: Sequence[RewriteEntry]) -> tuple[RewriteGroup, ...]:
    """One group for each rewrite: clean-up, then exact, then approximate; most sites first."""
    grouped: dict[tuple[str, Kind], list[RewriteEntry]] = {}
    for entry in entries:
        grouped.setdefault((entry.name, entry.kind), []).append(entry)
    groups = [_summed(name, kind, members) for (name, kind), members in grouped.items()]
    return tuple(sorted(groups, key=lambda group: (_KIND_ORDER[group.kind], -group.sites)))


def group_declined(declined: Iterable[Declined]) -> tuple[DeclinedGroup, ...]:
    """One group for each rewrite and reason, most sites first, else in the order given."""
    grouped: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for entry in declined:
        grouped.setdefault((entry.name, entry.reason), []).append(entry.site)
    groups = [DeclinedGroup(name, reason, tuple(at)) for (name, reason), at in grouped.items()]
    return tuple(sorted(groups, key=lambda group: -len(group.sites)))


def approximate_entries(entries: Sequence[RewriteEntry]) -> tuple[RewriteEntry, ...]:
    """The rewrites that changed the function, the largest saving of MACs first."""
    chosen = [entry for entry in entries if entry.kind == "approximate"]
    return tuple(sorted(chosen, key=lambda entry: entry.after.macs - entry.before.macs))


def batch_norms(totals: Totals) -> int:
    """How many BatchNormalization nodes a model has."""
    return totals.operators.get("BatchNormalization", 0)


def ranked_layers(layers: Sequence[LayerAudit]) -> tuple[LayerAudit, ...]:
    """The most expensive layers first: by measured time where every layer has one, else by MACs."""
    if all(layer.cost.latency_us is not None for layer in layers):
        return tuple(sorted(layers, key=lambda layer: -(layer.cost.latency_us or 0.0)))
    return tuple(sorted(layers, key=lambda layer: -layer.cost.macs))


def layer_kind(layer: LayerAudit) -> str | None:
    """What kind of layer this is: "pointwise", "depthwise 3x3", "5x5"...; None where it is unknown.

    A 1x1 convolution is pointwise whatever its strides are, as in the shortcuts of a ResNet.
    """
    if layer.op_type in ("Gemm", "MatMul", "MatMulInteger"):
        return "fully connected"
    if len(layer.weight_shape) < 3:
        return None
    size = "x".join(map(str, layer.weight_shape[2:]))
    words = [_VARIANTS[layer.op_type]] if layer.op_type in _VARIANTS else []
    if layer.group > 1:
        # Of a ConvTranspose the weight is [C, O / group, kernel].
        each = (
            layer.weight_shape[0] // layer.group
            if words == ["transposed"]
            else layer.weight_shape[1]
        )
        words.append("depthwise" if each == 1 else "grouped")
    pointwise = not words and set(layer.weight_shape[2:]) == {1}
    return "pointwise" if pointwise else " ".join([*words, size])


def group_layers(layers: Iterable[LayerAudit]) -> tuple[LayerGroup, ...]:
    """One group for each kind of layer that is known, the most MACs first."""
    grouped: dict[str, list[LayerAudit]] = {}
    for layer in layers:
        kind = layer_kind(layer)
        if kind is not None:
            grouped.setdefault(kind, []).append(layer)
    groups = [
        LayerGroup(
            kind,
            len(members),
            sum(layer.cost.macs for layer in members),
            sum(layer.cost.parameters for layer in members),
        )
        for kind, members in grouped.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.macs, -group.parameters)))


def useful_savings(layer: LayerAudit) -> tuple[Saving, ...]:
    """The savings no other saving of the layer beats in both MACs and error, least error first."""
    ordered = sorted(
        layer.savings, key=lambda saving: (saving.predicted_error or 0, -saving.saved_macs)
    )
    front: list[Saving] = []
    for saving in ordered:
        if not front or saving.saved_macs > front[-1].saved_macs:
            front.append(saving)
    return tuple(front)


def potential(
    report: AuditReport, limits: Sequence[float] = (0.01, 0.05, 0.2)
) -> tuple[Potential, ...]:
    """MACs left at each limit on a layer's predicted error; limits that add nothing are left out.

    The limit is on the *weight* of a layer, so this ranks models, it does not predict an output
    error.
    """
    found: list[Potential] = []
    for limit in limits:
        saved = sum(_best_macs(layer, limit) for layer in report.layers)
        ratio = 1 - saved / report.totals.macs if report.totals.macs else 1.0
        if ratio < (found[-1].macs_ratio if found else 1.0):
            found.append(Potential(limit, ratio))
    return tuple(found)


def _best_macs(layer: LayerAudit, limit: float) -> int:
    within = [
        saving.saved_macs for saving in layer.savings if (saving.predicted_error or 0) <= limit
    ]
    return max(0, *within) if within else 0


def _summed(name: str, kind: Kind, members: Sequence[RewriteEntry]) -> RewriteGroup:
    return RewriteGroup(
        name=name,
        kind=kind,
        sites=len(members),
        nodes=sum(entry.after.nodes - entry.before.nodes for entry in members),
        macs=sum(entry.after.macs - entry.before.macs for entry in members),
        parameters=sum(entry.after.parameters - entry.before.parameters for entry in members),
    )
