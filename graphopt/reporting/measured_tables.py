"""The tables about measurements: latencies, output checks, the layers of an audit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from graphopt.reporting import units
from graphopt.reporting.cells import WIDE, stacked, table, text
from graphopt.reporting.groups import group_layers, ranked_layers, useful_savings
from graphopt.reporting.schema import AuditReport, Latency, LayerAudit, OutputCheck, Saving
from graphopt.reporting.verdict import speedup_interval, unequal_share

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_LAYERS_SHOWN = 20


def latency_table(latencies: Iterable[Latency]) -> Table:
    """One row for each batch size: both medians, the speed-up and its interval."""
    made = table(("batch", "right"), ("threads", "right"), ("before", "right"), ("after", "right"))
    for header in ("speed-up", "95% interval"):
        made.add_column(header, justify="right", no_wrap=True)
    made.add_column("")
    for entry in latencies:
        faster, slower = entry.measurably_faster, entry.ratio_low > 1
        said = "faster" if faster else "slower" if slower else "not measurably faster"
        made.add_row(
            units.count(entry.batch),
            units.count(entry.threads),
            units.micros(entry.before_us),
            units.micros(entry.after_us),
            units.times(entry.speedup),
            speedup_interval(entry),
            text(said, "green" if faster else "red" if slower else "yellow"),
        )
    return made


def checks_table(checks: Iterable[OutputCheck], console: Console) -> Table:
    """One row for each output and optimization level; cosine and dtype only where there is room."""
    wide = console.width >= WIDE
    made = table(("output", "left"), ("level", "left"))
    headers = ("rel. L2", "max abs", "SQNR dB", "top-1", "unequal", "")
    for header in (*(("dtype", "cosine") if wide else ()), *headers):
        made.add_column(header, justify="right", no_wrap=True)
    for check in checks:
        extra = (check.dtype, units.decimal(check.cosine)) if wide else ()
        made.add_row(
            text(units.shorten(units.clean(check.name), max(12, console.width - 66))),
            check.level,
            *extra,
            units.error(check.relative_l2),
            units.difference(check.max_abs),
            units.decimal(check.sqnr_db, 1),
            units.rate(check.top1_agreement),
            unequal_share(check),
            text("ok", "green") if check.passed else text("FAILED", "bold red"),
        )
    return made


def kinds_table(report: AuditReport) -> Table:
    """One row for each kind of layer, the most MACs first."""
    made = table(
        ("kind", "left"), ("layers", "right"), ("MACs", "right"), ("share", "right"),
        ("parameters", "right"),
    )  # fmt: skip
    whole = report.totals.macs
    for group in group_layers(report.layers):
        made.add_row(
            text(group.kind),
            units.count(group.layers),
            units.count(group.macs),
            units.percent(group.macs / whole if whole else 0.0),
            units.count(group.parameters),
        )
    return made


def layers_table(report: AuditReport, console: Console) -> Table:
    """The most expensive layers, with up to two savings each: the safest and the largest."""
    wide = console.width >= WIDE
    made = table(("layer", "left"), ("MACs", "right"), ("share", "right"), ("latency", "right"))
    if wide:
        made.add_column("could save")
    layers = ranked_layers(report.layers)
    room = max(16, console.width - (80 if wide else 34))
    for layer in layers[:_LAYERS_SHOWN]:
        name = text(units.shorten(units.clean(layer.name), room))
        savings = _savings(layer)
        first = (name,) if wide else (stacked(name, *savings),)
        made.add_row(
            *first,
            units.count(layer.cost.macs),
            units.percent(layer.cost.macs / report.totals.macs if report.totals.macs else 0.0),
            units.micros(layer.cost.latency_us),
            *((text("\n").join(savings),) if wide else ()),
        )
    if len(layers) > _LAYERS_SHOWN:
        made.add_row(text(f"and {len(layers) - _LAYERS_SHOWN} cheaper layers", "dim"))
    return made


def _savings(layer: LayerAudit) -> list[Text]:
    """The safest and the largest saving of a layer, a line each."""
    front = useful_savings(layer)
    chosen = front[:1] + front[-1:] if len(front) > 1 else front
    if not chosen:
        return [text("nothing found", "dim")]
    return [text(_saving(saving, layer), "dim") for saving in chosen]


def _saving(saving: Saving, layer: LayerAudit) -> str:
    share = units.percent(saving.saved_macs / layer.cost.macs if layer.cost.macs else 0.0)
    error = "exact" if saving.kind == "exact" else f"error {units.error(saving.predicted_error)}"
    return f"-{share} by {units.clean(saving.rewrite)} ({error}{_timed(saving)})"


def _timed(saving: Saving) -> str:
    """The measured latency as a factor, where there is one."""
    ratio = saving.latency_ratio
    if not ratio:
        return ""
    return f", {units.times(1 / ratio)} faster" if ratio < 1 else f", {units.times(ratio)} slower"
