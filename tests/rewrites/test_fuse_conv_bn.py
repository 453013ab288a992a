"""fuse-conv-bn: a BatchNormalization goes into the linear operator before it, or a reason is given."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from onnx_text import Result, build, check_same, has, listed, optimize, rewrite

from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm

FUSE = FuseConvBatchNorm()
NORM = "y = BatchNormalization(c, g, b, mean, var)"


def conv(
    op: str,
    weight: str,
    *,
    x: str = "1,4,9,9",
    y: str = "1,6,N,M",
    channels: int = 6,
    bias: bool = False,
    opset: int = 17,
    norm: str = NORM,
    kind: str = "float",
) -> onnx.ModelProto:
    """x -> op -> BatchNormalization -> y, all of one element type."""
    operands = "x, w, bias" if bias else "x, w"
    return build(
        f"""net ({kind}[{x}] x) => ({kind}[{y}] y)
        <{kind}[{weight}] w, {kind}[{channels}] bias, {kind}[{channels}] g, {kind}[{channels}] b,
         {kind}[{channels}] mean, {kind}[{channels}] var>
        {{ c = {op}({operands}) {norm} }}""",
        opset=opset,
    )


def fused(result: Result, op: str) -> None:
    assert result.ops == [op]
    assert result.names == ["fuse-conv-bn"]
    assert result.declined == ()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("op", "weight", "x", "y"),
    [
        ("Conv", "6,4,3", "2,4,9", "2,6,N"),
        ("Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>", "6,4,3,3", "1,4,9,9", "1,6,N,M"),
        ('Conv<auto_pad="SAME_UPPER", strides=[2,2]>', "6,4,3,3", "1,4,9,9", "1,6,N,M"),
        ('Conv<auto_pad="SAME_LOWER">', "6,4,2,2", "1,4,9,9", "1,6,N,M"),
        ("Conv<group=2>", "6,2,3,3", "1,4,9,9", "1,6,N,M"),
        ("Conv", "6,4,2,3,2", "1,4,5,5,5", "1,6,N,M,L"),
    ],
)
def test_conv(op: str, weight: str, x: str, y: str, bias: bool) -> None:
    fused(optimize(conv(op, weight, x=x, y=y, bias=bias), FUSE), "Conv")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("op", "weight", "x", "y"),
    [
        ("ConvTranspose", "4,6,3", "2,4,9", "2,6,N"),
        ("ConvTranspose<strides=[2,2], output_padding=[1,1]>", "4,6,3,3", "1,4,5,5", "1,6,N,M"),
        ("ConvTranspose<group=2, pads=[1,1,1,1]>", "4,3,3,3", "1,4,5,5", "1,6,N,M"),
        ("ConvTranspose", "4,6,2,2,2", "1,4,3,3,3", "1,6,N,M,L"),
    ],
)
def test_conv_transpose(op: str, weight: str, x: str, y: str, bias: bool) -> None:
    fused(optimize(conv(op, weight, x=x, y=y, bias=bias), FUSE), "ConvTranspose")


def test_depthwise() -> None:
    model = conv("Conv<group=6>", "6,1,3,3", x="1,6,9,9")
    result = optimize(model, FUSE)
    fused(result, "Conv")
    assert result.weight(0, 1).shape == (6, 1, 3, 3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("op", "weight"),
    [
        ("Gemm", "4,6"),
        ("Gemm<transB=1>", "6,4"),
        ("Gemm<transB=1, alpha=0.5, beta=2.0>", "6,4"),
        ("Gemm<alpha=-1.5, beta=0.25>", "4,6"),
    ],
)
def test_gemm(op: str, weight: str, bias: bool) -> None:
    fused(optimize(conv(op, weight, x="3,4", y="3,6", bias=bias), FUSE), "Gemm")


@pytest.mark.parametrize("shape", ["", "1", "1,6", "1,1"])
def test_gemm_with_a_bias_that_broadcasts(shape: str) -> None:
    model = conv("Gemm", "4,6", x="3,4", y="3,6", bias=True)
    dims = [int(n) for n in shape.split(",") if n]
    tensor = next(t for t in model.graph.initializer if t.name == "bias")
    values = np.linspace(-1, 1, int(np.prod(dims)) or 1, dtype=np.float32).reshape(dims)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "bias"))
    fused(optimize(model, FUSE), "Gemm")


def test_gemm_whose_bias_differs_between_samples() -> None:
    model = build(
        """net (float[3,4] x) => (float[3,6] y)
        <float[4,6] w, float[3,6] bias, float[6] g, float[6] b, float[6] mean, float[6] var>
        { c = Gemm(x, w, bias) y = BatchNormalization(c, g, b, mean, var) }"""
    )
    result = optimize(model, FUSE)
    assert result.names == []
    assert has(result.reasons, "bias differs between samples")


def test_matmul_becomes_a_gemm() -> None:
    fused(optimize(conv("MatMul", "4,6", x="3,4", y="3,6"), FUSE), "Gemm")


@pytest.mark.parametrize("x", ["2,6,4", "2,6,3,4"])
def test_matmul_of_rank_above_two_is_declined(x: str) -> None:
    """Its channels are the last axis; the normalized one is axis 1 (here of the same size)."""
    result = optimize(conv("MatMul", "4,6", x=x, y=x.replace("4", "6")), FUSE)
    assert result.ops == ["MatMul", "BatchNormalization"]
    assert has(result.reasons, "not the axis that is normalized")


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 17, 21])
def test_opsets(opset: int) -> None:
    model = conv("Conv", "6,4,3,3", opset=opset, bias=True)
    result = optimize(model, FUSE)
    fused(result, "Conv")
    assert result.proto.opset_import[0].version == opset
    assert result.proto.ir_version == model.ir_version


def test_epsilon_counts() -> None:
    norm = "y = BatchNormalization<epsilon=0.5>(c, g, b, mean, var)"
    fused(optimize(conv("Conv", "6,4,3,3", norm=norm), FUSE), "Conv")


def test_weight_shared_by_two_convolutions() -> None:
    model = build(
        """net (float[1,4,9,9] x) => (float[1,6,7,7] y, float[1,6,7,7] z)
        <float[6,4,3,3] w, float[6] g, float[6] b, float[6] mean, float[6] var,
         float[6] g2, float[6] b2>
        { c = Conv(x, w) d = Conv(x, w)
          y = BatchNormalization(c, g, b, mean, var)
          z = BatchNormalization(d, g2, b2, mean, var) }"""
    )
    result = optimize(model, FUSE)
    assert result.ops == ["Conv", "Conv"]
    assert not np.array_equal(result.weight(0, 1), result.weight(1, 1))
    assert "w" not in [tensor.name for tensor in result.proto.graph.initializer]


def test_weight_shared_with_a_convolution_that_stays() -> None:
    model = build(
        """net (float[1,4,9,9] x) => (float[1,6,7,7] y, float[1,6,7,7] d)
        <float[6,4,3,3] w, float[6] g, float[6] b, float[6] mean, float[6] var>
        { c = Conv(x, w) d = Conv(x, w) y = BatchNormalization(c, g, b, mean, var) }"""
    )
    result = optimize(model, FUSE)
    assert sorted(result.ops) == ["Conv", "Conv"]
    assert len(result.proto.graph.initializer) == 3  # w for d; weight and bias of the fused one


def test_intermediate_is_also_an_output() -> None:
    model = build(
        """net (float[1,4,9,9] x) => (float[1,6,7,7] y, float[1,6,7,7] c)
        <float[6,4,3,3] w, float[6] g, float[6] b, float[6] mean, float[6] var>
        { c = Conv(x, w) y = BatchNormalization(c, g, b, mean, var) }"""
    )
    result = optimize(model, FUSE)
    assert result.names == []
    assert has(result.reasons, "needed elsewhere")


def test_intermediate_used_twice() -> None:
    norm = "n = BatchNormalization(c, g, b, mean, var) y = Add(n, c)"
    result = optimize(conv("Conv", "6,4,3,3", norm=norm), FUSE)
    assert result.names == []
    assert has(result.reasons, "needed elsewhere")


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("w = Identity(v)", {"v": np.random.default_rng(1).normal(size=(6, 4, 3, 3))}),
        ("w = Cast<to=1>(v)", {"v": np.random.default_rng(2).integers(-3, 3, (6, 4, 3, 3))}),
        ("w = CastLike(v, x_like)", {"v": np.arange(216).reshape(6, 4, 3, 3) % 7 - 3}),
        ("w = Unsqueeze(v, at)", {"v": np.random.default_rng(3).normal(size=(6, 4, 3)), "at": [3]}),
        ("w = Reshape(v, to)", {"v": np.random.default_rng(4).normal(size=216), "to": [6, 4, 3, -1]}),
        ("w = ConstantOfShape<value = float[1] {0.5}>(to)", {"to": [6, 4, 3, 3]}),
        ("w = Expand(v, to)", {"v": np.float32(0.25), "to": [6, 4, 3, 3]}),
        ("v = Identity(u) w = Identity(v)", {"u": np.ones((6, 4, 3, 3))}),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)  # fmt: skip
def test_weight_behind_other_operators(nodes: str, weights: dict[str, object]) -> None:
    arrays = {
        name: np.asarray(array, np.float32 if np.asarray(array).dtype == np.float64 else None)
        for name, array in weights.items()
    }
    arrays["x_like"] = np.zeros(1, np.float32)
    model = build(
        f"""net (float[1,4,9,9] x) => (float[1,6,N,M] y)
        <float[6] g, float[6] b, float[6] mean, float[6] var>
        {{ {nodes} c = Conv(x, w) {NORM} }}""",
        weights=arrays,
    )
    result = optimize(model, FUSE)
    assert result.names == ["fuse-conv-bn"]
    assert "BatchNormalization" not in result.ops


def test_everything_in_constant_nodes() -> None:
    vector = "Constant<value = float[2] {1.5, 0.5}>()"
    model = build(
        f"""net (float[1,1,4,4] x) => (float[1,2,4,4] y)
        {{ w = Constant<value = float[2,1,1,1] {{2.0, -1.0}}>()
           g = {vector} b = {vector} mean = {vector} var = {vector} c = Conv(x, w) {NORM} }}"""
    )
    result = optimize(model, FUSE)
    assert result.ops.count("Conv") == 1
    assert "BatchNormalization" not in result.ops


@pytest.mark.parametrize("name", ["w", "g", "var"])
def test_overridable_weight_is_declined(name: str) -> None:
    result = optimize(listed(conv("Conv", "6,4,3,3"), name), FUSE)
    assert result.ops == ["Conv", "BatchNormalization"]
    assert has(result.reasons, "overridden by a caller")


def test_fed_weight_is_declined() -> None:
    model = build(
        """net (float[1,4,9,9] x, float[6,4,3,3] w) => (float[1,6,7,7] y)
        <float[6] g, float[6] b, float[6] mean, float[6] var>
        { c = Conv(x, w) y = BatchNormalization(c, g, b, mean, var) }"""
    )
    assert has(optimize(model, FUSE).reasons, "the weight is a graph input")


def test_computed_weight_is_declined() -> None:
    model = build(
        """net (float[1,4,9,9] x, float[6,4,3,3] v) => (float[1,6,7,7] y)
        <float[6] g, float[6] b, float[6] mean, float[6] var>
        { w = Relu(v) c = Conv(x, w) y = BatchNormalization(c, g, b, mean, var) }"""
    )
    assert has(optimize(model, FUSE).reasons, "computed at run time")


@pytest.mark.parametrize(
    ("opset", "norm", "reason"),
    [
        (15, "y, m1, v1 = BatchNormalization<training_mode=1>(c, g, b, mean, var)", "training"),
        (15, "y = BatchNormalization<training_mode=1>(c, g, b, mean, var)", "training"),
        (8, "y, m1, v1, m2, v2 = BatchNormalization(c, g, b, mean, var)", "training"),
        (8, "y = BatchNormalization<spatial=0>(c, g, b, mean, var)", "spatial=0"),
    ],
)
def test_training_mode_and_statistics_per_position(opset: int, norm: str, reason: str) -> None:
    """onnxruntime runs none of these, so only that the model is left alone can be seen."""
    model = conv("Conv", "6,4,3,3", opset=opset, norm=norm)
    result = rewrite(model, FUSE)
    assert result.ops == ["Conv", "BatchNormalization"]
    assert has(result.reasons, reason)


@pytest.mark.parametrize("before", ["c = Relu(x)", ""])
def test_without_a_convolution(before: str) -> None:
    source = "c" if before else "x"
    model = build(
        f"""net (float[1,4,9,9] x) => (float[1,4,9,9] y)
        <float[4] g, float[4] b, float[4] mean, float[4] var>
        {{ {before} y = BatchNormalization({source}, g, b, mean, var) }}"""
    )
    result = optimize(model, FUSE)
    assert result.names == []
    assert has(result.reasons, "a Relu" if before else "an input")


def test_half_precision() -> None:
    """Tolerance 5e-3: the weight is rounded once more to 11 bits."""
    result = optimize(conv("Conv", "6,4,3,3", kind="float16"), FUSE, tolerance=5e-3)
    fused(result, "Conv")
    assert result.weight(0, 1).dtype == np.float16


def test_half_precision_that_would_overflow_is_declined() -> None:
    model = conv("Conv", "6,4,3,3", kind="float16")
    large = {"w": np.full((6, 4, 3, 3), 900), "var": np.full(6, 6e-5), "g": np.full(6, 1.2)}
    for tensor in model.graph.initializer:
        if tensor.name in large:
            array = large[tensor.name].astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    result = rewrite(model, FUSE)
    assert result.ops == ["Conv", "BatchNormalization"]
    assert has(result.reasons, "too large for float16")


def test_double() -> None:
    result = optimize(conv("Gemm", "4,6", x="3,4", y="3,6", kind="double"), FUSE, tolerance=1e-12)
    fused(result, "Gemm")
    assert result.weight(0, 1).dtype == np.float64


def test_double_convolution() -> None:
    """onnxruntime has no kernel for it; the reference evaluator compares."""
    model = conv("Conv", "6,4,3,3", x="1,4,5,5", kind="double")
    result = rewrite(model, FUSE)
    fused(result, "Conv")
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 4, 5, 5))}
    (want,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    (got,) = onnx.reference.ReferenceEvaluator(result.proto).run(None, feeds)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_generated_weight_stays_generated() -> None:
    """A file that generates 4 MB of equal weights does not grow by them."""
    model = build(
        """net (float[1,256,3,3] x) => (float[1,512,1,1] y) <int64[4] s, int64[1] n>
        { w = ConstantOfShape<value = float[1] {0.01}>(s)
          g = ConstantOfShape<value = float[1] {2.0}>(n) b = ConstantOfShape(n)
          var = ConstantOfShape<value = float[1] {0.5}>(n) c = Conv(x, w)
          y = BatchNormalization(c, g, b, b, var) }""",
        weights={"s": np.array([512, 256, 3, 3]), "n": np.array([512])},
    )
    result = optimize(model, FUSE)
    assert "BatchNormalization" not in result.ops
    assert len(result.proto.SerializeToString()) < 2000


def test_names_that_are_already_taken() -> None:
    """The model uses the very name the edit would make."""
    model = build(
        """net (float[1,4,9,9] x) => (float[1,6,7,7] y, float[1,6,7,7] z)
        <float[6,4,3,3] w, float[6,4,3,3] taken, float[6] g, float[6] b, float[6] mean,
         float[6] var>
        { c = Conv(x, w) y = BatchNormalization(c, g, b, mean, var) z = Conv(x, taken) }"""
    )
    model.graph.node[2].input[1] = "c_weight_fuse-conv-bn"
    next(t for t in model.graph.initializer if t.name == "taken").name = "c_weight_fuse-conv-bn"
    result = optimize(model, FUSE)
    assert sorted(result.ops) == ["Conv", "Conv"]
    assert "c_weight_fuse-conv-bn_2" in [t.name for t in result.proto.graph.initializer]


def test_provenance_and_node_name() -> None:
    model = conv("Conv", "6,4,3,3")
    model.graph.node[0].name = "stem"
    result = optimize(model, FUSE)
    (node,) = ir.from_proto(result.proto).graph
    assert node.name == "stem"
    assert node.metadata_props["graphopt.rewrite"] == "fuse-conv-bn"
    assert result.applied[0].site == ("stem", "y")


def test_dynamic_sizes() -> None:
    model = conv("Conv", "6,4,3,3", x="N,4,H,W", y="N,6,P,Q")
    runs = [{"x": (1, 4, 5, 6)}, {"x": (3, 4, 9, 7)}]
    fused(optimize(model, FUSE, runs=runs), "Conv")


def test_a_wrong_weight_is_seen() -> None:
    """The checks of this suite can fail."""
    result = optimize(conv("Conv", "6,4,3,3"), FUSE)
    name = result.proto.graph.node[0].input[1]
    tensor = next(t for t in result.proto.graph.initializer if t.name == name)
    wrong = onnx.numpy_helper.to_array(tensor) * np.float32(1.001)
    tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, tensor.name))
    with pytest.raises(AssertionError):
        check_same(conv("Conv", "6,4,3,3"), result.proto)


def test_a_generated_weight_is_not_stored_for_a_scale_that_varies() -> None:
    """A file of 0.5 kB would become one of 9 MB."""
    model = build(
        """net (float[1,512,4,4] x) => (float[1,512,2,2] y)
        <float[512] g, float[512] b, float[512] mean, float[512] var, int64[4] shape>
        { w = ConstantOfShape<value = float[1] {0.5}>(shape) c = Conv(x, w)
          y = BatchNormalization(c, g, b, mean, var) }""",
        weights={"shape": np.asarray([512, 512, 3, 3])},
    )
    result = rewrite(model, FUSE)
    assert result.names == []
    assert has(result.reasons, "kept in fewer bytes")


def test_weights_of_few_bits_behind_a_cast_stay_small() -> None:
    model = build(
        """net (float[1,256,4,4] x) => (float[1,256,2,2] y)
        <int8[256,256,3,3] q, float[256] g, float[256] b, float[256] mean, float[256] var>
        { w = Cast<to = 1>(q) c = Conv(x, w) y = BatchNormalization(c, g, b, mean, var) }""",
        weights={"q": np.ones((256, 256, 3, 3), np.int8)},
    )
    result = rewrite(model, FUSE)
    assert result.names == []
    assert has(result.reasons, "kept in fewer bytes")
