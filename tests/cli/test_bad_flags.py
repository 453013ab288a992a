"""Flags that make no sense: exit code 2 (4 for a promise that cannot be kept), one line."""

from __future__ import annotations

import numpy as np
import pytest

USAGE = {
    "no model": (["optimize"], "Missing argument 'model'", "graphopt optimize"),
    "one model": (["verify", "model.onnx"], "Missing argument 'other'", "graphopt verify"),
    "two models": (["optimize", "model.onnx", "b.onnx"], "b.onnx", "graphopt optimize"),
    "no such option": (["optimize", "model.onnx", "--fast"], "--fast", "graphopt optimize"),
    "no such command": (["optimise", "model.onnx"], "'optimise'", "graphopt"),
    "no value": (["optimize", "model.onnx", "--output"], "--output", "graphopt"),
    "threads": (["optimize", "model.onnx", "--threads", "0"], "--threads", "graphopt optimize"),
    "seed": (["optimize", "model.onnx", "--seed", "-1"], "--seed", "graphopt optimize"),
    "seed text": (["optimize", "model.onnx", "--seed", "x"], "--seed", "graphopt optimize"),
    "target": (["optimize", "model.onnx", "--target", "gpu"], "--target", "graphopt optimize"),
    "on-fail": (["optimize", "model.onnx", "--on-fail", "cry"], "--on-fail", "graphopt optimize"),
    "error": (["optimize", "model.onnx", "--max-error", "5%"], "--max-error", "graphopt optimize"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_is_one_line_and_names_the_help(shell, model, case):
    words, named, command = USAGE[case]
    line = shell.fails(2, *words)
    assert named in line
    assert line.endswith(f"(see `{command} --help`)")


def test_nothing_at_all_shows_the_help(shell):
    ran = shell()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: graphopt")
    assert "optimize" in ran.err


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--max-error", v) for v in ("-0.1", "1", "5", "nan", "inf")]
    + [("--max-drop", v) for v in ("-0.1", "1", "nan")]
    + [("--speedup", v) for v in ("1", "0.5", "0", "-2", "nan")],
)
def test_budgets_that_make_no_sense(shell, model, flag, value):
    line = shell.fails(2, "optimize", model, flag, value)
    assert line.startswith(f"{flag} {value} is not ")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--freeze-initializers", "--keep-initializers"), "contradict each other"),
        (("--in-place", "--output", "o.onnx"), "contradict each other"),
        (("--max-error", "0.1", "--no-verify"), "drop --no-verify"),
        (("--speedup", "2", "--no-verify"), "drop --no-verify"),
        (("--speedup", "2", "--no-bench"), "drop --no-bench"),
        (("--pareto", "2"), "--pareto needs --max-error or --max-drop"),
        (("--pareto", "1", "--max-error", "0.1"), "--pareto"),
        (("--pareto", "1000000000000", "--max-error", "0.1"), "--pareto"),
        (("--pareto", "2", "--max-error", "0.1", "--in-place"), "--pareto writes several models"),
        (
            ("--pareto", "2", "--max-error", "0.1", "--report", "model.opt.2.onnx"),
            "something else goes by it",
        ),
        (("--resume", "kept"), "--resume needs --data and a budget"),
        (("--resume", "kept", "--max-error", "0.1"), "--resume needs --data and a budget"),
    ],
)
def test_flags_that_contradict_each_other(shell, model, flags, complaint):
    assert complaint in shell.fails(2, "optimize", model, *flags)


@pytest.mark.parametrize("flag", ["--passes", "--skip"])
@pytest.mark.parametrize("command", ["optimize", "audit"])
class TestNames:
    def test_a_near_miss_is_suggested(self, shell, model, flag, command):
        line = shell.fails(2, command, model, flag, "remove-dead,fuse-con-bn")
        assert line == "there is no rewrite 'fuse-con-bn': did you mean fuse-conv-bn?"

    def test_a_far_miss_points_to_the_list(self, shell, model, flag, command):
        line = shell.fails(2, command, model, flag, "zzz")
        assert line == "there is no rewrite 'zzz': see `graphopt passes`"

    @pytest.mark.parametrize("names", ["", " , "])
    def test_no_name(self, shell, model, flag, command, names):
        assert "take names of rewrites" in shell.fails(2, command, model, flag, names)


@pytest.mark.parametrize("text", ["x", "x:", "x:axb", "x:0x3x8x8", ":1x3x8x8", "x:1,3"])
def test_shapes_that_are_none(shell, model, text):
    line = shell.fails(2, "optimize", model, "--shape", text)
    assert line == f"--shape {text!r} is not of the form input:1x3x224x224"


def test_a_shape_for_no_input(shell, model):
    line = shell.fails(2, "optimize", model, "--shape", "image:1x3x8x8")
    assert line == "--shape names 'image', which is no input (inputs: x)"


@pytest.mark.parametrize("shape", ["1x4x8x8", "1x3x8", "1x3x8x8x1"])
def test_a_shape_against_the_declared_one(shell, model, shape):
    line = shell.fails(2, "optimize", model, "--shape", f"x:{shape}")
    assert line == f"input 'x' takes Nx3x8x8, not {shape}"


@pytest.mark.parametrize("passes", [(), ("--passes", "fuse-conv-bn")])
def test_a_speedup_out_of_reach(shell, model, data, passes):
    line = shell.fails(4, "optimize", model, "--data", data, "--speedup", "1000", *passes)
    assert line.startswith("a speed-up of 1000x cannot be reached: ")
    assert line.endswith("x is the most")


def test_a_speedup_out_of_reach_with_something_on_offer(shell, wide, pictures):
    np.savez("d.npz", x=pictures)
    line = shell.fails(4, "optimize", wide, "--data", "d.npz", "--speedup", "1000")
    assert line.startswith("a speed-up of 1000x cannot be reached: ")
