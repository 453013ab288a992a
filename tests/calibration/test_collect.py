"""What the collector sees, against patches cut out of the model's own intermediate values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx_text import build

from graphopt.calibration import collect, walk
from graphopt.calibration.collect import LEAST_PATCHES, Collector, Probe
from graphopt.calibration.dataset import Batch, Dataset
from graphopt.calibration.patches import Geometry, by_group, patches, positions
from graphopt.progress import Silent

NETWORK = """
net (float[N,4,H,W] x) => (float[N,3] y, float[N,6,P,Q] r)
<float[6,4,3,3] w1, float[6] b1, float[4,3,3,3] w2, float[5,6,1,2] w3, float[4,3] w4, float[3] b4>
{
    c = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w1, b1)
    r = Relu (c)
    d = Conv <pads = [2,2,2,2], dilations = [2,2], group = 2> (r, w2)
    e = Conv <pads = [0,1,0,0]> (r, w3)
    p = GlobalAveragePool (d)
    f = Flatten (p)
    y = Gemm (f, w4, b4)
}
"""

GEOMETRIES = {
    "c": ("x", Geometry((3, 3), (2, 2), (1, 1), (1, 1, 1, 1), 1)),
    "d": ("r", Geometry((3, 3), (1, 1), (2, 2), (2, 2, 2, 2), 2)),
    "e": ("r", Geometry((1, 2), (1, 1), (1, 1), (0, 1, 0, 0), 1)),
    "y": ("f", Geometry((), (), (), (), 1)),
}
WEIGHTS = {"c": ("w1", "b1"), "d": ("w2", None), "e": ("w3", None), "y": ("w4", "b4")}


@pytest.fixture(scope="module")
def proto():
    return build(NETWORK)


@pytest.fixture(scope="module")
def model(proto):
    return ir.from_proto(proto)


@pytest.fixture(scope="module")
def all_probes(proto):
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    found = []
    for name, (source, geometry) in GEOMETRIES.items():
        weight, bias = WEIGHTS[name]
        matrix = arrays[weight]
        matrix = matrix.reshape(len(matrix), -1) if geometry.kernel else matrix.T
        found.append(
            Probe.of(name, source, geometry, matrix, None if bias is None else arrays[bias])
        )
    return found


@pytest.fixture
def probes(all_probes, request):
    if "few" not in request.fixturenames:
        return all_probes
    return [replace(probe, patches=36) for probe in all_probes]


@pytest.fixture(scope="module")
def dataset():
    """Batches of different numbers of samples, and pictures of different sizes."""
    rng = np.random.default_rng(0)
    shapes = [(3, 4, 9, 8), (1, 4, 9, 8), (2, 4, 12, 7)]
    batches = [Batch({"x": rng.standard_normal(shape).astype(np.float32)}) for shape in shapes]
    return Dataset(tuple(batches), "data", "")


def values(proto, dataset, names):
    """Intermediate values, batch by batch, by making them outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [dict(zip(names, session.run(None, b.feeds), strict=True)) for b in dataset.batches]


def whole(y):
    """All responses of a batch as rows."""
    return np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])


