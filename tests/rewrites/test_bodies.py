"""If, Loop and Scan bodies and model-local functions: rewritten right or left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import body, build, check_same, has, optimize, rewrite

from graphopt.rewrites import CLEANUP, EXACT
from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.exact.fc_to_conv import FcToConv
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm

EVERYTHING = (*CLEANUP, *(FcToConv(gated=False) if r.name == "fc-to-conv" else r for r in EXACT))
WEIGHTS = "<float[3,3,3,3] w, float[3] g, float[3] b, float[3] mean, float[3] var>"
MAP = "float[1,3,5,5]"
NORM = "BatchNormalization({}, g, b, mean, var)"
CONV = "Conv<pads=[1,1,1,1]>"


def branches(before: str, then: str, otherwise: str) -> onnx.ModelProto:
    return build(
        f"""net ({MAP} x, bool cond) => ({MAP} y) {WEIGHTS} {{ {before}
        y = If (cond) <then_branch = t () => ({MAP} yt) {{ {then} }},
                       else_branch = e () => ({MAP} ye) {{ {otherwise} }}> }}"""
    )


@pytest.mark.parametrize("cond", [True, False])
def test_fusion_inside_a_branch(cond: bool) -> None:
    model = branches(
        "", f"c = {CONV}(x, w) yt = {NORM.format('c')}", f"d = {CONV}(x, w) ye = Relu(d)"
    )
    result = optimize(model, *EVERYTHING, feeds={"cond": np.asarray(cond)})
    assert [n.op_type for n in body(result.proto, "If", "then_branch").node] == ["Conv"]
    assert [n.op_type for n in body(result.proto, "If", "else_branch").node] == ["Conv", "Relu"]


@pytest.mark.parametrize("cond", [True, False])
def test_convolution_outside_and_normalization_inside(cond: bool) -> None:
    """Fusing would compute the branch's map in both branches' place."""
    model = branches(f"c = {CONV}(x, w)", f"yt = {NORM.format('c')}", "ye = Relu(x)")
    result = optimize(model, FuseConvBatchNorm(), feeds={"cond": np.asarray(cond)})
    assert result.names == []
    assert has(result.reasons, "outside this body")


@pytest.mark.parametrize("cond", [True, False])
def test_value_captured_by_a_branch_stays_alive(cond: bool) -> None:
    model = branches("a = Exp(x) dead = Log(a)", "yt = Abs(a)", "ye = Neg(x)")
    result = optimize(model, *EVERYTHING, feeds={"cond": np.asarray(cond)})
    assert result.ops == ["Exp", "If"]


def test_captured_output_of_a_convolution_counts_as_a_use() -> None:
    model = branches(f"c = {CONV}(x, w) n = {NORM.format('c')}", "yt = Add(n, c)", "ye = Neg(n)")
    result = optimize(model, FuseConvBatchNorm(), feeds={"cond": np.asarray(True)})
    assert result.names == []
    assert has(result.reasons, "needed elsewhere")


def test_dead_if_is_removed_with_what_only_it_captured() -> None:
    model = build(
        f"""net ({MAP} x, bool cond) => ({MAP} y) {{ a = Exp(x)
        z = If (cond) <then_branch = t () => ({MAP} yt) {{ yt = Abs(a) }},
                       else_branch = e () => ({MAP} ye) {{ ye = Neg(a) }}> y = Relu(x) }}"""
    )
    assert optimize(model, RemoveDead(), feeds={"cond": np.asarray(True)}).ops == ["Relu"]


def loop(inside: str) -> onnx.ModelProto:
    return build(
        f"""net ({MAP} x) => ({MAP} y) {WEIGHTS}
        {{ y = Loop (trips, , x) <body = l (int64 i, bool go, {MAP} v) => (bool go2, {MAP} v2)
           {{ go2 = Identity(go) {inside} }}> }}""",
        weights={"trips": np.int64(3)},
    )


def test_fusion_inside_a_loop() -> None:
    result = optimize(loop(f"c = {CONV}(v, w) v2 = {NORM.format('c')}"), *EVERYTHING)
    assert "BatchNormalization" not in [n.op_type for n in body(result.proto, "Loop", "body").node]


def test_noops_inside_a_loop() -> None:
    """A body's input is not its output: the operator between them stays."""
    result = optimize(loop("v2 = Cast<to=1>(v)"), *EVERYTHING)
    assert len(body(result.proto, "Loop", "body").node) == 2


def test_weight_that_changes_from_turn_to_turn_is_no_constant() -> None:
    """The kernel is carried by the loop."""
    model = build(
        f"""net ({MAP} x) => ({MAP} y, float[3,3,3,3] k2)
        <float[3,3,3,3] w, float[3] g, float[3] b, float[3] mean, float[3] var, float half>
        {{ y, k2 = Loop (trips, , x, w)
           <body = l (int64 i, bool go, {MAP} v, float[3,3,3,3] k)
                     => (bool go2, {MAP} v2, float[3,3,3,3] k2b)
           {{ go2 = Identity(go) c = {CONV}(v, k) v2 = {NORM.format("c")} k2b = Mul(k, half) }}> }}""",
        weights={"trips": np.int64(3), "half": np.float32(0.5)},
    )
    result = optimize(model, *EVERYTHING)
    assert "BatchNormalization" in [n.op_type for n in body(result.proto, "Loop", "body").node]
    assert has(result.reasons, "the weight is a graph input")


