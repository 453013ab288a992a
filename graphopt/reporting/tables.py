"""The tables about rewrites: totals, what was applied where, what was declined.

Each function builds one table; `terminal` decides which to print.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from graphopt.reporting import units
from graphopt.reporting.cells import WIDE, bar, stacked, table, text, tone
from graphopt.reporting.groups import (
    DeclinedGroup,
    approximate_entries,
    batch_norms,
    group_rewrites,
)
from graphopt.reporting.schema import FrontierPoint, OptimizeReport, RewriteEntry
from graphopt.reporting.verdict import file_name, metric_value, speedup_interval

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_SITES_SHOWN = 16


def totals_table(report: OptimizeReport, console: Console) -> Table:
    """Before, after and change of everything that is counted, with a bar for what is left."""
    made = table(("", "left"), ("before", "right"), ("after", "right"), ("change", "right"))
    made.add_column("left")
    width = max(6, min(24, console.width - 72))
    for entry in report.latency:
        made.add_row(
            f"latency, batch {entry.batch}",
            units.micros(entry.before_us),
            units.micros(entry.after_us),
            text(
                f"{units.times(entry.speedup)} ({speedup_interval(entry)})",
                "green" if entry.measurably_faster else "yellow",
            ),
            bar(entry.ratio, width, console),
        )
    before, after = report.before, report.after
    peaks = before.peak_activation_bytes, after.peak_activation_bytes
    for label, old, new, form in (
        ("MACs", before.macs, after.macs, units.count),
        ("parameters", before.parameters, after.parameters, units.count),
        ("file size", before.file_bytes, after.file_bytes, units.size),
        ("peak activations", *peaks, units.size),
        ("nodes", before.nodes, after.nodes, units.count),
        ("BatchNormalizations", batch_norms(before), batch_norms(after), units.count),
    ):
        if old or new:
            ratio = new / old if old and new is not None else None
            change = text(units.change(old, new), tone(old, new))
            made.add_row(label, form(old), form(new), change, bar(ratio, width, console))
    return made


def frontier_table(report: OptimizeReport, console: Console) -> Table:
    """One row for each model of `--pareto`: how fast, how close, how large."""
    points = report.frontier
    metric = report.verification.metric if report.verification else None
    batches = [entry.batch for entry in points[0].latency]
    shown = batches if console.width >= WIDE else batches[:1]
    made = table(("model", "left"), *((f"speed-up, batch {batch}", "right") for batch in shown))
    headers = ("error", *((metric or "metric",) if _rated(points) else ()), "MACs", "size", "sites")
    for header in headers:
        made.add_column(text(units.clean(header)), justify="right", no_wrap=True)
    for point in points:
        speeds = (
            text(
                f"{units.times(entry.speedup)} ({speedup_interval(entry)})",
                "green" if entry.measurably_faster else "yellow",
            )
            for entry in point.latency[: len(shown)]
        )
        rates = (metric_value(metric, point.metric_after),) if _rated(points) else ()
        made.add_row(
            text(units.shorten(file_name(point.file), max(16, console.width - 66))),
            *speeds,
            units.error(point.error),
            *rates,
            units.count(point.after.macs),
            units.size(point.after.file_bytes),
            units.count(point.approximated),
        )
    return made


def _rated(points: Sequence[FrontierPoint]) -> bool:
    return all(point.metric_after is not None for point in points)


def rewrites_table(entries: Sequence[RewriteEntry]) -> Table:
    """One row for each rewrite: how often, and what it changed in sum."""
    counted = ("sites", "nodes", "MACs", "parameters")
    made = table(("rewrite", "left"), ("kind", "left"))
    for header in counted:
        made.add_column(header, justify="right", no_wrap=True)
    for group in group_rewrites(entries):
        style = "yellow" if group.kind == "approximate" else ""
        changes = (units.signed(value) for value in (group.nodes, group.macs, group.parameters))
        name = text(units.clean(group.name))
        made.add_row(name, text(group.kind, style), units.count(group.sites), *changes)
    return made


def sites_table(
    entries: Sequence[RewriteEntry], console: Console, *, verbose: bool
) -> Table | None:
    """One row for each approximate rewrite, the largest saving first; None if there is none."""
    chosen = approximate_entries(entries)
    if not chosen:
        return None
    wide = console.width >= WIDE
    made = table(("site", "left"))
    if wide:
        made.add_column("rewrite", overflow="fold")
    for header in ("MACs", "latency", "error"):
        made.add_column(header, justify="right", no_wrap=True)
    room = max(16, (console.width - 52) // (2 if wide else 1))
    shown = chosen if verbose else chosen[:_SITES_SHOWN]
    for entry in shown:
        site = text(units.shorten(units.site(entry.site), room))
        how = text(f"{units.clean(entry.name)} {units.options(entry.options)}", "dim")
        macs = _arrow(units.count(entry.before.macs), units.count(entry.after.macs))
        cells = (site, how) if wide else (stacked(site, how),)
        made.add_row(*cells, macs, _latency(entry), _error(entry))
    if len(chosen) > len(shown):
        made.add_row(text(f"and {len(chosen) - len(shown)} more sites: --verbose", "dim"))
    return made


def declined_table(groups: Iterable[DeclinedGroup], sites_shown: int | None) -> Table:
    """One row for each rewrite and reason, with the first `sites_shown` sites (None: all)."""
    made = table(("rewrite", "left"), ("sites", "right"), ("reason", "left"))
    for group in groups:
        if sites_shown is None:
            sites = [text(units.site(site), "dim") for site in group.sites]
        else:
            names = [units.shorten(units.site(at), 30) for at in group.sites[:sites_shown]]
            rest = len(group.sites) - len(names)
            more = f" and {rest} more" if rest else ""
            sites = [text(f"{', '.join(names)}{more}", "dim")]
        reason = stacked(text(units.clean(group.reason)), *sites)
        made.add_row(text(units.clean(group.name)), units.count(len(group.sites)), reason)
    return made


def _error(entry: RewriteEntry) -> Text:
    if entry.measured_error is not None:
        return text(units.error(entry.measured_error))
    if entry.predicted_error is not None:
        return text(f"~{units.error(entry.predicted_error)}", "dim")
    return text(units.MISSING)


def _latency(entry: RewriteEntry) -> str:
    before, after = entry.before.latency_us, entry.after.latency_us
    if before is None and after is None:
        return units.MISSING
    return _arrow(units.micros(before), units.micros(after))


def _arrow(before: str, after: str) -> str:
    return f"{before} -> {after}"