def test_every_position_is_looked_at_where_there_are_few(proto, model, probes, dataset):
    """Few enough here for every position: the moments are those of the values themselves."""
    found = Collector(dataset, seed=0, threads=1).original(model, probes, Silent())
    seen = values(proto, dataset, ["r", "f", "c", "d", "e", "y"])
    seen = [{**arrays, **b.feeds} for arrays, b in zip(seen, dataset.batches, strict=True)]
    assert list(found) == list(GEOMETRIES)
    for probe in probes:
        sampled, group = found[probe.name], probe.geometry.group
        y = np.concatenate([whole(arrays[probe.name]) for arrays in seen]).astype(np.float64)
        x = np.concatenate(
            [patches(a[probe.source], probe.geometry, _all(a[probe.name])) for a in seen]
        ).astype(np.float64)
        assert len(sampled.accumulators) == group
        kept = [np.hstack(parts) for parts in sampled.responses]
        assert len(kept) == len(dataset.batches)
        np.testing.assert_allclose(np.concatenate(kept), y, rtol=1e-4, atol=1e-4)
        parts = zip(by_group(x, group), by_group(y, group), sampled.accumulators, strict=True)
        for a, b, accumulator in parts:
            moments = accumulator.moments()
            assert moments.samples == dataset.samples == 6
            assert accumulator.count == len(y)
            np.testing.assert_allclose(moments.mean_input, a.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(moments.mean_output, b.mean(0), rtol=1e-4, atol=1e-4)
            centred, answers = a - a.mean(0), b - b.mean(0)
            np.testing.assert_allclose(
                moments.gram, centred.T @ centred / len(a), rtol=1e-3, atol=1e-4
            )
            np.testing.assert_allclose(
                moments.cross, answers.T @ centred / len(a), rtol=1e-3, atol=1e-3
            )
            np.testing.assert_allclose(moments.energy, (answers**2).mean(0), rtol=1e-3, atol=1e-4)


def _all(y):
    places = (y.shape[0], *y.shape[2:])
    return np.stack(np.unravel_index(np.arange(np.prod(places)), places), axis=1)


@pytest.fixture
def few(monkeypatch):
    """So few patches a layer that positions are really drawn."""
    monkeypatch.setattr(collect, "LEAST_PATCHES", 12)
    monkeypatch.setattr(collect, "PATCHES_PER_INPUT", 1)


def listed(collector, model, probes):
    """Every batch and layer with its patches, in order."""
    found = []

    def look(index, size, probe, parts, skip):
        found.append((index, size, probe.name, parts))

    collector._look(collector.walk(), model, probes, look, Silent())
    order = [probe.name for probe in probes]
    return sorted(found, key=lambda item: (item[0], order.index(item[2])))


def same(one, other):
    return all(
        np.array_equal(a, b)
        for (_, _, _, x), (_, _, _, y) in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_positions_depend_on_seed_layer_and_batch_alone(few, model, probes, dataset):
    collector = Collector(dataset, seed=3, threads=1)
    first = listed(collector, model, probes)
    assert same(first, listed(collector, model.clone(), probes))
    assert not same(first, listed(Collector(dataset, seed=4, threads=1), model, probes))
    # A layer is looked at alike whatever is looked at beside it.
    alone = listed(collector, model, probes[2:3])
    assert same(alone, [item for item in first if item[2] == "e"])
    assert {n for _, n, _, _ in first} == {3, 1, 2}


def test_the_draws_differ_between_layers_and_batches(few):
    x = np.random.default_rng(0).standard_normal((1, 4, 20, 20)).astype(np.float32)
    dataset = Dataset((Batch({"x": x}), Batch({"x": x})), "data", "")
    text = "net (float[1,4,20,20] x) => (float[1,2,20,20] y) <float[2,4,1,1] w> { y = Conv (x, w) }"
    geometry = Geometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1)
    twins = [Probe.of(name, "x", geometry, np.ones((2, 4), np.float32), None) for name in "ab"]
    model = ir.from_proto(build(text))
    seen = [p[0] for *_, p in listed(Collector(dataset, seed=0, threads=1), model, twins)]
    assert [len(part) for part in seen] == [6] * 4, "the patches wanted, split over the batches"
    for i in range(4):
        for j in range(i):
            assert not np.array_equal(seen[i], seen[j])


def test_the_number_of_patches():
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1)
    narrow = Probe.of("y", "x", geometry, np.ones((2, 9)), None)
    wide = Probe.of("y", "x", geometry, np.ones((2, 9 * 1024)), None)
    assert narrow.patches == LEAST_PATCHES
    assert wide.patches == 4 * 9 * 1024
    assert narrow.thinned(0.5).patches == LEAST_PATCHES // 2
    assert narrow.thinned(0.0).patches == 2 * 9, "never fewer than two for every input"
    assert wide.thinned(1.0) == wide


