"""merge-parallel: layers side by side on one value become one, into a Concat or through a Split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import Result, body, build, check_same, has, listed, optimize, rewrite

from graphopt.graph.annotate import annotate
from graphopt.graph.fragment import changed_fragment
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.rewrites.base import Proposal
from graphopt.rewrites.cleanup.library import MergeDuplicates, RemoveDead
from graphopt.rewrites.driver import Verdict
from graphopt.rewrites.exact.merge_branches import MergeBranches
from graphopt.rewrites.exact.merge_parallel import MergeParallel

MERGE = MergeParallel()
WEIGHTS = """float[2,3,1,1] u, float[3,3,1,1] v, float[4,3,1,1] w, float[2,3,3,3] u3, float[4,3,3,3] w3,
    float[2] a, float[3] b, float[4] c"""


def net(
    nodes: str,
    *,
    x: str = "2,3,6,5",
    y: str = "float[2,C,H,W] y",
    weights: str = WEIGHTS,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    text = f"net (float[{x}] x) => ({y}) <{weights}> {{ {nodes} }}"
    return build(text, opset=opset, ir_version=ir_version)


def never(*_: object) -> Verdict:
    return Verdict(False, "measured slower")


def merged(result: Result, *ops: str, into: str = "Concat", layers: int = 2) -> None:
    assert result.ops == list(ops)
    assert set(result.names) == {"merge-parallel"}
    assert result.applied[0].options == {"layers": layers, "into": into}
    assert result.declined == ()


@pytest.mark.parametrize("biases", [("", ""), (", a", ""), ("", ", b"), (", a", ", b")])
def test_a_concat_that_vanishes(biases: tuple[str, str]) -> None:
    model = net(f"p = Conv(x, u{biases[0]}) q = Conv(x, v{biases[1]}) y = Concat<axis=1>(p, q)")
    result = optimize(model, MERGE)
    merged(result, "Conv")
    assert result.weight(0, 1).shape == (5, 3, 1, 1)
    assert len(result.proto.graph.node[0].input) == (3 if any(biases) else 2)
    assert rewrite(model, MERGE, gate=never).ops == ["Conv"], "taken without measuring"


def test_the_order_of_the_concat_counts() -> None:
    """The convolutions stand in the file the other way round."""
    model = net(
        """p = Conv(x, u, a) q = Conv(x, v) r = Conv(x, w, c)
        y = Concat<axis=-3>(r, p, q)"""
    )
    merged(optimize(model, MERGE), "Conv", layers=3)


@pytest.mark.parametrize(
    "activation",
    [
        "Relu({0})",
        "LeakyRelu<alpha=0.2>({0})",
        "Clip({0}, low, high)",
        "Clip({0}, , high)",
        "Sigmoid({0})",
        "HardSwish({0})",
        "Elu<alpha=2.0>({0})",
    ],
)
def test_the_same_activation_behind_each(activation: str) -> None:
    model = build(
        f"""net (float[2,3,6,5] x) => (float[2,5,6,5] y) <{WEIGHTS}>
        {{ p = Conv(x, u, a) q = Conv(x, v) r = {activation.format("p")} s = {activation.format("q")}
        y = Concat<axis=1>(r, s) }}""",
        weights={"low": np.float32(-0.5), "high": np.float32(0.7)},
    )
    merged(optimize(model, MERGE), "Conv", activation.split("(")[0].split("<")[0])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Relu(p)", "Sigmoid(q)"),
        ("LeakyRelu<alpha=0.2>(p)", "LeakyRelu<alpha=0.3>(q)"),
        ("Clip(p, low)", "Clip(q, high)"),
        ("Relu(p)", "Identity(q)"),
    ],
)
def test_different_activations(first: str, second: str) -> None:
    """The layers are merged through a Split, in front of their activations."""
    model = build(
        f"""net (float[2,3,6,5] x) => (float[2,5,6,5] y) <{WEIGHTS}>
        {{ p = Conv(x, u, a) q = Conv(x, v) r = {first} s = {second} y = Concat<axis=1>(r, s) }}""",
        weights={"low": np.float32(-0.5), "high": np.float32(0.7)},
    )
    result = optimize(model, MERGE)
    merged(result, "Conv", "Split", result.ops[2], result.ops[3], "Concat", into="Split")


def test_a_slope_per_channel_is_not_carried() -> None:
    model = net(
        "p = Conv(x, u) q = Conv(x, u2) r = PRelu(p, k) s = PRelu(q, k) y = Concat<axis=1>(r, s)",
        weights=WEIGHTS + ", float[2,3,1,1] u2, float[2,1,1] k",
    )
    assert optimize(model, MERGE).ops == ["Conv", "Split", "PRelu", "PRelu", "Concat"]


@pytest.mark.parametrize(
    ("concat", "ops"),
    [
        ("Concat<axis=1>(p, q, z)", ["Exp", "Conv", "Concat"]),
        ("Concat<axis=1>(z, p, q)", ["Exp", "Conv", "Concat"]),
        ("Concat<axis=1>(z, p, q, z)", ["Exp", "Conv", "Concat"]),
        ("Concat<axis=1>(p, z, q)", ["Conv", "Split", "Exp", "Concat"]),
    ],
)
def test_beside_other_operands(concat: str, ops: list[str]) -> None:
    model = net(f"z = Exp(x) p = Conv(x, u, a) q = Conv(x, v) y = {concat}")
    result = optimize(model, MERGE)
    assert sorted(result.ops) == sorted(ops)
    assert len(result.names) == 1
    refused = rewrite(model, MERGE, gate=never)
    assert refused.names == []
    assert has(refused.reasons, "measured slower")


def test_two_runs_in_one_concat() -> None:
    model = net(
        """p = Conv(x, u) q = Conv(x, v) z = Exp(x) r = Conv<pads=[1,1,1,1]>(x, u3)
        s = Conv<pads=[1,1,1,1]>(x, w3) y = Concat<axis=1>(p, q, z, r, s)"""
    )
    result = optimize(model, MERGE)
    assert sorted(result.ops) == ["Concat", "Conv", "Conv", "Exp"]
    assert result.names == ["merge-parallel"] * 2


def test_a_run_inside_a_larger_concat_and_the_rest() -> None:
    """GoogLeNet: two go to the Concat, two reduce for a larger kernel."""
    model = net(
        """p = Conv(x, u, a) q = Conv(x, v) m = Relu(p) n = Relu(q) r = Conv(x, w, c) k = Relu(r)
        s = Conv(x, v2) l = Relu(s) e = MaxPool<kernel_shape=[3,3], strides=[1,1], pads=[1,1,1,1]>(k)
        f = MaxPool<kernel_shape=[3,3], strides=[1,1], pads=[1,1,1,1]>(l)
        y = Concat<axis=1>(m, n, e, f)""",
        weights=WEIGHTS + ", float[3,3,1,1] v2",
    )
    result = optimize(model, MERGE)
    assert sorted(result.ops) == ["Concat", "Conv", "MaxPool", "MaxPool", "Relu", "Split"]
    assert [applied.options["layers"] for applied in result.applied] == [2, 3]


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 18, 22])
def test_a_split_of_every_opset(opset: int) -> None:
    model = net(
        "p = Conv(x, u, a) q = Conv(x, w) r = Relu(p) s = Relu(q) e = Exp(r) f = Tanh(s)",
        y="float[2,2,H,W] e, float[2,4,H,W] f",
        x="2,3,6,5" if opset < 11 else "2,3,H,W",
        opset=opset,
    )
    result = optimize(model, MERGE)
    merged(result, "Conv", "Relu", "Split", "Exp", "Tanh", into="Split")
    split = result.proto.graph.node[2]
    assert len(split.input) == (1 if opset < 13 else 2)
    assert rewrite(model, MERGE, gate=never).ops.count("Conv") == 2


def test_ungated_for_a_target_that_takes_it_always() -> None:
    model = net("p = Conv(x, u) q = Conv(x, w)", y="float[2,2,H,W] p, float[2,4,H,W] q")
    assert rewrite(model, MergeParallel(gated=False), gate=never).ops == ["Conv", "Split"]


def test_outputs_of_the_graph_keep_their_names() -> None:
    model = net(
        "p = Conv(x, u) e = Exp(p) q = Conv(x, w)",
        y="float[2,2,H,W] p, float[2,4,H,W] q, float[2,2,H,W] e",
    )
    result = optimize(model, MERGE)
    merged(result, "Conv", "Split", "Exp", into="Split")
    assert list(result.proto.graph.node[1].output) == ["p", "q"]


def test_a_reader_of_the_first_may_stand_before_the_last() -> None:
    model = net(
        """p = Conv(x, u) d = Exp(p) e = GlobalAveragePool(d) q = Conv(x, w) f = Mul(x, x)
        g = Conv(f, u) h = Mul(g, e)""",
        y="float[2,2,H,W] h, float[2,4,H,W] q",
    )
    merged(
        optimize(model, MERGE),
        "Conv", "Split", "Exp", "GlobalAveragePool", "Mul", "Conv", "Mul",
        into="Split",
    )  # fmt: skip


@pytest.mark.parametrize("needed", ["p", "q"])
def test_a_value_needed_elsewhere_goes_through_a_split(needed: str) -> None:
    model = net(f"p = Conv(x, u) q = Conv(x, w) e = Exp({needed}) y = Concat<axis=1>(p, q, e)")
    result = optimize(model, MERGE)
    merged(result, "Conv", "Split", "Exp", "Concat", into="Split")


def test_the_same_operand_twice() -> None:
    model = net("p = Conv(x, u) q = Conv(x, w) y = Concat<axis=1>(p, p, q, q)")
    result = optimize(model, MERGE)
    merged(result, "Conv", "Split", "Concat", into="Split")


def test_a_concat_over_another_axis() -> None:
    model = net(
        "p = Conv(x, u) q = Conv(x, u2) y = Concat<axis=2>(p, q)",
        weights=WEIGHTS + ", float[2,3,1,1] u2",
    )
    merged(optimize(model, MERGE), "Conv", "Split", "Concat", into="Split")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Conv<pads=[1,1,1,1]>(x, u3)", "Conv(x, w)"),
        ("Conv<strides=[2,2]>(x, u)", "Conv<strides=[2,2], pads=[0,0,1,1]>(x, w)"),
        ("Conv<strides=[2,1]>(x, u)", "Conv<strides=[1,2]>(x, w)"),
        ("Conv<pads=[1,1,1,1]>(x, u3)", "Conv<pads=[1,1,1,1], dilations=[1,2]>(x, w3)"),
        ("Conv<pads=[1,1,1,1]>(x, u3)", "Conv<pads=[2,2,2,2], dilations=[2,2]>(x, w3)"),
        ("Conv<pads=[1,1,1,1]>(x, u3)", "Conv<pads=[2,2,0,0]>(x, w3)"),
        ("Conv(x, u)", "Conv(z, w)"),
    ],
)
def test_layers_that_differ_are_nothing_to_speak_of(first: str, second: str) -> None:
    model = net(f"z = Relu(x) p = {first} q = {second}", y="float[2,2,H,W] p, float[2,4,K,L] q")
    result = optimize(model, MERGE)
    assert result.names == []
    assert result.declined == ()


@pytest.mark.parametrize(
    "attributes",
    [
        "pads=[1,1,1,1]",
        "pads=[0,1,2,1], strides=[2,1]",
        "pads=[2,2,2,2], dilations=[2,2]",
        'auto_pad="SAME_UPPER", strides=[2,2]',
        'auto_pad="SAME_LOWER", strides=[2,2]',
        'auto_pad="VALID"',
    ],
)
def test_any_geometry(attributes: str) -> None:
    """Open sizes: whatever the padding comes to, it is the same for both."""
    model = net(
        f"p = Conv<{attributes}>(x, u3, a) q = Conv<{attributes}>(x, w3) y = Concat<axis=1>(p, q)",
        x="N,3,H,W",
        y="float[N,6,P,Q] y",
    )
    runs = [{"x": (1, 3, 8, 7)}, {"x": (3, 3, 9, 10)}]
    merged(optimize(model, MERGE, runs=runs), "Conv")


def test_grouped_convolutions() -> None:
    model = net(
        "p = Conv<group=3>(x, d) q = Conv<group=3>(x, e) y = Concat<axis=1>(p, q)",
        weights="float[3,1,1,1] d, float[3,1,1,1] e",
    )
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Conv", "Concat"]
    assert result.reasons == ["the channels of grouped convolutions would have to be interleaved"]


def test_equal_layers_are_left_to_merge_duplicates() -> None:
    model = net(
        "p = Conv(x, u, a) q = Conv(x, u, a) r = Conv(x, u2, a) y = Concat<axis=1>(p, q, r)",
        weights=WEIGHTS + ", float[2,3,1,1] u2",
    )
    model.graph.initializer[-1].raw_data = model.graph.initializer[0].raw_data
    assert rewrite(model, MERGE).names == []
    result = optimize(model, MERGE, MergeDuplicates())
    assert result.ops == ["Conv", "Concat"]


def test_before_branches_that_are_added() -> None:
    """In the order of the list, layers that meet in an Add become one kernel, not one with a Split."""
    model = net(
        "p = Conv(x, w) q = Conv(x, w2) y = Add(p, q)", weights=WEIGHTS + ", float[4,3,1,1] w2"
    )
    result = optimize(model, MergeBranches(), MERGE)
    assert result.names == ["merge-branches"]


@pytest.mark.parametrize("opset", [7, 11, 13, 18])
@pytest.mark.parametrize("relu", [False, True])
def test_gemm(opset: int, relu: bool) -> None:
    tail = "e = Relu(p) f = Relu(q)" if relu else "e = Exp(p) f = Tanh(q)"
    model = build(
        f"""net (float[N,4] x) => (float[N,2] e, float[N,3] f)
        <float[2,4] u, float[4,3] v, float[2] a, float[1,3] b>
        {{ p = Gemm<transB=1, alpha=0.5, beta=2.0>(x, u, a) q = Gemm(x, v, b) {tail} }}""",
        opset=opset,
    )
    result = optimize(model, MERGE, runs=[{"x": (1, 4)}, {"x": (5, 4)}])
    ops = ["Gemm", "Exp", "Split", "Tanh"][: 1 if relu else 4] + (["Relu", "Split"] if relu else [])
    assert sorted(result.ops) == sorted(ops)


def test_gemm_without_bias() -> None:
    model = build(
        """net (float[5,4] x) => (float[5,5] y) <float[4,2] u, float[4,3] v>
        { p = Gemm(x, u) q = Gemm(x, v) y = Concat<axis=-1>(p, q) }"""
    )
    merged(optimize(model, MERGE), "Gemm")


@pytest.mark.parametrize("opset", [7, 11, 13, 18])
def test_query_key_and_value(opset: int) -> None:
    """MatMul + Add of rank 3, as attention is exported."""
    model = build(
        """net (float[N,5,4] x) => (float[N,5,4] q, float[N,5,4] k, float[N,5,2] v)
        <float[4,4] wq, float[4,4] wk, float[4,2] wv, float[4] bq, float[1,1,4] bk, float[1] bv>
        { mq = MatMul(x, wq) aq = Add(mq, bq) q = Exp(aq) mk = MatMul(x, wk) ak = Add(bk, mk)
          k = Tanh(ak) mv = MatMul(x, wv) av = Add(mv, bv) v = Exp(av) }""",
        opset=opset,
    )
    result = optimize(model, MERGE, runs=[{"x": (1, 5, 4)}, {"x": (2, 5, 4)}])
    assert sorted(result.ops) == ["Add", "Exp", "Exp", "MatMul", "Split", "Tanh"]
    assert result.applied[0].options == {"layers": 3, "into": "Split"}


def test_a_bias_that_differs_between_rows_stays_behind() -> None:
    model = build(
        """net (float[4,4] x) => (float[4,4] q, float[4,4] k)
        <float[4,4] wq, float[4,4] wk, float[4] bq, float[4,1] bk>
        { mq = MatMul(x, wq) q = Add(mq, bq) mk = MatMul(x, wk) k = Add(mk, bk) }"""
    )
    result = optimize(model, MERGE)
    assert sorted(result.ops) == ["Add", "Add", "MatMul", "Split"]


def test_products_of_two_activations() -> None:
    model = build(
        """net (float[4,4] x, float[4,4] z) => (float[4,4] p, float[4,4] q)
        { p = MatMul(x, z) e = Exp(z) q = MatMul(x, e) }"""
    )
    result = optimize(model, MERGE)
    assert result.names == []
    assert result.declined == ()


def test_a_weight_on_the_left() -> None:
    model = build(
        """net (float[4,6] x) => (float[3,6] p, float[2,6] q) <float[3,4] u, float[2,4] v>
        { p = MatMul(u, x) q = MatMul(v, x) }"""
    )
    assert optimize(model, MERGE).names == []


def test_a_weight_that_can_be_overridden() -> None:
    model = listed(
        net("p = Conv(x, u) q = Conv(x, v) r = Conv(x, w) y = Concat<axis=1>(p, q, r)"), "u"
    )
    result = optimize(model, MERGE)
    assert result.ops == ["Conv", "Conv", "Concat"]
    assert has(result.reasons, "overridden")


@pytest.mark.parametrize("hidden", ["Identity(u)", "Cast<to=1>(half)"])
def test_weights_behind_other_nodes(hidden: str) -> None:
    model = net(
        f"h = {hidden} p = Conv(x, h) q = Conv(x, v) y = Concat<axis=1>(p, q)",
        weights=WEIGHTS + ", float16[2,3,1,1] half",
    )
    assert optimize(model, MERGE, RemoveDead()).ops == ["Conv"]


def test_an_old_file_with_constant_nodes() -> None:
    model = net(
        "p = Conv(x, u, a) q = Conv(x, v, b) r = Relu(p)",
        y="float[2,2,H,W] r, float[2,3,H,W] q", opset=7, ir_version=3,
    )  # fmt: skip
    for tensor in list(model.graph.initializer):
        model.graph.node.insert(
            0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        )
    del model.graph.initializer[:]
    result = optimize(model, MERGE, RemoveDead())
    assert [op for op in result.ops if op != "Constant"] == ["Conv", "Split", "Relu"]


def test_a_weight_shared_with_another_layer() -> None:
    model = net(
        "p = Conv(x, u) q = Conv(x, v) y = Concat<axis=1>(p, q) e = Exp(x) z = Conv(e, u)",
        y="float[2,5,H,W] y, float[2,2,H,W] z",
    )
    assert optimize(model, MERGE).ops == ["Conv", "Exp", "Conv"]


@pytest.mark.parametrize("same", [True, False])
def test_generated_weights(same: bool) -> None:
    number = "0.01" if same else "0.02"
    model = build(
        f"""net (float[1,512,2,2] x) => (float[1,1024,2,2] y) <int64[4] s>
        {{ v = ConstantOfShape<value = float[1] {{0.01}}>(s) p = Conv(x, v) q = Conv(x, w, b)
          w = ConstantOfShape<value = float[1] {{{number}}}>(s) y = Concat<axis=1>(p, q) }}""",
        weights={"s": np.array([512, 512, 1, 1]), "b": np.ones(512, np.float32)},
    )
    model.graph.node.insert(1, model.graph.node.pop(3))
    result = optimize(model, MERGE, RemoveDead())
    assert ("Concat" not in result.ops) is same
    assert has(result.reasons, "is generated") is not same
    assert len(result.proto.SerializeToString()) < 8000


@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 5e-3), ("float", 1e-6)])
def test_types(kind: str, tolerance: float) -> None:
    model = build(
        f"""net ({kind}[2,3,4,4] x) => ({kind}[2,5,4,4] y)
        <{kind}[2,3,1,1] u, {kind}[3,3,1,1] v, {kind}[3] b>
        {{ p = Conv(x, u) q = Conv(x, v, b) y = Concat<axis=1>(p, q) }}"""
    )
    merged(optimize(model, MERGE, tolerance=tolerance), "Conv")


@pytest.mark.parametrize("kind", ["double", "int32"])
def test_matrices_of_other_types(kind: str) -> None:
    model = build(
        f"""net ({kind}[3,4] x) => ({kind}[3,5] y) <{kind}[4,2] u, {kind}[4,3] v>
        {{ p = MatMul(x, u) q = MatMul(x, v) y = Concat<axis=1>(p, q) }}"""
    )
    merged(optimize(model, MERGE, tolerance=1e-14), "MatMul")


@pytest.mark.parametrize("spatial", [1, 3])
def test_one_and_three_dimensions(spatial: int) -> None:
    size, ones = (",".join([n] * spatial) for n in ("5", "1"))
    model = build(
        f"""net (float[2,3,{size}] x) => (float[2,2,{size}] e, float[2,4,{size}] f)
        <float[2,3,{ones}] u, float[4,3,{ones}] w>
        {{ p = Conv(x, u) q = Conv(x, w) e = Exp(p) f = Tanh(q) }}"""
    )
    merged(optimize(model, MERGE), "Conv", "Split", "Exp", "Tanh", into="Split")


def test_inside_a_body_on_a_captured_value() -> None:
    model = build(
        f"""net (bool cond, float[2,3,6,5] x) => (float[2,C,6,5] y) <{WEIGHTS}>
        {{ h = Relu(x) y = If (cond) <
            then_branch = g1 () => (float[2,5,6,5] t)
              {{ p = Conv(h, u, a) e = Exp(p) q = Conv(h, v) f = Tanh(q) t = Concat<axis=1>(e, f) }},
            else_branch = g2 () => (float[2,3,6,5] e2) {{ e2 = Identity(h) }}> }}"""
    )
    for cond in (False, True):
        result = optimize(model, MERGE, feeds={"cond": np.asarray(cond)})
        inside = body(result.proto, "If", "then_branch")
        assert sorted(node.op_type for node in inside.node) == [
            "Concat", "Conv", "Exp", "Split", "Tanh",
        ]  # fmt: skip


def test_a_result_that_a_body_reads() -> None:
    model = build(
        f"""net (bool cond, float[2,3,6,5] x) => (float[2,C,6,5] y, float[2,D,6,5] z) <{WEIGHTS}>
        {{ p = Conv(x, u, a) y = If (cond) <
            then_branch = g1 () => (float[2,2,6,5] t) {{ t = Relu(p) }},
            else_branch = g2 () => (float[2,3,6,5] e) {{ e = Identity(x) }}>
          q = Conv(x, v) z = Concat<axis=1>(p, q) }}"""
    )
    result = optimize(model, MERGE, feeds={"cond": np.asarray(True)})
    merged(result, "Conv", "Split", "If", "Concat", into="Split")


def factors(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.metadata_props.add(key="graphopt.kind", value="approximate")
    return model


def test_parts_of_an_approximation_are_gated() -> None:
    model = factors(net("p = Conv(x, u) q = Conv(x, v) y = Concat<axis=1>(p, q)"))
    assert rewrite(model, MERGE, gate=never).names == []
    assert rewrite(model, MERGE).ops == ["Conv"]


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        ("p = Conv(x, u) q = Conv(x, v) r = Relu(p) s = Relu(q) e = Exp(r) y = Concat<axis=1>(e, s)",
         ["Conv", "Relu", "Split"]),
        ("p = Conv(x, u) q = Conv(x, v) r = Relu(p) e = Tanh(q) y = Concat<axis=1>(r, e)",
         ["Conv", "Split"]),
        ("z = Exp(x) p = Conv(x, u) q = Conv(x, v) y = Concat<axis=1>(z, p, q)", ["Conv", "Concat"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [None, 3])
def test_the_gate_finds_it_again_in_a_fragment(
    text: str, ops: list[str], batch: int | None
) -> None:
    model = ir.from_proto(net(text, x="N,3,6,5", y="float[N,C,H,W] y"))
    infos = infer(model, {"x": (1, 3, 6, 5)})
    annotate(model)
    scope = Scope(model, model.graph, infos)
    proposal = next(iter(MERGE.propose(scope)))
    assert isinstance(proposal, Proposal)
    assert proposal.gated

    pair = changed_fragment(scope, proposal.nodes, first_of(MERGE), batch=batch)
    assert pair is not None
    before, after = (ir.to_proto(part) for part in pair)
    check_same(before, after)
    assert [node.op_type for node in after.graph.node] == ops


def first_of(rewrite: MergeParallel) -> Callable[[Scope], bool]:
    def apply(fragment: Scope) -> bool:
        found = next(iter(rewrite.propose(fragment)))
        assert isinstance(found, Proposal)
        found.apply()
        return True

    return apply
