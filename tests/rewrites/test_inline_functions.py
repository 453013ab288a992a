"""inline-functions: what is inlined where, under which names, and what stays a function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_text import LEVELS, Result, body, build, check_same, optimize, rewrite, run

from graphopt.rewrites.cleanup.inline_functions import InlineFunctions, kept
from graphopt.rewrites.cleanup.library import FoldConstants, LiftConstants, RemoveDead
from graphopt.rewrites.cleanup.remove_noops import RemoveNoops
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm
from graphopt.rewrites.exact.merge_activations import MergeActivations

INLINE = InlineFunctions()
CLEAN = (INLINE, LiftConstants(), RemoveDead(), FoldConstants(), RemoveNoops())

MAP = "float[2,3,5,5]"
WEIGHTS = "<float[3,3,3,3] w, float[3] g, float[3] b, float[3] mean, float[3] var>"


def with_functions(graph: str, *functions: str, opset: int = 17, **options: Any) -> Any:
    """A model with functions of the domain `my`, each `name (inputs) => (outputs) { ... }`."""
    header = options.pop("header", '<domain: "my", opset_import: ["" : 17, "my" : 1]>')
    domains = options.pop("domains", ["my"])
    text = graph + "".join(f"\n{header}\n{function}" for function in functions)
    return build(text, opset=opset, domains=domains, **options)


BLOCK = """block (x, w, g, b, m, v) => (y) { c = Conv<pads=[1,1,1,1]>(x, w)
    n = BatchNormalization(c, g, b, m, v) y = Relu(n) }"""


def by_reference(proto: onnx.ModelProto, *rewrites: Any) -> Result:
    """Rewrite what onnxruntime cannot load before, and compare with onnx's own evaluator."""
    result = rewrite(proto, *rewrites)
    onnx.checker.check_model(result.proto, full_check=True)
    x = {"x": np.array([-2, -0.5, 1, 3], np.float32)}
    expected = ReferenceEvaluator(proto).run(None, x)
    for level in LEVELS:
        for want, got in zip(expected, run(result.proto, x, level), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)
    return result


def test_a_fusion_opens() -> None:
    proto = with_functions(
        f"net ({MAP} x) => ({MAP} y) {WEIGHTS} {{ y = my.block(x, w, g, b, mean, var) }}", BLOCK
    )
    result = optimize(proto, *CLEAN, FuseConvBatchNorm())
    assert result.ops == ["Conv", "Relu"]
    assert len(result.proto.functions) == 0
    assert result.applied[0].options == {"functions": 1}
    assert [node.output[0] for node in result.proto.graph.node][-1] == "y"


def test_a_fusion_across_the_border() -> None:
    proto = with_functions(
        "net (float[4] x) => (float[4] y) { a = my.act(x) b = my.act(a) y = Relu(b) }",
        "act (x) => (y) { y = LeakyRelu(x) }",
    )
    assert optimize(proto, INLINE, MergeActivations()).ops == ["Relu"]


def test_several_calls_get_names_of_their_own() -> None:
    """`t` is the name of a value in the graph, in the function and of an input."""
    proto = with_functions(
        """net (float[4] x, float[4] t) => (float[4] y, float[4] z)
        { a = my.f(x) z = my.f(t) n = Neg(a) y = Add(n, z) }""",
        "f (x) => (y) { t = Abs(x) n = Exp(t) y = Sub(n, t) }",
    )
    result = optimize(proto, INLINE)
    names = [name for node in result.proto.graph.node for name in node.output]
    assert len(set(names)) == len(names) == 8
    assert {"a", "z", "n", "y"} <= set(names)


def test_what_is_written_about_an_output_stays() -> None:
    proto = with_functions(
        "net (float[4] x) => (float[4] y) { y = my.f(x) }", "f (x) => (y) { y = Abs(x) }"
    )
    proto.graph.output[0].metadata_props.add(key="origin", value="exporter")
    optimize(proto, INLINE)


def test_shapes_are_known_after_it() -> None:
    proto = with_functions(
        "net (float[N,4] x) => (float[N,4] y) { y = my.f(x) }",
        "f (x) => (y) { s = Shape(x) a = Abs(x) y = Reshape(a, s) }",
    )
    result = optimize(proto, *CLEAN, runs=[{"x": (1, 4)}, {"x": (3, 4)}])
    assert result.ops == ["Abs"]


