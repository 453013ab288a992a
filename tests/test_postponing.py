"""The command line starts without sympy, and has it as soon as something asks for it."""

from __future__ import annotations

import subprocess
import sys

PREAMBLE = """
import sys
from graphopt.postponing import postpone_sympy
postpone_sympy()
import onnx_ir as ir
import graphopt.pipeline, graphopt.proving
assert "sympy.core" not in sys.modules, "something of graphopt's own asks for sympy"
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_nothing_of_graphopts_own_needs_sympy() -> None:
    done = run(PREAMBLE)
    assert done.returncode == 0, done.stderr


def test_symbolic_dimensions_still_reckon() -> None:
    done = run(PREAMBLE + "print((ir.SymbolicDim('n') + 2) * 3, 'sympy.core' in sys.modules)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "True"
    assert "3*n + 6" in done.stdout


def test_threads_that_ask_at_once_all_get_it() -> None:
    done = run(
        PREAMBLE
        + """
from concurrent.futures import ThreadPoolExecutor
import sympy
with ThreadPoolExecutor(4) as pool:
    print(set(pool.map(lambda i: str(sympy.expand("(a+1)*2")), range(8))))
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'2*a + 2'}"


def test_it_leaves_alone_what_is_loaded() -> None:
    done = run(
        "import sympy, sys; from graphopt.postponing import postpone_sympy; postpone_sympy();"
        "print(sys.modules['sympy'] is sympy, type(sympy).__name__, 'onnx_ir' in sys.modules)"
    )
    assert done.stdout.split() == ["True", "module", "False"]
