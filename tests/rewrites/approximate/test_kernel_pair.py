"""5x5 layers composed of two 3x3 are reproduced to rounding, with their factors injected."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.factorize import kernel_pair as mathematics
from graphopt.rewrites.approximate.kernel_pair import KernelPair
from graphopt.rewrites.approximate.layer import WORTHWHILE_MACS_RATIO
from graphopt.rewrites.base import Decline

CHANNELS, MIDDLE = 16, 4
NARROW = KernelPair(shares=(MIDDLE / CHANNELS,))


@pytest.fixture
def composed(monkeypatch):
    """Makes weights composed of two 3x3 kernels a group, and lets the fit know the two."""
    known = []

    def fit(weight, middle, **_):
        assert middle == MIDDLE
        first, second = next((a, b) for w, a, b in known if np.array_equal(w, weight))
        exact = mathematics.compose(first, second)
        error = np.linalg.norm(exact - weight) / np.linalg.norm(exact)
        return mathematics.KernelPairFactors(first, second, float(error))

    def make(group=1, dtype=np.float32):
        rng = np.random.default_rng(0)
        parts = []
        for _ in range(group):
            first = rng.standard_normal((MIDDLE, CHANNELS, 3, 3))
            second = rng.standard_normal((CHANNELS, MIDDLE, 3, 3))
            parts.append(mathematics.compose(first, second).astype(dtype))
            known.append((parts[-1], first, second))
        return np.concatenate(parts)

    monkeypatch.setattr(mathematics, "fit", fit)
    return make


def menu_of(kit, layer, rewrite=NARROW, **shapes):
    scope = kit.scope_of(layer.proto(), **shapes)
    return scope, rewrite.menu(kit.node_of(scope), scope, kit.BLOCK)


def check_exact(kit, layer, tolerance=1e-5):
    scope, menu = menu_of(kit, layer)
    (candidate,) = menu.candidates
    assert candidate.options == {"channels_between": MIDDLE}
    optimized = kit.rewritten(scope, candidate)
    before = kit.run(layer.proto(), layer.feeds())[0]
    after = kit.run(optimized, layer.feeds())[0]
    assert kit.distance(before, after) < tolerance
    if min(before.shape[2:]) > 2:
        assert kit.distance(kit.border(before), kit.border(after)) < tolerance
    return optimized


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("pads", [(2, 2, 2, 2), (0, 2, 3, 1), None])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
def test_placement(kit, composed, strides, dilations, pads, group, bias):
    layer = kit.Layer(
        composed(group),
        (17, 18),
        bias=bias,
        group=group,
        strides=strides,
        dilations=dilations,
        pads=pads,
        batch=1,
    )
    check_exact(kit, layer)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("size", [(17, 18), (12, 12)])
def test_auto_pad_of_a_fixed_size(kit, composed, mode, strides, size):
    check_exact(kit, kit.Layer(composed(), size, strides=strides, auto_pad=mode))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_with_a_stride_needs_the_size(kit, composed, mode):
    layer = kit.Layer(composed(), (13, 14), strides=(2, 2), auto_pad=mode, open_size=True)
    _, found = menu_of(kit, layer, x=layer.x_shape)
    reason = f"auto_pad={mode} with strides depends on the size of the input"
    assert found == Decline("kernel-pair", ("layer",), reason)


def test_float16(kit, composed):
    layer = kit.Layer(composed(dtype=np.float16), (9, 9), pads=(2, 2, 2, 2))
    optimized = check_exact(kit, layer, tolerance=5e-3)
    assert {w.dtype for w in kit.weights(optimized).values()} == {np.dtype(np.float16)}


def test_float64(kit, composed):
    layer = kit.Layer(composed(dtype=np.float64), (6, 7), pads=(2, 0, 3, 1), strides=(1, 2))
    scope, menu = menu_of(kit, layer)
    optimized = kit.rewritten(scope, menu.candidates[0])
    before, after = (
        ReferenceEvaluator(p).run(None, layer.feeds())[0] for p in (layer.proto(), optimized)
    )
    assert kit.distance(before, after) < 1e-12


def test_what_is_written(kit, composed):
    layer = kit.Layer(
        composed(2), (13, 14), group=2, strides=(2, 1), dilations=(1, 2), pads=(1, 2, 0, 3)
    )
    first, second = check_exact(kit, layer).graph.node
    assert (next(iter(first.input)), list(second.output), second.name) == ("x", ["y"], "layer")
    assert len(first.input) == 2, "one bias is enough"
    assert second.input[2] == "b"
    assert {a.name: list(a.ints) or a.i for a in first.attribute} == {
        "kernel_shape": [3, 3],
        "dilations": [1, 2],
        "pads": [1, 2, 0, 3],
        "group": 2,
    }
    assert {a.name: list(a.ints) or a.i for a in second.attribute} == {
        "kernel_shape": [3, 3],
        "strides": [2, 1],
        "dilations": [1, 2],
        "group": 2,
    }


def test_the_real_fit_finds_a_composed_kernel_well_enough(kit):
    rng = np.random.default_rng(0)
    weight = mathematics.compose(
        rng.standard_normal((MIDDLE, CHANNELS, 3, 3)), rng.standard_normal((CHANNELS, MIDDLE, 3, 3))
    )
    layer = kit.Layer(weight.astype(np.float32), (13, 14), pads=(2, 2, 2, 2), strides=(2, 2))
    scope, menu = menu_of(kit, layer)
    (candidate,) = menu.candidates
    assert candidate.error < 1e-3
    after = kit.run(kit.rewritten(scope, candidate), layer.feeds())[0]
    assert kit.distance(kit.run(layer.proto(), layer.feeds())[0], after) < 2e-3


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("block", [4, 8])
@pytest.mark.parametrize(
    "shape",
    [
        {"pads": (2, 2, 2, 2)},
        {"pads": (1, 2, 0, 3), "strides": (1, 2), "dilations": (2, 1)},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "VALID"},
    ],
)
def test_the_menu_tells_the_truth(kit, group, block, shape):
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((24 * group, 16, 5, 5)).astype(np.float32)
    weight[:24] *= 7  # the groups differ in scale
    layer = kit.Layer(weight, (13, 14), bias=False, group=group, **shape)
    scope = kit.scope_of(layer.proto())
    menu = KernelPair().menu(kit.node_of(scope), scope, block)
    ratios = [c.macs_ratio for c in menu.candidates]
    assert ratios == sorted(ratios)
    before = kit.counted(layer.proto())
    for candidate in menu.candidates:
        assert candidate.options["channels_between"] % block == 0
        assert candidate.macs_ratio < WORTHWHILE_MACS_RATIO
        optimized = kit.rewritten(scope, candidate)
        after = kit.counted(optimized)
        assert candidate.macs_ratio == pytest.approx(after.macs / before.macs, rel=1e-12)
        assert candidate.parameters_ratio == pytest.approx(
            after.parameters / before.parameters, rel=1e-12
        )
        first, second = kit.weights(optimized).values()
        made = np.concatenate(
            [
                mathematics.compose(a, b)
                for a, b in zip(np.split(first, group), np.split(second, group), strict=True)
            ]
        )
        assert candidate.error == pytest.approx(kit.distance(weight, made), rel=1e-4)


@pytest.mark.parametrize("scale", [300.0, 1e-4])
def test_errors_of_float16_groups_are_weighed_in_float64(kit, scale):
    # The sum of squares of these weights is beyond float16, above or below.
    weight = np.random.default_rng(0).standard_normal((16, 8, 5, 5))
    wide = kit.Layer(weight.astype(np.float32), (9, 9), group=2)
    narrow = kit.Layer((weight * scale).astype(np.float16), (9, 9), group=2)
    _, expected = menu_of(kit, wide, KernelPair())
    _, found = menu_of(kit, narrow, KernelPair())
    for one, other in zip(expected.candidates, found.candidates, strict=True):
        assert other.error == pytest.approx(one.error, rel=1e-2)


@pytest.mark.parametrize("kernel", [(3, 3), (7, 7), (5, 3), (1, 1), (5,), (5, 5, 5)])
def test_no_opinion_on_other_kernels(kit, kernel):
    weight = np.random.default_rng(0).standard_normal((8, 8, *kernel)).astype(np.float32)
    _, found = menu_of(kit, kit.Layer(weight, (9,) * len(kernel)))
    assert found is None


def test_declined_where_no_width_saves_anything(kit):
    weight = np.random.default_rng(0).standard_normal((8, 2, 5, 5)).astype(np.float32)
    _, found = menu_of(kit, kit.Layer(weight, (9, 9)), KernelPair())
    reason = "2 -> 8 channels: no width between saves multiplications"
    assert found == Decline("kernel-pair", ("layer",), reason)


def test_deterministic(kit):
    weight = np.random.default_rng(0).standard_normal((16, 16, 5, 5)).astype(np.float32)
    layer = kit.Layer(weight, (9, 9))
    files = []
    for _ in range(2):
        scope, menu = menu_of(kit, layer)
        files.append(kit.rewritten(scope, menu.candidates[0]).SerializeToString())
    assert files[0] == files[1]
