"""`--ranks`: how it is read, which layer a name means, what ranks a layer takes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import build

from graphopt.errors import InputError
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import bind_inputs, infer
from graphopt.planning.ranks import Request, check_schemes, largest, parse, structures, usual
from graphopt.planning.workshop import Workshop, identity_moments
from graphopt.rewrites import APPROXIMATE
from graphopt.rewrites.approximate.decoupled_pointwise_first import DecoupledPointwiseFirst
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.kernel_chain import KernelChain
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.scheme import Scheme
from graphopt.rewrites.ledger import Applied

NAMES = [scheme.name for scheme in APPROXIMATE]

KERNELS = {"output-bottleneck": [(1, 1), (3, 5)], "kernel-pair": [(5, 5)]}
"""What a scheme is tried on, where that is not as for the others."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conv1=64", [("conv1", None, (64,))]),
        ("a=1,b=2", [("a", None, (1,)), ("b", None, (2,))]),
        (" a = 1 , b=2, ", [("a", None, (1,)), ("b", None, (2,))]),
        ("c=two-sided:64x32", [("c", "two-sided", (64, 32))]),
        ("c=two-sided:64X32", [("c", "two-sided", (64, 32))]),
        ("/features/0/Conv=64", [("/features/0/Conv", None, (64,))]),
        ("tower/Conv2D:0=64", [("tower/Conv2D:0", None, (64,))]),
        ("tower/Conv2D:0=spatial:8", [("tower/Conv2D:0", "spatial", (8,))]),
        ("a=b=64", [("a=b", None, (64,))]),
        ("a=b:c=spatial:64", [("a=b:c", "spatial", (64,))]),
        ("conv 1=64", [("conv 1", None, (64,))]),
        ("a,b=64", [("a,b", None, (64,))]),
        (
            "x=3,a,b=64,c=spatial:7",
            [("x", None, (3,)), ("a,b", None, (64,)), ("c", "spatial", (7,))],
        ),
        ("a=0", [("a", None, (0,))]),
    ],
)
def test_entries(text, expected):
    assert parse(text) == tuple(Request(*entry) for entry in expected)


@pytest.mark.parametrize("text", ["", " ", ",", ",,"])
def test_no_entries(text):
    with pytest.raises(InputError, match="names no layer"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1", "conv1"),
        ("64", "64"),
        ("=64", "=64"),
        ("a=", "a="),
        ("a=x", "a=x"),
        ("a=64x", "a=64x"),
        ("a=-5", "a=-5"),
        ("a=6.5", "a=6.5"),
        ("a=:64", "a=:64"),
        ("a=64,b", "b"),
        ("a=64;b", "a=64;b"),
        ("a=9999999999", "a=9999999999"),
    ],
)
def test_what_is_not_of_the_form(text, shown):
    with pytest.raises(InputError, match="is not of the form layer=rank") as error:
        parse(text)
    assert repr(shown) in str(error.value)


names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1).filter(
    lambda name: name == name.strip() and not name.startswith(",")
)
entries = st.tuples(
    names, st.none() | st.sampled_from(NAMES), st.lists(st.integers(0, 999), min_size=1, max_size=3)
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(entries, min_size=1, max_size=4))
def test_any_name_is_read_back(wanted):
    """But for one with an entry inside, which the form has no place for."""
    texts = [
        f"{name}={scheme + ':' if scheme else ''}{'x'.join(map(str, ranks))}"
        for name, scheme, ranks in wanted
    ]
    found = parse(",".join(texts))
    if len(found) == len(wanted):
        assert found == tuple(Request(n, s, tuple(r)) for n, s, r in wanted)
    else:
        assert any("," in name and "=" in name for name, _, _ in wanted)


def test_schemes_that_do_not_exist():
    check_schemes(parse("a=64,b=spatial:3"), NAMES)
    with pytest.raises(InputError, match=r"a: no scheme 'two_sided': did you mean two-sided\?"):
        check_schemes(parse("a=two_sided:3x3"), NAMES)
    with pytest.raises(InputError, match=r"no scheme 'svd': there are input-bottleneck, "):
        check_schemes(parse("a=svd:3"), NAMES)


