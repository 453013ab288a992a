"""What a person sees at the end of a command: a headline, the totals, what changed, what did not.

Works from 80 columns on, into a terminal or a pipe. Names from the model are printed as plain
text with their control characters removed; they are never read as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.reporting import units
from graphopt.reporting.groups import group_declined, group_layers, potential
from graphopt.reporting.schema import (
    AuditReport,
    Declined,
    DenseMaps,
    Estimate,
    Latency,
    OptimizeReport,
    Verification,
)
from graphopt.reporting.verdict import (
    Status,
    dense_phrase,
    dense_title,
    error_phrase,
    file_name,
    prediction_phrase,
    proof_phrase,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_STYLES: dict[Status, str] = {"good": "bold green", "caution": "bold yellow", "bad": "bold red"}
_GROUPS_SHOWN = 8
_SITES_SHOWN = 3


def print_optimize(report: OptimizeReport, console: Console, *, verbose: bool = False) -> None:
    """Print what `graphopt optimize` did; `verbose` leaves nothing out of the long lists."""
    from graphopt.reporting import tables

    _headline(report, console)
    _section(console, None, tables.totals_table(report, console))
    if report.frontier:
        title = "Models, from close to the original to what the budget allows"
        _section(console, title, tables.frontier_table(report, console))
    if report.rewrites:
        _section(console, "Rewrites", tables.rewrites_table(report.rewrites))
    sites = tables.sites_table(report.rewrites, console, verbose=verbose)
    if sites is not None:
        _section(console, "Approximate rewrites, site by site", sites)
    _dense(report.dense, console)
    _declined(report.declined, console, verbose=verbose)
    console.print()
    _predicted(report.latency, console)
    if report.verification is not None:
        _rolled_back(report.verification, console)
    _available(report.available, console)
    _notes(report.notes, console)
    _spent(report, console)


def print_audit(report: AuditReport, console: Console) -> None:
    """Print what `graphopt audit` found: layers by cost, what each could save, exact savings."""
    from graphopt.reporting import measured_tables, tables

    totals = report.totals
    _line(console, file_name(report.input), "bold")
    size = units.size(totals.file_bytes)
    facts = f"{units.count(totals.macs)} MACs, {units.count(totals.parameters)} parameters, {size}"
    _line(console, f"{facts}, {units.plural(totals.nodes, 'node')} - nothing was written")
    if report.exact:
        title = "Exact rewrites: the same function, cheaper"
        _section(console, title, tables.rewrites_table(report.exact))
    if report.layers:
        threads = units.plural(report.threads, "thread")
        title = f"Layers, most expensive first ({threads})"
        _section(console, title, measured_tables.layers_table(report, console))
    if group_layers(report.layers):
        _section(console, "Kinds of layers", measured_tables.kinds_table(report))
    _declined(report.declined, console, verbose=False)
    console.print()
    _potential(report, console)
    _notes(report.notes, console)


def print_latency(latencies: Sequence[Latency], console: Console) -> None:
    """Print measured latencies (`graphopt bench`): one row for each batch size."""
    from graphopt.reporting.measured_tables import latency_table

    console.print(latency_table(latencies))
    console.print()
    for latency in latencies:
        shapes = ", ".join(
            f"{units.clean(name)} {'x'.join(map(str, shape))}"
            for name, shape in latency.input_shapes.items()
        )
        pairs = units.plural(latency.pairs, "pair")
        _line(console, f"batch {latency.batch}: {shapes}; {pairs} timed in turn", "dim")


def print_verification(verification: Verification, console: Console) -> None:
    """Print how the outputs compare (`graphopt verify`): one row for each output and level."""
    from graphopt.reporting.measured_tables import checks_table

    status: Status = "good" if verification.passed else "bad"
    if verification.passed and verification.samples.source == "synthetic":
        status = "caution"
    sentence = f"{proof_phrase(verification)}: {error_phrase(verification)}"
    _line(console, sentence, _STYLES[status])
    _section(console, None, checks_table(verification.outputs, console))
    console.print()
    samples = verification.samples
    counts = f"{units.count(samples.held_out)} held out, {units.count(samples.fitting)} for fitting"
    described = units.clean(samples.description)
    _line(console, f"inputs: {samples.source}, {described} ({counts})", "dim")
    for name, noise in verification.own_noise.items():
        text = (
            f"{units.clean(name)}: beyond the tolerance, but within twice the original's own noise"
        )
        _line(console, f"{text} ({units.error(noise)} between the two levels)", "dim")
    _rolled_back(verification, console)


def _dense(dense: DenseMaps | None, console: Console) -> None:
    """Where the windows are, what cells are worth, and how they were measured."""
    from graphopt.reporting.dense_table import dense_table

    if dense is None:
        return
    console.print()
    _line(console, dense_title(dense), "bold")
    if dense.sizes:
        console.print(dense_table(dense, console))
    _line(console, dense_phrase(dense), "dim")


def _headline(report: OptimizeReport, console: Console) -> None:
    """File names and verdict on one line where they fit, else the verdict below."""
    from rich.text import Text

    said = verdict(report)
    style = _STYLES[said.status]
    fits = len(said.subject) + 3 + len(said.sentence) <= console.width
    text = Text()
    text.append(said.subject, "bold").append("   " if fits else "\n")
    text.append(said.speed, style)
    for clause in said.clauses[1:]:
        text.append(f", {clause}")
    text.append(" - ").append(said.proof, style)
    console.print(text, overflow="fold")


def _declined(declined: Sequence[Declined], console: Console, *, verbose: bool) -> None:
    from graphopt.reporting import tables

    groups = group_declined(declined)
    if not groups:
        return
    shown = groups if verbose else groups[:_GROUPS_SHOWN]
    limit = None if verbose else _SITES_SHOWN
    title = f"Declined ({units.plural(len(declined), 'site')})"
    _section(console, title, tables.declined_table(shown, limit))
    if len(groups) > len(shown):
        rest = units.plural(len(groups) - len(shown), "reason")
        _line(console, f"and {rest} more: --verbose, --report or --html lists them all", "dim")


def _predicted(latencies: Sequence[Latency], console: Console) -> None:
    for latency in latencies:
        phrase = prediction_phrase(latency)
        if phrase is not None:
            _line(console, f"{phrase} (batch {latency.batch})", "dim")


def _rolled_back(verification: Verification, console: Console) -> None:
    for entry in verification.rolled_back:
        what = f"{units.clean(entry.name)} at {units.site(entry.site)}"
        _line(console, f"rolled back: {what}: {units.clean(entry.reason)}", "yellow")


def _available(available: Sequence[Estimate], console: Console) -> None:
    offers = [
        (f"{offer.max_error:g}", units.percent(1 - offer.macs_ratio))
        for offer in available
        if offer.macs_ratio < 0.98
    ]
    _hint("--max-error", offers, "(estimated, nothing was tried)", console)


def _potential(report: AuditReport, console: Console) -> None:
    offers = [
        (units.error(entry.weight_error), units.percent(1 - entry.macs_ratio))
        for entry in potential(report)
    ]
    _hint("a weight error per layer of", offers, "(predicted, outputs were not compared)", console)


def _hint(price: str, offers: Sequence[tuple[str, str]], hedge: str, console: Console) -> None:
    """One line of what each price may save; `offers` are (price, saving)."""
    if offers:
        (first, saving), *rest = offers
        more = "".join(f", {cost} about {saved}" for cost, saved in rest)
        line = f"hint: {price} {first} may save about {saving} of the MACs{more} {hedge}"
        _line(console, line, "cyan")


def _spent(report: OptimizeReport, console: Console) -> None:
    stages = ", ".join(
        f"{units.clean(stage)} {units.seconds(time)}" for stage, time in report.seconds.items()
    )
    total = units.seconds(sum(report.seconds.values()))
    memory = units.size(report.peak_memory_bytes)
    _line(console, f"{total} ({stages or 'no stages'}), peak memory {memory}", "dim")


def _notes(notes: Sequence[str], console: Console) -> None:
    for note in notes:
        _line(console, f"note: {units.clean(note)}")


def _section(console: Console, title: str | None, body: RenderableType) -> None:
    console.print()
    if title is not None:
        _line(console, title, "bold")
    console.print(body)


def _line(console: Console, text: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text(text, style), overflow="fold")
