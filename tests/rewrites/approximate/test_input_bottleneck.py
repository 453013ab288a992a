"""Low-rank layers are reproduced to rounding, whatever their strides, dilations, pads and groups."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.layer import WORTHWHILE_MACS_RATIO
from graphopt.rewrites.base import Decline

RANK = 4


def low_rank(group=1, outputs=12, inputs=8, kernel=(3, 3), dtype=np.float32, rank=RANK, seed=0):
    """A weight [group * outputs, inputs, *kernel] of this rank in every group."""
    rng = np.random.default_rng(seed)
    parts = [
        np.einsum(
            "or...,rc->oc...",
            rng.standard_normal((outputs, rank, *kernel)),
            rng.standard_normal((rank, inputs)),
        )
        for _ in range(group)
    ]
    return np.concatenate(parts).astype(dtype)


def menu_of(kit, layer, **shapes):
    scope = kit.scope_of(layer.proto(), **shapes)
    return scope, InputBottleneck().menu(kit.node_of(scope), scope, kit.BLOCK)


def the_exact(menu):
    return next(c for c in menu.candidates if c.options["rank"] == RANK)


def check_exact(kit, layer, tolerance=1e-5):
    """The candidate of rank 4 computes what the layer does, border pixels included."""
    scope, menu = menu_of(kit, layer)
    candidate = the_exact(menu)
    assert candidate.error < max(tolerance, 1e-5)
    optimized = kit.rewritten(scope, candidate)
    before = kit.run(layer.proto(), layer.feeds())[0]
    after = kit.run(optimized, layer.feeds())[0]
    assert kit.distance(before, after) < tolerance
    if min(before.shape[2:]) > 2:
        assert kit.distance(kit.border(before), kit.border(after)) < tolerance
    return optimized


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 2, 3, 1), None])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
def test_placement(kit, strides, dilations, pads, group, bias):
    layer = kit.Layer(
        low_rank(group),
        (13, 14),
        bias=bias,
        group=group,
        strides=strides,
        dilations=dilations,
        pads=pads,
    )
    check_exact(kit, layer)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 5)])
@pytest.mark.parametrize("size", [(13, 14), (12, 12)])
def test_auto_pad_of_a_fixed_size(kit, mode, strides, kernel, size):
    weight = low_rank(kernel=kernel)
    check_exact(kit, kit.Layer(weight, size, strides=strides, auto_pad=mode))


@pytest.mark.parametrize(("mode", "pads"), [("SAME_UPPER", (3, 2, 3, 2)), ("VALID", None)])
def test_auto_pad_with_dilation(kit, mode, pads):
    # onnxruntime runs no dilation with SAME: the same layer with explicit pads is the reference.
    shape = {"size": (13, 14), "dilations": (2, 2)}
    weight = low_rank(kernel=(4, 3))
    scope, menu = menu_of(kit, kit.Layer(weight, auto_pad=mode, **shape))
    explicit = kit.Layer(weight, pads=pads, **shape)
    after = kit.run(kit.rewritten(scope, the_exact(menu)), explicit.feeds())[0]
    before = kit.run(explicit.proto(), explicit.feeds())[0]
    assert kit.distance(before, after) < 1e-5


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_with_a_stride_needs_the_size(kit, mode):
    layer = kit.Layer(low_rank(), (13, 14), strides=(2, 2), auto_pad=mode, open_size=True)
    _, found = menu_of(kit, layer, x=layer.x_shape)
    reason = f"auto_pad={mode} with strides depends on the size of the input"
    assert found == Decline("input-bottleneck", ("layer",), reason)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [(13, 14), (8, 9)])
def test_auto_pad_of_an_open_size_without_a_stride(kit, mode, size):
    layer = kit.Layer(low_rank(kernel=(4, 3)), (13, 14), auto_pad=mode, open_size=True)
    scope, menu = menu_of(kit, layer, x=layer.x_shape)
    optimized = kit.rewritten(scope, the_exact(menu))
    x = {"x": np.random.default_rng(1).standard_normal((2, 8, *size)).astype(np.float32)}
    assert kit.distance(kit.run(layer.proto(), x)[0], kit.run(optimized, x)[0]) < 1e-5


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    ("size", "kernel", "pads"),
    [((21,), (5,), (1, 3)), ((7, 8, 9), (3, 3, 3), (1, 0, 2, 2, 1, 0)), ((21,), (3,), None)],
)
@pytest.mark.parametrize("step", [1, 2])
def test_one_and_three_dimensions(kit, group, size, kernel, pads, step):
    weight = low_rank(group, kernel=kernel)
    spatial = len(size)
    layer = kit.Layer(weight, size, group=group, pads=pads, strides=(step,) * spatial)
    check_exact(kit, layer)


def test_float16(kit):
    layer = kit.Layer(low_rank(dtype=np.float16), (9, 9), pads=(1, 1, 1, 1))
    optimized = check_exact(kit, layer, tolerance=5e-3)
    assert {w.dtype for w in kit.weights(optimized).values()} == {np.dtype(np.float16)}


def test_float64(kit):
    # onnxruntime has no float64 convolution on the CPU; onnx's reference evaluator has.
    layer = kit.Layer(low_rank(dtype=np.float64), (6, 7), pads=(1, 0, 2, 1), strides=(1, 2))
    scope, menu = menu_of(kit, layer)
    optimized = kit.rewritten(scope, the_exact(menu))
    assert {w.dtype for w in kit.weights(optimized).values()} == {np.dtype(np.float64)}
    before, after = (
        ReferenceEvaluator(p).run(None, layer.feeds())[0] for p in (layer.proto(), optimized)
    )
    assert kit.distance(before, after) < 1e-12


@pytest.mark.parametrize("opset", [7, 11, 22])
def test_opsets(kit, opset):
    check_exact(kit, kit.Layer(low_rank(), (9, 9), pads=(1, 1, 1, 1), opset=opset))


def test_what_is_written(kit):
    layer = kit.Layer(
        low_rank(2), (13, 14), group=2, strides=(2, 1), dilations=(1, 2), pads=(1, 2, 0, 3)
    )
    reduce, expand = check_exact(kit, layer).graph.node
    assert (next(iter(reduce.input)), list(expand.output), expand.name) == ("x", ["y"], "layer")
    assert len(reduce.input) == 2, "a bias in front of the padding would change the border"
    assert expand.input[2] == "b"
    found = {a.name: list(a.ints) or a.i for a in expand.attribute}
    assert found == {
        "kernel_shape": [3, 3],
        "strides": [2, 1],
        "dilations": [1, 2],
        "pads": [1, 2, 0, 3],
        "group": 2,
    }
    assert {a.name: list(a.ints) or a.i for a in reduce.attribute} == {
        "kernel_shape": [1, 1],
        "group": 2,
    }


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("block", [4, 8])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_the_menu_tells_the_truth(kit, group, block, strides):
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((24 * group, 32, 3, 3)).astype(np.float32)
    weight[:24] *= 7  # the groups differ in scale
    layer = kit.Layer(weight, (9, 10), bias=False, group=group, strides=strides, pads=(1,) * 4)
    scope = kit.scope_of(layer.proto())
    menu = InputBottleneck().menu(kit.node_of(scope), scope, block)
    ratios = [c.macs_ratio for c in menu.candidates]
    assert ratios == sorted(ratios)
    assert len(ratios) > 1
    before = kit.counted(layer.proto())
    for candidate in menu.candidates:
        assert candidate.options["rank"] % block == 0
        assert candidate.macs_ratio < WORTHWHILE_MACS_RATIO
        optimized = kit.rewritten(scope, candidate)
        after = kit.counted(optimized)
        assert candidate.macs_ratio == pytest.approx(after.macs / before.macs, rel=1e-12)
        assert candidate.parameters_ratio == pytest.approx(
            after.parameters / before.parameters, rel=1e-12
        )
        reduce, expand = kit.weights(optimized).values()
        made = np.concatenate(
            [
                np.einsum("oruv,rc->ocuv", b, a[:, :, 0, 0])
                for a, b in zip(np.split(reduce, group), np.split(expand, group), strict=True)
            ]
        )
        assert candidate.error == pytest.approx(kit.distance(weight, made), rel=1e-4)


def test_ranks_are_thinned_out_on_wide_layers(kit):
    weight = np.random.default_rng(0).standard_normal((256, 256, 3, 3)).astype(np.float32)
    _, menu = menu_of(kit, kit.Layer(weight, (4, 4), pads=(1, 1, 1, 1)))
    ranks = [c.options["rank"] for c in menu.candidates]
    assert 4 <= len(ranks) <= 12
    assert ranks == sorted(set(ranks))
    assert ranks[0] == 4


def test_no_more_channels_between_than_the_weight_has_rank(kit):
    # One filter of 9 taps over 64 channels has rank 9; the padded map makes even rank 12 look cheap.
    weight = np.random.default_rng(0).standard_normal((1, 64, 3, 3)).astype(np.float32)
    layer = kit.Layer(weight, (1, 1), pads=(2, 2, 2, 2))
    scope, menu = menu_of(kit, layer)
    assert [c.options["rank"] for c in menu.candidates] == [4, 8]
    before = kit.counted(layer.proto())
    for candidate in menu.candidates:
        optimized = kit.rewritten(scope, candidate)
        assert candidate.macs_ratio == pytest.approx(kit.counted(optimized).macs / before.macs)
        kit.run(optimized, layer.feeds())


@pytest.mark.parametrize("inputs", [3, 4])
def test_declined_where_no_rank_saves_anything(kit, inputs):
    weight = np.ones((16, inputs, 3, 3)) * np.random.default_rng(0).standard_normal((16, 1, 1, 1))
    _, found = menu_of(kit, kit.Layer(weight.astype(np.float32), (9, 9)))
    reason = f"{inputs} -> 16 channels: no rank saves multiplications"
    assert found == Decline("input-bottleneck", ("layer",), reason)


@pytest.mark.parametrize("kernel", [(1, 1), (1,), (1, 1, 1)])
def test_declined_for_pointwise_kernels(kit, kernel):
    _, found = menu_of(kit, kit.Layer(low_rank(kernel=kernel), (5,) * len(kernel)))
    reason = "a 1x1 convolution has no larger kernel to put behind it"
    assert found == Decline("input-bottleneck", ("layer",), reason)