NET = """
net (float[1,8,9,9] x) => (float[1,6] y)
<float[12,8,3,3] v, float[12,12,1,1] p, float[12,1,3,3] d, float[6,12,9,9] h, float[6,6] f>
{
    a = Conv <pads = [1,1,1,1]> (x, v)
    r = Relu (a)
    b = Conv (r, p)
    e = Conv <pads = [1,1,1,1], group = 12> (b, d)
    c = Conv (e, h)
    m = Flatten (c)
    y = MatMul (m, f)
}
"""


def scope_of(proto, **node_names):
    for node in proto.graph.node:
        node.name = node_names.get(node.output[0], "")
    model = ir.from_proto(proto)
    return Scope(model, model.graph, infer(model, bind_inputs(model.graph, {})))


@pytest.fixture
def scope():
    return scope_of(
        build(NET), a="conv=1:0", r="act", b="pointwise", e="depthwise", c="head", y="fc"
    )


def asked(text, scope, schemes=APPROXIMATE, original=None, applied=()):
    return structures(parse(text), scope, schemes, original or scope.graph, applied)


def found(text, scope, **more):
    return [(s.layer.name, s.scheme.name, s.ranks) for s in asked(text, scope, **more)]


class TestLayers:
    def test_by_node_or_by_output_and_in_the_order_of_the_graph(self, scope):
        assert found("fc=2,conv=1:0=3,b=4", scope) == [
            ("a", "input-bottleneck", (3,)),
            ("b", "output-bottleneck", (4,)),
            ("y", "output-bottleneck", (2,)),
        ]

    def test_the_usual_scheme(self, scope):
        """A convolution over the whole map is a fully connected layer."""
        (layer,) = (s.layer for s in asked("head=two-sided:2x2", scope))
        assert usual(layer) == "output-bottleneck"
        (layer,) = (s.layer for s in asked("a=1", scope))
        assert usual(layer) == "input-bottleneck"

    def test_a_padded_convolution_of_the_size_of_its_map_is_not_fully_connected(self):
        text = """
        net (float[1,8,3,3] x) => (y) <float[6,8,3,3] w> { y = Conv <pads = [1,1,1,1]> (x, w) }
        """
        assert found("y=4", scope_of(build(text))) == [("y", "input-bottleneck", (4,))]

    def test_a_transposed_convolution_of_the_size_of_its_map_is_not_fully_connected(self):
        text = """
        net (float[1,8,3,3] x) => (y) <float[8,6,3,3] w> { y = ConvTranspose (x, w) }
        """
        assert found("y=4", scope_of(build(text))) == [("y", "input-bottleneck", (4,))]

    def test_a_scheme_by_name(self, scope):
        assert found("a=spatial-transposed:5", scope) == [("a", "spatial-transposed", (5,))]

    def test_by_the_output_that_it_had_in_the_file(self, scope):
        """The node was fused with what followed it and kept its name."""
        before = scope_of(build(NET.replace(" a = Conv", " old = Conv").replace("(a)", "(old)")))
        for node in before.graph:
            node.name = "conv=1:0" if node.outputs[0].name == "old" else None
        assert found("old=3", scope, original=before.graph) == [("a", "input-bottleneck", (3,))]

    def test_a_node_of_another_kind_does_not_hide_a_layer(self, scope):
        next(n for n in scope.graph if n.name == "act").name = "b"
        assert found("b=3", scope) == [("b", "output-bottleneck", (3,))]

    @pytest.mark.parametrize("other", ["a", "conv=1:0"])
    def test_twice(self, scope, other):
        with pytest.raises(InputError, match=r"names the layer .* twice"):
            asked(f"a=3,b=2,{other}=spatial:3", scope)

    def test_two_of_the_same_name(self, scope):
        for node in scope.graph:
            if node.op_type == "Conv":
                node.name = "same"
        with pytest.raises(InputError, match=r"4 layers have this name: .* \(a, b, e, c\)"):
            asked("same=3", scope)
        assert found("a=3", scope)

    def test_one_that_cannot_be_factored(self, scope):
        with pytest.raises(InputError, match=r"depthwise: the layer cannot be factored: depthwise"):
            asked("depthwise=1", scope)

    def test_one_that_does_not_exist(self, scope):
        with pytest.raises(InputError) as error:
            asked("pointwize=3", scope)
        assert str(error.value) == (
            "--ranks: there is no layer 'pointwize'; there are, nearest first: "
            "pointwise, depthwise, conv=1:0, head, fc"
        )

    def test_no_more_than_a_few_are_listed(self):
        convs = "".join(f"c{i + 1} = Conv (c{i}, w) " for i in range(9))
        text = f"net (float[1,4,20,20] c0) => (c9) <float[4,4,3,3] w> {{ {convs} }}"
        with pytest.raises(InputError, match=r"nearest first: c5, (.*, ){4}c\d and 3 more$"):
            asked("c5x=2", scope_of(build(text)))

    def test_what_is_no_layer(self, scope):
        with pytest.raises(InputError, match=r"no layer 'act' \(it is a Relu\)"):
            asked("act=3", scope)

    def test_what_an_exact_rewrite_took_up(self, scope):
        gone = Applied(
            ("compose-convs",), "compose-convs", "exact", ("one", "conv=1:0"), {}, None, None
        )
        with pytest.raises(
            InputError, match=r"'one' any more \(compose-convs took up one \+ conv=1:0;"
        ):
            asked("one=3", scope, applied=(gone,))

    def test_several_layers_for_one_rank(self, scope):
        with pytest.raises(InputError, match=r"every layer needs a rank of its own \(a=64,b=64\)"):
            asked("a,b=3", scope)

    def test_a_model_without_layers(self):
        net = scope_of(build("net (float[1,4] x) => (y) { y = Relu (x) }"))
        with pytest.raises(InputError, match="no layer 'z', nor any other"):
            asked("z=3", net)


