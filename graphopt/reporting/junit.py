"""A report as JUnit XML, so that a CI server shows what was verified next to its unit tests.

One testcase for each output check (`logits @ enable_all`) and one for each limit of the budget.
What was not measured is *skipped*, never passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from graphopt.reporting import units
from graphopt.reporting.schema import OptimizeReport, OutputCheck, Verification
from graphopt.reporting.verdict import file_name, metric_value, proof_phrase, worst_check

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """One testcase: `message` says why it failed or was skipped, or what was measured."""

    group: str
    name: str
    outcome: Literal["passed", "failure", "skipped"]
    message: str


def render_junit(report: OptimizeReport) -> str:
    """`report` as a JUnit XML document with one test suite."""
    cases = (*_verification_cases(report.verification), *_budget_cases(report))
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.outcome == "failure" for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.outcome == "skipped" for case in cases)),
        "time": f"{sum(report.seconds.values()):.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "graphopt", **counts})
    name = _xml(f"graphopt {file_name(report.input)}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(report).items():
        ElementTree.SubElement(properties, "property", {"name": key, "value": _xml(value)})
    for case in cases:
        _append(suite, case)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _properties(report: OptimizeReport) -> dict[str, str]:
    output = report.output.sha256 if report.output else "nothing written"
    return {
        "tool": report.tool,
        "command": report.command,
        "input.sha256": report.input.sha256,
        "output.sha256": output,
    }


def _append(suite: ElementTree.Element, case: Case) -> None:
    names = {"classname": f"graphopt.{case.group}", "name": _xml(case.name), "time": "0"}
    element = ElementTree.SubElement(suite, "testcase", names)
    message = _xml(case.message)
    if case.outcome == "passed":
        ElementTree.SubElement(element, "system-out").text = message
    else:
        ElementTree.SubElement(element, case.outcome, {"message": message}).text = message


def _verification_cases(verification: Verification | None) -> Iterator[Case]:
    if verification is None:
        yield Case("verification", "written file", "skipped", "not verified")
        return
    for check in verification.outputs:
        outcome: Literal["passed", "failure"] = "passed" if check.passed else "failure"
        yield Case("verification", f"{check.name} @ {check.level}", outcome, _said(check))
    if not verification.passed and all(check.passed for check in verification.outputs):
        yield Case("verification", "written file", "failure", proof_phrase(verification))


def _said(check: OutputCheck) -> str:
    if check.relative_l2 is None:
        return f"{units.percent(check.mismatches)} of the elements differ"
    largest = units.difference(check.max_abs)
    return f"relative L2 error {units.error(check.relative_l2)}, largest difference {largest}"


def _budget_cases(report: OptimizeReport) -> Iterator[Case]:
    budget = report.budget
    if budget.max_error is not None:
        yield _error_case(budget.max_error, report.verification)
    if budget.max_drop is not None:
        yield _drop_case(budget.max_drop, report.verification)
    if budget.speedup is not None:
        yield _speedup_case(budget.speedup, report)


def _error_case(limit: float, verification: Verification | None) -> Case:
    name = f"max-error {limit:g}"
    worst = worst_check(verification.outputs) if verification else None
    if worst is None or worst.relative_l2 is None:
        return Case("budget", name, "skipped", "no error was measured")
    message = f"error {units.error(worst.relative_l2)} at output {worst.name} ({worst.level})"
    # The proof's own verdict: rounding is allowed even where the budget is smaller than it.
    kept = verification is not None and all(check.passed for check in verification.outputs)
    return _limit(name, worst.relative_l2 <= limit or kept, message)


def _drop_case(limit: float, verification: Verification | None) -> Case:
    name = f"max-drop {limit:g}"
    before = verification.metric_before if verification else None
    after = verification.metric_after if verification else None
    if verification is None or before is None or after is None:
        return Case("budget", name, "skipped", "no metric was measured")
    values = (metric_value(verification.metric, value) for value in (before, after))
    message = f"{verification.metric or 'metric'} {' -> '.join(values)}"
    return _limit(name, before - after <= limit, message)


def _speedup_case(wanted: float, report: OptimizeReport) -> Case:
    """Met by the first measurement, the one that the search went by.

    Missing it is no failure where another limit of the budget bound first: the user asked for
    whichever comes first.
    """
    name = f"speedup {wanted:g}"
    if not report.latency:
        return Case("budget", name, "skipped", "no latency was measured")
    measured = report.latency[0]
    message = f"{units.times(measured.speedup)} at batch {measured.batch}"
    bound_by = report.budget.bound_by
    if measured.speedup < wanted and bound_by not in (None, "speedup"):
        return Case("budget", name, "skipped", f"{message}: stopped by {bound_by} before")
    return _limit(name, measured.speedup >= wanted, message)


def _limit(name: str, met: bool, message: str) -> Case:
    return Case("budget", name, "passed" if met else "failure", message)


def _xml(text: str) -> str:
    """`text` without the characters that XML 1.0 cannot hold, not even escaped."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
