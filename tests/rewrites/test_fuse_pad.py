"""fuse-pad: into Conv, AveragePool and MaxPool, and where the numbers would change."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import body, build, check_same, has, listed, optimize, rewrite

from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.cleanup.remove_noops import RemoveNoops
from graphopt.rewrites.exact.fuse_pad import FusePad

FUSE = FusePad()
PADS = (0, 0, 1, 0, 0, 0, 2, 1)
CONV, AVERAGE, MAXIMUM = "Conv", "AveragePool", "MaxPool"
LAYERS = {
    CONV: "Conv(p, w)",
    AVERAGE: "AveragePool<kernel_shape=[3,3]>(p)",
    MAXIMUM: "MaxPool<kernel_shape=[3,3]>(p)",
}


def padded(
    layer: str,
    *,
    pads: tuple[int, ...] = PADS,
    value: float | None = None,
    before: str = "r = Relu(x)",
    mode: str = "",
    opset: int = 17,
    x: str = "float[2,3,7,8] x",
    weight: str = "float[4,3,3,3] w",
) -> onnx.ModelProto:
    """x -> before -> Pad -> layer -> y."""
    rank = len(pads) // 2
    dims = ",".join("2ABCDE"[:rank])
    if opset < 11:
        pad = f"Pad<pads={list(pads)}, value={float(value or 0)}>(r)"
        weights = {}
    else:
        mode = mode and f'<mode="{mode}">'
        pad = f"Pad{mode}(r, pads{'' if value is None else ', v'})"
        weights = {"pads": np.array(pads)}
        if value is not None:
            weights["v"] = np.float32(value)
    declared = f"<{weight}>" if "w" in layer.split("(")[-1] else ""
    return build(
        f"net ({x}) => (float[{dims}] y) {declared} {{ {before} p = {pad} y = {layer} }}",
        weights=weights,
        opset=opset,
    )


def attributes(model: onnx.ModelProto, node: int = -1) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[node].attribute}


@pytest.mark.parametrize("value", [None, 0.0, -0.0])
@pytest.mark.parametrize("opset", [7, 10, 11, 13, 17, 18, 19, 22])
@pytest.mark.parametrize("layer", LAYERS)
def test_zeros_in_every_opset(layer: str, opset: int, value: float | None) -> None:
    result = optimize(padded(LAYERS[layer], value=value, opset=opset), FUSE)
    assert result.ops == ["Relu", layer]
    assert result.names == ["fuse-pad"]
    assert attributes(result.proto)["pads"] == [1, 0, 2, 1]
    assert attributes(result.proto).get("count_include_pad") == (1 if layer == AVERAGE else None)
    assert [tensor.name for tensor in result.proto.graph.initializer] == ["w"] * (layer == CONV)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("axes", "pads", "total"),
    [
        ([2, 3], [1, 2, 0, 1], [1, 2, 0, 1]),
        ([-1], [2, 1], [0, 2, 0, 1]),
        ([3, -2], [1, 2, 0, 1], [2, 1, 1, 0]),
        ([0, 2], [0, 1, 0, 1], [1, 0, 1, 0]),
    ],
)
def test_axes(axes: list[int], pads: list[int], total: list[int], layer: str) -> None:
    model = build(
        f"""net (float[2,3,7,8] x) => (float[2,A,B,C] y) {"<float[4,3,3,3] w>" * (layer == CONV)}
        {{ r = Relu(x) p = Pad(r, pads, , axes) y = {LAYERS[layer]} }}""",
        weights={"pads": np.array(pads), "axes": np.array(axes)},
        opset=18,
    )
    result = optimize(model, FUSE)
    assert result.ops == ["Relu", layer]
    assert attributes(result.proto)["pads"] == total


def test_convolution_with_all_it_may_have() -> None:
    layer = "Conv<pads=[1,2,0,1], strides=[2,1], dilations=[1,2], group=2>(p, w, bias)"
    model = build(
        f"""net (float[N,4,H,W] x) => (float[N,6,A,B] y) <float[6,2,3,2] w, float[6] bias>
        {{ p = Pad(x, pads) y = {layer} }}""",
        weights={"pads": np.array(PADS)},
    )
    result = optimize(model, FUSE, runs=[{"x": (1, 4, 5, 6)}, {"x": (3, 4, 8, 4)}])
    assert result.ops == ["Conv"]
    assert attributes(result.proto)["pads"] == [2, 2, 2, 2]


def test_convolution_padded_farther_than_its_kernel() -> None:
    assert optimize(padded("Conv(p, w)", pads=(0, 0, 5, 4, 0, 0, 7, 9)), FUSE).ops == [
        "Relu",
        "Conv",
    ]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("rank", "pads"), [(1, (0, 0, 1, 0, 0, 2)), (3, (0, 0, 1, 0, 2, 0, 0, 0, 1, 1))]
)
def test_one_and_three_dimensions(rank: int, pads: tuple[int, ...], layer: str) -> None:
    threes = ",".join("3" * rank)
    model = padded(
        LAYERS[layer].replace("[3,3]", f"[{threes}]"),
        pads=pads,
        x=f"float[2,3,{','.join('567'[:rank])}] x",
        weight=f"float[4,3,{threes}] w",
    )
    assert optimize(model, FUSE).ops == ["Relu", layer]


@pytest.mark.parametrize("layer", LAYERS)
def test_auto_pad_valid(layer: str) -> None:
    text = LAYERS[layer].replace("(p", '<auto_pad="VALID">(p').replace("><", ", ")
    result = optimize(padded(text), FUSE)
    assert result.ops == ["Relu", layer]
    assert attributes(result.proto)["auto_pad"] == b"NOTSET"


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_same(layer: str, mode: str) -> None:
    text = LAYERS[layer].replace("(p", f'<auto_pad="{mode}">(p').replace("><", ", ")
    result = optimize(padded(text), FUSE)
    assert result.names == []
    assert has(result.reasons, f"depends on the size of its input .auto_pad {mode}")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("pads", "reason"),
    [
        ((0, 0, -1, 0, 0, 0, 1, 1), "crops"),
        ((0, 1, 0, 0, 0, 1, 0, 0), "batch or the channels"),
        ((1, 0, 0, 0, 0, 0, 0, 0), "batch or the channels"),
        ((0, -1, 1, 0, 0, 0, 0, 0), "batch or the channels"),
    ],
)
def test_pads_that_no_layer_has(layer: str, pads: tuple[int, ...], reason: str) -> None:
    channels = 3 + pads[1] + pads[5]
    model = padded(LAYERS[layer], pads=pads, weight=f"float[4,{channels},3,3] w")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    result = optimize(model, FUSE)
    assert result.names == []
    assert has(result.reasons, reason)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_other_modes(layer: str, mode: str) -> None:
    result = optimize(padded(LAYERS[layer], mode=mode, opset=19), FUSE)
    assert result.names == []
    assert has(result.reasons, f"mode {mode}")


@pytest.mark.parametrize("layer", LAYERS)
def test_other_values(layer: str) -> None:
    result = optimize(padded(LAYERS[layer], value=0.5), FUSE)
    assert result.names == []
    assert has(result.reasons, "pads with 0.5")


@pytest.mark.parametrize("layer", LAYERS)
def test_pads_known_at_run_time_only(layer: str) -> None:
    model = padded(LAYERS[layer])
    model.graph.input.append(onnx.helper.make_tensor_value_info("pads", 7, [8]))
    result = rewrite(model, FUSE)
    assert result.names == []
    assert has(result.reasons, "not constant")
    assert has(rewrite(listed(padded(LAYERS[layer], value=0.0), "v"), FUSE).reasons, "not constant")


@pytest.mark.parametrize("count", [0, 1])
def test_average_pool_with_pads_of_its_own(count: int) -> None:
    """Those that it does not count stay apart from those it would have to count."""
    layer = f"AveragePool<kernel_shape=[3,3], pads=[1,1,0,0], count_include_pad={count}>(p)"
    result = optimize(padded(layer, pads=(0, 0, 1, 0, 0, 0, 1, 1)), FUSE)
    assert result.names == (["fuse-pad"] if count else [])
    assert count or has(result.reasons, "does not count its own pads")
    if count:
        assert attributes(result.proto)["pads"] == [2, 1, 1, 1]


@pytest.mark.parametrize("layer", [AVERAGE, MAXIMUM])
def test_pool_padded_farther_than_its_kernel(layer: str) -> None:
    for pads in ((0, 0, 3, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 0, 3)):
        result = optimize(padded(LAYERS[layer], pads=pads), FUSE)
        assert result.names == []
        assert has(result.reasons, "smaller than its kernel")
    own = LAYERS[layer].replace("3]>", "3], count_include_pad=1, pads=[2,0,0,0]>")
    own = own.replace("count_include_pad=1, ", "") if layer == MAXIMUM else own
    assert has(optimize(padded(own), FUSE).reasons, "smaller than its kernel")


@pytest.mark.parametrize("layer", [AVERAGE, MAXIMUM])
@pytest.mark.parametrize(
    ("size", "stride", "fuses"),
    [("9,9", 2, True), ("8,9", 2, False), ("8,8", 1, True), ("H,9", 2, False), ("H,W", 1, True)],
)
def test_ceil_mode(layer: str, size: str, stride: int, fuses: bool) -> None:
    """Where the last window reaches beyond the padding, onnxruntime counts and starts otherwise."""
    text = LAYERS[layer].replace("3]>", f"3], strides=[{stride},{stride}], ceil_mode=1>")
    model = padded(text, pads=(0, 0, 1, 0, 0, 0, 1, 2), x=f"float[2,3,{size}] x")
    result = optimize(model, FUSE, runs=[{"x": (2, 3, 8, 9)}] if "H" in size else [{}])
    assert result.names == (["fuse-pad"] if fuses else [])
    assert fuses or has(result.reasons, "ceil_mode")


NEVER_NEGATIVE = {
    "Relu": "r = Relu(x)",
    "Clip": "r = Clip(x, zero, six)",
    "Clip without a limit": "r = Clip(x, zero)",
    "Sigmoid": "r = Sigmoid(x)",
    "HardSigmoid": "r = HardSigmoid<alpha=2.0,beta=-3.0>(x)",
    "Softmax": "r = Softmax<axis=1>(x)",
    "Abs": "r = Abs(x)",
    "pooled": "a = Relu(x) b = MaxPool<kernel_shape=[2,2],pads=[1,0,0,1]>(a) "
    "r = AveragePool<kernel_shape=[2,2],pads=[1,0,0,1],count_include_pad=1>(b)",
    "joined": "a = Relu(x) b = Abs(x) c = Concat<axis=1>(a, b) r, d = Split<axis=1>(c, parts)",
    "summed": "a = Relu(x) b = Sigmoid(x) c = Add(a, b) e = Mul(c, six) r = Add(e, zero)",
    "handed on": "a = Relu(x) b = Dropout(a) c = Transpose<perm=[0,1,3,2]>(b) r = Identity(c)",
}
MAYBE_NEGATIVE = {
    "input": "r = Identity(x)",
    "Clip": "r = Clip(x, minus, six)",
    "Clip without a limit": "r = Clip(x, , six)",
    "Clip upside down": "r = Clip(x, zero, minus)",
    "LeakyRelu": "r = LeakyRelu<alpha=0.01>(x)",
    "HardSwish": "r = HardSwish(x)",
    "Tanh": "r = Tanh(x)",
    "joined": "a = Relu(x) c = Concat<axis=1>(a, x) d, r = Split<axis=1>(c, parts)",
    "summed": "a = Relu(x) r = Add(a, x)",
    "scaled": "a = Relu(x) r = Mul(a, minus)",
    "less": "a = Relu(x) r = Sub(a, six)",
}
NUMBERS = {
    "zero": np.float32(0), "six": np.float32(6), "minus": np.float32(-1), "parts": np.array([3, 3])
}  # fmt: skip


def before_max_pool(before: str) -> onnx.ModelProto:
    model = padded(LAYERS[MAXIMUM], before=before)
    used = {name for node in model.graph.node for name in node.input}
    for name, array in NUMBERS.items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


@pytest.mark.parametrize("before", NEVER_NEGATIVE.values(), ids=NEVER_NEGATIVE)
def test_max_pool_of_what_is_never_negative(before: str) -> None:
    result = optimize(before_max_pool(before), FUSE)
    assert result.names == ["fuse-pad"]
    assert result.ops[-1] == "MaxPool"


@pytest.mark.parametrize("before", MAYBE_NEGATIVE.values(), ids=MAYBE_NEGATIVE)
def test_max_pool_of_what_may_be_negative(before: str) -> None:
    """Zero is the maximum at the border, minus infinity never is: 19 % off."""
    result = optimize(before_max_pool(before), FUSE)
    assert result.names == []
    assert has(result.reasons, "pads with 0, the pool with minus infinity")


@pytest.mark.parametrize("value", [-np.inf, float(np.finfo(np.float32).min), -7.0])
def test_max_pool_padded_with_little(value: float) -> None:
    model = padded(LAYERS[MAXIMUM], value=value, before="r = Identity(x)")
    result = optimize(model, FUSE)
    assert result.names == ([] if value == -7 else ["fuse-pad"])
    clipped = padded(LAYERS[MAXIMUM], value=value, before="r = Clip<min=-7.0,max=9.0>(x)", opset=10)
    assert optimize(clipped, FUSE).names == ["fuse-pad"]


@pytest.mark.parametrize(("dtype", "fuses"), [("uint8", True), ("int8", False)])
def test_max_pool_of_integers(dtype: str, fuses: bool) -> None:
    """Zero is the lowest of the unsigned."""
    model = build(
        f"""net ({dtype}[1,2,5,5] x) => ({dtype}[1,2,A,B] y)
        {{ a = Abs(x) p = Pad(a, pads) y = MaxPool<kernel_shape=[3,3]>(p) }}""",
        weights={"pads": np.array(PADS)},
    )
    result = optimize(model, FUSE)
    assert result.names == (["fuse-pad"] if fuses else [])


def test_max_pool_with_positions() -> None:
    model = build(
        """net (float[1,2,5,5] x) => (float[1,2,A,B] y, int64[1,2,A,B] i)
        { r = Relu(x) p = Pad(r, pads) y, i = MaxPool<kernel_shape=[3,3]>(p) }""",
        weights={"pads": np.array(PADS)},
    )
    result = optimize(model, FUSE)
    assert result.names == []
    assert has(result.reasons, "positions")
    del model.graph.output[1]
    assert optimize(model, FUSE).ops == ["Relu", "MaxPool"]


@pytest.mark.parametrize(("size", "fuses"), [("3,3", True), ("2,3", False), ("H,3", False)])
def test_dilated_max_pool_may_step_over_a_small_map(size: str, fuses: bool) -> None:
    """A window of two pixels, three apart, around a map two high sees padding alone."""
    model = padded(
        "MaxPool<kernel_shape=[2,2], dilations=[3,3]>(p)",
        pads=(0, 0, 1, 1, 0, 0, 1, 1),
        x=f"float[2,3,{size}] x",
    )
    result = optimize(model, FUSE, runs=[{"x": (2, 3, 2, 3)}] if "H" in size else [{}])
    assert result.names == (["fuse-pad"] if fuses else [])
    assert fuses or has(result.reasons, "nothing but padding")


def test_transposed_convolution() -> None:
    model = padded("ConvTranspose(p, w)", weight="float[3,4,3,3] w")
    result = optimize(model, FUSE)
    assert result.names == []
    assert has(result.reasons, "crop its output")


@pytest.mark.parametrize("layer", LAYERS)
def test_padded_value_used_elsewhere(layer: str) -> None:
    model = padded(LAYERS[layer])
    model.graph.output.append(onnx.helper.make_tensor_value_info("p", 1, [2, 3, 10, 9]))
    result = optimize(model, FUSE)
    assert result.names == []
    assert has(result.reasons, "needed elsewhere")


def test_weight_known_at_run_time_only() -> None:
    """Where the padding goes does not depend on the weight."""
    model = padded("Conv(p, w)", x="float[2,3,7,8] x, float[4,3,3,3] w", weight="float[1] unused")
    assert optimize(model, FUSE).ops == ["Relu", "Conv"]


def test_pads_behind_other_nodes() -> None:
    model = build(
        """net (float[1,3,6,6] x) => (float[1,4,A,B] y) <int32[8] n, float[4,3,3,3] w>
        { c = Cast<to=7>(n) i = Identity(c) v = Constant<value_float=0.0>()
          p = Pad(x, i, v) y = Conv(p, w) }""",
        weights={"n": np.array(PADS, np.int32)},
    )
    assert optimize(model, FUSE, RemoveDead()).ops == ["Conv"]


def test_half_precision() -> None:
    text = """net (float16[1,3,6,6] x) => (float16[1,4,A,B] y) <float16[4,3,3,3] w>
        { p = Pad(x, pads) c = Conv(p, w) r = Relu(c) q = Pad(r, pads)
          y = MaxPool<kernel_shape=[3,3]>(q) }"""
    result = optimize(build(text, weights={"pads": np.array(PADS)}), FUSE, tolerance=5e-3)
    assert result.ops == ["Conv", "Relu", "MaxPool"]


@pytest.mark.parametrize("value", [0.0, float(np.finfo(np.float64).min)])
def test_double_precision(value: float) -> None:
    text = """net (double[1,3,6,6] x) => (double[1,3,A,B] y) <double v>
        { r = Relu(x) q = Pad(r, pads, v) y = MaxPool<kernel_shape=[3,3]>(q) }"""
    model = build(text, weights={"pads": np.array(PADS), "v": np.float64(value)})
    assert optimize(model, FUSE).ops == ["Relu", "MaxPool"]


def test_in_a_body() -> None:
    model = build(
        """net (float[1,3,5,5] x, bool c) => (float[1,3,6,4] y) <float[3,3,3,3] w>
        { q = Pad(x, pads)
          y = If (c) <then_branch = t () => (float[1,3,6,4] yt)
                        { r = Relu(x) p = Pad(r, pads) yt = MaxPool<kernel_shape=[3,3]>(p) },
                      else_branch = e () => (float[1,3,6,4] ye) { ye = Conv(q, w) }> }""",
        weights={"pads": np.array(PADS)},
    )
    for cond in (True, False):
        result = rewrite(model, FUSE)
        check_same(model, result.proto, feeds={"c": np.asarray(cond)})
        assert [n.op_type for n in body(result.proto, "If", "then_branch").node] == [
            "Relu",
            "MaxPool",
        ]
        assert has(result.reasons, "outside this body")


def test_pads_of_nothing_go_by_themselves() -> None:
    model = padded("Conv(p, w)", pads=(0,) * 8)
    assert optimize(model, RemoveNoops(), FUSE).names == ["remove-noops"]


def test_other_readers_are_no_site() -> None:
    model = padded("Relu(p)", pads=PADS)
    result = optimize(model, FUSE)
    assert result.declined == ()


@given(data=st.data())
@settings(deadline=None, derandomize=True, max_examples=50)
def test_random_layers(data: st.DataObject) -> None:
    """Fused or not: the same numbers; and fused whenever nothing stands against it."""
    layer = data.draw(st.sampled_from(sorted(LAYERS)))
    two = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, strides = data.draw(two), data.draw(two)
    dilations = data.draw(two) if layer != AVERAGE else (1, 1)
    four = st.lists(st.integers(0, 3), min_size=4, max_size=4)
    own = data.draw(four) if data.draw(st.booleans()) else [0] * 4
    if layer != CONV:
        own = [min(p, k - 1) for p, k in zip(own, kernel * 2, strict=True)]
    given_pads = data.draw(four)
    options = {"kernel_shape": kernel, "strides": strides, "pads": own}
    if layer != AVERAGE:
        options["dilations"] = dilations
    listed_options = ", ".join(f"{name}={list(numbers)}" for name, numbers in options.items())
    if layer != CONV:
        listed_options += f", ceil_mode={data.draw(st.integers(0, 1))}"
    if layer == AVERAGE:
        listed_options += f", count_include_pad={data.draw(st.integers(0, 1))}"
    operands = "(p, w)" if layer == CONV else "(p)"
    model = padded(
        f"{layer}<{listed_options}>{operands}",
        pads=(0, 0, *given_pads[:2], 0, 0, *given_pads[2:]),
        x="float[2,3,9,10] x",
        weight=f"float[4,3,{kernel[0]},{kernel[1]}] w",
        before=data.draw(st.sampled_from(["r = Relu(x)", "r = Identity(x)"])),
    )
    result = optimize(model, FUSE)
    assert len(result.names) + len(result.declined) == 1
    if layer == CONV:
        assert result.names == ["fuse-pad"]


def test_every_pair_of_layers_behind_one_pad_keeps_it() -> None:
    for first, second in itertools.combinations(LAYERS.values(), 2):
        model = padded(first)
        model.graph.node[-1].output[0] = "z"
        other = padded(second).graph.node[-1]
        other.output[0] = "y2"
        model.graph.node.append(other)
        model.graph.node.append(onnx.helper.make_node("ReduceMax", ["z"], ["a"], keepdims=0))
        model.graph.node.append(onnx.helper.make_node("ReduceMax", ["y2"], ["b"], keepdims=0))
        model.graph.node.append(onnx.helper.make_node("Add", ["a", "b"], ["y"]))
        model.graph.output[0].type.tensor_type.shape.ClearField("dim")
        if "w" not in {t.name for t in model.graph.initializer} and "w" in other.input:
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
            )
        result = optimize(model, FUSE)
        assert result.names == []
        assert len(result.declined) == 2
