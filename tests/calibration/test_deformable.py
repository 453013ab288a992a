"""Calibration of networks with deformable convolutions: what their layers see is sampled."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import build, listed

from graphopt.calibration.adjoint import adjoint
from graphopt.calibration.batch_statistics import recorded_moments, with_means
from graphopt.calibration.collect import Collector, Probe
from graphopt.calibration.dataset import Batch, Dataset
from graphopt.calibration.patches import Geometry, by_group, positions, responses, sampled_patches
from graphopt.calibration.sensitivity import sensitivities
from graphopt.evidence import geometry_of
from graphopt.graph.io import session_source
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.planning.workshop import identity_moments
from graphopt.progress import Silent
from graphopt.rewrites.approximate.layer import Layer
from graphopt.runtime import open_session, run

NETWORK = """net (float[2,6,7,5] x) => (float[2,8,7,5] y)
<float[27,6,3,3] v, float[27] f, float[8,3,3,3] w, float[8] b>
{ p = Conv<pads=[1,1,1,1]>(x, v, f)  t, s = Split<axis=1>(p, sizes)  o = Mul(t, half)
  m = Sigmoid(s)  y = DeformConv<pads=[1,1,1,1], group=2>(x, w, o, b, m) }"""


def network(text=NETWORK, overridable=(), **weights):
    given = {"sizes": np.asarray([18, 9]), "half": np.float32(0.5), **weights}
    proto = build(text, opset=19, weights=given)
    model = ir.from_proto(listed(proto, *overridable) if overridable else proto)
    shapes = {v.name: tuple(v.shape.numpy()) for v in model.graph.inputs if not v.is_initializer()}
    return Scope(model, model.graph, infer(model, shapes))


def layer_of(scope, name="y"):
    node = next(n for n in scope.graph if n.outputs[0].name == name)
    found = Layer.of(node, scope)
    assert isinstance(found, Layer)
    return found


def dataset(scope, batches=3):
    rng = np.random.default_rng(0)
    shape = scope.shape(scope.graph.inputs[0])
    drawn = rng.standard_normal((batches, *shape)).astype(np.float32)
    return Dataset(tuple(Batch({"x": x}) for x in drawn), "data", "drawn")


def probe_of(layer, patches=1 << 20):
    matrix = layer.weight.reshape(len(layer.weight), -1)
    source = layer.node.inputs[0].name
    return Probe(layer.name, source, geometry_of(layer), matrix, layer.bias, patches)


def answers(scope, data):
    """The layer's output over all batches, as rows [positions, O], by onnxruntime."""
    with session_source(scope.model) as source:
        session = open_session(source)
    found = [run(session, batch.feeds)[0] for batch in data.batches]
    return np.concatenate([np.moveaxis(y, 1, -1).reshape(-1, y.shape[1]) for y in found])


def check_collected(scope):
    layer, data = layer_of(scope), dataset(scope)
    found = Collector(data, seed=0, threads=2).original(scope.model, [probe_of(layer)], Silent())
    seen = found[layer.name]
    got = np.concatenate([np.concatenate(parts, axis=1) for parts in seen.responses])
    want = answers(scope, data)
    np.testing.assert_allclose(got, want, atol=2e-5)
    moments = [accumulator.moments() for accumulator in seen.accumulators]
    energy = np.concatenate([m.energy for m in moments])
    np.testing.assert_allclose(energy, want.var(axis=0, dtype=np.float64), rtol=1e-4)
    for part, weight in zip(moments, layer.groups(), strict=True):
        matrix = weight.reshape(layer.outputs, -1)
        np.testing.assert_allclose(part.cross, matrix @ part.gram, atol=1e-4)


def test_what_is_collected_are_sampled_patches():
    check_collected(network())


@pytest.mark.parametrize(
    "text",
    [
        "o = Identity(c) y = DeformConv<pads=[1,1,1,1], group=2>(x, w, o)",
        "y = DeformConv<pads=[1,1,1,1], group=2>(x, w, c, b)",
        "o = ConstantOfShape<value = float[1] {0.3}>(s) y = DeformConv<pads=[1,1,1,1], group=2>(x, w, o)",
    ],
)
@pytest.mark.parametrize("overridable", [(), ("c",)])
def test_offsets_that_are_constant(text, overridable):
    if overridable and "c" not in text.split("(", 1)[1]:
        pytest.skip("does not read it")
    offsets = np.random.default_rng(1).standard_normal((2, 18, 7, 5)).astype(np.float32)
    scope = network(
        f"net (float[2,6,7,5] x) => (float[2,8,7,5] y) <float[8,3,3,3] w, float[8] b> {{ {text} }}",
        overridable,
        c=offsets,
        s=np.asarray(offsets.shape),
    )
    check_collected(scope)


def test_positions_of_another_layer_do_not_matter():
    """A deformable layer beside a plain one, each with its own patches."""
    scope = network()
    plain = layer_of(scope, "p")
    data = dataset(scope)
    found = Collector(data, 0, 1).original(
        scope.model, [probe_of(plain), probe_of(layer_of(scope))], Silent()
    )
    assert set(found) == {"p", "y"}
    assert found["p"].accumulators[0].moments().gram.shape == (54, 54)


