"""A report as one self-contained HTML file, for whoever signs the change off.

No scripts, no network, no images: the style is inline and the bars are inline SVG. Everything
that comes from the model or the command line is escaped by jinja2 and stripped of control
characters. Follows the reader's light or dark mode and prints in full.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from graphopt.reporting import groups, units
from graphopt.reporting import scatter as scatters
from graphopt.reporting import verdict as verdicts
from graphopt.reporting.schema import AuditReport, OptimizeReport, Totals

if TYPE_CHECKING:
    from jinja2 import Environment

_NUMBERS: dict[str, Callable[..., str]] = {
    "change": units.change,
    "count": units.count,
    "decimal": units.decimal,
    "difference": units.difference,
    "error": units.error,
    "micros": units.micros,
    "percent": units.percent,
    "rate": units.rate,
    "seconds": units.seconds,
    "signed": units.signed,
    "size": units.size,
    "times": units.times,
}
_TYPOGRAPHY = (
    (re.compile(r"(?<=\d)x\b"), "\N{MULTIPLICATION SIGN}"),
    (re.compile(r"(?<=\d )us\b"), "\N{MICRO SIGN}s"),
    (re.compile(r"(?<=\d)-(?=\d)"), "\N{EN DASH}"),
    (re.compile(r"^-(?=\d)|(?<=e)-(?=\d)"), "\N{MINUS SIGN}"),
    (re.compile(r"^-$"), "\N{EN DASH}"),
)


def render_html(report: OptimizeReport | AuditReport) -> str:
    """The whole HTML document of `report`."""
    if isinstance(report, OptimizeReport):
        page, context = "optimize.html.j2", _optimize_context(report)
    else:
        page, context = "audit.html.j2", _audit_context(report)
    return _environment().get_template(page).render(report=report, **context)


def typeset(text: str) -> str:
    """A figure from `units` with the characters print uses: `2.31×`, `812 µs`, `2.25–2.38`."""
    for pattern, character in _TYPOGRAPHY:
        text = pattern.sub(character, text)
    return text


def _optimize_context(report: OptimizeReport) -> dict[str, Any]:
    return {
        "verdict": verdicts.verdict(report),
        "bars": _bars(report.before, report.after),
        "scatter": scatters.scatter(report.frontier),
        "rewrite_groups": groups.group_rewrites(report.rewrites),
        "approximate": groups.approximate_entries(report.rewrites),
        "declined_groups": groups.group_declined(report.declined),
        "total_seconds": sum(report.seconds.values()),
    }


def _audit_context(report: AuditReport) -> dict[str, Any]:
    return {
        "layers": groups.ranked_layers(report.layers),
        "potential": groups.potential(report),
        "rewrite_groups": groups.group_rewrites(report.exact),
        "declined_groups": groups.group_declined(report.declined),
    }


def _bars(before: Totals, after: Totals) -> list[tuple[str, float, float, Callable[..., str]]]:
    """(label, before, after, how to write them) of every total that both models have."""
    rows: list[tuple[str, float | None, float | None, Callable[..., str]]] = [
        ("MACs", before.macs, after.macs, units.count),
        ("Parameters", before.parameters, after.parameters, units.count),
        ("File size", before.file_bytes, after.file_bytes, units.size),
        (
            "Peak activations",
            before.peak_activation_bytes,
            after.peak_activation_bytes,
            units.size,
        ),
        ("Nodes", before.nodes, after.nodes, units.count),
        (
            "BatchNormalizations",
            groups.batch_norms(before),
            groups.batch_norms(after),
            units.count,
        ),
    ]
    return [(label, old, new, form) for label, old, new, form in rows if old and new is not None]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("graphopt.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, form in _NUMBERS.items():
        environment.filters[name] = _typeset_filter(form)
    environment.filters.update(
        clean=units.clean,
        options=units.options,
        site=_whole_site,
        typeset=typeset,
    )
    environment.globals.update(
        dense_phrase=verdicts.dense_phrase,
        error_phrase=verdicts.error_phrase,
        file_name=verdicts.file_name,
        metric_value=verdicts.metric_value,
        plural=units.plural,
        prediction_phrase=verdicts.prediction_phrase,
        proof_phrase=verdicts.proof_phrase,
        speedup_interval=verdicts.speedup_interval,
        speed_phrase=verdicts.speed_phrase,
        unequal_share=verdicts.unequal_share,
        useful_savings=groups.useful_savings,
    )
    return environment


def _typeset_filter(form: Callable[..., str]) -> Callable[..., str]:
    return lambda *arguments: typeset(form(*arguments))


def _whole_site(names: tuple[str, ...]) -> str:
    return units.site(names, shown=len(names))
