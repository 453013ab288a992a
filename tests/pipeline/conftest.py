"""Small networks on disk, and the pipeline without timing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_text import build

from graphopt import Options, optimize
from graphopt.reporting.schema import OptimizeReport

TWO_LAYERS = """
net (float[N,3,8,8] x) => (float[N,4] y)
<float[4,3,3,3] w, float[4] scale, float[4] shift, float[4] mean, float[4] var,
 float[4,4,3,3] v, float[4] b>
{
    c = Conv <pads = [1,1,1,1]> (x, w)
    n = BatchNormalization (c, scale, shift, mean, var)
    r = Relu (n)
    d = Conv <pads = [1,1,1,1]> (r, v, b)
    i = Identity (d)
    p = GlobalAveragePool (i)
    y = Flatten (p)
}
"""

Run = Callable[..., OptimizeReport]


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


@pytest.fixture
def run() -> Run:
    def quick(path: str | Path, **options: Any) -> OptimizeReport:
        return optimize(Path(path), Options(**{"bench": False, **options}))

    return quick


@pytest.fixture
def two_layers(folder: Path) -> Path:
    network = build(TWO_LAYERS)
    for node in network.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.save(network, "net.onnx")
    return Path("net.onnx")


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def data(folder: Path, pictures: np.ndarray) -> str:
    np.savez(folder / "data.npz", x=pictures)
    return "data.npz"


@pytest.fixture
def wide(folder: Path) -> Path:
    """A 3x3 convolution over 64 channels: 16 strong directions, the others at 2 %."""
    rng = np.random.default_rng(3)
    strengths = np.where(np.arange(64) < 16, 1.0, 0.02)
    basis = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    rows = rng.standard_normal((32, 9, 64)) * strengths
    weight = (rows @ basis).transpose(0, 2, 1).reshape(32, 64, 3, 3) / 24
    text = """
    net (float[N,3,8,8] x) => (float[N,32,8,8] y) <float[64,3,1,1] v, float[32,64,3,3] w>
    { a = Conv (x, v)  r = Relu (a)  y = Conv <pads = [1,1,1,1]> (r, w) }
    """
    onnx.save(build(text, weights={"w": weight.astype(np.float32)}), "wide.onnx")
    return Path("wide.onnx")
