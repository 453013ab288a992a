from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx_text import build

from graphopt.calibration.dataset import Batch, Dataset


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def scaled():
    """Bytes of a network y = factor * x, z = round(factor * x) as integers."""

    def make(factor: float, inputs: str = "x") -> bytes:
        text = f"""
        net (float[N,4] {inputs}) => (float[N,4] y, int64[N,4] z) <float[1] k>
        {{ y = Mul ({inputs}, k)  r = Round (y)  z = Cast <to = 7> (r) }}
        """
        return build(text, weights={"k": np.array([factor], np.float32)}).SerializeToString()

    return make


@pytest.fixture
def dataset():
    """Batches of 3 samples [3, 4] with labels 0, 1, 2."""

    def make(batches: int = 4, *, labels: bool = False, scale: float = 10.0) -> Dataset:
        rng = np.random.default_rng(1)
        made = [
            Batch(
                {"x": (scale * rng.standard_normal((3, 4))).astype(np.float32)},
                np.arange(3) if labels else None,
            )
            for _ in range(batches)
        ]
        return Dataset(tuple(made), "data", "made up")

    return make
