"""Deformable convolutions: 1x1 bottlenecks commute with sampling, nothing else does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.calibration.accumulate import Accumulator
from graphopt.calibration.patches import by_group, sampled_patches
from graphopt.cost.counts import macs
from graphopt.evidence import geometry_of
from graphopt.planning.menus import layers_of
from graphopt.planning.workshop import Workshop, identity_moments
from graphopt.rewrites import APPROXIMATE
from graphopt.rewrites.approximate.decoupled import Decoupled
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.kernel_chain import KernelChain
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.output_bottleneck import OutputBottleneck
from graphopt.rewrites.approximate.spatial import Spatial
from graphopt.rewrites.approximate.structure import cost
from graphopt.rewrites.approximate.two_sided import TwoSided

BOTTLENECKS = {
    "input-bottleneck": InputBottleneck(),
    "output-bottleneck": OutputBottleneck(),
    "two-sided": TwoSided(),
}


@dataclass(frozen=True)
class Deformed:
    """One DeformConv x -> y with offsets o and mask m, all fed. shape: of the weight, [O, C/g, kh, kw]."""

    shape: tuple[int, ...]
    size: tuple[int, int] = (6, 5)
    group: int = 1
    offset_group: int = 1
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, ...] = (1, 1, 1, 1)
    bias: bool = True
    mask: bool = True
    batch: int = 2
    opset: int = 19
    dtype: Any = np.float32
    reach: float = 1.5
    seed: int = 0

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(
            (self.size[a] + self.pads[a] + self.pads[a + 2] - self.dilations[a] * (k - 1) - 1)
            // self.strides[a]
            + 1
            for a, k in enumerate(self.shape[2:])
        )

    def feeds(self, seed: int = 7) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        taps = self.offset_group * int(np.prod(self.shape[2:]))
        x = rng.standard_normal((self.batch, self.shape[1] * self.group, *self.size))
        offsets = self.reach * rng.standard_normal((self.batch, 2 * taps, *self.out))
        found = {"x": x, "o": offsets}
        if self.mask:
            found["m"] = rng.uniform(0, 1, (self.batch, taps, *self.out))
        return {name: array.astype(self.dtype) for name, array in found.items()}

    @property
    def weight(self) -> Any:
        drawn = np.random.default_rng(self.seed).standard_normal(self.shape)
        return drawn.astype(self.dtype)

    def proto(self, weight: Any = None) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        constants = {"w": self.weight if weight is None else weight}
        operands = ["x", "w", "o"]
        if self.bias:
            constants["b"] = np.linspace(-1, 1, self.shape[0]).astype(self.dtype)
        if self.bias or self.mask:
            operands.append("b" if self.bias else "")
        if self.mask:
            operands.append("m")
        names = ("group", "offset_group", "strides", "dilations", "pads")
        attributes = {name: getattr(self, name) for name in names}
        node = helper.make_node("DeformConv", operands, ["y"], name="layer", **attributes)
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info(n, kind, a.shape) for n, a in self.feeds().items()],
            [helper.make_tensor_value_info("y", kind, [None] * 4)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[opset], ir_version=9)

    def scope(self, kit: Any) -> Any:
        return kit.scope_of(self.proto())

    def layer(self, kit: Any) -> Layer:
        scope = self.scope(kit)
        found = Layer.of(kit.node_of(scope), scope)
        assert isinstance(found, Layer), found
        return found


def full(layer: Layer, name: str) -> tuple[int, ...]:
    """The ranks at which a bottleneck is no approximation."""
    ranks = {"input-bottleneck": (layer.inputs,), "output-bottleneck": (layer.outputs,)}
    return ranks.get(name, (layer.inputs, layer.outputs))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_bottlenecks_of_full_rank_are_the_operator(kit, data):
    """Zeros outside commute too: a mix without bias keeps them."""
    name = data.draw(st.sampled_from(sorted(BOTTLENECKS)))
    group, offset_group = data.draw(
        st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (2, 4), (4, 2)])
    )
    kernel = data.draw(st.sampled_from([(3, 3), (1, 3), (2, 2), (1, 1)]))
    assume(name == "output-bottleneck" or kernel != (1, 1))
    model = Deformed(
        shape=(8, 8 // group, *kernel),
        group=group,
        offset_group=offset_group,
        strides=data.draw(st.sampled_from([(1, 1), (2, 1), (2, 3)])),
        dilations=data.draw(st.sampled_from([(1, 1), (2, 1)])),
        pads=data.draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 1)])),
        bias=data.draw(st.booleans()),
        mask=data.draw(st.booleans()),
        reach=data.draw(st.sampled_from([0.0, 1.5, 8.0])),
        opset=data.draw(st.sampled_from([19, 22])),
    )
    layer = model.layer(kit)
    realised = kit.candidate(layer, BOTTLENECKS[name], full(layer, name)).realised
    optimized = kit.rewritten(model.scope(kit), realised)
    assert len(optimized.graph.node) == (3 if name == "two-sided" else 2)
    before = kit.run(model.proto(), model.feeds())[0]
    assert kit.distance(before, kit.run(optimized, model.feeds())[0]) < 1e-5


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    parts=st.sampled_from([1, 2, 4]),
    pads=st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (3, 0, 0, 2)]),
    reach=st.sampled_from([0.0, 0.7, 4.0, 30.0]),
)
def test_mixing_commutes_with_sampling(kit, parts, pads, reach):
    """The property itself: DeformConv(W, A x) = DeformConv(W A, x), whatever lies outside."""
    model = Deformed((3, 8, 3, 3), offset_group=parts, pads=pads, reach=reach, bias=False)
    rng = np.random.default_rng(1)
    mix = np.zeros((8, 8))
    for part in np.split(np.arange(8), parts):
        mix[np.ix_(part, part)] = rng.standard_normal((len(part), len(part)))
    feeds = model.feeds()
    mixed = feeds | {"x": np.einsum("dc,nchw->ndhw", mix, feeds["x"]).astype(np.float32)}
    weight = np.einsum("odhw,dc->ochw", model.weight, mix).astype(np.float32)
    want = kit.run(model.proto(weight), feeds)[0]
    assert kit.distance(want, kit.run(model.proto(), mixed)[0]) < 2e-5


def test_mixing_across_offset_groups_does_not_commute(kit):
    """Why the 1x1 convolution has to be a grouped one."""
    model = Deformed((3, 8, 3, 3), offset_group=2, bias=False)
    mix = np.random.default_rng(1).standard_normal((8, 8))
    feeds = model.feeds()
    mixed = feeds | {"x": np.einsum("dc,nchw->ndhw", mix, feeds["x"]).astype(np.float32)}
    weight = np.einsum("odhw,dc->ochw", model.weight, mix).astype(np.float32)
    want = kit.run(model.proto(weight), feeds)[0]
    assert kit.distance(want, kit.run(model.proto(), mixed)[0]) > 0.1


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_what_is_written(kit, name):
    model = Deformed(
        (16, 8, 3, 2), group=2, offset_group=4, strides=(2, 1), dilations=(1, 2), pads=(1, 0, 0, 1)
    )
    layer = model.layer(kit)
    assert layer.apart == 2
    ranks = {"input-bottleneck": (4,), "output-bottleneck": (4,)}.get(name, (4, 4))
    optimized = kit.rewritten(
        model.scope(kit), kit.candidate(layer, BOTTLENECKS[name], ranks).realised
    )
    nodes = list(optimized.graph.node)
    kinds = {
        "input-bottleneck": ["Conv", "DeformConv"],
        "output-bottleneck": ["DeformConv", "Conv"],
        "two-sided": ["Conv", "DeformConv", "Conv"],
    }
    assert [node.op_type for node in nodes] == kinds[name]
    sampling = nodes[kinds[name].index("DeformConv")]
    attributes = {a.name: helper.get_attribute_value(a) for a in sampling.attribute}
    assert attributes == {
        "kernel_shape": [3, 2], "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 0, 1],
        "group": 2, "offset_group": 4,
    }  # fmt: skip
    assert (sampling.input[2], sampling.input[4]) == ("o", "m")
    assert bool(sampling.input[3]) == (name == "input-bottleneck")  # the bias: on the last stage
    if kinds[name][0] == "Conv":
        assert [a.i for a in nodes[0].attribute if a.name == "group"] == [4]
        assert len(nodes[0].input) == 2
    if kinds[name][-1] == "Conv":
        assert [a.i for a in nodes[-1].attribute if a.name == "group"] == [2]
        assert len(nodes[-1].input) == 3


def test_without_a_mask_and_bias_nothing_is_made_up(kit):
    model = Deformed((8, 8, 3, 3), bias=False, mask=False)
    layer = model.layer(kit)
    optimized = kit.rewritten(
        model.scope(kit), kit.candidate(layer, InputBottleneck(), (4,)).realised
    )
    assert len(optimized.graph.node[1].input) == 3


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Deformed((8, 8, 3, 3), dtype=np.float64), "float64"),
        (Deformed((8, 1, 3, 3), group=8), "depthwise"),
    ],
)
def test_no_layer(kit, model, reason):
    scope = model.scope(kit)
    assert reason in Layer.of(kit.node_of(scope), scope)


@pytest.mark.parametrize(
    ("shape", "groups", "apart", "reason"),
    [
        ((6, 6, 3, 3), (1, 1), 1, None),
        ((6, 3, 3, 3), (2, 1), 1, None),
        ((6, 3, 3, 3), (2, 2), 1, None),
        ((8, 2, 3, 3), (4, 2), 1, None),
        ((6, 6, 3, 3), (1, 3), 3, None),
        ((6, 6, 3, 3), (1, 6), 6, "sampled at positions of its own"),
        ((6, 3, 3, 3), (2, 6), 3, "sampled at positions of its own"),
        ((6, 3, 3, 3), (2, 3), 0, "overlap"),
        ((6, 4, 3, 3), (3, 2), 0, "overlap"),
    ],
)
def test_groups_and_offset_groups(kit, shape, groups, apart, reason):
    layer = Deformed(shape, group=groups[0], offset_group=groups[1]).layer(kit)
    assert layer.apart == apart
    for scheme in (InputBottleneck(), TwoSided()):
        found = scheme.applies(layer)
        assert (found is None) if reason is None else (reason in found)
    assert OutputBottleneck().applies(layer) is None


@pytest.mark.parametrize("scheme", [Spatial(0), Spatial(1), KernelChain()])
def test_what_takes_the_kernel_apart_is_never_offered(kit, scheme):
    """Offsets move the taps of the whole kernel; its factors have none of their own."""
    layer = Deformed((16, 16, 5, 5), pads=(2, 2, 2, 2)).layer(kit)
    offered, declined = Workshop({layer.name: identity_moments(layer)}, 4).menu(layer, [scheme])
    assert offered == []
    assert [decline.rewrite for decline in declined] == [scheme.name]
    assert declined[0].reason.startswith("deformable")


def test_decoupled_samples_once_a_term(kit):
    """Depthwise sampling, then a pointwise convolution: the algebra holds for it as well."""
    model = Deformed((8, 8, 2, 2), offset_group=2)
    layer = model.layer(kit)
    optimized = kit.rewritten(model.scope(kit), kit.candidate(layer, Decoupled(), (4,)).realised)
    kinds = [node.op_type for node in optimized.graph.node]
    assert sorted(kinds) == ["Add"] * 3 + ["Conv"] * 4 + ["DeformConv"] * 4
    before = kit.run(model.proto(), model.feeds())[0]
    assert kit.distance(before, kit.run(optimized, model.feeds())[0]) < 1e-5


@pytest.mark.parametrize("groups", [(1, 1), (2, 2), (1, 2)])
def test_costs(kit, groups):
    """Multiplications as a convolution's; sampling is not counted."""
    model = Deformed((32, 32 // groups[0], 3, 3), group=groups[0], offset_group=groups[1])
    scope, layer = model.scope(kit), model.layer(kit)
    before = macs(kit.node_of(scope), scope.infos)
    assert before == model.batch * 32 * 30 * 32 // groups[0] * 9
    offered, _ = Workshop({layer.name: identity_moments(layer)}, 8).menu(
        layer, list(BOTTLENECKS.values())
    )
    assert {candidate.rewrite for candidate in offered} == set(BOTTLENECKS)
    for candidate in offered:
        after = kit.scope_of(kit.rewritten(scope, candidate.realised))
        counted = sum(macs(node, after.infos) for node in after.graph)
        assert candidate.macs_ratio == pytest.approx(counted / before)
        stored = sum(v.const_value.size for v in after.graph.initializers.values())
        stored -= layer.bias.size
        assert candidate.parameters_ratio == pytest.approx(stored / layer.weight.size)


def test_a_row_without_its_sampling_stage_costs_no_end(kit):
    layer = Deformed((8, 8, 3, 3)).layer(kit)
    (row,) = kit.candidate(layer, InputBottleneck(), (4,)).rows
    assert cost(layer, (row,))[0] < 1
    assert cost(layer, (row[:1],)) == (np.inf, np.inf)
    assert cost(layer, ((row[0], replace(row[1], kernel=(3, 1))),)) == (np.inf, np.inf)
    assert cost(layer, ((*row, row[1]),)) == (np.inf, np.inf)


@pytest.mark.parametrize("groups", [(1, 2), (2, 4), (2, 3)])
def test_a_row_that_mixes_what_is_sampled_apart_costs_no_end(kit, groups):
    layer = Deformed((12, 12 // groups[0], 3, 3), group=groups[0], offset_group=groups[1]).layer(
        kit
    )
    plain = Deformed((12, 12 // groups[0], 3, 3), group=groups[0]).layer(kit)
    (row,) = kit.candidate(plain, InputBottleneck(), (4,)).rows
    assert cost(plain, (row,))[0] < 1
    assert cost(layer, (row,)) == (np.inf, np.inf)
    (behind,) = kit.candidate(layer, OutputBottleneck(), (4,)).rows
    assert cost(layer, (behind,))[0] < 1


def smooth(rng, *shape):
    """Correlated, non-negative maps of different scales, like those behind a Relu."""
    noise = rng.standard_normal(shape)
    noise += np.roll(noise, 1, axis=-1) + np.roll(noise, 1, axis=-2)
    mixed = np.tensordot(rng.standard_normal((shape[1], shape[1])), noise, axes=(1, 1))
    scale = np.geomspace(2, 0.1, shape[1])[:, None, None]
    return np.maximum(mixed.swapaxes(0, 1) * scale + 0.3, 0).astype(np.float32)


def gathered(layer, feeds):
    """Moments of the layer on sampled patches at all positions."""
    geometry = geometry_of(layer)
    whole = (len(feeds["x"]), *feeds["o"].shape[2:])
    at = np.stack(np.unravel_index(np.arange(np.prod(whole)), whole), axis=1)
    seen = sampled_patches(feeds["x"], geometry, at, feeds["o"], feeds.get("m"))
    biases = np.split(layer.bias, layer.group)
    found = []
    for part, weight, bias in zip(by_group(seen, layer.group), layer.groups(), biases, strict=True):
        accumulator = Accumulator(part.shape[1], layer.outputs)
        answers = part @ weight.reshape(layer.outputs, -1).T + bias
        accumulator.add(part, answers.astype(np.float32), 1 << 20)
        found.append(accumulator.moments())
    return found


@pytest.mark.parametrize("name", BOTTLENECKS)
@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (1, 3), (2, 4)])
def test_the_error_promised_is_the_error_measured(kit, groups, name):
    model = Deformed(
        (24, 24 // groups[0], 3, 3), group=groups[0], offset_group=groups[1], batch=12
    )  # fmt: skip
    layer = model.layer(kit)
    feeds = model.feeds() | {"x": smooth(np.random.default_rng(0), 12, 24, *model.size)}
    workshop = Workshop({layer.name: gathered(layer, feeds)}, 4)
    offered, _ = workshop.menu(layer, [BOTTLENECKS[name]])
    y = kit.run(model.proto(), feeds)[0].astype(np.float64)
    spread = np.linalg.norm(y - y.mean(axis=(0, 2, 3), keepdims=True))
    assert offered
    for candidate in offered[:: max(1, len(offered) // 3)]:
        for realised in (candidate.realised, candidate.polished):
            optimized = kit.rewritten(model.scope(kit), realised)
            measured = np.linalg.norm(kit.run(optimized, feeds)[0] - y) / spread
            assert measured <= candidate.error * 1.01
        plain = kit.run(kit.rewritten(model.scope(kit), candidate.realised), feeds)[0]
        assert candidate.error == pytest.approx(np.linalg.norm(plain - y) / spread, rel=1e-2)


def test_all_schemes_find_something_to_say_of_it(kit):
    scope = Deformed((16, 16, 3, 3)).scope(kit)
    layers, declined = layers_of(scope, APPROXIMATE)
    assert [layer.deformable for layer in layers] == [True]
    assert declined == []