def test_scan() -> None:
    model = build(
        """net (float[4,1,3,5,5] xs) => (float[4,1,3,5,5] ys)
        <float[3,3,3,3] w, float[3] g, float[3] b, float[3] mean, float[3] var>
        { ys = Scan (xs) <num_scan_inputs = 1, body = s (float[1,3,5,5] x) => (float[1,3,5,5] y)
           { c = Conv<pads=[1,1,1,1]>(x, w) y = BatchNormalization(c, g, b, mean, var) }> }"""
    )
    result = optimize(model, *EVERYTHING)
    assert [n.op_type for n in body(result.proto, "Scan", "body").node] == ["Conv"]


def test_fully_connected_head_inside_a_branch() -> None:
    head = "f{0} = Flatten({1}) y{0} = Gemm(f{0}, w)"
    model = build(
        f"""net (float[2,3,4,5] x, bool cond) => (float[2,6] y) <float[60,6] w> {{ a = Relu(x)
        y = If (cond) <then_branch = t () => (float[2,6] yt) {{ {head.format("t", "a")} }},
                       else_branch = e () => (float[2,6] ye) {{ {head.format("e", "x")} }}> }}"""
    )
    for cond in (True, False):
        optimize(model, *EVERYTHING, feeds={"cond": np.asarray(cond)})


def test_nested_bodies() -> None:
    inner = f"""If (cond) <then_branch = tt () => ({MAP} ytt)
        {{ c = {CONV}(x, w) ytt = {NORM.format("c")} }},
        else_branch = te () => ({MAP} yte) {{ yte = Exp(x) }}>"""
    model = branches("", f"yt = {inner}", "ye = Neg(x)")
    result = optimize(model, *EVERYTHING, feeds={"cond": np.asarray(True)})
    assert "fuse-conv-bn" in result.names


def test_a_model_local_function_is_inlined_and_fused() -> None:
    model = build(
        f"""net ({MAP} x) => ({MAP} y) {WEIGHTS} {{ y = my.block(x, w, g, b, mean, var) }}
        <domain: "my", opset_import: ["" : 17]>
        block (x, w, g, b, m, v) => (y)
        {{ c = Conv<pads=[1,1,1,1]>(x, w) n = BatchNormalization(c, g, b, m, v) i = Identity(n)
           dead = Exp(i) y = Relu(i) }}
        <domain: "my", opset_import: ["" : 17]>
        never (x) => (y) {{ y = Relu(x) }}""",
        domains=["my"],
    )
    result = rewrite(model, *EVERYTHING)
    assert not result.proto.functions
    assert [node.op_type for node in result.proto.graph.node] == ["Conv", "Relu"]
    check_same(model, result.proto)


def test_names_inside_a_body_do_not_collide() -> None:
    """Both branches call their convolution `c`, and so does the main graph."""
    model = branches(
        f"a = {CONV}(x, w) k = {NORM.format('a')}",
        f"c = {CONV}(k, w) yt = {NORM.format('c')}",
        f"c = {CONV}(k, w) ye = {NORM.format('c')}",
    )
    for cond in (True, False):
        result = optimize(model, *EVERYTHING, feeds={"cond": np.asarray(cond)})
    assert result.names.count("fuse-conv-bn") == 3


def test_branch_never_taken_leaves_nothing_behind() -> None:
    """The condition is constant: one branch is inlined, what only the other captured is dead."""
    model = build(
        f"""net ({MAP} x) => ({MAP} y) {{ a = Exp(x) b = Neg(x)
        cond = Constant<value = bool {{1}}>()
        y = If (cond) <then_branch = t () => ({MAP} yt) {{ yt = Abs(b) }},
                       else_branch = e () => ({MAP} ye) {{ ye = Neg(a) }}> }}"""
    )
    assert optimize(model, *EVERYTHING).ops == ["Neg", "Abs"]


def test_mean_outside_and_layer_inside() -> None:
    """The pooling belongs to the main graph: the body may read it, not take it away."""
    layer = "f{0} = Flatten(p) y{0} = Gemm(f{0}, w)"
    model = build(
        f"""net (float[2,6,4,4] x, bool cond) => (float[2,3] y) <float[6,3] w, float[2,3] k>
        {{ p = ReduceMean<axes=[2,3]>(x)
        y = If (cond) <then_branch = t () => (float[2,3] yt) {{ {layer.format("t")} }},
                       else_branch = e () => (float[2,3] ye) {{ ye = Neg(k) }}> }}"""
    )
    for cond in (True, False):
        result = optimize(model, FcToConv(gated=False), feeds={"cond": np.asarray(cond)})
        assert result.ops == ["ReduceMean", "If"]
        ops = [n.op_type for n in body(result.proto, "If", "then_branch").node]
        assert ops == ["Conv", "Flatten"]
