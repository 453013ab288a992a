"""`--dense` in the terminal and in HTML: where the windows are, what cells are worth, what a pass costs."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from graphopt.reporting.html import render_html
from graphopt.reporting.schema import DenseMaps, DenseSize
from graphopt.reporting.terminal import print_optimize
from graphopt.reporting.verdict import verdict

SIZES = (
    DenseSize((256, 256), {"logits": (1, 1000, 2, 2)}, 4, 0.042, 0.051, 0.75),
    DenseSize(
        (384, 384), {"logits": (1, 1000, 6, 6)}, 36, 0.055, 0.081, 0.97,
        pass_us=912_000, crops_us=7_300_000, ratio=0.125, ratio_low=0.121, ratio_high=0.13,
    ),
)  # fmt: skip
DENSE = DenseMaps("image", (224, 224), (32, 32), False, "Conv 'conv1' pads", SIZES)


@pytest.fixture
def report(samples):
    def make(**changes):
        return replace(samples.optimize_report(), dense=replace(DENSE, **changes))

    return make


def terminal(report, width=80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_optimize(report, console)
    return console.file.getvalue()


def test_the_terminal_names_the_windows_and_the_map(report):
    lines = [" ".join(line.split()) for line in terminal(report(), 120).splitlines()]
    assert "Dense: an answer for every window of 224x224 pixels, 32x32 pixels apart" in lines
    assert "picture map windows error worst top-1 one pass crops ratio" in lines
    assert "256x256 1000x2x2 4 4.2% 5.1% 75.00% - - -" in lines
    assert "384x384 1000x6x6 36 5.5% 8.1% 97.00% 912 ms 7.30 s 12%" in lines
    narrow = [" ".join(line.split()) for line in terminal(report()).splitlines()]
    assert "384x384 1000x6x6 36 5.5% 8.1% 912 ms 7.30 s 12%" in narrow
    assert any("their answers differ (Conv 'conv1' pads)" in line for line in lines)


def test_the_headline_says_what_it_is_for(report):
    said = verdict(report())
    assert said.speed.startswith(
        "36 windows of 384x384 pixels at 8.00x the speed of separate crops; at"
    )
    assert "at the original size 2." in said.speed, "and what it costs there"
    slower = replace(SIZES[1], ratio=1.2, ratio_low=1.1, ratio_high=1.3)
    assert said.status == "good"
    assert verdict(report(sizes=(slower,))).status == "caution"
    assert "windows" not in verdict(report(sizes=())).speed


@pytest.mark.parametrize("width", [40, 80, 110, 140])
def test_no_line_is_too_wide(report, width):
    assert max(map(cell_len, terminal(report(), width).splitlines())) <= width


def test_an_exact_one(report):
    text = " ".join(terminal(report(exact=True, inexact_because=None)).split())
    assert "nothing reaches beyond a window: every cell is the answer to its window" in text


def test_one_that_was_not_measured(report):
    text = " ".join(terminal(report(sizes=())).split())
    assert "(Conv 'conv1' pads), by how much was not measured" in text
    assert "picture map" not in text


def test_html(report):
    page = " ".join(render_html(report()).split())
    assert "An answer for every window of 224\N{MULTIPLICATION SIGN}224 pixels, 32" in page
    assert "384\N{MULTIPLICATION SIGN}384" in page
    assert "1\N{MULTIPLICATION SIGN}1000\N{MULTIPLICATION SIGN}6" in page
    assert "12%" in page
    assert "(Conv &#39;conv1&#39; pads)" in page
    assert "<h2>Dense</h2>" not in " ".join(render_html(replace(report(), dense=None)).split())


def test_names_from_the_model_are_text(report, samples):
    hostile = samples.HOSTILE
    sizes = (replace(SIZES[0], maps={hostile: (1, 2, 3, 3)}),)
    nasty = report(input=hostile, inexact_because=hostile, sizes=sizes)
    assert "<script>" not in render_html(nasty)
    assert "\x1b" not in terminal(nasty)
