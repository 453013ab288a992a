"""Imports put off until something is asked of them, so that the command line starts sooner.

onnx-ir imports sympy for the arithmetic of symbolic dimensions, which few models need: a third of the
processor time of a small one. Only the command line does this, being the process; whoever imports
graphopt keeps sympy as it was.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

_LIBRARY, _USER = "sympy", "onnx_ir._symbolic_shapes"
"""What takes long, and who asks something of it as soon as it is imported itself."""

_RUNNING = "__postponed_running__"

_lock = RLock()


class _Postponed(ModuleType):
    """A module that runs when an attribute is first missed.

    (`importlib.util.LazyLoader` runs it at the next `import` statement: that looks at `__spec__`.)
    """

    def __getattr__(self, name: str) -> Any:
        with _lock:  # another thread waits for the whole; the module itself sees what it has so far
            if self.__class__ is _Postponed and _RUNNING not in self.__dict__:
                self.__dict__[_RUNNING] = True
                assert self.__spec__ is not None
                assert self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]
        return ModuleType.__getattribute__(self, name)


def postpone_sympy() -> None:
    """Put off sympy, and what in onnx-ir would bring it in at once, unless they are there already."""
    user = _inside("onnx_ir", _USER)
    library = find_spec(_LIBRARY) if _LIBRARY not in sys.modules else None
    if user is None or library is None or "onnx_ir" in sys.modules:
        return
    for spec in (library, user):
        module = module_from_spec(spec)
        module.__class__ = _Postponed
        sys.modules[spec.name] = module


def _inside(package: str, name: str) -> ModuleSpec | None:
    """The spec of a package's module, found without importing the package."""
    home = find_spec(package)
    for folder in (home.submodule_search_locations or ()) if home else ():
        path = Path(folder) / f"{name.rpartition('.')[2]}.py"
        if path.is_file():
            return spec_from_file_location(name, path)
    return None