def test_rewritten_networks_are_sampled_where_they_now_sample():
    scope = network()
    layer, data = layer_of(scope), dataset(scope)
    collector = Collector(data, seed=0, threads=1)
    probe = probe_of(layer)
    originals = collector.original(scope.model, [probe], Silent())
    changed = network(f=np.linspace(-3, 3, 27, dtype=np.float32))
    seen = collector.rewritten(collector.walk(), changed.model, [probe], originals, Silent())
    for part, weight in zip(seen[layer.name], layer.groups(), strict=True):
        moments, matrix = part.moments(), weight.reshape(layer.outputs, -1)
        assert (
            np.abs(moments.cross - matrix @ moments.gram).max() > 0.1
        )  # other inputs, old answers


@pytest.mark.parametrize("reach", [0.0, 0.8, 50.0, 1e30])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("mask", [False, True])
def test_patches_against_the_operator(reach, groups, mask):
    """One-hot weights make the operator unfold its own patches: every tap of every channel."""
    rng = np.random.default_rng(2)
    geometry = Geometry((2, 3), (2, 1), (1, 2), (1, 0, 2, 3), 1)
    x = rng.standard_normal((2, 6, 5, 6)).astype(np.float32)
    out = geometry.output_size((5, 6))
    offset = (reach * rng.standard_normal((2, groups * 12, *out))).astype(np.float32)
    modulation = rng.uniform(0, 1, (2, groups * 6, *out)).astype(np.float32)
    size = ",".join(map(str, out))
    proto = build(
        f"""net (float[2,6,5,6] x, float[2,{groups * 12},{size}] o, float[2,{groups * 6},{size}] m)
        => (float[2,36,{size}] y)
        {{ y = DeformConv<strides=[2,1], dilations=[1,2], pads=[1,0,2,3], offset_group={groups}>
           (x, w, o{", , m" if mask else ""}) }}""",
        opset=22,
        weights={"w": np.eye(36, dtype=np.float32).reshape(36, 6, 2, 3)},
    )
    with session_source(ir.from_proto(proto)) as source:
        unfolded = run(open_session(source), {"x": x, "o": offset, "m": modulation})[0]
    at = positions(geometry, x.shape, 1 << 20, rng)
    got = sampled_patches(x, geometry, at, offset, modulation if mask else None)
    np.testing.assert_allclose(got, responses(unfolded, at), atol=1e-5)
    few = positions(geometry, x.shape, 7, rng)
    got = sampled_patches(x, geometry, few, offset, modulation if mask else None)
    np.testing.assert_allclose(got, responses(unfolded, few), atol=1e-5)
    assert len(by_group(got, 2)) == 2


@pytest.mark.parametrize("rank", [1, 3])
def test_patches_of_other_dimensions(rank):
    """Against the definition, tap by tap: onnxruntime samples in two dimensions only."""
    rng = np.random.default_rng(3)
    kernel = (2, 1, 2)[:rank]
    ones = (1,) * rank
    geometry = Geometry(kernel, ones, ones, ones + ones, 1)
    x = rng.standard_normal((1, 2, *(3, 4, 3)[:rank])).astype(np.float64)
    out, taps = geometry.output_size(x.shape[2:]), list(np.ndindex(*kernel))
    offset = rng.standard_normal((1, len(taps) * rank, *out))
    at = positions(geometry, x.shape, 1 << 20, rng)
    got = sampled_patches(x, geometry, at, offset, None)
    for row, position in zip(got, at, strict=True):
        place = tuple(position[1:])
        for index, tap in enumerate(taps):
            shift = offset[(0, slice(index * rank, (index + 1) * rank), *place)]
            where = np.asarray(place) - 1 + tap + shift
            for channel in range(2):
                want = interpolated(x[0, channel], where)
                assert row[channel * len(taps) + index] == pytest.approx(want)


def interpolated(image, where):
    total, low = 0.0, np.floor(where).astype(int)
    for corner in itertools.product((0, 1), repeat=len(where)):
        index = low + corner
        if np.all((index >= 0) & (index < image.shape)):
            share = np.prod(np.where(corner, where - low, 1 - where + low))
            total += share * image[tuple(index)]
    return total


def test_there_is_no_adjoint_through_it_and_it_says_so():
    """Then fits go without the metric of the outputs, as for any operator without a rule."""
    scope = network()
    reason = adjoint(scope, ["p"])
    assert isinstance(reason, str)
    assert "DeformConv" in reason
    found = sensitivities(scope, ["p", "y"], dataset(scope), seed=0, threads=1, progress=Silent())
    assert isinstance(found, str)


def test_behind_it_there_is_one():
    scope = network(NETWORK.replace("y = Deform", "d = Deform").replace(") }", ") y = Relu(d) }"))
    assert not isinstance(adjoint(scope, ["d"]), str)


def test_recorded_means_reach_it():
    """Without data: the mean of what is sampled inside is that of the map."""
    scope = network(
        """net (float[2,6,7,5] x) => (float[2,8,7,5] y) <float[6] scale, float[6] shift, float[6] mean,
        float[6] var, float[18,6,3,3] v, float[8,6,3,3] w>
        { n = BatchNormalization(x, scale, shift, mean, var) o = Conv<pads=[1,1,1,1]>(n, v)
          y = DeformConv<pads=[1,1,1,1]>(n, w, o) }"""
    )
    layer = layer_of(scope)
    seen = recorded_moments(scope, scope, [layer])
    known = with_means([layer], {layer.name: identity_moments(layer)}, seen)
    assert np.all(np.isfinite(known[layer.name][0].mean_input))
    assert known[layer.name][0].mean_input.shape == (54,)
