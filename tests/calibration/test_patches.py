"""Patches against what onnxruntime's operators see."""

from __future__ import annotations

from math import prod

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.calibration.collect import Probe
from graphopt.calibration.patches import Geometry, by_group, patches, positions, responses
from graphopt.rewrites.approximate.layer import swapped

algebra = settings(deadline=None, max_examples=100, derandomize=True)


@st.composite
def convolutions(draw):
    """(geometry, channels of a group, outputs of a group, input shape) with a non-empty output."""
    rank = draw(st.integers(1, 3))
    kernel, strides, dilations, size, begins, ends = [], [], [], [], [], []
    for _ in range(rank):
        kernel.append(draw(st.integers(1, 4 if rank < 3 else 3)))
        strides.append(draw(st.integers(1, 3)))
        dilations.append(draw(st.integers(1, 2)))
        begins.append(draw(st.integers(0, 3)))
        ends.append(draw(st.integers(0, 3)))
        reach = dilations[-1] * (kernel[-1] - 1) + 1
        least = max(1, reach - begins[-1] - ends[-1])
        size.append(draw(st.integers(least, least + 6)))
    group = draw(st.integers(1, 3))
    geometry = Geometry(tuple(kernel), tuple(strides), tuple(dilations), (*begins, *ends), group)
    channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 3)), group * channels, *size)
    return geometry, channels, outputs, shape


@st.composite
def transposed_convolutions(draw):
    """The same for transposed convolutions, with pads beyond the kernel and output padding."""
    rank = draw(st.integers(1, 2))
    kernel, strides, dilations, size, begins, ends, more = [], [], [], [], [], [], []
    for _ in range(rank):
        kernel.append(draw(st.integers(1, 4)))
        strides.append(draw(st.integers(1, 3)))
        dilations.append(draw(st.integers(1, 2)))
        begins.append(draw(st.integers(0, 3)))
        ends.append(draw(st.integers(0, 3)))
        more.append(draw(st.integers(0, strides[-1] - 1)))
        reach = dilations[-1] * (kernel[-1] - 1) + 1
        lost = begins[-1] + ends[-1] - more[-1] - reach
        least = max(1, -(-(lost + 1) // strides[-1]) + 1)
        size.append(draw(st.integers(least, least + 4)))
    group = draw(st.integers(1, 3))
    pads = (*begins, *ends)
    geometry = Geometry(
        tuple(kernel), tuple(strides), tuple(dilations), pads, group, True, tuple(more)
    )
    channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 3)), group * channels, *size)
    return geometry, channels, outputs, shape


def run(node, constants, x):
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def everywhere(shape):
    return np.stack(np.unravel_index(np.arange(prod(shape)), shape), axis=1)


@algebra
@given(
    case=convolutions() | transposed_convolutions(),
    seed=st.integers(0, 999),
    with_bias=st.booleans(),
)
def test_patches_are_what_a_convolution_sees(case, seed, with_bias):
    geometry, channels, outputs, shape = case
    rng = np.random.default_rng(seed)
    x = normal(rng, *shape)
    weight = normal(rng, geometry.group * outputs, channels, *geometry.kernel)
    constants = {"w": swapped(weight, geometry.group) if geometry.transposed else weight}
    bias = normal(rng, len(weight)) if with_bias else None
    if bias is not None:
        constants["b"] = bias
    node = helper.make_node(
        "ConvTranspose" if geometry.transposed else "Conv",
        ["x", *constants],
        ["y"],
        kernel_shape=geometry.kernel,
        strides=geometry.strides,
        dilations=geometry.dilations,
        pads=geometry.pads,
        group=geometry.group,
        **({"output_padding": geometry.output_padding} if geometry.transposed else {}),
    )
    y = run(node, constants, x)
    assert geometry.output_size(shape[2:]) == y.shape[2:]

    probe = Probe.of("y", "x", geometry, weight.reshape(len(weight), -1), bias)
    drawn = positions(geometry, shape, 20, rng)
    for at in (drawn, everywhere((shape[0], *y.shape[2:]))):
        unfolded = patches(x, geometry, at)
        assert unfolded.shape == (len(at), shape[1] * prod(geometry.kernel))
        parts = by_group(unfolded, geometry.group)
        assert {part.shape for part in parts} == {(len(at), probe.width)}
        wanted = responses(y, at)
        assert wanted.shape == (len(at), len(weight))
        np.testing.assert_allclose(np.hstack(probe.respond(parts)), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("with_bias", [False, True])
def test_patches_of_a_fully_connected_layer_are_its_rows(with_bias):
    rng = np.random.default_rng(0)
    x, weight, bias = normal(rng, 9, 5), normal(rng, 5, 4), normal(rng, 4)
    y = run(helper.make_node("Gemm", ["x", "w", "b"], ["y"]), {"w": weight, "b": bias}, x)
    geometry = Geometry((), (), (), (), 1)
    at = positions(geometry, x.shape, 100, rng)
    assert at.tolist() == [[n] for n in range(9)]
    probe = Probe.of("y", "x", geometry, weight.T, bias if with_bias else None)
    (answer,) = probe.respond(by_group(patches(x, geometry, at), 1))
    wanted = responses(y, at) - (0 if with_bias else bias)
    np.testing.assert_allclose(answer, wanted, atol=1e-5)


def test_patches_are_channel_major_like_the_weight():
    x = np.arange(2 * 3 * 3, dtype=np.float32).reshape(1, 2, 3, 3)
    geometry = Geometry((2, 2), (1, 1), (2, 1), (0, 1, 0, 0), 1)
    (patch,) = patches(x, geometry, np.array([[0, 0, 0]]))
    # Left column lies in the padding; rows 0 and 2 of channel 0, then of channel 1.
    assert patch.tolist() == [0, 0, 0, 6, 0, 9, 0, 15]


@algebra
@given(case=convolutions(), count=st.integers(1, 200), seed=st.integers(0, 999))
def test_positions_are_distinct_and_in_range_and_of_the_number_asked_for(case, count, seed):
    geometry, _, _, shape = case
    at = positions(geometry, shape, count, np.random.default_rng(seed))
    limits = np.array((shape[0], *geometry.output_size(shape[2:])))
    assert np.all(at >= 0)
    assert np.all(at < limits)
    assert len({tuple(row) for row in at}) == len(at) == min(count, limits.prod())
    again = positions(geometry, shape, count, np.random.default_rng(seed))
    assert np.array_equal(at, again)


def test_positions_cover_samples_and_borders_alike():
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1)
    at = positions(geometry, (8, 4, 10, 10), 400, np.random.default_rng(0))
    counts = np.bincount(at[:, 0], minlength=8)
    assert counts.sum() == 400
    assert counts.min() > 30, "half of every sample's hundred, give or take"
    assert {0, 9} <= set(at[:, 1]) & set(at[:, 2])
