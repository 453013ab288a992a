from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from graphopt.reporting.junit import render_junit
from graphopt.reporting.schema import BudgetUsed


def outcomes(report) -> dict[str, str]:
    """Outcome by name of testcase; the counts of the suite must agree with them."""
    root = ElementTree.fromstring(render_junit(report).encode())
    suite = root.find("testsuite")
    found = {}
    for case in suite.findall("testcase"):
        states = [child.tag for child in case if child.tag in {"failure", "skipped", "error"}]
        found[f"{case.get('classname')}: {case.get('name')}"] = states[0] if states else "passed"
    for element in (root, suite):
        assert int(element.get("tests")) == len(suite.findall("testcase"))
        assert int(element.get("failures")) == len(suite.findall("testcase/failure"))
        assert int(element.get("skipped")) == len(suite.findall("testcase/skipped"))
    return found


def test_one_case_for_each_check_and_each_limit(samples):
    assert outcomes(samples.optimize_report()) == {
        "graphopt.verification: logits @ disable_all": "passed",
        "graphopt.verification: logits @ enable_all": "passed",
        "graphopt.verification: class @ disable_all": "passed",
        "graphopt.verification: class @ enable_all": "passed",
        "graphopt.budget: max-error 0.05": "passed",
        "graphopt.budget: max-drop 0.01": "passed",
        "graphopt.budget: speedup 2": "passed",
    }


def test_each_failure_is_reported(samples):
    first, *others = samples.checks()
    outputs = (replace(first, passed=False, relative_l2=0.2), *others)
    proof = replace(samples.verification(), passed=False, outputs=outputs, metric_after=0.7432)
    report = replace(
        samples.optimize_report(),
        verification=proof,
        budget=BudgetUsed(max_error=0.05, max_drop=0.01, speedup=9.0),
    )
    failed = [name for name, outcome in outcomes(report).items() if outcome == "failure"]
    assert failed == [
        "graphopt.verification: logits @ disable_all",
        "graphopt.budget: max-error 0.05",
        "graphopt.budget: max-drop 0.01",
        "graphopt.budget: speedup 9",
    ]
    assert 'message="error 20% at output logits (disable_all)"' in render_junit(report)


def test_what_was_not_measured_is_skipped(samples):
    report = replace(samples.optimize_report(), verification=None, latency=(), output=None)
    assert set(outcomes(report).values()) == {"skipped"}
    assert len(outcomes(report)) == 4
    assert "nothing written" in render_junit(report)


def test_without_a_budget_there_are_only_checks(samples):
    assert list(outcomes(samples.lossless_report())) == [
        "graphopt.verification: logits @ disable_all",
        "graphopt.verification: logits @ enable_all",
    ]


def test_a_speedup_that_another_limit_stopped_is_no_failure(samples):
    report = samples.optimize_report()
    name = "graphopt.budget: speedup 9"
    stopped = BudgetUsed(max_error=0.05, speedup=9.0, bound_by="max_error")
    assert outcomes(replace(report, budget=stopped))[name] == "skipped"
    missed = replace(stopped, bound_by="speedup")
    assert outcomes(replace(report, budget=missed))[name] == "failure"


def test_a_verdict_no_check_explains_is_still_a_failure(samples):
    proof = replace(samples.verification(), passed=False)
    report = replace(samples.optimize_report(), verification=proof)
    assert outcomes(report)["graphopt.verification: written file"] == "failure"


def test_hostile_names_are_parsed_back(samples):
    names = list(outcomes(samples.hostile_report()))
    assert any("<script>alert('x')</script>&\"[bold red]\ufffd[31m" in name for name in names)
