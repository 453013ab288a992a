"""What a menu says of a candidate is what its file has: MACs, parameters, error, ranks, weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.factorize.moments import Moments
from graphopt.planning.workshop import Workshop, identity_moments
from graphopt.rewrites import APPROXIMATE
from graphopt.rewrites.approximate.decoupled import Decoupled
from graphopt.rewrites.approximate.decoupled_pointwise_first import DecoupledPointwiseFirst
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.kernel_chain import KernelChain
from graphopt.rewrites.approximate.output_bottleneck import OutputBottleneck
from graphopt.rewrites.approximate.scheme import multiples
from graphopt.rewrites.approximate.spatial import Spatial
from graphopt.rewrites.approximate.structure import WORTHWHILE_MACS_RATIO
from graphopt.rewrites.approximate.two_sided import TwoSided

DECOUPLED = ("decoupled", "decoupled-pointwise-first")

QUICK = tuple(KernelChain(shares=(0.5,)) if s.iterative else s for s in APPROXIMATE)

GEOMETRIES = [
    {"pads": (2, 2, 2, 2)},
    {"pads": (1, 2, 0, 3), "strides": (1, 2), "dilations": (2, 1)},
    {"auto_pad": "SAME_UPPER", "strides": (2, 2)},
    {"auto_pad": "VALID"},
]


def menu_of(kit, model, block, schemes=QUICK):
    layer = model.layer()
    workshop = Workshop({layer.name: identity_moments(layer)}, block)
    return workshop.menu(layer, schemes)


def written_kernel(row, weights):
    """The dense kernel [O, C, *k] that the stages of one row compose to, one group, any rank."""
    total = None
    for stage, weight in zip(row, weights, strict=True):
        dense = weight
        if stage.group > 1:
            dense = np.zeros((stage.outputs, stage.inputs, *stage.kernel))
            dense[np.arange(stage.outputs), np.arange(stage.inputs)] = weight[:, 0]
        if total is None:
            total = dense
            continue
        size = [a + b - 1 for a, b in zip(total.shape[2:], dense.shape[2:], strict=True)]
        out = np.zeros((len(dense), total.shape[1], *size))
        for tap in itertools.product(*map(range, dense.shape[2:])):
            where = tuple(slice(t, t + n) for t, n in zip(tap, total.shape[2:], strict=True))
            part = np.tensordot(dense[(..., *tap)], total, axes=1)
            out[(slice(None), slice(None), *where)] += part
        total = out
    return total


@pytest.mark.parametrize("metric", ["weight", "inputs"])
@pytest.mark.parametrize("group", [1, 2])
def test_the_composite_is_what_the_stages_make(kit, case, group, metric):
    scheme, kernel, ranks = case
    weight = np.random.default_rng(1).standard_normal((12 * group, 8, *kernel))
    layer = kit.Model(weight, (9,) * len(kernel), group=group).layer()
    moments = kit.moments_of(layer) if metric == "inputs" else None
    factored = kit.candidate(layer, scheme, ranks, moments).realised.factored
    assert len(factored.composite) == group
    for index, composite in enumerate(factored.composite):
        made = 0
        for row, weights in zip(factored.rows, factored.weights, strict=True):
            for stage, parts in zip(row, weights, strict=True):
                shape = (stage.outputs, stage.inputs // stage.group, *stage.kernel)
                assert parts[index].shape == shape
                assert parts[index].size == stage.parameters
            made = made + written_kernel(row, [parts[index] for parts in weights])
        np.testing.assert_allclose(made.reshape(12, -1), composite, atol=1e-9)


@pytest.mark.parametrize("group", [1, 2])
def test_missed_is_the_error_measured_from_the_composite(kit, case, group):
    scheme, kernel, ranks = case
    weight = np.random.default_rng(1).standard_normal((12 * group, 8, *kernel))
    weight[:12] *= 7  # the groups differ in scale
    layer = kit.Model(weight, (9,) * len(kernel), group=group).layer()
    moments = kit.moments_of(layer)
    candidate = kit.candidate(layer, scheme, ranks, moments)
    composites = candidate.realised.factored.composite
    energies = np.array([m.energy.sum() for m in moments])
    errors = np.array([m.error(c) for m, c in zip(moments, composites, strict=True)])
    measured = np.sqrt(np.sum(errors**2 * energies) / energies.sum())
    made = candidate.workshop.decomposition(layer, scheme)
    claimed = np.sqrt(made.missed(ranks) / energies.sum())
    assert 1e-3 < measured < 1
    if scheme.iterative:  # priced by a short fit, which the real one may only undercut
        assert 0.5 * claimed < measured <= claimed * (1 + 1e-6)
    else:
        assert claimed == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("group", "block"), [(1, 4), (2, 8)])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5)])
def test_the_menu_tells_the_truth(kit, kernel, group, block, geometry):
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((20 * group, 16, *kernel)).astype(np.float32)
    weight[:20] *= 7  # the groups differ in scale
    model = kit.Model(weight, (13, 14), bias=False, group=group, **geometry)
    offered, _ = menu_of(kit, model, block)
    expected = {s.name for s in QUICK if kernel == (5, 5) or not s.iterative}
    assert expected - {c.rewrite for c in offered} <= {*DECOUPLED, "spatial-transposed"}
    scope, before = model.scope(), kit.counted(model.proto())
    for candidate in offered:
        assert candidate.macs_ratio < WORTHWHILE_MACS_RATIO
        if candidate.rewrite not in DECOUPLED:
            assert all(rank % block == 0 and rank > 0 for rank in candidate.ranks)
        assert tuple(candidate.options.values()) == candidate.ranks
        realised = candidate.realised
        after = kit.counted(kit.rewritten(scope, realised))
        assert candidate.macs_ratio == pytest.approx(after.macs / before.macs, rel=1e-12)
        assert candidate.parameters_ratio == pytest.approx(
            after.parameters / before.parameters, rel=1e-12
        )
        made = np.concatenate(realised.factored.composite).reshape(weight.shape)
        measured = kit.distance(weight, made)
        if candidate.scheme.iterative:
            assert measured <= candidate.error * (1 + 1e-6)
        else:
            assert candidate.error == pytest.approx(measured, rel=1e-4)


def structure_of(proto):
    """Operators, attributes and shapes of constants: all that a time depends on."""
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    return [
        (
            node.op_type,
            sorted(attribute.SerializeToString() for attribute in node.attribute),
            [shapes.get(name) for name in node.input],
        )
        for node in proto.graph.node
    ]


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sketch_has_the_structure_of_what_is_fitted(kit, case, group, bias):
    scheme, kernel, ranks = case
    weight = np.random.default_rng(1).standard_normal((160 * group, 8, *kernel))
    model = kit.Model(weight.astype(np.float32), (9,) * len(kernel), group=group, bias=bias)
    layer, scope = model.layer(), model.scope()
    candidate = kit.candidate(layer, scheme, ranks, kit.moments_of(layer))
    sketch = kit.rewritten(scope, candidate.sketch)
    assert structure_of(sketch) == structure_of(kit.rewritten(scope, candidate.realised))
    for array in kit.weights(sketch):
        assert array.std() > 0.05
        assert np.abs(array).min() > np.finfo(np.float32).tiny
    (answer,) = kit.run(sketch, model.feeds())
    assert 0.05 < answer.std() < 20


def test_a_sketch_asks_for_no_fit(kit, case, monkeypatch):
    scheme, kernel, ranks = case
    weight = np.random.default_rng(1).standard_normal((12, 8, *kernel))
    candidate = kit.candidate(kit.Model(weight, (9,) * len(kernel)).layer(), scheme, ranks)

    def refuse(*_):
        raise AssertionError("taken apart")

    monkeypatch.setattr(Workshop, "decomposition", refuse)
    assert candidate.sketch.factored.rows == candidate.rows


@pytest.mark.parametrize(
    ("kernel", "size", "geometry"),
    [
        ((), (), {}),
        ((1, 1), (9, 8), {"strides": (2, 1)}),
        ((5,), (31,), {"strides": (2,), "pads": (3, 1)}),
        ((3, 3, 3), (7, 8, 9), {"strides": (2, 1, 1), "pads": (1, 0, 2, 0, 1, 1)}),
    ],
)
def test_costs_of_other_layers(kit, kernel, size, geometry):
    weight = np.random.default_rng(0).standard_normal((24, 32, *kernel)).astype(np.float32)
    model = kit.Model(weight, size, batch=3, **geometry)
    offered, _ = menu_of(kit, model, 8)
    scope, before = model.scope(), kit.counted(model.proto())
    schemes = {"output-bottleneck"}
    if len(kernel) in (1, 3):
        schemes |= {"input-bottleneck", "two-sided", *DECOUPLED}
    assert {candidate.rewrite for candidate in offered} == schemes
    for candidate in offered:
        after = kit.counted(kit.rewritten(scope, candidate.realised))
        assert candidate.macs_ratio == pytest.approx(after.macs / before.macs)
        assert candidate.parameters_ratio == pytest.approx(after.parameters / before.parameters)


@pytest.mark.parametrize(
    ("scheme", "outputs"), [(InputBottleneck(), 1), (TwoSided(), 2), (Spatial(0), 2)]
)
def test_no_more_channels_between_than_the_weight_has_rank(kit, scheme, outputs):
    # A padded map of one pixel makes ranks look cheap that the weight does not have.
    weight = np.random.default_rng(0).standard_normal((outputs, 64, 3, 3)).astype(np.float32)
    layer = kit.Model(weight, (1, 1), pads=(2, 2, 2, 2)).layer()
    made = scheme.decompose(layer, [weight.reshape(outputs, -1)], identity_moments(layer), 1)
    limit = outputs * (3 if isinstance(scheme, Spatial) else 9)
    assert max(ranks[0] for ranks in made.offered) == limit


@pytest.mark.parametrize("limit", [0, 3, 4, 5, 63, 64, 700])
@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("most", [2, 8, 16])
def test_multiples(limit, block, most):
    found = multiples(limit, block, most)
    assert len(found) == min(limit // block, most)
    assert list(found) == sorted(set(found))
    assert all(rank % block == 0 and 0 < rank <= limit for rank in found)
    if found:
        assert (found[0], found[-1]) == (block, limit // block * block)


def applies(kernel, outputs=8):
    """Names of the schemes that take a kernel of this size."""
    names = {
        "output-bottleneck": outputs > 1,
        "input-bottleneck": np.prod(kernel) > 1,
        "two-sided": np.prod(kernel) > 1,
        "decoupled": np.prod(kernel) > 1,
        "decoupled-pointwise-first": np.prod(kernel) > 1,
        "spatial": len(kernel) == 2 and min(kernel) > 1,
        "spatial-transposed": len(kernel) == 2 and min(kernel) > 1,
        "kernel-pair": kernel in ((5, 5), (7, 7)),
    }
    return {name for name, yes in names.items() if yes}


@pytest.mark.parametrize(
    "kernel",
    [(), (1,), (3,), (1, 1), (1, 3), (3, 3), (5, 5), (7, 7), (5, 3), (9, 9), (1, 1, 1), (5, 5, 5)],
    ids=str,
)
@pytest.mark.parametrize("outputs", [1, 8])
def test_which_schemes_apply(kit, kernel, outputs):
    weight = np.random.default_rng(0).standard_normal((outputs, 4, *kernel)).astype(np.float32)
    layer = kit.Model(weight, (9,) * len(kernel)).layer()
    reasons = {scheme.name: scheme.applies(layer) for scheme in APPROXIMATE}
    assert {name for name, why in reasons.items() if why is None} == applies(kernel, outputs)
    assert all(why is None or len(why) > 10 for why in reasons.values())


@pytest.mark.parametrize("scheme", [InputBottleneck(), OutputBottleneck(), KernelChain()])
def test_declined_where_no_rank_saves_anything(kit, scheme):
    weight = np.random.default_rng(0).standard_normal((4, 2, 5, 5)).astype(np.float32)
    offered, declined = menu_of(kit, kit.Model(weight, (9, 9)), 8, [scheme])
    assert not offered
    (decline,) = declined
    assert (decline.rewrite, decline.site) == (scheme.name, ("layer",))
    assert decline.reason == "2 -> 4 channels: no rank saves multiplications"


def test_a_layer_that_answers_nothing_is_declined(kit):
    weight = np.zeros((8, 8, 3, 3), np.float32)
    weight[0, 0, 0, 0] = 1
    layer = kit.Model(weight, (9, 9)).layer()
    dead = Moments(np.zeros((72, 72)), np.zeros((8, 72)), np.zeros(8), np.ones(72), np.ones(8), 9)
    offered, declined = Workshop({layer.name: [dead]}, 4).menu(layer, APPROXIMATE)
    assert not offered
    assert [d.reason for d in declined] == ["the layer answers nothing but its bias"]


@pytest.mark.parametrize("kernel", [(5, 5), (7, 7)], ids=str)
def test_a_group_that_answers_nothing_is_no_obstacle(kit, kernel):
    weight = np.random.default_rng(0).standard_normal((16, 8, *kernel)).astype(np.float32)
    weight[8:] = 0
    offered, _ = menu_of(kit, kit.Model(weight, (9, 9), group=2), 4)
    assert {candidate.rewrite for candidate in offered} == applies(kernel)
    for candidate in offered:
        assert np.isfinite(candidate.error)


@pytest.mark.parametrize("scale", [300.0, 1e-4])
def test_errors_of_float16_groups_are_weighed_in_float64(kit, scale):
    # The sum of squares of these weights is beyond float16, above or below.
    weight = np.random.default_rng(0).standard_normal((16, 8, 5, 5))
    wide, _ = menu_of(kit, kit.Model(weight.astype(np.float32), (9, 9), group=2), 4)
    narrow, _ = menu_of(kit, kit.Model((weight * scale).astype(np.float16), (9, 9), group=2), 4)
    for one, other in zip(wide, narrow, strict=True):
        assert (one.rewrite, one.ranks) == (other.rewrite, other.ranks)
        assert other.error == pytest.approx(one.error, rel=1e-2)


@pytest.mark.parametrize("scheme", [Decoupled(), DecoupledPointwiseFirst()])
def test_decoupled_offers_fewer_terms_than_taps(kit, scheme):
    weight = np.random.default_rng(0).standard_normal((16, 8, 3)).astype(np.float32)
    layer = kit.Model(weight, (9,)).layer()
    made = scheme.decompose(layer, [weight.reshape(16, -1)], identity_moments(layer), 8)
    assert made.offered == ((1,), (2,))


@pytest.mark.parametrize(("scheme", "terms"), [(Decoupled(), 4), (DecoupledPointwiseFirst(), 3)])
def test_decoupled_at_full_rank_is_the_layer(kit, scheme, terms):
    """As many terms as taps; or as input channels, which are fewer here."""
    weight = np.random.default_rng(0).standard_normal((16, 3, 2, 2)).astype(np.float32)
    model = kit.Model(weight, (9, 9), pads=(1, 0, 0, 1))
    layer = model.layer()
    full = kit.candidate(layer, scheme, (terms,), kit.moments_of(layer))
    less = kit.candidate(layer, scheme, (terms - 1,), kit.moments_of(layer))
    same, other = (kit.distance(weight.reshape(16, -1), c.realised.factored.composite[0])
                   for c in (full, less))  # fmt: skip
    assert same < 1e-5
    assert other > 0.01
