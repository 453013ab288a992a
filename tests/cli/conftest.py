"""The command line called in this process, in an empty folder of its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import build

from graphopt import cli

NETWORK = """
net (float[N,3,8,8] x) => (float[N,4] y)
<float[4,3,3,3] w, float[4] scale, float[4] shift, float[4] mean, float[4] var>
{
    c = Conv <pads = [1,1,1,1]> (x, w)
    n = BatchNormalization (c, scale, shift, mean, var)
    r = Relu (n)
    p = GlobalAveragePool (r)
    y = Flatten (p)
}
"""


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file (with what is in it) and every folder below a folder, hidden ones included."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class Shell:
    """Calls `graphopt` in the working folder."""

    folder: Path
    scratch: Path
    monkeypatch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, *words: str | Path) -> Ran:
        """Run a command."""
        self.monkeypatch.setattr(sys, "argv", ["graphopt", *map(str, words)])
        self.capture.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        found = self.capture.readouterr()
        assert isinstance(left.value.code, int)
        assert list(self.scratch.iterdir()) == [], "a temporary file was left behind"
        return Ran(left.value.code, found.out, found.err)

    def passes(self, *words: str | Path) -> str:
        """Run a command that has to succeed; gives what it printed."""
        ran = self(*words)
        assert (ran.code, ran.err) == (0, "")
        return ran.out

    def fails(self, code: int, *words: str | Path) -> str:
        """Run a command that has to fail: one line on stderr, nothing else anywhere. The line."""
        before = contents(self.folder)
        ran = self(*words)
        assert ran.code == code, ran.err
        assert ran.out == ""
        assert ran.err.startswith("graphopt: ")
        assert ran.err.endswith("\n")
        assert ran.err.count("\n") == 1
        assert "Traceback" not in ran.err
        assert "internal error" not in ran.err
        assert contents(self.folder) == before, "something was written"
        return ran.err.removeprefix("graphopt: ").rstrip("\n")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; the cache of latencies lies outside."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("GRAPHOPT_DEBUG", raising=False)
    return place


@pytest.fixture
def shell(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Shell:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return Shell(folder, scratch, monkeypatch, capfd)


@pytest.fixture
def listing() -> Callable[[Path], dict[str, bytes | None]]:
    return contents


@pytest.fixture
def network() -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, pooled to four classes; open batch."""
    return build(NETWORK)


@pytest.fixture
def model(folder: Path, network: onnx.ModelProto) -> Path:
    onnx.save(network, folder / "model.onnx")
    return Path("model.onnx")


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def data(folder: Path, pictures: np.ndarray) -> str:
    labels = np.arange(len(pictures)) % 4
    np.savez(folder / "data.npz", x=pictures, labels=labels)
    return "data.npz"


@pytest.fixture
def wide(folder: Path) -> Path:
    """A convolution wide enough for an input bottleneck, with the weights of rank 16."""
    rng = np.random.default_rng(3)
    inner, outer = rng.standard_normal((16, 64)), rng.standard_normal((32, 16, 3, 3))
    text = """
    net (float[N,3,8,8] x) => (float[N,32,8,8] y) <float[64,3,1,1] v, float[32,64,3,3] w>
    { a = Conv (x, v)  r = Relu (a)  y = Conv <pads = [1,1,1,1]> (r, w) }
    """
    weight = np.einsum("rc,orhw->ochw", inner, outer).astype(np.float32) / 64
    onnx.save(build(text, weights={"w": weight}), "wide.onnx")
    return Path("wide.onnx")
