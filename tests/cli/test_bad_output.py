"""Places that cannot be written to: said before any work is done, nothing written."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import onnx
import pytest


def test_a_missing_folder(shell, model):
    line = shell.fails(2, "optimize", model, "-o", "nowhere/out.onnx")
    assert line == "cannot write nowhere/out.onnx: the folder nowhere does not exist"


def test_a_folder(shell, model, folder):
    (folder / "place").mkdir()
    line = shell.fails(2, "optimize", model, "-o", "place")
    assert line == "place is a folder: give a file name to write"


def test_a_folder_below_a_file(shell, model, folder):
    (folder / "file").touch()
    assert "cannot write file/out.onnx" in shell.fails(2, "optimize", model, "-o", "file/out.onnx")


@pytest.mark.parametrize("alias", ["model.onnx", "./model.onnx", "link.onnx", "hard.onnx"])
def test_the_input(shell, model, folder, alias):
    (folder / "link.onnx").symlink_to("model.onnx")
    os.link(model, "hard.onnx")
    line = shell.fails(2, "optimize", model, "-o", alias)
    assert "is the input: give another --output, or --in-place" in line


def test_output_and_in_place(shell, model):
    line = shell.fails(2, "optimize", model, "-o", "out.onnx", "--in-place")
    assert "--output and --in-place contradict each other" in line


def test_the_weights_of_the_input(shell, network):
    """model.onnx and a copy of it share external data that the result's would replace."""
    onnx.save(
        network, "a.onnx", save_as_external_data=True, location="a.onnx.data", size_threshold=0
    )
    shutil.copy("a.onnx", "b.onnx")
    line = shell.fails(2, "optimize", "b.onnx", "-o", "a.onnx")
    assert line == "a.onnx.data holds the weights of the input: give another --output"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(shell, model, folder):
    place = folder / "locked"
    place.mkdir(mode=0o555)
    assert "no permission" in shell.fails(2, "optimize", model, "-o", "locked/out.onnx")


@pytest.mark.parametrize("option", ["--output", "--report", "--html", "--junit"])
def test_a_place_the_system_calls_read_only(shell, model, folder, monkeypatch, option):
    (folder / "locked").mkdir()
    ask = os.access

    def no(path, mode, **more):
        locked = Path(path).name == "locked" and mode & os.W_OK
        return not locked and ask(path, mode, **more)

    monkeypatch.setattr(os, "access", no)
    line = shell.fails(2, "optimize", model, option, "locked/out")
    assert line.startswith("cannot write locked/out: no permission")


def test_a_place_that_turns_out_read_only(shell, model, monkeypatch):
    make = tempfile.mkdtemp

    def refuse(suffix=None, prefix=None, dir=None):
        if prefix == ".graphopt-":
            raise OSError(30, "Read-only file system")
        return make(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    line = shell.fails(2, "optimize", model, "--no-bench")
    assert "Read-only file system" in line


def test_a_disk_that_is_full_at_the_rename(shell, model, monkeypatch):
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == "model.opt.onnx":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    line = shell.fails(2, "optimize", model, "--no-bench")
    assert line == "cannot write model.opt.onnx: No space left on device"


@pytest.mark.parametrize("option", ["--report", "--html", "--junit"])
class TestReports:
    def test_missing_folder(self, shell, model, option):
        line = shell.fails(2, "optimize", model, option, "nowhere/r")
        assert line == "cannot write nowhere/r: the folder nowhere does not exist"

    def test_folder(self, shell, model, folder, option):
        (folder / "place").mkdir()
        assert "place is a folder" in shell.fails(2, "optimize", model, option, "place")

    @pytest.mark.parametrize("where", ["model.onnx", "./model.onnx", "model.opt.onnx"])
    def test_never_over_a_model(self, shell, model, option, where):
        assert "something else goes by it" in shell.fails(2, "optimize", model, option, where)

    def test_never_over_the_given_output(self, shell, model, option):
        line = shell.fails(2, "optimize", model, "-o", "o.onnx", option, "o.onnx")
        assert "something else goes by it" in line


def test_two_reports_in_one_file(shell, model):
    line = shell.fails(2, "optimize", model, "--report", "r", "--html", "r")
    assert line == "a report cannot be written to r: something else goes by it"


def test_the_audit_report_over_the_model(shell, model):
    assert "something else" in shell.fails(2, "audit", model, "--html", model)
