from __future__ import annotations

import math
from dataclasses import replace

import pytest

from graphopt.reporting.verdict import prediction_phrase, speed_phrase, verdict, worst_check


def test_a_verified_run(samples):
    report = replace(samples.optimize_report(), latency=(samples.latency(),))
    said = verdict(report)
    assert said.subject == "vgg8.onnx -> vgg8.opt.onnx"
    assert said.sentence == (
        "2.31x faster (95% 2.25-2.38), 40% fewer MACs, 21% smaller, top-1 76.32% -> 75.98%, "
        "error 3.2% of 5% allowed - verified on 512 held-out samples"
    )
    assert said.status == "good"


def test_several_batches_are_all_named(samples):
    speed = verdict(samples.optimize_report()).speed
    assert "2.31x faster (95% 2.25-2.38) at batch 1" in speed
    assert "2.94x faster (95% 2.86-3.03) at batch 8" in speed


def test_an_interval_that_includes_one_is_not_faster(samples):
    latency = samples.latency(1, 0.9, 0.7, 1.01)
    assert speed_phrase(latency) == "not measurably faster (1.11x, 95% 0.99-1.43)"
    report = replace(samples.optimize_report(), latency=(latency,))
    assert verdict(report).status == "caution"


def test_slower_is_called_slower(samples):
    assert speed_phrase(samples.latency(1, 1.25, 1.2, 1.3)) == "1.25x slower (95% 1.20-1.30)"


def test_one_slow_batch_of_two_is_not_hidden(samples):
    latencies = (samples.latency(), samples.latency(8, 1.0, 0.9, 1.1))
    said = verdict(replace(samples.optimize_report(), latency=latencies))
    assert "not measurably faster (1.000x, 95% 0.909-1.111) at batch 8" in said.speed
    assert said.status == "caution"


def test_what_was_predicted_beside_what_was_measured(samples):
    latency = samples.latency(1, 0.5, 0.4, 0.6, predicted=0.4)
    assert prediction_phrase(latency) == "2.50x predicted from the layers, 2.00x measured"
    assert prediction_phrase(samples.latency()) is None


def test_unmeasured_latency_is_not_claimed(samples):
    said = verdict(replace(samples.optimize_report(), latency=()))
    assert said.speed == "latency not measured"
    assert said.status == "caution"


def test_synthetic_inputs_are_only_indicative(samples):
    said = verdict(samples.lossless_report())
    assert said.proof == "checked on 8 random inputs, so the error is only indicative"


def test_approximate_rewrites_on_synthetic_inputs_need_caution(samples):
    faster = (samples.latency(),)
    exact = replace(samples.lossless_report(), latency=faster)
    assert verdict(exact).status == "good"
    report = replace(samples.optimize_report(), latency=faster, verification=exact.verification)
    assert verdict(report).status == "caution"


def test_not_verified(samples):
    said = verdict(replace(samples.optimize_report(), verification=None))
    assert said.proof == "NOT VERIFIED"
    assert said.error is None
    assert said.status == "caution"


def test_a_failed_verification_names_the_output(samples):
    first, *others = samples.checks()
    outputs = (replace(first, passed=False, relative_l2=0.12), *others)
    proof = replace(samples.verification(), passed=False, outputs=outputs)
    said = verdict(replace(samples.optimize_report(), verification=proof, output=None))
    assert said.subject == "vgg8.onnx -> (nothing written)"
    assert said.proof == "VERIFICATION FAILED at output logits (disable_all)"
    assert "error 12% of 5% allowed" in said.sentence
    assert said.status == "bad"


def test_no_rewrites(samples):
    report = samples.optimize_report()
    said = verdict(replace(report, rewrites=(), after=report.before, latency=()))
    assert said.clauses[0] == "nothing to rewrite"
    assert said.savings == ()
    assert said.status == "good"


def test_growth_is_not_sold_as_a_saving(samples):
    report = samples.optimize_report()
    after = replace(report.after, file_bytes=2 * report.before.file_bytes)
    assert verdict(replace(report, after=after)).savings[1] == "100% larger"


def test_integer_outputs_alone(samples):
    integers = samples.checks()[2:]
    proof = replace(samples.verification(), outputs=integers, metric_before=None)
    assert verdict(replace(samples.optimize_report(), verification=proof)).error == (
        "outputs identical"
    )
    differing = (replace(integers[0], mismatches=0.25),)
    proof = replace(proof, outputs=differing)
    assert verdict(replace(samples.optimize_report(), verification=proof)).error == (
        "25% of output elements differ"
    )


@pytest.mark.parametrize("unusable", [math.nan, math.inf])
def test_an_error_that_is_no_number_is_the_worst(samples, unusable):
    usable, second, integers, _ = samples.checks()
    broken = replace(second, relative_l2=unusable)
    assert worst_check((usable, second, integers)) is second
    assert worst_check((usable, broken, integers)) is broken
    assert worst_check((broken, usable, integers)) is broken
    assert worst_check((integers,)) is None


def test_no_limit_on_the_error(samples):
    proof = replace(samples.verification(), tolerance=None, metric_after=None)
    said = verdict(replace(samples.optimize_report(), verification=proof))
    assert said.error == "error 3.2%"


def test_a_metric_that_is_no_share_stays_a_number(samples):
    proof = replace(
        samples.verification(), metric="metric.py:psnr", metric_before=31.25, metric_after=31.2
    )
    said = verdict(replace(samples.optimize_report(), verification=proof))
    assert "metric.py:psnr 31.25 -> 31.2" in said.sentence
