"""Candidates fitted to data: to the layer's own inputs, or to those it really sees."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.factorize.moments import Moments
from graphopt.planning.workshop import Realised, Workshop, identity_moments
from graphopt.rewrites.approximate import kernel_chain
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.output_bottleneck import OutputBottleneck
from graphopt.rewrites.approximate.two_sided import TwoSided


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch):
    """How well a chain is fitted is no matter here."""
    monkeypatch.setattr(kernel_chain, "_FINAL_ROUNDS", 1)
    monkeypatch.setattr(kernel_chain, "_FINAL_STEPS", 1)


def gathered(x, y, samples):
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    dx, dy = x - mean_x, y - mean_y
    gram, cross, energy = dx.T @ dx / len(x), dy.T @ dx / len(x), (dy**2).mean(axis=0)
    return Moments(gram, cross, energy, mean_x, mean_y, samples)


@pytest.fixture
def distorted(kit):
    """A fully connected layer, its inputs, what it is to answer and what it really sees."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 16)).astype(np.float32)
    model = kit.Model(weight, batch=400)
    x = rng.standard_normal((400, 16)) @ (np.geomspace(2, 0.1, 16)[:, None] * np.eye(16)) + 1
    y = kit.run(model.proto(), {"x": x.astype(np.float32)})[0]
    distortion = np.eye(16) + 0.2 * rng.standard_normal((16, 16))
    seen = x @ distortion.T - 0.5
    return model, x, y.astype(np.float64), seen


def answered(kit, model, realised, inputs):
    optimized = kit.rewritten(model.scope(), realised)
    return kit.run(optimized, {"x": inputs.astype(np.float32)})[0]


def test_realised_answers_its_own_inputs_as_promised(kit, distorted):
    model, x, y, _ = distorted
    moments = [gathered(x, y, samples=0)]
    layer = model.layer()
    for rank in (4, 8):
        candidate = kit.candidate(layer, OutputBottleneck(), (rank,), moments)
        answer = answered(kit, model, candidate.realised, x)
        np.testing.assert_allclose(answer.mean(axis=0), y.mean(axis=0), atol=1e-4)
        measured = np.linalg.norm(answer - y) / np.linalg.norm(y - y.mean(axis=0))
        missed = candidate.workshop.decomposition(layer, OutputBottleneck()).missed((rank,))
        assert measured == pytest.approx(np.sqrt(missed / moments[0].energy.sum()), rel=1e-3)


def test_refitted_undoes_a_linear_distortion_at_full_rank(kit, distorted):
    model, x, y, seen = distorted
    candidate = kit.candidate(model.layer(), OutputBottleneck(), (12,), [gathered(x, y, 400)])
    plain = answered(kit, model, candidate.realised, seen)
    fitted = answered(kit, model, candidate.refitted([gathered(seen, y, 400)]), seen)
    assert kit.distance(y, plain) > 0.2
    assert kit.distance(y, fitted) < 0.02


def test_refitted_is_better_than_realised_on_what_is_seen(kit, distorted):
    model, x, y, seen = distorted
    really = [gathered(seen, y, 400)]
    candidate = kit.candidate(model.layer(), OutputBottleneck(), (8,), [gathered(x, y, 400)])
    errors = []
    for realised in (candidate.realised, candidate.refitted(really)):
        answer = answered(kit, model, realised, seen)
        errors.append(np.linalg.norm(answer - y) / np.linalg.norm(y - y.mean(axis=0)))
        (composite,) = realised.factored.composite
        if realised.candidate is candidate and len(errors) == 2:
            assert errors[1] == pytest.approx(really[0].error(composite), rel=1e-3)
            np.testing.assert_allclose(answer.mean(axis=0), y.mean(axis=0), atol=1e-4)
    assert errors[1] < 0.7 * errors[0]


def test_refitting_to_the_original_inputs_is_the_fit_to_them(kit, case):
    scheme, kernel, ranks = case
    weight = np.random.default_rng(0).standard_normal((24, 4, *kernel))
    layer = kit.Model(weight, (9, 9), group=2).layer()
    moments = kit.moments_of(layer)  # samples=0: not shrunk
    candidate = kit.candidate(layer, scheme, ranks, moments)
    one, other = candidate.realised.factored.composite, candidate.refitted(moments)
    for a, b in zip(one, other.factored.composite, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    np.testing.assert_allclose(candidate.realised.bias, other.bias, atol=1e-9)


@pytest.mark.parametrize("scheme", [InputBottleneck(), OutputBottleneck(), TwoSided()])
def test_a_layer_without_a_bias_gets_one_only_where_the_mean_asks_for_it(kit, scheme):
    weight = np.random.default_rng(0).standard_normal((12, 8, 3, 3)).astype(np.float32)
    model = kit.Model(weight, (9, 9), bias=False)
    layer = model.layer()
    ranks = (4,) * len(scheme.rank_names)
    blind = kit.candidate(layer, scheme, ranks).realised
    assert blind.bias is None
    (moments,) = kit.moments_of(layer)
    aware = kit.candidate(layer, scheme, ranks, [moments]).realised
    (composite,) = aware.factored.composite
    expected = moments.mean_output - composite @ moments.mean_input
    np.testing.assert_allclose(aware.bias, expected)
    for realised, biased in ((blind, False), (aware, True)):
        *_, last = kit.rewritten(model.scope(), realised).graph.node
        assert (len(last.input) > 2) == biased


def test_the_bias_of_the_weight_alone_is_the_bias(kit, case):
    scheme, kernel, ranks = case
    weight = np.random.default_rng(0).standard_normal((24, 8, *kernel)).astype(np.float32)
    layer = kit.Model(weight, (9, 9), group=2).layer()
    realised = kit.candidate(layer, scheme, ranks).realised
    np.testing.assert_array_equal(realised.bias.astype(np.float32), layer.bias)
    assert isinstance(realised, Realised)


def test_more_decompositions_than_fit_are_made_anew(kit, monkeypatch):
    monkeypatch.setattr("graphopt.planning.workshop._KEPT_BYTES", 8 * 72**2 + 1)
    made = []

    class Counting(InputBottleneck):
        def decompose(self, layer, targets, moments, block):
            made.append(layer)
            return super().decompose(layer, targets, moments, block)

    weight = np.random.default_rng(0).standard_normal((12, 8, 3, 3)).astype(np.float32)
    layer = kit.Model(weight, (9, 9)).layer()
    workshop = Workshop({layer.name: identity_moments(layer)}, 4)
    scheme, other = Counting(), OutputBottleneck()
    first = workshop.decomposition(layer, scheme)
    assert workshop.decomposition(layer, scheme) is first
    workshop.decomposition(layer, other)
    again = workshop.decomposition(layer, scheme)
    assert len(made) == 2
    assert again.missed((4,)) == first.missed((4,))
