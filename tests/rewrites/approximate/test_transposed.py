"""Transposed convolutions: factored as convolutions are, wherever the algebra carries over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.calibration.accumulate import Accumulator
from graphopt.calibration.batch_statistics import ChannelMoments, with_means
from graphopt.calibration.patches import by_group, patches
from graphopt.evidence import geometry_of
from graphopt.planning.workshop import Workshop, identity_moments
from graphopt.rewrites import APPROXIMATE
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.output_bottleneck import OutputBottleneck
from graphopt.rewrites.approximate.spatial import Spatial
from graphopt.rewrites.approximate.two_sided import TwoSided

SCHEMES = {
    "input-bottleneck": (InputBottleneck(), (4,)),
    "output-bottleneck": (OutputBottleneck(), (4,)),
    "two-sided": (TwoSided(), (4, 8)),
    "spatial": (Spatial(0), (8,)),
    "spatial-transposed": (Spatial(1), (8,)),
}
ANY_DIMENSION = ("input-bottleneck", "output-bottleneck", "two-sided")

GEOMETRIES = [
    {"kernel": (2, 2), "strides": (2, 2)},
    {"kernel": (4, 4), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)},
    {"kernel": (3, 2), "strides": (3, 1), "dilations": (2, 1), "pads": (0, 1, 2, 0)},
]


def check_exact(kit, name, kernel, size, tolerance=1e-5, dtype=np.float32, group=1, **shape):
    """What is written computes what the layer does, in the border as well; returns it."""
    scheme, ranks = SCHEMES[name]
    weight, _ = kit.representable(scheme, kernel, ranks, group, dtype)
    model = kit.Model(weight, size, group=group, transposed=True, **shape)
    optimized = kit.rewritten(model.scope(), kit.exact(model, scheme, ranks))
    before = kit.run(model.proto(), model.feeds())[0]
    after = kit.run(optimized, model.feeds())[0]
    assert kit.distance(before, after) < tolerance
    if min(before.shape[2:]) > 2:
        assert kit.distance(kit.border(before), kit.border(after)) < tolerance
    return optimized


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data())
def test_placement(kit, data):
    name = data.draw(st.sampled_from(sorted(SCHEMES)))
    rank = data.draw(st.integers(1, 2)) if name in ANY_DIMENSION else 2
    least = 1 if name in ANY_DIMENSION else 2

    def each(low, high):
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    kernel, strides, dilations = each(least, 4), each(1, 3), each(1, 2)
    assume(np.prod(kernel) > 1)
    shape = {
        "strides": strides,
        "dilations": dilations,
        "pads": each(0, 2) + each(0, 2),
        "output_padding": tuple(data.draw(st.integers(0, s - 1)) for s in strides),
        "group": data.draw(st.sampled_from([1, 4])),
        "bias": data.draw(st.booleans()),
    }
    check_exact(kit, name, kernel, (5, 6)[:rank], **shape)


@pytest.mark.parametrize("name", ANY_DIMENSION)
@pytest.mark.parametrize("opset", [7, 11, 22])
def test_three_dimensions_and_opsets(kit, name, opset):
    shape = {"strides": (2, 1, 2), "pads": (1, 0, 1, 0, 1, 0), "group": 2, "opset": opset}
    check_exact(kit, name, (3, 2, 3), (3, 4, 5), **shape)


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_written(kit, name):
    shape = {"strides": (2, 3), "pads": (1, 0, 0, 1), "output_padding": (1, 2), "group": 2}
    optimized = check_exact(kit, name, (3, 4), (5, 6), **shape)
    kinds = {
        "input-bottleneck": ["Conv", "ConvTranspose"],
        "output-bottleneck": ["ConvTranspose", "Conv"],
        "two-sided": ["Conv", "ConvTranspose", "Conv"],
        "spatial": ["ConvTranspose", "ConvTranspose"],
        "spatial-transposed": ["ConvTranspose", "ConvTranspose"],
    }
    assert [node.op_type for node in optimized.graph.node] == kinds[name]
    assert [len(node.input) for node in optimized.graph.node][:-1] == [2] * (len(kinds[name]) - 1)
    assert len(optimized.graph.node[-1].input) == 3  # the bias: on the last stage alone


def test_auto_pad_valid_is_no_padding(kit):
    check_exact(kit, "input-bottleneck", (3, 3), (5, 6), strides=(2, 2), auto_pad="VALID")


def test_an_open_size(kit):
    scheme, ranks = SCHEMES["two-sided"]
    weight, _ = kit.representable(scheme, (3, 3), ranks)
    shape = {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)}
    model = kit.Model(weight, (5, 6), transposed=True, open_size=True, **shape)
    optimized = kit.rewritten(model.scope(), kit.exact(model, scheme, ranks))
    x = {"x": np.random.default_rng(1).standard_normal((1, 8, 9, 4)).astype(np.float32)}
    assert kit.distance(kit.run(model.proto(), x)[0], kit.run(optimized, x)[0]) < 1e-5


def unfolded(layer, x):
    """Patches of every group at all output positions."""
    geometry = geometry_of(layer)
    whole = (len(x), *geometry.output_size(x.shape[2:]))
    at = np.stack(np.unravel_index(np.arange(np.prod(whole)), whole), axis=1)
    return by_group(patches(x, geometry, at), layer.group)


def gathered(layer, x, wanted=None):
    """Moments of the layer on x against its answers to `wanted` (to x, if not given)."""
    found = []
    answered = unfolded(layer, x if wanted is None else wanted)
    biases = np.split(layer.bias, layer.group)
    for part, then, weight, bias in zip(
        unfolded(layer, x), answered, layer.groups(), biases, strict=True
    ):
        accumulator = Accumulator(part.shape[1], layer.outputs)
        answers = then @ weight.reshape(layer.outputs, -1).T + bias
        accumulator.add(part, answers.astype(np.float32), 1 << 20)
        found.append(accumulator.moments())
    return found


def smooth(rng, *shape):
    """Correlated, non-negative maps of different scales, like those behind a Relu."""
    noise = rng.standard_normal(shape)
    noise += np.roll(noise, 1, axis=-1) + np.roll(noise, 1, axis=-2)
    mixed = np.tensordot(rng.standard_normal((shape[1], shape[1])), noise, axes=(1, 1))
    scale = np.geomspace(2, 0.1, shape[1])[:, None, None]
    return np.maximum(mixed.swapaxes(0, 1) * scale + 0.3, 0).astype(np.float32)


@pytest.fixture(params=GEOMETRIES, ids=lambda g: str(g["kernel"]))
def fitted(request, kit):
    """(model, layer, x, y, moments) of a transposed layer with overlapping or separate taps."""
    geometry = dict(request.param)
    kernel = geometry.pop("kernel")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2 * 16, 24, *kernel)).astype(np.float32)
    model = kit.Model(weight, (7, 8), transposed=True, group=2, batch=20, **geometry)
    x = smooth(rng, 20, 48, 7, 8)
    layer = model.layer()
    y = kit.run(model.proto(), {"x": x})[0].astype(np.float64)
    return model, layer, x, y, gathered(layer, x)


@pytest.mark.parametrize("name", SCHEMES)
def test_the_error_promised_is_the_error_measured(kit, fitted, name):
    model, layer, x, y, moments = fitted
    scheme = SCHEMES[name][0]
    offered, _ = Workshop({layer.name: moments}, 4).menu(layer, [scheme])
    assert offered
    spread = np.linalg.norm(y - y.mean(axis=(0, 2, 3), keepdims=True))
    for candidate in offered[:: max(1, len(offered) // 4)]:
        optimized = kit.rewritten(model.scope(), candidate.realised)
        measured = np.linalg.norm(kit.run(optimized, {"x": x})[0] - y) / spread
        assert candidate.error == pytest.approx(measured, rel=1e-2)


@pytest.mark.parametrize("name", ["input-bottleneck", "output-bottleneck"])
def test_never_worse_than_a_truncated_decomposition_of_the_weight(kit, fitted, name):
    _, layer, _, _, moments = fitted
    scheme = SCHEMES[name][0]
    (weighed, *_), (group, *_) = moments, layer.groups()
    made = scheme.decompose(layer, [w.reshape(16, -1) for w in layer.groups()], moments, 4)
    plain = group if name == "output-bottleneck" else group.swapaxes(0, 1)
    u, s, v = np.linalg.svd(plain.reshape(len(plain), -1), full_matrices=False)
    for rank in (4, 8, 12):
        cut = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(plain.shape)
        cut = cut if name == "output-bottleneck" else cut.swapaxes(0, 1)
        composite = made.factors((rank,)).composite[0]
        assert weighed.error(composite) < weighed.error(cut.reshape(16, -1))


@pytest.mark.parametrize("name", ["input-bottleneck", "output-bottleneck"])
def test_without_data_it_is_the_truncated_decomposition(kit, fitted, name):
    _, layer, _, _, _ = fitted
    made = SCHEMES[name][0].decompose(
        layer, [w.reshape(16, -1) for w in layer.groups()], identity_moments(layer), 4
    )
    axis = int(name == "input-bottleneck")
    missed = 0.0
    for group in layer.groups():
        side = group.swapaxes(0, axis)
        values = np.linalg.svd(side.reshape(len(side), -1), compute_uv=False)
        missed += float(np.sum(values[8:] ** 2))
    assert made.missed((8,)) == pytest.approx(missed, rel=1e-6)


def test_refitting_undoes_a_distortion_of_the_input(kit, fitted):
    model, layer, x, y, moments = fitted
    workshop = Workshop({layer.name: moments}, 4)
    offered, _ = workshop.menu(layer, [InputBottleneck()])
    candidate = offered[-1]
    rng = np.random.default_rng(1)
    mix = np.eye(48) + 0.1 * np.kron(np.eye(2), rng.standard_normal((24, 24)))
    changed = np.tensordot(x, mix, axes=(1, 1)).transpose(0, 3, 1, 2).astype(np.float32)
    seen = gathered(layer, changed, wanted=x)
    plain = kit.run(kit.rewritten(model.scope(), candidate.realised), {"x": changed})[0]
    better = kit.run(kit.rewritten(model.scope(), candidate.refitted(seen)), {"x": changed})
    assert kit.distance(y, better[0]) < 0.6 * kit.distance(y, plain)


def test_known_means_set_the_bias(kit):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 8, 2, 2)).astype(np.float32)
    model = kit.Model(weight, (5, 6), transposed=True, strides=(2, 2), batch=3)
    layer = model.layer()
    x = smooth(rng, 3, 8, 5, 6)
    means = ChannelMoments(x.mean(axis=(0, 2, 3), dtype=np.float64), np.ones(8))
    alone = {layer.name: identity_moments(layer)}
    known = with_means([layer], alone, {layer.name: means})
    realised = kit.candidate(layer, OutputBottleneck(), (4,), known[layer.name]).realised
    before = kit.run(model.proto(), {"x": x})[0]
    after = kit.run(kit.rewritten(model.scope(), realised), {"x": x})[0]
    assert kit.distance(before, after) > 0.1
    np.testing.assert_allclose(before.mean((0, 2, 3)), after.mean((0, 2, 3)), atol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: str(g["kernel"]))
@pytest.mark.parametrize("group", [1, 2])
def test_costs(kit, geometry, group):
    geometry = dict(geometry)
    kernel = geometry.pop("kernel")
    weight = np.random.default_rng(0).standard_normal((32 * group, 32, *kernel)).astype(np.float32)
    model = kit.Model(weight, (7, 8), transposed=True, group=group, **geometry)
    layer, scope, before = model.layer(), model.scope(), kit.counted(model.proto())
    offered, _ = Workshop({layer.name: identity_moments(layer)}, 8).menu(layer, APPROXIMATE)
    assert {candidate.rewrite for candidate in offered} == set(SCHEMES)
    for candidate in offered:
        after = kit.counted(kit.rewritten(scope, candidate.realised))
        assert candidate.macs_ratio == pytest.approx(after.macs / before.macs)
        assert candidate.parameters_ratio == pytest.approx(after.parameters / before.parameters)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"output_shape": [12, 12]}, "its pads follow from output_shape and the size of the input"),
        (
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            "auto_pad=SAME_UPPER with strides depends on the size of the input",
        ),
        ({"group": 16}, "depthwise: one input channel a group"),
    ],
)
def test_declined(kit, attributes, reason):
    weight = np.random.default_rng(0).standard_normal((16, 1, 3, 3)).astype(np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="layer", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 16, 6, 6])],
        [helper.make_tensor_value_info("y", 1, [None] * 4)],
        [numpy_helper.from_array(weight, "w")],
    )
    scope = kit.scope_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))
    assert Layer.of(kit.node_of(scope), scope) == reason


def test_too_wide(kit):
    weight = np.ones((1, 580, 4, 4), np.float32) * np.arange(4, dtype=np.float32)
    model = kit.Model(weight, (3, 3), transposed=True)
    assert "too wide" in Layer.of(kit.node_of(scope := model.scope()), scope)


def test_which_schemes_apply(kit):
    weight = np.random.default_rng(0).standard_normal((8, 8, 5, 5)).astype(np.float32)
    layer = kit.Model(weight, (9, 9), transposed=True).layer()
    reasons = {scheme.name: scheme.applies(layer) for scheme in APPROXIMATE}
    assert {name for name, why in reasons.items() if why is None} == set(SCHEMES)
    assert "transposed" in reasons["kernel-pair"]
    assert "transposed" in reasons["decoupled"]