def test_the_same_model_again_gives_the_same_moments(few, model, probes, dataset):
    collector = Collector(dataset, seed=0, threads=1)
    originals = collector.original(model, probes, Silent())
    again = collector.rewritten(collector.walk(), model, probes, originals, Silent())
    for name, accumulators in again.items():
        for one, other in zip(originals[name].accumulators, accumulators, strict=True):
            assert np.array_equal(one.gram, other.gram)
            assert np.array_equal(one.cross, other.cross)
            assert one.count == other.count > 0
            assert one.samples == other.samples == dataset.samples


def test_a_rewritten_model_is_seen_at_the_same_places(few, proto, model, probes, dataset):
    """Every Relu answers twice as much: inputs of d and e double, wanted responses stay."""
    text = NETWORK.replace("r = Relu (c)", "h = Relu (c)  r = Add (h, h)")
    rewritten = ir.from_proto(build(text))
    collector = Collector(dataset, seed=0, threads=1)
    originals = collector.original(model, probes, Silent())
    found = collector.rewritten(collector.walk(), rewritten, probes[:3], originals, Silent())
    assert list(found) == ["c", "d", "e"]
    for name, factor in (("c", 1), ("d", 2), ("e", 2)):
        for one, other in zip(originals[name].accumulators, found[name], strict=True):
            before, after = one.moments(), other.moments()
            close = {"rtol": 1e-4, "atol": 1e-4}
            np.testing.assert_allclose(after.gram, factor**2 * before.gram, **close)
            np.testing.assert_allclose(after.cross, factor * before.cross, **close)
            np.testing.assert_allclose(after.energy, before.energy, **close)
            np.testing.assert_allclose(after.mean_input, factor * before.mean_input, **close)
            np.testing.assert_allclose(after.mean_output, before.mean_output, **close)


def test_a_layer_at_the_graph_input_needs_no_run(monkeypatch, model, probes, dataset):
    monkeypatch.setattr(walk, "open_session", None)
    found = Collector(dataset, seed=0, threads=1).original(model, probes[:1], Silent())
    assert found["c"].accumulators[0].count == 3 * 5 * 4 + 5 * 4 + 2 * 6 * 4


def test_the_model_is_left_alone(model, probes, dataset):
    before = ir.to_proto(model).SerializeToString()
    Collector(dataset, seed=0, threads=1).original(model, probes, Silent())
    assert ir.to_proto(model).SerializeToString() == before


def test_inputs_that_the_layers_do_not_need_are_not_fed(dataset):
    text = """
    net (float[N,4,H,W] x, float[N,2] side) => (float[N,2,P,Q] y, float[N,2] z)
    <float[2,4,1,1] w>
    { r = Relu (x)  y = Conv (r, w)  z = Neg (side) }
    """
    feeds = [{**b.feeds, "side": np.ones((b.size, 2), np.float32)} for b in dataset.batches]
    more = Dataset(tuple(Batch(feed) for feed in feeds), "data", "")
    geometry = Geometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1)
    probe = Probe.of("y", "r", geometry, np.ones((2, 4), np.float32), None)
    found = Collector(more, seed=0, threads=1).original(
        ir.from_proto(build(text)), [probe], Silent()
    )
    (accumulator,) = found["y"].accumulators
    assert accumulator.moments().mean_input.min() > 0


def test_positions_of_a_probe_are_those_of_its_own_generator(few, model, probes, dataset):
    from zlib import crc32

    collector = Collector(dataset, seed=5, threads=1)
    for index, _, _, (part,) in listed(collector, model, probes[:1]):
        x = dataset.batches[index].feeds["x"]
        rng = np.random.default_rng([5, crc32(b"c"), index])
        at = positions(probes[0].geometry, x.shape, 12, rng)
        assert np.array_equal(part, patches(x, probes[0].geometry, at))
