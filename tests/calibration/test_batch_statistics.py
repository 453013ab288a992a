"""Channel moments from batch normalizations: rules, whole paths, and the layers' moments."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import build, listed

from graphopt.calibration.batch_statistics import (
    ChannelMoments,
    channel_moments,
    recorded_moments,
    with_means,
)
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import bind_inputs, infer
from graphopt.planning.workshop import identity_moments
from graphopt.rewrites import all_rewrites
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.scheme import Scheme
from graphopt.rewrites.base import ApproximateRewrite
from graphopt.rewrites.driver import always
from graphopt.rewrites.ledger import Permit
from graphopt.rewriting import rewrite_exactly

C = 3
STATS = {
    "gamma": np.float32([0.5, -2.0, 1.0]),
    "beta": np.float32([0.3, -0.5, 2.0]),
    "mu": np.float32([1.0, 2.0, -3.0]),
    "var": np.float32([1.0, 4.0, 0.25]),
}
MEAN, VARIANCE = STATS["beta"].astype(float), STATS["gamma"].astype(float) ** 2
NORM = "h = BatchNormalization<epsilon=0.0>(x, gamma, beta, mu, var)"


def scope_of(body, opset=17, head="float[2,3,4,6] x", **weights):
    graph = f"g ({head}) => (float[a,b,c,d] y) {{ {NORM} {body} }}"
    proto = build(graph, opset=opset, weights={**STATS, **weights})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = ir.from_proto(proto)
    return Scope(model, model.graph, infer(model, bind_inputs(model.graph, {})))


def check(found, mean, variance):
    assert found is not None
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5, atol=1e-6)


def ints(*numbers):
    return np.asarray(numbers, np.int64)


def test_a_norm_knows_its_input_and_its_output():
    known = channel_moments(scope_of("y = Identity(h)"))
    check(known["h"], MEAN, VARIANCE)
    check(known["x"], STATS["mu"], STATS["var"])


def test_epsilon_takes_its_share():
    proto = build(
        "g (float[1,3,2,2] x) => (float[1,3,2,2] y)"
        "{ y = BatchNormalization<epsilon=1.0>(x, gamma, beta, mu, var) }",
        weights=STATS,
    )
    model = ir.from_proto(proto)
    check(
        channel_moments(Scope(model, model.graph))["y"],
        MEAN,
        VARIANCE * STATS["var"] / (STATS["var"] + 1),
    )


def test_statistics_count_even_where_a_caller_may_override_them():
    proto = build(
        "g (float[1,3,2,2] x) => (float[1,3,2,2] y)"
        "{ y = BatchNormalization<epsilon=0.0>(x, gamma, beta, mu, var) }",
        weights=STATS,
    )
    model = ir.from_proto(listed(proto))
    check(channel_moments(Scope(model, model.graph))["y"], MEAN, VARIANCE)


KEPT = {
    "identity": ("y = Identity(h)", 17, {}),
    "dropout": ("y = Dropout(h)", 12, {}),
    "max_pool": ("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h)", 17, {}),
    "slice": ("y = Slice(h, s, e, a)", 17, {"s": ints(1), "e": ints(9), "a": ints(2)}),
    "pad": ("y = Pad(h, p)", 17, {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
    "reshape": ("y = Reshape(h, s)", 17, {"s": ints(2, 3, 24)}),
    "clip_nothing": ("y = Clip(h)", 17, {}),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case):
    body, opset, weights = KEPT[case]
    check(channel_moments(scope_of(body, opset, **weights))["y"], MEAN, VARIANCE)


ONE = np.float32([1, 2, 3]).reshape(3, 1, 1)
LINEAR = {
    "add_constant": ("y = Add(h, c)", {"c": ONE}, MEAN + ONE.reshape(-1), VARIANCE),
    "sub_from_scalar": ("y = Sub(c, h)", {"c": np.float32(1)}, 1 - MEAN, VARIANCE),
    "mul_constant": ("y = Mul(c, h)", {"c": ONE}, MEAN * [1, 2, 3], VARIANCE * [1, 4, 9]),
    "div_constant": ("y = Div(h, c)", {"c": np.float32(2)}, MEAN / 2, VARIANCE / 4),
    "add": (
        "k = Mul(h, c) y = Add(h, k)",
        {"c": np.float32(3)},
        4 * MEAN,
        10 * VARIANCE,
    ),
    "concat": (
        "k = Mul(h, c) y = Concat<axis=1>(h, k)",
        {"c": np.float32(3)},
        np.concatenate([MEAN, 3 * MEAN]),
        np.concatenate([VARIANCE, 9 * VARIANCE]),
    ),
    "pad_channels": (
        "y = Pad(h, p)",
        {"p": ints(0, 1, 0, 0, 0, 2, 0, 0)},
        [0, *MEAN, 0, 0],
        [0, *VARIANCE, 0, 0],
    ),
    "flatten": ("y = Flatten(h)", {}, np.repeat(MEAN, 24), np.repeat(VARIANCE, 24)),
    "global_average": (
        "y = GlobalAveragePool(h)",
        {},
        MEAN,
        VARIANCE * (0.5 + 0.5 / 24),
    ),
    "reduce_mean": (
        "y = ReduceMean<axes=[2,3], keepdims=0>(h)",
        {},
        MEAN,
        VARIANCE * (0.5 + 0.5 / 24),
    ),
    "average": (
        "y = AveragePool<kernel_shape=[2,2]>(h)",
        {},
        MEAN,
        VARIANCE * (0.5 + 0.5 / 4),
    ),
}


@pytest.mark.parametrize("case", LINEAR)
def test_linear(case):
    body, weights, mean, variance = LINEAR[case]
    check(channel_moments(scope_of(body, **weights))["y"], mean, variance)


NONLINEAR = {
    "relu": ("y = Relu(h)", {}, lambda x: np.maximum(x, 0)),
    "relu6": (
        "y = Clip(h, a, b)",
        {"a": np.float32(0), "b": np.float32(6)},
        lambda x: np.clip(x, 0, 6),
    ),
    "leaky": ("y = LeakyRelu<alpha=0.2>(h)", {}, lambda x: np.where(x > 0, x, 0.2 * x)),
    "silu": ("s = Sigmoid(h) y = Mul(h, s)", {}, lambda x: x / (1 + np.exp(-x))),
    "hard_swish": ("y = HardSwish(h)", {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "hard_gate": (
        "s = HardSigmoid<alpha=0.25>(h) y = Mul(s, h)",
        {},
        lambda x: x * np.clip(0.25 * x + 0.5, 0, 1),
    ),
}


@pytest.mark.parametrize("case", NONLINEAR)
def test_nonlinear(case):
    body, weights, function = NONLINEAR[case]
    found = channel_moments(scope_of(body, **weights))["y"]
    noise = np.random.default_rng(1).standard_normal((500_000, C))
    y = function(MEAN + np.sqrt(VARIANCE) * noise)
    np.testing.assert_allclose(found.mean, y.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(found.variance, y.var(axis=0), atol=0.06)


UNKNOWN = {
    "an input": "y = Conv(x2, w)",
    "a convolution without a norm": "y = Conv(h, w)",
    "an operator without a rule": "s = Softmax<axis=1>(h) y = Relu(s)",
    "a sum with something unknown": "y = Add(h, x2)",
    "a constant that differs along the map": "y = Mul(h, c)",
    "channels that move": "y = Transpose<perm=[0,2,3,1]>(h)",
    "a concatenation along the map": "y = Concat<axis=2>(h, h)",
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown(case):
    c = np.arange(6, dtype=np.float32)
    w = np.ones((2, 3, 1, 1), np.float32)
    head = "float[2,3,4,6] x, float[2,3,4,6] x2"
    assert "y" not in channel_moments(scope_of(UNKNOWN[case], head=head, c=c, w=w))


NET = """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1)
    n1 = BatchNormalization(c1, gamma1, beta1, mu1, var1)
    r1 = Relu(n1)
    c2 = Conv<pads=[1,1,1,1], group=2>(r1, w2, b2)
    n2 = BatchNormalization(c2, gamma2, beta2, mu2, var2)
    y = Add(n2, n1)
}"""


@pytest.fixture
def net():
    rng = np.random.default_rng(3)
    weights = {"b2": rng.standard_normal(4), "w1": rng.standard_normal((4, 3, 3, 3))}
    weights["w2"] = rng.standard_normal((4, 2, 3, 3))
    for i in (1, 2):
        weights |= {f"{n}{i}": rng.standard_normal(4) for n in ("gamma", "beta", "mu")}
        weights[f"var{i}"] = rng.uniform(0.5, 2, 4)
    proto = build(NET, weights={k: v.astype(np.float32) for k, v in weights.items()})
    model = ir.from_proto(proto)
    infos = infer(model, bind_inputs(model.graph, {}))
    exact = [r for r in all_rewrites() if not isinstance(r, ApproximateRewrite | Scheme)]
    done = rewrite_exactly(model, exact, infos, always, Permit())
    assert "BatchNormalization" not in [node.op_type for node in done.model.graph]
    found = [Layer.of(node, done.scope) for node in done.scope.graph]
    layers = [layer for layer in found if isinstance(layer, Layer)]
    return Scope(model, model.graph, infos), done.scope, layers


def test_layers_of_a_fused_network_find_what_they_see(net):
    original, rewritten, layers = net
    seen = recorded_moments(original, rewritten, layers)
    assert [layer.name in seen for layer in layers] == [False, True]
    check(
        seen[layers[1].name],
        channel_moments(original)["r1"].mean,
        channel_moments(original)["r1"].variance,
    )


def test_moments_of_layers(net):
    original, rewritten, layers = net
    alone = {layer.name: identity_moments(layer) for layer in layers}
    found = with_means(layers, alone, recorded_moments(original, rewritten, layers))
    first, second = layers
    assert found[first.name] == alone[first.name]
    assert len(found[second.name]) == 2
    mean = channel_moments(original)["r1"].mean
    for index, (moments, weight) in enumerate(
        zip(found[second.name], second.groups(), strict=True)
    ):
        part = slice(2 * index, 2 * index + 2)
        np.testing.assert_allclose(moments.mean_input, np.repeat(mean[part], 9))
        wanted = weight.sum(axis=(2, 3)) @ mean[part] + second.bias[part]
        np.testing.assert_allclose(moments.mean_output, wanted, rtol=1e-6)
        # The whole weight keeps the bias it has; a lost weight leaves the mean answer.
        whole = weight.reshape(2, -1)
        np.testing.assert_allclose(moments.bias(whole), second.bias[part], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(moments.bias(0 * whole), wanted, rtol=1e-6)
        assert moments.samples == 0
        np.testing.assert_array_equal(moments.gram, np.eye(18))


def test_statistics_of_another_width_are_not_used(net):
    original, rewritten, layers = net
    wrong = {"r1": ChannelMoments(np.zeros(5), np.ones(5))}
    assert len(channel_moments(original, wrong)["r1"].mean) == 5
    assert recorded_moments(rewritten, rewritten, layers) == {}