def test_what_a_function_says_of_shapes_is_not_believed() -> None:
    proto = with_functions(
        "net (float[N,4] x) => (float[N,4] y) { y = my.f(x) }",
        "f (x) => (y) { t = Abs(x) u = unknown.Op(t) y = Neg(t) }",
        header='<domain: "my", opset_import: ["" : 17, "unknown" : 1]>',
    )
    for name in ("t", "u"):
        info = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [7, 7])
        proto.functions[0].value_info.append(info)
    parsed = ir.from_proto(proto)
    INLINE.run(parsed)
    shapes = {node.op_type: node.outputs[0].shape for node in parsed.graph}
    assert str(shapes["Abs"]) == "[N,4]"
    assert shapes["Op"] is None


@pytest.mark.parametrize(
    ("call", "slope"),
    [("my.f(x)", 0.25), ("my.f<a=0.5>(x)", 0.5), ("my.g<a=0.5>(x)", 0.5), ("my.g(x)", 0.01)],
)
def test_attributes_are_given_have_defaults_or_are_left_out(call: str, slope: float) -> None:
    proto = with_functions(
        f"net (float[4] x) => (float[4] y) {{ y = {call} }}",
        "f <a: float = 0.25>(x) => (y) { y = LeakyRelu<alpha: float = @a>(x) }",
        "g <a>(x) => (y) { y = LeakyRelu<alpha: float = @a>(x) }",
    )
    result = optimize(proto, INLINE, RemoveDead())
    (node,) = result.proto.graph.node
    alpha = {a.name: a.f for a in node.attribute}.get("alpha", 0.01)
    assert alpha == pytest.approx(slope)


def test_attributes_handed_on_to_a_function_in_it() -> None:
    proto = with_functions(
        "net (float[4] x) => (float[4] y) { y = my.outer<a=0.5>(x) }",
        "outer <a>(x) => (y) { t = my.inner<b: float = @a>(x) y = Neg(t) }",
        "inner <b: float = 0.1>(x) => (y) { y = Elu<alpha: float = @b>(x) }",
    )
    result = optimize(proto, INLINE)
    assert result.ops == ["Elu", "Neg"]
    assert result.applied[0].options == {"functions": 2}


@pytest.mark.parametrize("call", ["my.f(x)", "my.f(x, )", "my.f(x, , six)"])
def test_inputs_left_out(call: str) -> None:
    proto = with_functions(
        f"net (float[4] x) => (float[4] y) {{ y = {call} }}",
        "f (x, low, high) => (y) { y = Clip(x, low, high) }",
        weights={"six": np.float32(0.5)} if "six" in call else {},
    )
    assert optimize(proto, INLINE, RemoveDead()).ops == ["Clip"]


@pytest.mark.parametrize(
    ("outputs", "y"), [("a, b, c", "Add(a, c)"), ("a", "Neg(a)"), ("a, , c", "Add(a, c)")]
)
def test_outputs_left_out(outputs: str, y: str) -> None:
    proto = with_functions(
        f"net (float[4] x) => (float[4] y) {{ {outputs} = my.f(x) y = {y} }}",
        "f (x) => (p, q, r) { p = Exp(x) q = Abs(p) r = Neg(q) }",
    )
    result = by_reference(proto, INLINE, RemoveDead())
    assert "a" in result.proto.graph.node[0].output


@pytest.mark.parametrize(
    "function",
    [
        "f (x) => (x, y) { y = Neg(x) }",
        "f (x) => (y, y) { y = Neg(x) }",
        "f (x) => (y, z) { y = Identity(x) z = Exp(x) }",
    ],
)
def test_outputs_that_are_no_values_of_their_own(function: str) -> None:
    proto = with_functions(
        "net (float[4] x) => (float[4] a, float[4] b) { a, b = my.f(x) }", function
    )
    by_reference(proto, INLINE)
    by_reference(proto, *CLEAN)


def test_a_call_in_a_body_and_a_body_in_a_function() -> None:
    proto = with_functions(
        """net (float[4] x, bool go) => (float[4] y) { a = Neg(x) t = my.pick(go, a)
        y = If (go) <then_branch = p () => (float[4] yt) { t2 = Exp(a) yt = my.pick(go, t2) },
                     else_branch = q () => (float[4] ye) { r = Abs(t) ye = Add(r, a) }> }""",
        """pick (go, v) => (w) { s = Sigmoid(v)
        w = If (go) <then_branch = p () => (yt) { r = Abs(s) yt = Add(r, v) },
                     else_branch = q () => (ye) { r = Exp(s) ye = Sub(r, v) }> }""",
    )
    for go in (True, False):
        result = optimize(proto, INLINE, feeds={"go": np.asarray(go)})
    assert result.ops == ["Neg", "Sigmoid", "If", "If"]
    assert len(result.proto.functions) == 0
    inner = [n.op_type for n in body(result.proto, "If", "then_branch").node]
    assert inner == ["Abs", "Add"]
    names = [n for g in _graphs(result.proto.graph) for node in g.node for n in node.output]
    assert len(names) == len(set(names))


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [
        a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH
    ]
    return [graph, *(deep for g in inner for deep in _graphs(g))]