class TestRanks:
    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("a=0", "input-bottleneck takes rank 1 to 8 here, not 0"),
            ("a=9", "input-bottleneck takes rank 1 to 8 here, not 9"),
            ("a=two-sided:8x13", "two-sided takes rank_out 1 to 12 here, not 13"),
            ("a=two-sided:0x3", "two-sided takes rank_in 1 to 8 here, not 0"),
            ("a=decoupled:10", "decoupled takes terms 1 to 9 here, not 10"),
            ("fc=7", "output-bottleneck takes rank 1 to 6 here, not 7"),
            ("a=two-sided:8", r"two-sided takes 2 ranks (rank_in x rank_out), not 1"),
            ("a=8x8", "input-bottleneck takes one rank, not 2"),
            ("pointwise=spatial:3", "spatial does not apply: the kernel is not wider than one"),
            ("fc=input-bottleneck:3", "input-bottleneck does not apply: no kernel larger than 1x1"),
            ("a=kernel-pair:3", "kernel-pair does not apply: the kernel is not 5x5 or 7x7"),
        ],
    )
    def test_refused(self, scope, text, complaint):
        with pytest.raises(InputError) as error:
            asked(text, scope)
        assert complaint in str(error.value)

    @pytest.mark.parametrize(
        ("shape", "most"),
        [
            # inputs or outputs x taps of what stands on the other side, whichever is fewer
            (
                (2, 70, 3, 5),
                {"input-bottleneck": (30,), "output-bottleneck": (2,), "spatial": (10,)},
            ),
            (
                (70, 2, 3, 5),
                {"input-bottleneck": (2,), "output-bottleneck": (30,), "spatial": (6,)},
            ),
            (
                (70, 2, 3, 5),
                {"spatial-transposed": (10,), "two-sided": (2, 30), "decoupled": (15,)},
            ),
            ((2, 7, 5, 5), {"kernel-pair": (14,), "decoupled-pointwise-first": (7,)}),
        ],
    )
    def test_the_largest(self, shape, most):
        outputs, inputs, rows, columns = shape
        text = f"""
        net (float[1,{inputs},9,9] x) => (y) <float[{outputs},{inputs},{rows},{columns}] w>
        {{ y = Conv (x, w) }}
        """
        net = scope_of(build(text))
        layer = Layer.of(next(iter(net.graph)), net)
        schemes = {scheme.name: scheme for scheme in APPROXIMATE}
        assert {name: largest(schemes[name], layer) for name in most} == most

    def test_of_a_grouped_convolution_are_those_of_a_group(self):
        text = """
        net (float[1,8,9,9] x) => (y) <float[12,4,3,3] w> { y = Conv <group = 2> (x, w) }
        """
        grouped = scope_of(build(text))
        assert found("y=4", grouped)
        with pytest.raises(InputError, match="1 to 4 a group here, not 5"):
            asked("y=5", grouped)

    def test_of_a_deformable_convolution_are_multiples_of_its_offset_groups(self):
        text = """
        net (float[1,8,9,9] x, float[1,36,7,7] o) => (y) <float[12,8,3,3] w>
        { y = DeformConv <offset_group = 2> (x, w, o) }
        """
        deformable = scope_of(build(text, opset=19))
        assert found("y=4", deformable)
        with pytest.raises(InputError, match="is a multiple of 2, not 3"):
            asked("y=3", deformable)

    def test_of_a_scheme_that_is_not_known_are_those_it_offers(self, scope):
        class Plugged(Scheme):
            name = "plugged"

            def applies(self, layer):
                return None

            def decompose(self, layer, targets, moments, block):
                return InputBottleneck().decompose(layer, targets, moments, block)

        schemes = (*APPROXIMATE, Plugged())
        assert found("a=plugged:7", scope, schemes=schemes) == [("a", "plugged", (7,))]
        with pytest.raises(InputError, match="plugged takes rank 1 to 7 here, not 8"):
            asked("a=plugged:8", scope, schemes=schemes)

    def test_a_scheme_that_was_left_out(self, scope):
        with pytest.raises(InputError, match="a needs input-bottleneck, which --passes or --skip"):
            asked("a=3", scope, schemes=APPROXIMATE[1:])

    @pytest.mark.parametrize("shape", [(3, 2), (6, 5), (2, 7), (5, 1)])
    @pytest.mark.parametrize(
        ("scheme", "kernel"),
        [
            pytest.param(scheme, kernel, id=f"{scheme.name}-{kernel[0]}x{kernel[1]}")
            for scheme in APPROXIMATE
            for kernel in KERNELS.get(scheme.name, [(3, 5), (5, 5), (3, 3)])
        ],
    )
    def test_all_of_them_can_be_taken_and_the_largest_is_exact(self, scheme, shape, kernel):
        outputs, inputs = shape
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((outputs, inputs, *kernel)).astype(np.float32)
        text = f"""
        net (float[1,{inputs},9,9] x) => (y)
        <float[{outputs},{inputs},{kernel[0]},{kernel[1]}] w> {{ y = Conv (x, w) }}
        """
        net = scope_of(build(text, weights={"w": weight}))
        layer = Layer.of(next(iter(net.graph)), net)
        assert isinstance(layer, Layer)
        most = largest(scheme, layer)
        text = f"y={scheme.name}:{'x'.join(map(str, most))}"
        (scheme,) = (structure.scheme for structure in asked(text, net))
        made = Workshop({layer.name: identity_moments(layer)}, 4).decomposition(layer, scheme)
        assert len(most) == len(scheme.rank_names)
        for ranks in {tuple(min(r, m) for m in most) for r in (1, 2, 3, *most)}:
            (composite,) = made.factors(ranks).composite
            off = np.linalg.norm(composite.reshape(weight.shape) - weight) / np.linalg.norm(weight)
            assert off < 1 + 1e-9
            if ranks == most and not isinstance(scheme, KernelChain | DecoupledPointwiseFirst):
                assert off < 1e-6
