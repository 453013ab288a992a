"""graphopt: a compiler from ONNX to ONNX that makes networks cheaper, and proves it.

    >>> from pathlib import Path
    >>> import graphopt
    >>> report = graphopt.optimize(Path("model.onnx"))                      # doctest: +SKIP
    >>> budget = graphopt.Budget(max_error=0.02)
    >>> options = graphopt.Options(budget=budget, data="calibration.npz")
    >>> report = graphopt.optimize(Path("model.onnx"), options)             # doctest: +SKIP

Everything is imported when it is first used: `import graphopt` alone is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphopt._version import __version__

if TYPE_CHECKING:
    from graphopt.auditing import audit
    from graphopt.comparing import bench, verify
    from graphopt.errors import BudgetError, GraphoptError, InputError, VerificationError
    from graphopt.options import Options
    from graphopt.pipeline import optimize
    from graphopt.planning.budget import Budget

_HOME = {
    "audit": "graphopt.auditing",
    "bench": "graphopt.comparing",
    "verify": "graphopt.comparing",
    "optimize": "graphopt.pipeline",
    "Budget": "graphopt.planning.budget",
    "Options": "graphopt.options",
    "BudgetError": "graphopt.errors",
    "GraphoptError": "graphopt.errors",
    "InputError": "graphopt.errors",
    "VerificationError": "graphopt.errors",
}

__all__ = [
    "Budget",
    "BudgetError",
    "GraphoptError",
    "InputError",
    "Options",
    "VerificationError",
    "__version__",
    "audit",
    "bench",
    "optimize",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
