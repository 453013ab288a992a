"""The fit of a whole plan against fits of its layers one by one, on data that neither has seen."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt.calibration.collect import Collector, Probe
from graphopt.calibration.dataset import Batch, Dataset
from graphopt.calibration.patches import Geometry
from graphopt.evidence import _probes, geometry_of
from graphopt.graph.io import session_source
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.planning.choices import Choice, with_candidates
from graphopt.planning.fitting import Refitter, _ready, symmetric
from graphopt.planning.menus import layers_of
from graphopt.planning.workshop import Workshop
from graphopt.progress import Silent
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.output_bottleneck import OutputBottleneck
from graphopt.runtime import open_session, run

WIDTH, SIZE, SAMPLES = 12, 8, 64

NETWORK = """
net (float[N,12,8,8] x) => (float[N,12,8,8] y)
<float[12,12,3,3] w1, float[12] b1, float[12,12,3,3] w2, float[12] b2, float[12,12,3,3] w3>
{
    c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)
    s = Add (c2, r1)
    r2 = Relu (s)
    y = Conv <pads = [1,1,1,1]> (r2, w3)
}
"""


def network(seed):
    """Two convolutions around a residual sum, and one behind it."""
    rng = np.random.default_rng(seed)
    weights = {
        f"w{i}": (rng.standard_normal((WIDTH, WIDTH, 3, 3)) / 10).astype(np.float32)
        for i in (1, 2, 3)
    }
    weights |= {f"b{i}": (rng.standard_normal(WIDTH) / 4).astype(np.float32) for i in (1, 2)}
    model = ir.from_proto(build(NETWORK, weights=weights))
    return Scope(model, model.graph, infer(model, {"x": (1, WIDTH, SIZE, SIZE)}))


def pictures(seed, batches=4):
    """Smooth in space, and of channels that go together, as pictures and features are."""
    mix = np.random.default_rng(99).standard_normal((WIDTH, WIDTH))
    mix *= 0.7 ** np.arange(WIDTH)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((SAMPLES, WIDTH, SIZE, SIZE))
    x = x + np.roll(x, 1, axis=2) + np.roll(x, 1, axis=3)
    x = np.einsum("oc,nchw->nohw", mix, x).astype(np.float32)
    parts = np.split(x, batches)
    return Dataset(tuple(Batch({"x": part}) for part in parts), "data", "")


def probe_of(layer):
    matrix = layer.weight.reshape(len(layer.weight), -1)
    return Probe.of(layer.name, layer.node.inputs[0].name, geometry_of(layer), matrix, layer.bias)


class Bench:
    """A network with its moments, and plans of one rank for the layers named."""

    def __init__(self, seed, scheme=None, waves=16, residual=False):
        self.scope = network(seed)
        self.scheme = scheme or InputBottleneck()
        layers, _ = layers_of(self.scope, [self.scheme])
        looks = _probes(self.scope, layers, residual=residual)
        probes = {layer.name: probe for layer, probe in zip(layers, looks, strict=True)}
        collector = Collector(pictures(1000 + seed), seed=0, threads=1)
        seen = collector.original(self.scope.model, list(probes.values()), Silent())
        moments = {n: [a.moments().shrunk() for a in s.accumulators] for n, s in seen.items()}
        self.workshop = Workshop(moments, 1)
        self.layers = {layer.name: layer for layer in layers}
        self.refitter = Refitter(
            self.scope, collector, probes, seen, polish=False, most_waves=waves
        )

    def plan(self, *names, rank=5):
        choices = []
        for name in names:
            offered, _ = self.workshop.menu(self.layers[name], [self.scheme])
            candidate = next(c for c in offered if c.ranks == (rank,))
            choices.append(Choice(name, candidate, 1.0, candidate.error, None))
        return tuple(choices)

    def error(self, realised, dataset):
        """Relative output error, squared."""
        results = []
        for model in (self.scope.model, with_candidates(self.scope, realised)):
            with session_source(model) as source:
                session = open_session(source, level="disable_all")
            found = [run(session, batch.feeds)[0] for batch in dataset.batches]
            results.append(np.concatenate(found).astype(np.float64))
        y, z = results
        return float(((y - z) ** 2).sum() / (y**2).sum())


ALL = ("c1", "c2", "y")


@pytest.mark.parametrize("scheme", [InputBottleneck(), OutputBottleneck()])
def test_the_asymmetric_fit_is_better_on_fresh_data(scheme):
    ratios = []
    for seed in range(5):
        bench, fresh = Bench(seed, scheme), pictures(2000 + seed)
        plan = bench.plan(*ALL)
        own = bench.error(symmetric(plan), fresh)
        whole = bench.error(bench.refitter.fit(plan), fresh)
        assert 1e-4 < own < 1
        ratios.append(whole / own)
    assert np.mean(ratios) < 0.95
    assert max(ratios) < 1.05


def test_layers_that_meet_in_a_sum_make_good_each_others_errors():
    """c2 is added to what comes of c1: fitting the sum is better than fitting the response."""
    ratios = []
    for seed in range(5):
        fresh, errors = pictures(2000 + seed), []
        for residual in (False, True):
            bench = Bench(seed, residual=residual)
            plan = bench.plan("c1", rank=4) + bench.plan("c2", rank=10)
            errors.append(bench.error(bench.refitter.fit(plan), fresh))
        ratios.append(errors[1] / errors[0])
    assert np.mean(ratios) < 0.985
    assert max(ratios) < 1


def test_only_a_sum_of_equals_is_fitted_together():
    scope = network(0)
    layers, _ = layers_of(scope, [InputBottleneck()])
    skips = {p.name: p.skip for p in _probes(scope, layers, residual=True)}
    assert skips == {"c1": None, "c2": "r1", "y": None}
    assert all(p.skip is None for p in _probes(scope, layers, residual=False))


def test_a_skip_that_is_still_to_be_fitted_is_left_alone():
    """Of two convolutions that are added, the later one makes good the earlier one's error."""
    model = ir.from_proto(
        build(
            """
            net (float[N,2,4,4] x) => (float[N,2,4,4] y)
            <float[2,2,3,3] w1 = {}, float[2,2,3,3] w2 = {}>
            {
                a = Conv <pads = [1,1,1,1]> (x, w1)
                b = Conv <pads = [1,1,1,1]> (x, w2)
                y = Add (a, b)
            }
            """.replace(" = {}", ""),
            weights={f"w{i}": np.ones((2, 2, 3, 3), np.float32) for i in (1, 2)},
        )
    )
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1)
    first, second = (
        Probe("a", "x", geometry, np.ones((2, 18)), None, 9, skip="b"),
        Probe("b", "x", geometry, np.ones((2, 18)), None, 9, skip="a"),
    )
    assert _ready(first, model, {"a", "b"}).skip is None
    assert _ready(second, model, {"b"}).skip == "a"


