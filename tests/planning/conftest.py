from __future__ import annotations

from types import SimpleNamespace

import pytest

from graphopt.planning.choices import Choice, Options


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))


def options_of(table):
    """Menus from {layer: [(saved, error), ...]}; what a candidate is made into knows both."""
    return [
        Options(
            layer,
            tuple(
                Choice(layer, SimpleNamespace(realised=made(saved, error)), saved, error, None)
                for saved, error in entries
            ),
        )
        for layer, entries in table.items()
    ]


def made(saved, error):
    return SimpleNamespace(saved=saved, error=error)


@pytest.fixture(scope="session")
def make_options():
    return options_of
