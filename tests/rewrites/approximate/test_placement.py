"""Layers that a scheme can represent are reproduced to rounding, border pixels included."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.rewrites.approximate.decoupled import Decoupled
from graphopt.rewrites.approximate.decoupled_pointwise_first import DecoupledPointwiseFirst
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.output_bottleneck import OutputBottleneck
from graphopt.rewrites.approximate.two_sided import TwoSided

ANY_DIMENSION = {
    "input-bottleneck": (InputBottleneck(), (4,)),
    "output-bottleneck": (OutputBottleneck(), (4,)),
    "two-sided": (TwoSided(), (4, 8)),
    "decoupled": (Decoupled(), (2,)),
    "decoupled-pointwise-first": (DecoupledPointwiseFirst(), (2,)),
}


def check_exact(kit, case, size, tolerance=1e-5, dtype=np.float32, group=1, **shape):
    """What is written computes what the layer does; returns it."""
    scheme, kernel, ranks = case
    weight, _ = kit.representable(scheme, kernel, ranks, group, dtype)
    model = kit.Model(weight, size, group=group, **shape)
    optimized = kit.rewritten(model.scope(), kit.exact(model, scheme, ranks))
    assert len(optimized.graph.node) > 1
    before = kit.run(model.proto(), model.feeds())[0]
    after = kit.run(optimized, model.feeds())[0]
    assert kit.distance(before, after) < tolerance
    if len(kernel) and min(before.shape[2:]) > 2:
        assert kit.distance(kit.border(before), kit.border(after)) < tolerance
    return optimized


@pytest.mark.parametrize(("group", "bias"), [(1, True), (4, False)])
@pytest.mark.parametrize("pads", [(2, 2, 2, 2), (0, 2, 3, 1), None])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
def test_placement(kit, case, strides, dilations, pads, group, bias):
    shape = {"strides": strides, "dilations": dilations, "pads": pads}
    check_exact(kit, case, (15, 16), group=group, bias=bias, **shape)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("size", [(13, 14), (12, 12)])
def test_auto_pad_of_a_fixed_size(kit, case, mode, strides, size):
    check_exact(kit, case, size, strides=strides, auto_pad=mode)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [(13, 14), (8, 9)])
def test_auto_pad_of_an_open_size_without_a_stride(kit, case, mode, size):
    scheme, kernel, ranks = case
    weight, _ = kit.representable(scheme, kernel, ranks)
    model = kit.Model(weight, (13, 14), auto_pad=mode, open_size=True)
    optimized = kit.rewritten(model.scope(), kit.exact(model, scheme, ranks))
    x = {"x": np.random.default_rng(1).standard_normal((1, 8, *size)).astype(np.float32)}
    assert kit.distance(kit.run(model.proto(), x)[0], kit.run(optimized, x)[0]) < 1e-5


@pytest.mark.parametrize(("mode", "pads"), [("SAME_UPPER", (3, 2, 3, 2)), ("VALID", None)])
def test_auto_pad_with_dilation(kit, mode, pads):
    # onnxruntime runs no dilation with SAME: the same layer with explicit pads is the reference.
    weight, _ = kit.representable(InputBottleneck(), (4, 3), (4,))
    shape = {"size": (13, 14), "dilations": (2, 2)}
    model = kit.Model(weight, auto_pad=mode, **shape)
    optimized = kit.rewritten(model.scope(), kit.exact(model, InputBottleneck(), (4,)))
    explicit = kit.Model(weight, pads=pads, **shape)
    before = kit.run(explicit.proto(), explicit.feeds())[0]
    assert kit.distance(before, kit.run(optimized, explicit.feeds())[0]) < 1e-5


@pytest.mark.parametrize("name", ANY_DIMENSION)
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    ("size", "kernel", "pads"),
    [((21,), (5,), (1, 3)), ((7, 8, 9), (3, 2, 3), (1, 0, 2, 2, 1, 0)), ((21,), (3,), None)],
)
@pytest.mark.parametrize("step", [1, 2])
def test_one_and_three_dimensions(kit, name, group, size, kernel, pads, step):
    scheme, ranks = ANY_DIMENSION[name]
    shape = {"pads": pads, "strides": (step,) * len(size), "dilations": (step,) * len(size)}
    check_exact(kit, (scheme, kernel, ranks), size, group=group, **shape)


@pytest.mark.parametrize("bias", [True, False])
def test_fully_connected(kit, bias):
    optimized = check_exact(kit, (OutputBottleneck(), (), (4,)), (), bias=bias, batch=3)
    first, second = optimized.graph.node
    assert (first.op_type, second.op_type) == ("MatMul", "Gemm" if bias else "MatMul")
    assert [w.shape for w in kit.weights(optimized)] == [(8, 4), (4, 12)]


@pytest.mark.parametrize("group", [1, 2])
def test_float16(kit, case, group):
    # Each factor and each value in between is rounded to eleven bits.
    shape = {"tolerance": 5e-3, "dtype": np.float16, "group": group, "pads": (1, 1, 1, 1)}
    optimized = check_exact(kit, case, (9, 9), **shape)
    assert {w.dtype for w in kit.weights(optimized)} == {np.dtype(np.float16)}


def test_float64(kit, case):
    # onnxruntime has no float64 convolution on the CPU; onnx's reference evaluator has.
    scheme, kernel, ranks = case
    weight, _ = kit.representable(scheme, kernel, ranks, 1, np.float64)
    model = kit.Model(weight, (6, 7), pads=(2, 0, 3, 1), strides=(1, 2))
    optimized = kit.rewritten(model.scope(), kit.exact(model, scheme, ranks))
    assert {w.dtype for w in kit.weights(optimized)} == {np.dtype(np.float64)}
    before, after = (
        ReferenceEvaluator(p).run(None, model.feeds())[0] for p in (model.proto(), optimized)
    )
    assert kit.distance(before, after) < 1e-12


@pytest.mark.parametrize("opset", [7, 11, 22])
def test_opsets(kit, case, opset):
    check_exact(kit, case, (9, 9), pads=(1, 1, 1, 1), opset=opset)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dead_input_channels_need_no_large_numbers(kit, case, dtype):
    # A channel that is always zero leaves the metric singular; float16 ends at 65504.
    scheme, kernel, ranks = case
    weight = np.random.default_rng(0).standard_normal((12, 8, *kernel)).astype(dtype)
    model = kit.Model(weight, (9, 9))
    layer = model.layer()
    (moments,) = kit.moments_of(layer)
    alive = np.repeat(np.arange(8) >= 3, layer.taps)
    moments.gram[...] *= np.outer(alive, alive)
    moments.cross[...] = weight.reshape(12, -1).astype(np.float64) @ moments.gram
    realised = kit.candidate(layer, scheme, ranks, [moments]).realised
    for array in kit.weights(kit.rewritten(model.scope(), realised)):
        assert np.abs(array).max() < 1000
