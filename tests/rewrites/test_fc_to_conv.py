"""fc-to-conv: which heads are recognised, what the layers become, and what must be declined."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build, has, listed, optimize, rewrite

from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.exact.fc_to_conv import FcToConv

CONVERT = FcToConv(gated=False)


def head(
    nodes: str,
    *,
    x: str = "2,3,4,5",
    k: int = 60,
    layer: str = "y = Gemm(f, w, b)",
    y: str = "2,6",
    opset: int = 17,
    weights: dict[str, object] | None = None,
) -> onnx.ModelProto:
    """x [N, C, H, W] -> nodes -> f [N, K] -> layer -> y [N, 6]."""
    return build(
        f"""net (float[{x}] x) => (float[{y}] y) <float[{k},6] w, float[6,{k}] wt, float[6] b>
        {{ {nodes} {layer} }}""",
        opset=opset,
        weights={name: np.asarray(array) for name, array in (weights or {}).items()},
    )


@pytest.mark.parametrize(
    "layer",
    [
        "y = Gemm(f, w, b)",
        "y = Gemm(f, w)",
        "y = Gemm<transB=1>(f, wt, b)",
        "y = Gemm<transB=1, alpha=0.5, beta=-2.0>(f, wt, b)",
        "y = Gemm<alpha=3.0, beta=0.0>(f, w, b)",
        "y = MatMul(f, w)",
    ],
)
def test_layers(layer: str) -> None:
    result = optimize(head("f = Flatten(x)", layer=layer), CONVERT)
    assert result.ops == ["Conv", "Flatten"]
    assert result.weight(0, 1).shape == (6, 3, 4, 5)
    assert dict(result.applied[0].options) == {"layers": 1, "kernel": "4x5", "reshapes_left": 1}


def test_matmul_and_add() -> None:
    """Alone, the addition stays behind; fuse-conv-affine makes a Gemm of the pair before."""
    result = optimize(head("f = Flatten(x)", layer="m = MatMul(f, w) y = Add(m, b)"), CONVERT)
    assert result.ops == ["Conv", "Flatten", "Add"]


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("f = Flatten(x)", {}),
        ("f = Flatten<axis=-3>(x)", {}),
        ("f = Reshape(x, s)", {"s": [0, -1]}),
        ("f = Reshape(x, s)", {"s": [-1, 60]}),
        ("f = Reshape(x, s)", {"s": [2, 60]}),
        ("f = Reshape(x, s)", {"s": [2, -1]}),
        ("f = Reshape<allowzero=1>(x, s)", {"s": [2, -1]}),
    ],
)
def test_flattenings(nodes: str, weights: dict[str, object]) -> None:
    result = optimize(head(nodes, weights=weights), CONVERT)
    assert result.ops == ["Conv", "Flatten"]


@pytest.mark.parametrize(
    ("nodes", "weights", "x", "k"),
    [
        ("f = Reshape(x, s)", {"s": [-1, 30]}, "2,3,4,5", 30),  # [4, 30]: two rows a sample
        ("f = Reshape(x, s)", {"s": [1, -1]}, "2,3,4,5", 120),  # the batch goes into K
        ("f = Flatten<axis=2>(x)", {}, "2,3,4,5", 20),
        ("t = Transpose<perm=[1,0,2,3]>(x) f = Flatten<axis=2>(t)", {}, "2,3,4,5", 20),
        ("f = Squeeze(x)", {}, "2,3,1,1", 3),  # without axes: also the batch, if it were 1
    ],
)
def test_what_only_looks_like_a_flattening(
    nodes: str, weights: dict[str, object], x: str, k: int
) -> None:
    result = optimize(head(nodes, weights=weights, x=x, k=k, y="N,6"), CONVERT)
    assert "Conv" not in result.ops
    assert has(result.reasons, "no .N, C, H, W. map stands before it")


def test_reshape_that_fixes_the_batch_of_an_open_one() -> None:
    """It runs at batch 1 only, and it is not for us to lift that."""
    model = head("f = Reshape(x, s)", weights={"s": [1, 60]}, x="N,3,4,5", y="1,6")
    assert optimize(model, CONVERT).ops == ["Reshape", "Gemm"]


@pytest.mark.parametrize("x", ["2,6,1,1", "N,6,1,1"])
def test_squeeze(x: str) -> None:
    for opset, nodes in ((11, "f = Squeeze<axes=[2,3]>(x)"), (13, "f = Squeeze(x, at)")):
        model = head(nodes, x=x, k=6, y="N,6", opset=opset, weights={"at": [-1, 2]})
        assert optimize(model, CONVERT, runs=[{"x": (2, 6, 1, 1)}]).ops == ["Conv", "Flatten"]


@pytest.mark.parametrize("x", ["2,6,4,4", "N,6,H,W"])
@pytest.mark.parametrize("flat", ["f = Flatten(p)", "f = Reshape(p, s)", "f = Squeeze(p, at)"])
@pytest.mark.parametrize("pool", ["GlobalAveragePool(x)", "GlobalMaxPool(x)"])
def test_behind_a_global_pooling(pool: str, flat: str, x: str) -> None:
    weights = {"s": [0, -1], "at": [2, 3]}
    model = head(f"p = {pool} {flat}", x=x, k=6, y="N,6", weights=weights)
    result = optimize(model, CONVERT, runs=[{"x": (2, 6, 4, 4)}])
    assert result.ops == [pool[:-3], "Conv", "Flatten"]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("x", ["2,6,4,4", "N,6,H,W"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_behind_a_mean_over_the_map(keepdims: int, x: str, opset: int) -> None:
    mean = (
        f"ReduceMean<axes=[2,3], keepdims={keepdims}>(x)"
        if opset < 18
        else f"ReduceMean<keepdims={keepdims}>(x, at)"
    )
    nodes = f"p = {mean} f = Flatten(p)" if keepdims else f"f = {mean}"
    model = head(nodes, x=x, k=6, y="N,6", opset=opset, weights={"at": [-2, -1]})
    result = optimize(model, CONVERT, runs=[{"x": (2, 6, 4, 4)}])
    assert result.ops == ["GlobalAveragePool", "Conv", "Flatten"]


def test_mean_over_other_axes() -> None:
    model = head("f = ReduceMean<axes=[1,2], keepdims=0>(x)", x="2,4,4,6", k=6)
    assert "Conv" not in optimize(model, CONVERT).ops


def test_mean_that_something_else_reads() -> None:
    model = build(
        """net (float[2,6,4,4] x) => (float[2,3] y, float[2,6,1,1] p) <float[6,3] w>
        { p = ReduceMean<axes=[2,3]>(x) f = Flatten(p) y = Gemm(f, w) }"""
    )
    assert sorted(optimize(model, CONVERT).ops) == ["Conv", "Flatten", "ReduceMean"]


CHAIN = """net (float[{x}] x) => ({outputs})
    <float[60,16] w1, float[16] b1, float[16,8] w2, float[5,8] w3, float[5] b3>
    {{ f = Flatten(x) h1 = Gemm(f, w1, b1) a1 = Relu(h1) h2 = MatMul(a1, w2)
       a2 = LeakyRelu<alpha=0.1>(h2) y = Gemm<transB=1>(a2, w3, b3) {tail} }}"""


@pytest.mark.parametrize("x", ["2,3,4,5", "N,3,4,5"])
def test_chain_of_three(x: str) -> None:
    model = build(CHAIN.format(x=x, outputs=f"float[{x[0]},5] y", tail=""))
    result = optimize(model, CONVERT, runs=[{"x": (2, 3, 4, 5)}])
    assert result.ops == ["Conv", "Relu", "Conv", "LeakyRelu", "Conv", "Flatten"]
    assert [result.weight(i, 1).shape[2:] for i in (0, 2, 4)] == [(4, 5), (1, 1), (1, 1)]
    assert result.applied[0].options["layers"] == 3


def test_activation_behind_the_last_layer_stays_outside() -> None:
    outputs = "float[2,5] z"
    model = build(CHAIN.format(x="2,3,4,5", outputs=outputs, tail="z = Softmax(y)"))
    assert optimize(model, CONVERT).ops[-2:] == ["Flatten", "Softmax"]


def test_intermediate_output_cuts_the_chain() -> None:
    model = build(CHAIN.format(x="2,3,4,5", outputs="float[2,5] y, float[2,16] a1", tail=""))
    result = optimize(model, CONVERT)
    assert result.ops == ["Conv", "Flatten", "Relu", "MatMul", "LeakyRelu", "Gemm"]
    assert has(result.reasons, "no .N, C, H, W. map")


def test_activation_with_bounds_is_carried() -> None:
    model = build(
        """net (float[2,3,4,5] x) => (float[2,4] y)
        <float[60,8] w1, float[8,4] w2, float low, float high>
        { f = Flatten(x) h = Gemm(f, w1) a = Clip(h, low, high) y = Gemm(a, w2) }""",
        weights={"low": np.float32(0), "high": np.float32(6)},
    )
    assert optimize(model, CONVERT).ops == ["Conv", "Clip", "Conv", "Flatten"]


def test_flattening_that_something_else_reads() -> None:
    model = build(
        """net (float[2,3,4,5] x) => (float[2,6] y, float[2,60] z) <float[60,6] w>
        { f = Flatten(x) y = Gemm(f, w) z = Relu(f) }"""
    )
    assert sorted(optimize(model, CONVERT).ops) == ["Conv", "Flatten", "Flatten", "Relu"]


def test_layer_used_twice() -> None:
    model = build(
        """net (float[2,3,4,5] x) => (float[2,6] y, float[2,6] z) <float[60,6] w, float[6,6] v>
        { f = Flatten(x) h = Gemm(f, w) y = Gemm(h, v) z = Relu(h) }"""
    )
    result = optimize(model, CONVERT)
    assert sorted(result.ops) == ["Conv", "Conv", "Flatten", "Flatten", "Relu"]


SE = """net (float[{n},8,5,5] x) => (float[{n},8,5,5] y)
    <float[3,8] w1, float[3] b1, float[8,3] w2, float[8] b2>
    {{ p = GlobalAveragePool(x) {flat} h = Gemm<transB=1>(f, w1, b1) r = Relu(h)
       k = Gemm<transB=1>(r, w2, b2) s = Sigmoid(k) {back} y = Mul(x, u) }}"""
FROM_SHAPE = """sh = Shape(x) n = Gather(sh, zero) n1 = Unsqueeze(n, first)
    to2 = Concat<axis=0>(n1, eight) to4 = Concat<axis=0>(n1, eight, one, one)"""


@pytest.mark.parametrize("n", ["2", "N"])
@pytest.mark.parametrize(
    ("flat", "back"),
    [
        ("f = Flatten(p)", "u = Unsqueeze(s, at)"),
        ("f = Squeeze(p, at)", "u = Unsqueeze(s, at)"),
        ("f = Flatten(p)", "u = Reshape(s, view)"),
        ("f = Flatten(p)", "u = Reshape(s, view0)"),
        (FROM_SHAPE + " f = Reshape(p, to2)", "u = Reshape(s, to4)"),
    ],
    ids=["flatten-unsqueeze", "squeeze", "view -1", "view 0", "view of x.shape"],
)
def test_squeeze_and_excite_keeps_no_reshape(flat: str, back: str, n: str) -> None:
    arrays = {"at": [2, 3], "view": [-1, 8, 1, 1], "view0": [0, 0, 1, 1], "first": [0]}
    arrays |= {"eight": [8], "one": [1]}
    model = build(
        SE.format(n=n, flat=flat, back=back),
        weights={"zero": np.int64(0), **{k: np.array(v) for k, v in arrays.items()}},
    )
    runs = [{"x": (2, 8, 5, 5)}, {"x": (1, 8, 5, 5)}] if n == "N" else [{}]
    result = optimize(model, RemoveDead(), CONVERT, runs=runs)
    assert result.ops == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"]


BODIES = {
    "SiLU": "g = Sigmoid(h) r = Mul(h, g)",
    "SiLU, the other way round": "g = Sigmoid(h) r = Mul(g, h)",
    "Mish": "p1 = Softplus(h) t = Tanh(p1) r = Mul(h, t)",
    "hard swish": "g = HardSigmoid<alpha=0.1666667, beta=0.5>(h) r = Mul(h, g)",
    "numbers": "a = Add(h, three) c = Clip(a, zero_f, six) r = Div(c, six)",
    "subtracted from a number": "r = Sub(six, h)",
}


@pytest.mark.parametrize("between", BODIES.values(), ids=BODIES)
def test_activations_of_several_nodes_are_carried(between: str) -> None:
    model = build(
        SE.format(n="N", flat="f = Flatten(p)", back="u = Unsqueeze(s, at)").replace(
            "r = Relu(h)", between
        ),
        weights={
            "at": np.array([2, 3]),
            "three": np.float32(3),
            "zero_f": np.float32(0),
            "six": np.float32(6),
        },
    )
    result = optimize(model, CONVERT, runs=[{"x": (2, 8, 5, 5)}])
    assert not {"Flatten", "Reshape", "Unsqueeze", "Gemm"} & set(result.ops)
    assert result.names == ["fc-to-conv"]


@pytest.mark.parametrize(
    "between",
    [
        "g = Sigmoid(h) r = Add(h, g)",  # no gate
        "g = Sigmoid(h) r = Mul(g, row)",  # a number for every column
        "r = Mul(h, cube)",  # which adds axes
        "g = Softmax(h) r = Mul(h, g)",
    ],
)
def test_what_depends_on_the_column_is_not_carried(between: str) -> None:
    model = build(
        f"""net (float[2,8,5,5] x) => (float[A,B] y)
        <float[8,3] w1, float[3,6] w2, float[3] row, float[1,1,1] cube>
        {{ p = GlobalAveragePool(x) f = Flatten(p) h = Gemm(f, w1) {between} y = MatMul(r, w2) }}"""
    )
    result = rewrite(model, CONVERT)
    assert result.ops.count("Conv") == 1
    assert "MatMul" in result.ops


def test_a_gate_whose_argument_is_an_output_stays_a_row() -> None:
    model = build(
        """net (float[2,8,5,5] x) => (float[2,6] y, float[2,3] h) <float[8,3] w1, float[3,6] w2>
        { p = GlobalAveragePool(x) f = Flatten(p) h = Gemm(f, w1) g = Sigmoid(h) r = Mul(h, g)
          y = Gemm(r, w2) }"""
    )
    assert optimize(model, CONVERT).ops.count("Conv") == 1


@pytest.mark.parametrize("x", ["2,8,3", "2,8,3,4,5", "N,8,T", "N,8,T,H,W"])
@pytest.mark.parametrize("opset", [13, 18])
def test_one_and_three_dimensions(x: str, opset: int) -> None:
    rank = x.count(",") + 1
    axes = list(range(2, rank))
    listed_ = f"axes={axes}, " if opset < 18 else ""
    operand = "" if opset < 18 else ", at"
    model = build(
        f"""net (float[{x}] x) => (float[{x}] y) <float[8,3] w1, float[3,8] w2>
        {{ p = ReduceMean<{listed_}keepdims=0>(x{operand}) h = Gemm(p, w1) r = Relu(h)
           k = Gemm(r, w2) s = Sigmoid(k) u = Unsqueeze(s, at) y = Mul(x, u) }}""",
        opset=opset,
        weights={"at": np.array(axes)},
    )
    shape = (2, 8, 3, 4, 5)[:rank]
    result = optimize(model, CONVERT, runs=[{"x": shape}])
    assert result.ops == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"]
    assert result.weight(1, 1).ndim == rank


def test_a_flattened_sequence() -> None:
    model = head("f = Flatten(x)", x="2,5,12")
    result = optimize(model, CONVERT)
    assert result.ops == ["Conv", "Flatten"]
    assert result.weight(0, 1).shape == (6, 5, 12)


@pytest.mark.parametrize("x", ["2,8,4,5", "N,8,4,5", "N,8,H,W"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_merged_space(keepdims: int, x: str) -> None:
    """x.view(b, c, -1).mean(2): the map before the view is what counts."""
    flat = "" if not keepdims else "f = Flatten(p)"
    model = build(
        f"""net (float[{x}] x) => (float[{x}] y) <float[8,3] w1, float[3,8] w2>
        {{ v = Reshape(x, flat3) p = ReduceMean<axes=[2], keepdims={keepdims}>(v) {flat}
           h = Gemm({"f" if keepdims else "p"}, w1) k = Gemm(h, w2) s = Sigmoid(k)
           u = Unsqueeze(s, at) y = Mul(x, u) }}""",
        weights={"flat3": np.array([0, 8, -1]), "at": np.array([2, 3])},
    )
    result = optimize(model, CONVERT, runs=[{"x": (2, 8, 4, 5)}])
    assert result.ops == ["GlobalAveragePool", "Conv", "Conv", "Sigmoid", "Mul"]


def test_a_mean_over_space_merged_otherwise() -> None:
    """[2, 8, 4, 5] -> [2, 4, 40]: half the channels go into space."""
    model = build(
        """net (float[2,8,4,5] x) => (float[2,3] y) <float[4,3] w>
        { v = Reshape(x, view) p = ReduceMean<axes=[2], keepdims=0>(v) y = Gemm(p, w) }""",
        weights={"view": np.array([2, 4, 40])},
    )
    assert optimize(model, CONVERT).ops == ["Reshape", "GlobalAveragePool", "Conv", "Flatten"]


@pytest.mark.parametrize("keepdims", [0, 1])
def test_behind_the_largest_of_the_map(keepdims: int) -> None:
    flat = "f = Flatten(p)" if keepdims else "f = Identity(p)"
    nodes = f"p = ReduceMax<axes=[2,3], keepdims={keepdims}>(x) {flat}"
    if not keepdims:
        nodes = "f = ReduceMax<axes=[2,3], keepdims=0>(x)"
    result = optimize(head(nodes, x="2,6,4,4", k=6), CONVERT)
    assert result.ops == ["GlobalMaxPool", "Conv", "Flatten"]


@pytest.mark.parametrize(
    ("view", "converted"),
    [([2, 8, 1, 1], True), ([-1, 8, 1, 1], True), ([0, 8, 1, 1], False)],
)
def test_views_as_the_newer_exporter_writes_them(view: list[int], converted: bool) -> None:
    """allowzero=1 means nothing without a zero; with one, the result is empty."""
    text = SE.format(n="2", flat="f = Flatten(p)", back="u = Reshape<allowzero=1>(s, view)")
    model = build(text, weights={"view": np.array(view)})
    result = (optimize if converted else rewrite)(model, RemoveDead(), CONVERT)
    assert ("Reshape" not in result.ops) == converted


def test_everywhere_a_block_of_rank_three_is_one() -> None:
    """The result goes back to [N, O, 1], so the layers become convolutions over one axis."""
    model = build(
        """net (float[2,12] x, float[2,4,9] z) => (float[2,4,9] y) <float[12,8] w1, float[8,4] w2>
        { h = Gemm(x, w1) a = Relu(h) k = Gemm(a, w2) u = Unsqueeze(k, at) y = Mul(z, u) }""",
        weights={"at": np.array([-1])},
    )
    result = optimize(model, FcToConv(gated=False, everywhere=True))
    assert result.ops == ["Reshape", "Conv", "Relu", "Conv", "Mul"]
    assert result.weight(1, 1).shape == (8, 12, 1)


def test_factors_of_a_layer_stay_marked_as_such() -> None:
    """Else they would be factored again, or composed back by what runs after the plan."""
    model = build(
        """net (float[2,3,4,5] x) => (float[2,6] y) <float[60,4] w1, float[4,6] w2>
        { f = Flatten(x) h = MatMul(f, w1) y = MatMul(h, w2) }"""
    )
    mark = model.graph.node[1].metadata_props.add()
    mark.key, mark.value = "graphopt.kind", "approximate"
    first, second, _ = optimize(model, CONVERT).proto.graph.node
    kinds = [{p.key: p.value for p in n.metadata_props}["graphopt.kind"] for n in (first, second)]
    assert kinds == ["approximate", "exact"]


def test_tail_of_another_rank_than_the_map() -> None:
    model = build(
        """net (float[2,8,5,5] x) => (float[2,4,1] y) <float[8,4] w>
        { p = GlobalAveragePool(x) f = Flatten(p) h = Gemm(f, w) y = Unsqueeze(h, at) }""",
        weights={"at": np.array([2])},
    )
    assert optimize(model, CONVERT).ops == ["GlobalAveragePool", "Conv", "Flatten", "Unsqueeze"]


def test_reshape_back_to_something_else_stays() -> None:
    """[2, 8] -> [1, 16, 1, 1]: the batch goes into the channels."""
    model = build(
        """net (float[2,4,5,5] x) => (float[1,16,1,1] y) <float[4,8] w, int64[4] s>
        { p = GlobalAveragePool(x) f = Flatten(p) h = Gemm(f, w) y = Reshape(h, s) }""",
        weights={"s": np.array([1, 16, 1, 1])},
    )
    assert optimize(model, CONVERT).ops == ["GlobalAveragePool", "Conv", "Flatten", "Reshape"]


def test_open_batch() -> None:
    model = head("f = Flatten(x)", x="N,3,4,5", y="N,6")
    runs = [{"x": (1, 3, 4, 5)}, {"x": (4, 3, 4, 5)}]
    assert optimize(model, CONVERT, runs=runs).ops == ["Conv", "Flatten"]


def test_open_size_is_declined() -> None:
    model = head("f = Flatten(x)", x="N,3,H,W", y="N,6")
    declined = rewrite(model, CONVERT, shapes={"x": (2, 3, 4, 5)})
    assert declined.ops == ["Flatten", "Gemm"]
    assert has(declined.reasons, "size of the map before it is not fixed")


def test_transposed_input_is_declined() -> None:
    model = build(
        """net (float[12,2,1,1] x) => (float[2,6] y) <float[12,6] w>
        { f = Flatten(x) y = Gemm<transA=1>(f, w) }"""
    )
    assert has(optimize(model, CONVERT).reasons, "transA=1")


def test_weights_that_are_not_constant() -> None:
    fed = build(
        """net (float[2,3,4,5] x, float[60,6] w) => (float[2,6] y, float[2,2] z)
        { f = Flatten(x) y = Gemm(f, w) t = Transpose(f) z = MatMul(f, t) }"""
    )
    result = optimize(fed, CONVERT)
    assert result.reasons == ["the weight is a graph input"]  # a product of activations: no site
    result = optimize(listed(head("f = Flatten(x)"), "w"), CONVERT)
    assert has(result.reasons, "overridden by a caller")


@pytest.mark.parametrize("kind", ["int32", "double"])
def test_types_without_a_convolution(kind: str) -> None:
    model = build(
        f"""net ({kind}[2,3,2,2] x) => ({kind}[2,4] y) <{kind}[12,4] w>
        {{ f = Flatten(x) y = MatMul(f, w) }}"""
    )
    result = optimize(model, CONVERT)
    assert result.ops == ["Flatten", "MatMul"]
    assert has(result.reasons, "no convolution of type")


def test_half_precision() -> None:
    """Tolerance 5e-3: sums of 60 products rounded to 11 bits in another order."""
    model = build(
        """net (float16[2,3,4,5] x) => (float16[2,6] y) <float16[60,6] w, float16[6] b>
        { f = Flatten(x) y = Gemm(f, w, b) }"""
    )
    assert optimize(model, CONVERT, tolerance=5e-3).ops == ["Conv", "Flatten"]


@pytest.mark.parametrize("x", ["2,12", "N,12"])
def test_everywhere(x: str) -> None:
    text = f"""net (float[{x}] x) => (float[{x[0]},4] y) <float[12,8] w1, float[8,4] w2, float[4] b>
        {{ h = MatMul(x, w1) a = Tanh(h) y = Gemm(a, w2, b) }}"""
    assert optimize(build(text), CONVERT).names == []
    everywhere = FcToConv(gated=False, everywhere=True)
    result = optimize(build(text), everywhere, runs=[{"x": (2, 12)}])
    assert result.ops == ["Reshape", "Conv", "Tanh", "Conv", "Flatten"]


def test_generated_weight_stays_generated() -> None:
    model = head(
        "f = Flatten(x) big = ConstantOfShape<value = float[1] {0.01}>(s)",
        layer="y = Gemm(f, big)", y="2,4096", weights={"s": [60, 4096]},
    )  # fmt: skip
    assert len(optimize(model, RemoveDead(), CONVERT).proto.SerializeToString()) < 2000
