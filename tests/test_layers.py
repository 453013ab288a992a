"""The layers of DESIGN.md: a folder imports only folders below it; start-up loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.parser
import pytest

import graphopt

ROOT = Path(graphopt.__file__).parent
LAYERS = (
    "factorize",
    "graph",
    "cost",
    "rewrites",
    "calibration",
    "planning",
    "verification",
    "reporting",
    "integrations",
)
ABOVE = {"assembly"}
"""Folders of what puts the others together, like the modules beside them."""
FOUNDATION = {"errors", "runtime", "progress", "clock", "_version"}
HEAVY = (
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "scipy",
    "networkx",
    "rich.console",
)
ENGINE = (
    "graphopt.approximation",
    "graphopt.planning.choices",
    "graphopt.proving",
    "graphopt.reporting.html",
    "graphopt.rewrites.approximate",
    "onnxruntime",
    "onnxscript",
    "scipy.linalg",
)
"""What a run of exact rewrites alone does without."""


def imports(path: Path) -> Iterator[str]:
    """First components below `graphopt` of everything a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "graphopt" and len(parts) > 1:
                yield parts[1]


def violations(folder: str) -> list[str]:
    below = {*FOUNDATION, *LAYERS[: LAYERS.index(folder) + 1]}
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in imports(path)
        if name not in below
    ]


@pytest.mark.parametrize("folder", LAYERS[:-1])
def test_a_folder_imports_only_those_below(folder: str) -> None:
    assert violations(folder) == []


def test_the_foundation_imports_no_folder() -> None:
    """Nothing below a layer may depend on one."""
    for name in FOUNDATION:
        assert set(imports(ROOT / f"{name}.py")) <= FOUNDATION, name


def test_every_folder_has_a_layer() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == {*LAYERS, *ABOVE}


def test_the_mathematics_knows_arrays_only() -> None:
    """factorize/ could be lifted out: no onnx in it."""
    for path in (ROOT / "factorize").glob("*.py"):
        assert "onnx" not in path.read_text().replace("onnxruntime's", ""), path.name


def test_start_up_is_light() -> None:
    code = (
        "import sys, graphopt, graphopt.cli;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_without_proof_loads_no_engine(tmp_path: Path) -> None:
    """What searches, fits and proves takes longer to import than a small model to rewrite."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[3] x) => (float[3] y) '
        "{ r = Relu(x) y = Relu(r) }"
    )
    onnx.save(model, tmp_path / "net.onnx")
    code = f"""
import sys
from pathlib import Path
import graphopt
graphopt.optimize(Path({str(tmp_path / "net.onnx")!r}), graphopt.Options(verify=False))
print([name for name in sys.modules if name.startswith({ENGINE!r})])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "net.opt.onnx").is_file()
