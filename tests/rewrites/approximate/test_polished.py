"""Polished candidates: what their stages compose to, and that they answer better."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.factorize.weighting import Weighting
from graphopt.planning.workshop import Workshop

POLISHED = (
    "input-bottleneck",
    "spatial",
    "spatial-transposed",
    "decoupled",
    "decoupled-pointwise-first",
)
SEPARATE = "decoupled-pointwise-first"
"""Has nothing that could take in a metric of the outputs."""


@pytest.fixture(params=POLISHED)
def polishable(request, kit):
    """(layer of two groups, a candidate of it, its moments)."""
    scheme, kernel, ranks = kit.CASES[request.param]
    weight = np.random.default_rng(0).standard_normal((24, 8, *kernel)).astype(np.float32)
    model = kit.Model(weight, (9, 9), group=2)
    moments = kit.moments_of(model.layer())
    return model, kit.candidate(model.layer(), scheme, ranks, moments), moments


def response_error(moments, factored, weighting=None):
    missed = 0.0
    for index, (m, composite) in enumerate(zip(moments, factored.composite, strict=True)):
        root = np.eye(len(composite)) if weighting is None else weighting[index].root
        original = np.linalg.solve(m.gram, m.cross.T).T
        difference = root @ (original - composite)
        missed += np.sum((difference @ m.gram) * difference)
    return missed


def test_its_stages_amount_to_its_composite(kit, polishable):
    model, candidate, _ = polishable
    realised = candidate.polished
    dense = kit.Model(
        np.concatenate(realised.factored.composite).reshape(model.weight.shape).astype(np.float32),
        (9, 9), bias=False, group=2,
    )  # fmt: skip
    feeds = model.feeds()
    answer = kit.run(kit.rewritten(model.scope(), realised), feeds)[0]
    expected = kit.run(dense.proto(), feeds)[0] + realised.bias.reshape(1, -1, 1, 1)
    assert kit.distance(expected, answer) < 1e-5


def test_it_answers_better_and_the_original_stays(polishable):
    _, candidate, moments = polishable
    before = response_error(moments, candidate.realised.factored)
    after = response_error(moments, candidate.polished.factored)
    assert after < 0.999 * before
    assert response_error(moments, candidate.realised.factored) == before


def test_refitting_polishes_only_when_told(polishable):
    _, candidate, moments = polishable  # samples=0: not shrunk
    plain, better = candidate.refitted(moments), candidate.refitted(moments, polish=True)
    np.testing.assert_allclose(
        response_error(moments, plain.factored),
        response_error(moments, candidate.realised.factored),
    )
    np.testing.assert_allclose(
        response_error(moments, better.factored),
        response_error(moments, candidate.polished.factored),
        rtol=1e-6,
    )


def test_it_is_better_in_the_metric_of_the_outputs(polishable):
    _, candidate, moments = polishable
    if candidate.rewrite == SEPARATE:
        pytest.skip("fits every output on its own")
    layer = candidate.layer
    rng = np.random.default_rng(1)
    roots = [rng.standard_normal((12, 12)) * np.geomspace(1, 0.05, 12) for _ in range(2)]
    weighting = [Weighting.of(root @ root.T) for root in roots]
    workshop = Workshop({layer.name: moments}, 4, {layer.name: weighting})
    made = workshop.decomposition(layer, candidate.scheme)
    ranks = candidate.ranks
    start, found = made.factors(ranks), made.weights(ranks, polish=True)
    before = response_error(moments, start, weighting)
    after = response_error(moments, found, weighting)
    assert before == pytest.approx(made.missed(ranks), rel=1e-5)
    assert after < 0.999 * before
    blind = candidate.polished.factored
    assert after < response_error(moments, blind, weighting)


def test_schemes_of_one_closed_form_have_nothing_to_polish(kit):
    for name in ("output-bottleneck", "two-sided"):
        scheme, kernel, ranks = kit.CASES[name]
        weight = np.random.default_rng(0).standard_normal((12, 8, *kernel)).astype(np.float32)
        candidate = kit.candidate(kit.Model(weight, (9, 9)).layer(), scheme, ranks)
        made = candidate.workshop.decomposition(candidate.layer, scheme)
        assert made.polished is None
        for one, other in zip(
            candidate.polished.factored.composite,
            candidate.realised.factored.composite,
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