@pytest.mark.parametrize("name", ALL)
def test_a_plan_of_one_layer_is_its_own_fit(name):
    bench = Bench(0)
    plan = bench.plan(name)
    (own,), (whole,) = symmetric(plan), bench.refitter.fit(plan)
    assert whole is own


def test_what_sees_the_original_input_keeps_its_own_fit():
    """Two layers of which the second sees what it always saw: the refit has nothing to correct."""
    text = """
    net (float[N,12,8,8] x) => (float[N,12,8,8] y, float[N,12,8,8] z)
    <float[12,12,3,3] w1, float[12,12,3,3] w2, float[12] b>
    { y = Conv <pads = [1,1,1,1]> (x, w1)  z = Conv <pads = [1,1,1,1]> (x, w2, b) }
    """
    bench = Bench(0)
    model = ir.from_proto(build(text))
    bench.scope = Scope(model, model.graph, infer(model, {"x": (1, WIDTH, SIZE, SIZE)}))
    layers, _ = layers_of(bench.scope, [bench.scheme])
    probes = {layer.name: probe_of(layer) for layer in layers}
    collector = Collector(pictures(0), seed=0, threads=1)
    seen = collector.original(model, list(probes.values()), Silent())
    moments = {n: [a.moments().shrunk() for a in s.accumulators] for n, s in seen.items()}
    bench.workshop, bench.layers = Workshop(moments, 1), {layer.name: layer for layer in layers}
    plan = bench.plan("y", "z")
    refitted = Refitter(bench.scope, collector, probes, seen, polish=False).fit(plan)
    for own, whole in zip(symmetric(plan), refitted, strict=True):
        # Where the input hardly varies, weights are as good as free: compare the responses.
        (moments,) = bench.workshop.moments[own.candidate.layer.name]
        one, other = own.factored.composite[0], whole.factored.composite[0]
        change, size = ((m @ moments.gram * m).sum() for m in (other - one, one))
        assert change <= 1e-6 * size
        if own.bias is None:
            assert whole.bias is None or np.abs(whole.bias).max() < 1e-4
        else:
            np.testing.assert_allclose(whole.bias, own.bias, rtol=1e-3, atol=1e-4)


def test_candidates_come_in_topological_order_whatever_the_plan_s():
    bench = Bench(1)
    forward = bench.refitter.fit(bench.plan(*ALL))
    backward = bench.refitter.fit(bench.plan(*ALL[::-1]))
    for one, other in zip(forward, backward, strict=True):
        assert one.candidate.layer.name == other.candidate.layer.name
        assert np.array_equal(one.factored.composite[0], other.factored.composite[0])
    assert [r.candidate.layer.name for r in forward] == list(ALL)


def test_passes_over_the_inputs_are_bounded(monkeypatch):
    for waves, passes in ((16, 2), (2, 1), (1, 0)):
        bench = Bench(0, waves=waves)
        asked = []
        original = Collector.rewritten

        def spy(self, walk, model, probes, *more, asked=asked, original=original):
            asked.append([probe.name for probe in probes])
            return original(self, walk, model, probes, *more)

        with monkeypatch.context() as patched:
            patched.setattr(Collector, "rewritten", spy)
            fitted = bench.refitter.fit(bench.plan(*ALL))
        assert len(asked) == passes
        assert len(fitted) == 3
    assert bench.refitter.fit(()) == []


def test_waves_are_still_better_than_no_refit():
    own, waves = [], []
    for seed in range(4):
        bench, fresh = Bench(seed, waves=2), pictures(2000 + seed)
        plan = bench.plan(*ALL)
        own.append(bench.error(symmetric(plan), fresh))
        waves.append(bench.error(bench.refitter.fit(plan), fresh))
    assert np.mean(waves) < np.mean(own)


def test_what_is_not_finite_is_not_fitted_to(monkeypatch):
    """An early layer that overflows: the plan is refused by its error, not by a traceback."""
    bench = Bench(0)
    plan = bench.plan(*ALL)
    bad = plan[0].candidate.realised
    bad.bias[:] = np.nan
    fitted = bench.refitter.fit(plan)
    assert [r.candidate.layer.name for r in fitted] == list(ALL)
    assert all(np.isfinite(r.factored.composite[0]).all() for r in fitted[1:])


def test_fits_are_the_same_every_time():
    one, other = (Bench(3) for _ in range(2))
    for a, b in zip(
        one.refitter.fit(one.plan(*ALL)), other.refitter.fit(other.plan(*ALL)), strict=True
    ):
        assert np.array_equal(a.factored.composite[0], b.factored.composite[0])
        assert np.array_equal(a.bias, b.bias) if a.bias is not None else b.bias is None
