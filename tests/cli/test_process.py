"""The command as a real process, and what interrupts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt import pipeline, proving


def graphopt(*words: str, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "graphopt", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


def test_optimize_writes_a_model(model):
    done = graphopt("optimize", str(model), "--no-bench")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fuse-conv-bn" in done.stdout
    assert Path("model.opt.onnx").is_file()


def test_errors_are_one_line_and_the_exit_code(model):
    done = graphopt("optimize", "gone.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "graphopt: gone.onnx: no such file\n"


def test_onnxruntime_keeps_quiet_on_stderr(folder):
    (folder / "m.onnx").write_bytes(b"\x08\x08")
    done = graphopt("optimize", "m.onnx")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_json_into_a_pipe_that_closes(model):
    command = [sys.executable, "-m", "graphopt", "passes"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_the_command_line_starts_without_the_heavy_libraries():
    code = (
        "import sys, graphopt.cli;"
        "print([m for m in ('numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'scipy', 'networkx',"
        " 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")


class TestInterrupts:
    @pytest.mark.parametrize("where", ["approximate", "apply_plan", "prove", "time_files"])
    @pytest.mark.parametrize("extra", [(), ("--in-place",), ("--dry-run",)])
    def test_leave_nothing_behind(self, shell, model, monkeypatch, where, extra):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(proving, where, interrupt)
        line = shell.fails(130, "optimize", model, *extra)
        assert line == "interrupted; nothing was written"

    def test_while_writing(self, shell, model, monkeypatch):
        def half(proto, path, **_):
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr("onnx_ir.save", half)
        shell.fails(130, "optimize", model)

    def test_say_where_the_statistics_are(self, shell, wide, data, folder, listing, monkeypatch):
        np.savez("d.npz", x=np.load(data)["x"])
        words = ["optimize", wide, "--data", "d.npz", "--max-error", "0.1", "--no-bench"]

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(proving, "apply_plan", interrupt)
            ran = shell(*words, "--resume", "kept")
        assert (ran.code, ran.out) == (130, "")
        assert ran.err == (
            "graphopt: interrupted; no model was written, what was gathered is in kept "
            "(the same command goes on from there)\n"
        )
        assert not (folder / "wide.opt.onnx").exists()
        assert "went on from the statistics in kept" in shell.passes(*words, "--resume", "kept")
        resumed = (folder / "wide.opt.onnx").read_bytes()
        shell.passes(*words)
        assert (folder / "wide.opt.onnx").read_bytes() == resumed

    def test_before_there_are_any_statistics(self, shell, wide, data, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "prepare", interrupt)
        line = shell.fails(
            130, "optimize", wide, "--data", data, "--max-error", "0.1", "--resume", "kept"
        )
        assert line == "interrupted; nothing was written"


class TestBugs:
    """Anything that is not a GraphoptError: exit code 1, one line, and a way to see more."""

    @pytest.fixture
    def broken(self, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("a bug\nover two lines")

        monkeypatch.setattr(proving, "prove", fail)

    def test_are_one_line(self, shell, model, broken, folder, listing):
        before = listing(folder)
        ran = shell("optimize", model)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err == (
            "graphopt: internal error: RuntimeError: a bug over two lines "
            "(GRAPHOPT_DEBUG=1 shows where)\n"
        )
        assert listing(folder) == before

    def test_show_where_on_demand(self, shell, model, broken, monkeypatch):
        monkeypatch.setenv("GRAPHOPT_DEBUG", "1")
        with pytest.raises(RuntimeError, match="a bug"):
            shell("optimize", model)
