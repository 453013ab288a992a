from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from graphopt.reporting.schema import Declined, Estimate
from graphopt.reporting.terminal import (
    print_audit,
    print_latency,
    print_optimize,
    print_verification,
)

WIDTHS = (80, 100, 110, 140)
REPORTS = ("optimize_report", "pareto_report", "lossless_report", "hostile_report")


class AsciiFile(io.StringIO):
    encoding = "ascii"


def shown(render, *arguments, width=100, file=None, **options) -> str:
    console = Console(file=file or io.StringIO(), width=width, **options)
    render(*arguments, console)
    return console.file.getvalue()


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [40, *WIDTHS, 200])
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_wider_than_the_console(samples, width, name):
    report = getattr(samples, name)()
    for verbose in (False, True):
        text = shown(
            lambda console, verbose=verbose: print_optimize(report, console, verbose=verbose),
            width=width,
        )
        assert max(map(cell_len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [40, *WIDTHS, 200])
def test_no_line_of_the_other_commands_is_wider(samples, width):
    long_name = "/a" * 200
    layers = samples.audit_report().layers
    audit = replace(samples.audit_report(), layers=(replace(layers[1], name=long_name), *layers))
    checks = tuple(replace(check, name=long_name) for check in samples.checks())
    proof = replace(samples.verification(), outputs=checks)
    text = shown(print_audit, audit, width=width)
    text += shown(print_latency, samples.optimize_report().latency, width=width)
    text += shown(print_verification, proof, width=width)
    assert max(map(cell_len, text.splitlines())) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_the_models_of_a_frontier(samples, width):
    text = flat(shown(print_optimize, samples.pareto_report(), width=width))
    assert "Models, from close to the original to what the budget allows" in text
    assert "vgg8.opt.1.onnx 1.18x (1.15-1.20)" in text
    assert "0.4% 76.31% 131 M 7.48 MB 2" in text
    assert "vgg8.opt.3.onnx 2.31x (2.25-2.38)" in text
    assert ("speed-up, batch 8" in text) == (width >= 110)


def test_no_frontier_is_not_mentioned(samples):
    assert "Models" not in shown(print_optimize, samples.optimize_report())


def test_a_frontier_that_was_not_timed(samples):
    report = samples.pareto_report()
    points = tuple(replace(p, latency=(), metric_after=None) for p in report.frontier)
    text = flat(shown(print_optimize, replace(report, latency=(), frontier=points)))
    assert "vgg8.opt.1.onnx 0.4% 131 M" in text


def test_a_short_headline_is_one_line(samples):
    report = replace(samples.lossless_report(), latency=(samples.latency(),))
    first = shown(print_optimize, report, width=190).splitlines()[0]
    assert first.startswith("vgg8.onnx -> vgg8.opt.onnx   2.31x faster (95% 2.25-2.38), 7 nodes")
    assert first.endswith("so the error is only indicative")


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_that_matters_is_there(samples, width):
    text = flat(shown(print_optimize, samples.optimize_report(), width=width))
    for part in (
        "vgg8.onnx -> vgg8.opt.onnx 2.31x faster (95% 2.25-2.38) at batch 1",
        "verified on 512 held-out samples",
        "latency, batch 1 2.95 ms 1.28 ms 2.31x (2.25-2.38)",
        "MACs 154 M 93.0 M -40%",
        "parameters 2.20 M 1.73 M -21%",
        "file size 8.80 MB 6.95 MB -21%",
        "peak activations 524 kB 393 kB -25%",
        "nodes 26 24 -7.7%",
        "BatchNormalizations 6 0 -100%",
        "fuse-conv-bn exact 6 -6 0 -2,688",
        "input-bottleneck approximate 5 +5 -60.8 M -462 k",
        "rank=112",
        "37.7 M -> 18.4 M 726 us -> 390 us 2.4%",
        "spatial 6 not faster on this target: 0.97x",
        "and 3 more",
        "rolled back: kernel-pair at /features/features.0/Conv: error 6.1% above the budget",
        "note: input 'image': dynamic batch taken as 1",
        "2.22x predicted from the layers, 2.31x measured (batch 1)",
        "29.2 s (load 0.04 s",
        "peak memory 812 MB",
    ):
        assert part in text


def test_a_pipe_gets_no_escape_codes_and_an_ascii_locale_only_ascii(samples):
    report = samples.optimize_report()
    text = shown(print_optimize, report, file=AsciiFile())
    assert text.isascii()
    assert "\x1b" not in text


def test_hostile_names_are_plain_text(samples):
    report = samples.hostile_report()
    for verbose in (False, True):
        text = shown(
            lambda console, verbose=verbose: print_optimize(report, console, verbose=verbose),
            width=200,
        )
        assert "\x1b" not in text
        assert "[bold red]" in text  # printed, not obeyed
    coloured = shown(
        print_optimize, report, width=200, force_terminal=True, color_system="truecolor"
    )
    assert "\x1b[31m?" not in coloured


def test_only_what_was_predicted_is_compared_with_it(samples):
    report = samples.optimize_report()
    assert flat(shown(print_optimize, report)).count("predicted from") == 1
    text = shown(print_optimize, replace(report, latency=(samples.latency(),)))
    assert "predicted from" not in text
    assert "predicted from" not in shown(print_optimize, samples.lossless_report())


def test_hints_hedge(samples):
    text = flat(shown(print_optimize, samples.lossless_report(), width=140))
    assert (
        "hint: --max-error 0.01 may save about 40% of the MACs, 0.05 about 55% "
        "(estimated, nothing was tried)"
    ) in text
    useless = replace(samples.lossless_report(), available=(Estimate(0.01, 1.0),))
    assert "hint" not in shown(print_optimize, useless)


def test_long_lists_are_cut_unless_verbose(samples):
    report = samples.optimize_report()
    declined = tuple(Declined("spatial", (f"conv{n}",), f"reason {n}") for n in range(30))
    splits = tuple(
        replace(report.rewrites[-1], site=(f"split{n}",), options={"rank": n}) for n in range(40)
    )
    report = replace(report, declined=declined, rewrites=splits)
    short = shown(print_optimize, report)
    assert "and 22 reasons more" in short
    assert "reason 29" not in short
    assert "and 24 more sites" in short
    assert "split39" not in short
    full = shown(lambda console: print_optimize(report, console, verbose=True))
    assert all(f"reason {n}" in full and f"split{n}" in full for n in range(30))
    assert "more" not in full


@pytest.mark.parametrize("width", WIDTHS)
def test_long_site_names_stay_on_one_line(samples, width):
    report = samples.optimize_report()
    entry = replace(report.rewrites[-1], site=("/backbone" * 20 + "/Conv",))
    lines = shown(print_optimize, replace(report, rewrites=(entry,)), width=width).splitlines()
    (line,) = [line for line in lines if line.startswith("/backbone")]
    assert ".." in line
    assert "/Conv" in line
    assert "37.7 M -> 18.4 M" in line


def test_missing_parts_are_said_not_hidden(samples):
    report = samples.optimize_report()
    totals = replace(report.after, peak_activation_bytes=None)
    report = replace(report, output=None, verification=None, latency=(), after=totals)
    text = flat(shown(print_optimize, report, width=140))
    assert "vgg8.onnx -> (nothing written) latency not measured" in text
    assert "NOT VERIFIED" in text
    assert "peak activations 524 kB - -" in text


def test_nothing_done(samples):
    report = samples.optimize_report()
    report = replace(
        report, rewrites=(), declined=(), after=report.before, latency=(), notes=(), seconds={}
    )
    text = shown(print_optimize, report)
    assert "nothing to rewrite" in text
    assert "Rewrites" not in text
    assert "Declined" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_audit(samples, width):
    text = flat(shown(print_audit, samples.audit_report(), width=width))
    for part in (
        "154 M MACs, 2.20 M parameters, 8.80 MB, 26 nodes - nothing was written",
        "fuse-conv-bn exact 6 -6 0 -2,688",
        "-32% by input-bottleneck (error 0.8%, 1.37x faster)",
        "-80% by decoupled (error 19%, 4.00x faster)",
        "nothing found",
        "1% may save about 31% of the MACs, 5% about 60%, 20% about 79%",
        "outputs were not compared",
        "spatial 6 not faster on this target: 0.97x",
    ):
        assert part in text


def test_audit_of_an_empty_model(samples):
    empty = replace(
        samples.audit_report(),
        layers=(),
        exact=(),
        declined=(),
        totals=replace(samples.audit_report().totals, macs=0),
    )
    text = shown(print_audit, empty)
    assert "0 MACs" in text
    assert "hint" not in text


def test_a_slower_saving_is_not_called_faster(samples):
    report = samples.audit_report()
    layer = report.layers[1]
    slow = replace(layer.savings[0], latency_ratio=1.25)
    text = shown(print_audit, replace(report, layers=(replace(layer, savings=(slow,)),)))
    assert "(error 0.8%, 1.25x slower)" in text


def test_bench(samples):
    latencies = (
        samples.latency(),
        samples.latency(8, 1.2, 1.1, 1.3),
        samples.latency(2, 1, 0.9, 2),
    )
    text = flat(shown(print_latency, latencies))
    assert "1 1 2.95 ms 1.28 ms 2.31x 2.25-2.38 faster" in text
    assert "8 1 23.6 ms 28.3 ms 0.83x 0.77-0.91 slower" in text
    assert "1.00x 0.50-1.11 not measurably faster" in text
    assert "batch 8: image 8x3x32x32; 60 pairs timed in turn" in text


def test_verify(samples):
    proof = samples.verification()
    text = flat(shown(print_verification, proof, width=140))
    assert "logits enable_all float32 0.999494 3.2% 0.41 29.9 98.63% - ok" in text
    assert "class enable_all int64 - - - - - 0% ok" in text
    assert "inputs: data, calib.npz, split with seed 0 (512 held out, 1,024 for fitting)" in text
    first, *others = proof.outputs
    failed = replace(proof, passed=False, outputs=(replace(first, passed=False), *others))
    text = flat(shown(print_verification, failed, width=80))
    assert "VERIFICATION FAILED at output logits (disable_all): top-1 76.32%" in text
    assert "98.63% - FAILED" in text
