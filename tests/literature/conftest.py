"""An empty working folder for every test, and the blocks of the literature (`models/blocks.py`)."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; caches and temporary files lie outside."""
    place, scratch = tmp_path / "work", tmp_path / "scratch"
    place.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return place


@pytest.fixture(scope="session")
def blocks() -> ModuleType:
    """`models/blocks.py`, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("graphopt_blocks", MODELS / "blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
