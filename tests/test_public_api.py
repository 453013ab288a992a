"""What `import graphopt` offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx_text import build

import graphopt


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    text = """
    net (float[N,3,4,4] x) => (float[N,4,4,4] y) <float[4,3,1,1] w, float[4,1,1] k>
    { c = Conv (x, w)  y = Mul (c, k) }
    """
    onnx.save(build(text), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("name", graphopt.__all__)
def test_everything_promised_is_there(name):
    assert getattr(graphopt, name) is not None


def test_nothing_else_is():
    with pytest.raises(AttributeError, match="has no attribute 'optimise'"):
        graphopt.optimise  # noqa: B018
    assert len(set(graphopt.__all__)) == len(graphopt.__all__)


def test_importing_it_imports_little():
    code = (
        "import sys, graphopt; print([m for m in ('numpy', 'onnx', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_optimize_verify_and_audit(model):
    report = graphopt.optimize(model, graphopt.Options(bench=False))
    result = model.with_suffix(".opt.onnx")
    assert [node.op_type for node in onnx.load(result).graph.node] == ["Conv"]
    assert report.output is not None
    assert report.output.path == str(result)
    assert graphopt.verify(model, result).passed
    audit = graphopt.audit(model, graphopt.Options(bench=False))
    assert [entry.name for entry in audit.exact] == ["fuse-conv-affine"]


def test_bench(model):
    (one, eight) = graphopt.bench(model, model)
    assert (one.batch, eight.batch) == (1, 8)
    assert one.ratio_low <= one.ratio <= one.ratio_high


def test_a_budget_is_checked(model):
    with pytest.raises(graphopt.InputError, match="--max-error 2 is not between 0 and 1"):
        graphopt.optimize(model, graphopt.Options(budget=graphopt.Budget(max_error=2)))


@pytest.mark.parametrize(
    ("error", "code"), [("InputError", 2), ("VerificationError", 3), ("BudgetError", 4)]
)
def test_errors_know_their_exit_code(error, code):
    kind = getattr(graphopt, error)
    assert kind.exit_code == code
    assert issubclass(kind, graphopt.GraphoptError)
