"""What the dataclasses promise of every report holds of the sample as well."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["optimize_report", "lossless_report"])
@pytest.mark.parametrize("figure", ["nodes", "parameters", "weight_bytes", "macs"])
def test_rewrites_sum_up_to_the_totals(samples, name, figure):
    report = getattr(samples, name)()
    removed = sum(getattr(entry.before, figure) for entry in report.rewrites)
    added = sum(getattr(entry.after, figure) for entry in report.rewrites)
    assert added - removed == getattr(report.after, figure) - getattr(report.before, figure)


@pytest.mark.parametrize("module", ["schema", "terminal", "html", "junit", "json_file"])
def test_importing_stays_fast(module):
    heavy = "{'rich', 'jinja2', 'onnx', 'numpy', 'onnxruntime'}"
    program = f"import sys, graphopt.reporting.{module}; print({heavy} & set(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "set()"
