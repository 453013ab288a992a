from __future__ import annotations

from dataclasses import replace

import pytest

from graphopt.reporting.groups import (
    approximate_entries,
    group_declined,
    group_layers,
    group_rewrites,
    layer_kind,
    potential,
    ranked_layers,
    useful_savings,
)


def test_groups_keep_every_rewrite_and_every_saving(samples):
    report = samples.optimize_report()
    groups = group_rewrites(report.rewrites)
    assert [(group.name, group.kind, group.sites) for group in groups] == [
        ("drop-identity", "clean-up", 1),
        ("fuse-conv-bn", "exact", 6),
        ("input-bottleneck", "approximate", 5),
    ]
    assert sum(group.macs for group in groups) == report.after.macs - report.before.macs
    assert sum(group.nodes for group in groups) == report.after.nodes - report.before.nodes
    saved = report.after.parameters - report.before.parameters
    assert sum(group.parameters for group in groups) == saved


def test_declined_sites_are_grouped_by_rewrite_and_reason(samples):
    declined = samples.declined()
    groups = group_declined(declined)
    assert [len(group.sites) for group in groups] == [6, 1, 1]
    assert sorted(site for group in groups for site in group.sites) == sorted(
        entry.site for entry in declined
    )


def test_the_largest_saving_comes_first(samples):
    chosen = approximate_entries(samples.optimize_report().rewrites)
    saved = [entry.before.macs - entry.after.macs for entry in chosen]
    assert len(saved) == 5
    assert saved == sorted(saved, reverse=True)


def test_layers_rank_by_time_only_if_all_were_timed(samples):
    layers = samples.audit_report().layers
    slow_stem = replace(layers[0], cost=replace(layers[0].cost, latency_us=1e6))
    layers = (*layers[1:], slow_stem)
    assert ranked_layers(layers)[0] is slow_stem
    untimed = replace(layers[0], cost=replace(layers[0].cost, latency_us=None))
    assert ranked_layers((untimed, *layers[1:]))[-1] is slow_stem


def test_beaten_savings_are_left_out(samples):
    layer = samples.audit_report().layers[1]
    names = [saving.rewrite for saving in useful_savings(layer)]
    assert names == ["input-bottleneck", "two-sided", "decoupled"]  # spatial saves less, worse


def test_potential_takes_the_best_saving_within_each_limit(samples):
    report = samples.audit_report()
    saved = sum(layer.cost.macs for layer in report.layers[1:]) / report.totals.macs
    found = {entry.weight_error: entry.macs_ratio for entry in potential(report)}
    expected = {0.01: 1 - 0.32 * saved, 0.05: 1 - 0.61 * saved, 0.2: 1 - 0.8 * saved}
    assert found == pytest.approx(expected, abs=1e-6)
    assert [entry.weight_error for entry in potential(report, (0.001, 0.01, 0.02))] == [0.01]


@pytest.mark.parametrize(
    ("op_type", "weight", "group", "kind"),
    [
        ("Conv", (64, 32, 1, 1), 1, "pointwise"),  # whatever its strides: a ResNet's shortcut
        ("Conv", (64, 32, 1), 1, "pointwise"),
        ("Conv", (64, 32, 1, 3), 1, "1x3"),
        ("Conv", (64, 32, 5, 5), 1, "5x5"),
        ("Conv", (64, 1, 3, 3), 64, "depthwise 3x3"),
        ("Conv", (128, 1, 3, 3), 64, "depthwise 3x3"),
        ("Conv", (64, 16, 3, 3), 4, "grouped 3x3"),
        ("Conv", (64, 16, 1, 1), 4, "grouped 1x1"),
        ("ConvTranspose", (64, 32, 2, 2), 1, "transposed 2x2"),
        ("ConvTranspose", (64, 1, 4, 4), 64, "transposed depthwise 4x4"),
        ("ConvTranspose", (64, 2, 4, 4), 32, "transposed grouped 4x4"),
        ("DeformConv", (64, 32, 3, 3), 1, "deformable 3x3"),
        ("Gemm", (10, 64), 1, "fully connected"),
        ("MatMul", (), 1, "fully connected"),
        ("Conv", (), 1, None),
    ],
)
def test_kinds_of_layers(samples, op_type, weight, group, kind):
    layer = replace(
        samples.audit_report().layers[0], op_type=op_type, weight_shape=weight, group=group
    )
    assert layer_kind(layer) == kind


def test_layers_are_grouped_by_kind(samples):
    one, two, *_ = samples.audit_report().layers
    layers = [
        replace(one, op_type="Conv", weight_shape=(8, 8, 1, 1), cost=replace(one.cost, macs=5)),
        replace(two, op_type="Conv", weight_shape=(8, 8, 3, 3), cost=replace(two.cost, macs=9)),
        replace(one, op_type="Conv", weight_shape=(4, 8, 1, 1), cost=replace(one.cost, macs=7)),
        replace(one, op_type="Conv", weight_shape=()),
    ]
    first, second = group_layers(layers)
    assert (first.kind, first.layers, first.macs) == ("pointwise", 2, 12)
    assert first.parameters == 2 * one.cost.parameters
    assert (second.kind, second.layers, second.macs) == ("3x3", 1, 9)