def test_a_loop_in_a_function() -> None:
    proto = with_functions(
        """net (float[4] x) => (float[4] y) { i = Abs(x) y = my.thrice(i) }""",
        """thrice (x) => (y) { n = Constant<value = int64 {3}>() yes = Constant<value = bool {1}>()
        y = Loop (n, yes, x) <body = b (int64 i, bool go, float[4] v) => (bool go2, float[4] v2)
            { go2 = Identity(go) v2 = Add(v, x) }> }""",
    )
    result = optimize(proto, *CLEAN)
    assert result.ops == ["Abs", "Loop"]


def test_constants_in_a_function_are_folded() -> None:
    proto = with_functions(
        "net (float[4] x) => (float[4] y) { y = my.f(x) }",
        """f (x) => (y) { h = Constant<value = float {0.5}>() d = CastLike(h, x) e = Exp(d)
        y = Mul(x, e) }""",
    )
    assert optimize(proto, *CLEAN).ops == ["Mul"]


def test_functions_not_called_are_not_counted() -> None:
    proto = with_functions(
        "net (float[4] x) => (float[4] y) { y = Neg(x) }", "f (x) => (y) { y = Abs(x) }"
    )
    result = optimize(proto, INLINE)
    assert result.names == []
    assert len(result.proto.functions) == 1
    assert len(optimize(proto, INLINE, RemoveDead()).proto.functions) == 0


# -- Operator sets ----------------------------------------------------------------------------

F = "f (x) => (y) { t = Abs(x) y = Relu(t) }"
G = "net (float[2,4] x) => (float[2,4] y) { y = my.f(x) }"


def test_another_opset_with_the_same_operators() -> None:
    header = '<domain: "my", opset_import: ["" : 15]>'
    result = optimize(with_functions(G, F, header=header), INLINE)
    assert result.ops == ["Abs", "Relu"]
    assert [(i.domain, i.version) for i in result.proto.opset_import if not i.domain] == [("", 17)]


def test_another_opset_with_other_operators() -> None:
    header = '<domain: "my", opset_import: ["" : 12]>'
    softmax = "f (x) => (y) { y = Softmax(x) }"
    proto = with_functions(G, softmax, header=header)
    assert rewrite(proto, INLINE).ops == ["f"]
    (reason,) = kept(ir.from_proto(proto)).values()
    assert reason == "its Softmax is of opset 12, the model of opset 17"


def test_a_domain_that_only_the_function_names() -> None:
    header = '<domain: "my", opset_import: ["" : 17, "com.microsoft" : 1]>'
    gelu = "f (x) => (y) { y = com.microsoft.FastGelu(x) }"
    result = rewrite(with_functions(G, gelu, header=header), INLINE)
    assert result.ops == ["FastGelu"]
    assert {i.domain for i in result.proto.opset_import} >= {"", "com.microsoft"}


def test_a_domain_named_for_nothing_is_not_taken_over() -> None:
    header = '<domain: "my", opset_import: ["" : 17, "unused" : 3]>'
    result = optimize(with_functions(G, F, header=header), INLINE)
    assert "unused" not in {i.domain for i in result.proto.opset_import}


def test_a_domain_that_functions_mean_differently() -> None:
    calls = "net (float[4] x) => (float[4] y) { a = my.f(x) y = my.g(a) }"
    proto = with_functions(calls, F, F.replace("f (", "g (").replace("Abs", "other.Abs"))
    proto.functions[1].opset_import.append(helper.make_opsetid("other", 1))
    third = onnx.FunctionProto()
    third.CopyFrom(proto.functions[1])
    third.name, third.opset_import[-1].version = "h", 2
    proto.functions.append(third)
    proto.graph.node.append(helper.make_node("h", ["y"], ["z"], domain="my"))
    assert [key[1] for key in kept(ir.from_proto(proto))] in (["g"], ["h"])


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml"])
def test_a_stand_in_for_a_kernel_stays(domain: str) -> None:
    proto = with_functions(
        f"net (float[4] x) => (float[4] y) {{ y = {domain}.Mine(x) }}",
        "Mine (x) => (y) { y = Abs(x) }",
        header=f'<domain: "{domain}", opset_import: ["" : 17]>',
        domains=[domain],
    )
    assert rewrite(proto, INLINE).names == []
    assert "kernel" in next(iter(kept(ir.from_proto(proto)).values()))


