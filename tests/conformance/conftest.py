from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tools() -> ModuleType:
    """`conformance_tools.py` beside this file: --import-mode=importlib has no sibling imports."""
    name = "conformance_tools"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured latencies go to a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of the zoo: real networks with data, which are no part of the project."""
    folder = os.environ.get("GRAPHOPT_ZOO")
    if not folder:
        pytest.skip("GRAPHOPT_ZOO is not set: it names the folder of the zoo's networks and data")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def scoring(zoo: Path, tools: ModuleType) -> ModuleType:
    """The zoo's own zoo.py, which reads its data and scores a file."""
    pytest.importorskip("PIL", reason="zoo.py reads its pictures with pillow")
    return tools.load_by_path(zoo / "zoo.py")
