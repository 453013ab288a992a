"""`--ranks` on the command line: what it prints, and one line for everything that is wrong with it."""

from __future__ import annotations

import json

import pytest


def test_it_is_said_what_was_done(shell, wide):
    out = shell.passes("optimize", wide, "--ranks", "y=16", "--no-bench")
    assert "input-bottleneck" in out
    assert "forced=yes" in out
    assert "the error is measured, not limited" in out
    assert "no data to fit to" in out


def test_the_flag_may_come_more_than_once(shell, wide):
    words = ("--ranks", "y=16", "--ranks", "a=two-sided:1x2,", "--no-bench", "--json")
    ran = shell("optimize", wide, *words)
    assert ran.code == 2
    assert "no kernel larger than 1x1" in ran.err
    words = ("--ranks", "y=16", "--ranks", "a=2", "--no-bench", "--json")
    report = json.loads(shell.passes("optimize", wide, *words))
    made = [e for e in report["rewrites"] if e["kind"] == "approximate"]
    assert [(e["site"], e["options"]) for e in made] == [
        (["a"], {"rank": 2, "forced": True}),
        (["y"], {"rank": 16, "forced": True}),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("y", "--ranks 'y' is not of the form layer=rank or layer=scheme:rank (conv1=64,"),
        ("y=many", "--ranks 'y=many' is not of the form"),
        ("", "--ranks names no layer"),
        ("y=svd:16", "--ranks y: no scheme 'svd': there are input-bottleneck,"),
        ("y=spatal:16", "--ranks y: no scheme 'spatal': did you mean spatial?"),
        ("z=16", "--ranks: there is no layer 'z'; there are, nearest first: "),
        ("r=16", "--ranks: there is no layer 'r' (it is a Relu); there are, nearest first: "),
        ("y=65", "--ranks y: input-bottleneck takes rank 1 to 64 here, not 65"),
        ("y=0", "--ranks y: input-bottleneck takes rank 1 to 64 here, not 0"),
        ("y=two-sided:16", "--ranks y: two-sided takes 2 ranks (rank_in x rank_out), not 1"),
        ("a=spatial:2", "--ranks a: spatial does not apply: the kernel is not wider than one"),
        ("y=16,y=8", "--ranks names the layer 'y' twice"),
    ],
)
def test_what_makes_no_sense(shell, wide, text, complaint):
    assert complaint in shell.fails(2, "optimize", wide, "--ranks", text, "--no-bench")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--no-verify",), "--ranks approximates, which has to be measured: drop --no-verify"),
        (("--pareto", "3", "--max-error", "0.1"), "--ranks leaves nothing to find"),
        (("--skip", "input-bottleneck"), "needs input-bottleneck, which --passes or --skip"),
        (("--passes", "fuse-conv-bn"), "needs input-bottleneck, which --passes or --skip"),
    ],
)
def test_with_flags_that_contradict_it(shell, wide, flags, complaint):
    line = shell.fails(2, "optimize", wide, "--ranks", "y=16", "--no-bench", *flags)
    assert complaint in line


def test_a_limit_that_cannot_be_kept(shell, wide):
    words = ("--ranks", "y=4", "--no-bench", "--max-error", "0.01")
    line = shell.fails(4, "optimize", wide, *words)
    assert line.startswith("with --ranks the outputs are off by 0.")
    assert "more than --max-error 0.01" in line