def test_overloads() -> None:
    proto = with_functions(
        "net (float[4] x) => (float[4] y) { a = my.f(x) y = my.f(a) }",
        "f (x) => (y) { y = Abs(x) }",
        ir_version=10,
    )
    second = onnx.FunctionProto()
    second.CopyFrom(proto.functions[0])
    second.node[0].op_type = "Neg"
    proto.functions[0].overload, second.overload = "one", "two"
    proto.functions.append(second)
    proto.graph.node[0].overload, proto.graph.node[1].overload = "one", "two"
    result = rewrite(proto, INLINE)
    assert result.ops == ["Abs", "Neg"]
    onnx.checker.check_model(result.proto, full_check=True)


# -- Size -------------------------------------------------------------------------------------


def big(calls: int, elements: int, inner: int = 1) -> Any:
    """A function that holds a constant, called in a row; it calls one that holds another."""
    chain = " ".join(f"v{i + 1} = my.f(v{i})" for i in range(calls))
    proto = with_functions(
        f"net (float[{elements}] v0) => (float[{elements}] v{calls}) {{ {chain} }}",
        "f (x) => (y) { k = Constant<value = float[1] {0}>() t = my.g(x) y = Add(t, k) }",
        "g (x) => (y) { k = Constant<value = float[1] {0}>() a = Abs(x) s = Size(k) y = Neg(a) }",
    )
    for function, size in zip(proto.functions, (elements, inner), strict=True):
        array = np.linspace(0, 1, size, dtype=np.float32)
        constant = next(n for n in function.node if n.op_type == "Constant")
        constant.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(array))
    return proto


def test_a_large_function_called_often_stays() -> None:
    proto = big(3, 10_000)
    result = optimize(proto, INLINE)
    assert result.ops == ["f", "f", "f"]
    assert [f.name for f in result.proto.functions] == ["f"], "what it calls is inlined into it"
    assert "f: inlined in 3 places it would make the file bigger" in str(result.applied[0].options)
    assert result.proto.ByteSize() <= proto.ByteSize() + 1000


def test_a_function_that_only_a_kept_one_calls_is_there_once() -> None:
    assert [key[1] for key in kept(ir.from_proto(big(3, 12_000, 10_000)))] == ["f"]
    assert sorted(key[1] for key in kept(ir.from_proto(big(3, 10_000, 12_000)))) == ["f", "g"]


@pytest.mark.parametrize(("calls", "elements"), [(1, 100_000), (3, 1000)])
def test_a_large_one_called_once_or_a_small_one_is_inlined(calls: int, elements: int) -> None:
    proto = big(calls, elements)
    result = optimize(proto, INLINE)
    assert "f" not in result.ops
    assert result.proto.ByteSize() <= proto.ByteSize() + (1 << 16)


def test_calls_that_double_with_every_level() -> None:
    """20 levels of two calls each are a million nodes."""
    levels = [f"f{i} (x) => (y) {{ t = my.f{i + 1}(x) y = my.f{i + 1}(t) }}" for i in range(20)]
    proto = with_functions(
        "net (float[4] x) => (float[4] y) { y = my.f0(x) }",
        *levels,
        "f20 (x) => (y) { y = Abs(x) }",
    )
    parsed = ir.from_proto(proto)
    INLINE.run(parsed)
    assert 0 < len(parsed.functions) < 21
    assert len(ir.to_proto(parsed).SerializeToString()) < 200_000


def test_functions_in_a_circle() -> None:
    proto = with_functions(
        "net (float[4] x) => (float[4] y) { y = my.f(x) }",
        "f (x) => (y) { y = my.g(x) }",
        "g (x) => (y) { y = my.f(x) }",
    )
    parsed = ir.from_proto(proto)
    assert INLINE.run(parsed) == {}
    assert set(kept(parsed).values()) == {"functions call one another in a circle"}


def test_the_file_of_a_kept_function_is_valid() -> None:
    proto = big(3, 10_000)
    check_same(proto, rewrite(proto, *CLEAN).proto)
