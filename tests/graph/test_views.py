"""Views of operators with weights: pads made explicit, alpha and beta folded in, reasons."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import LEVELS, build, run

from graphopt.graph.annotate import annotate
from graphopt.graph.scope import Scope
from graphopt.graph.views import BatchNormView, ConvView, LinearView


def scope_of(text: str, opset: int = 17) -> tuple[ir.Node, Scope]:
    model = ir.from_proto(build(text, opset=opset))
    annotate(model)
    return model.graph[0], Scope(model, model.graph)


@pytest.mark.parametrize("size", [(7, 8), (9, 5), (2, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 5), (1, 1)])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_explicit_pads_compute_what_auto_pad_does(
    mode: str, kernel: tuple[int, int], strides: tuple[int, int], size: tuple[int, int]
) -> None:
    if mode == "VALID" and (size[0] < kernel[0] or size[1] < kernel[1]):
        pytest.skip("the kernel is larger than the map")
    (h, w), (p, q) = size, kernel
    text = f"""net (float[1,2,{h},{w}] x) => (float[1,3,M,N] y) <float[3,2,{p},{q}] w>
        {{ y = Conv<strides=[{strides[0]},{strides[1]}], PADS>(x, w) }}"""
    automatic = text.replace("PADS", f'auto_pad="{mode}"')
    view = ConvView.of(*scope_of(automatic))
    assert isinstance(view, ConvView)
    assert view.pads is not None
    explicit = text.replace("PADS", f"pads={list(view.pads)}")
    x = {"x": np.random.default_rng(0).normal(size=(1, 2, h, w)).astype(np.float32)}
    (want,) = run(build(automatic), x, LEVELS[0])
    (got,) = run(build(explicit), x, LEVELS[0])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_pads_that_depend_on_an_open_size() -> None:
    text = """net (float[1,2,H,W] x) => (float[1,3,M,N] y) <float[3,2,3,3] w>
        {{ y = Conv<auto_pad="{}", strides=[{},1]>(x, w) }}"""
    stride_two = ConvView.of(*scope_of(text.format("SAME_UPPER", 2)))
    assert isinstance(stride_two, ConvView)
    assert stride_two.pads is None
    stride_one = ConvView.of(*scope_of(text.format("SAME_UPPER", 1)))
    assert isinstance(stride_one, ConvView)
    assert stride_one.pads == (1, 1, 1, 1)
    valid = ConvView.of(*scope_of(text.format("VALID", 2)))
    assert isinstance(valid, ConvView)
    assert valid.pads == (0, 0, 0, 0)


def test_conv_defaults_and_channels() -> None:
    view = ConvView.of(
        *scope_of("net (float[1,4,9] x) => (float[1,6,7] y) <float[6,2,3] w> { y = Conv<group=2>(x, w) }")
    )  # fmt: skip
    assert isinstance(view, ConvView)
    assert (view.strides, view.dilations, view.pads) == ((1,), (1,), (0, 0))
    assert (view.out_channels, view.in_channels, view.group, view.kernel) == (6, 4, 2, (3,))
    assert view.bias is None


def test_conv_transpose_channels() -> None:
    view = ConvView.of(
        *scope_of(
            "net (float[1,4,9,9] x) => (float[1,6,M,N] y) <float[4,3,2,2] w, float[6] b>"
            "{ y = ConvTranspose<group=2, strides=[2,2]>(x, w, b) }"
        )
    )
    assert isinstance(view, ConvView)
    assert (view.out_channels, view.in_channels, view.transposed) == (6, 4, True)


def test_empty_bias_name() -> None:
    view = ConvView.of(
        *scope_of("net (float[1,2,9] x) => (float[1,6,7] y) <float[6,2,3] w> { y = Conv(x, w, ) }")
    )
    assert isinstance(view, ConvView)
    assert view.bias is None


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<alpha=2.0, beta=-0.5>"])
@pytest.mark.parametrize("bias", ["6", "1,6", "1,1", "1"])
def test_a_linear_view_is_x_times_weight_plus_bias(attributes: str, bias: str) -> None:
    weight = "6,4" if "transB" in attributes else "4,6"
    text = f"""net (float[3,4] x) => (float[3,6] y) <float[{weight}] w, float[{bias}] b>
        {{ y = Gemm{attributes}(x, w, b) }}"""
    view = LinearView.of(scope_of(text)[0])
    assert isinstance(view, LinearView)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    (want,) = run(build(text), {"x": x}, LEVELS[0])
    np.testing.assert_allclose(x @ view.weight + view.bias, want, rtol=1e-5, atol=1e-5)


def test_reasons_of_a_linear_view() -> None:
    net = """net (float[{}] x, float[4,6] v) => (float[A,6] y)
        <float[4,6] w, float[3,6] b, float[2,4,6] t> {{ y = {} }}"""

    def reason(x: str, node: str) -> object:
        return LinearView.of(scope_of(net.format(x, node))[0])

    assert reason("4,3", "Gemm<transA=1>(x, w)") == "transA=1: the input is transposed"
    assert reason("3,4", "Gemm(x, w, b)") == "the bias differs between samples"
    assert reason("3,4", "Gemm(x, v)") == "the weight is a graph input"
    assert reason("3,4", "MatMul(x, t)") == "the constant is not a matrix"


@pytest.mark.parametrize("variance", [-1.0, np.nan])
def test_impossible_variance(variance: float) -> None:
    model = ir.from_proto(
        build(
            "net (float[1,2,3] x) => (float[1,2,3] y) <float[2] g, float[2] b, float[2] m>"
            "{ y = BatchNormalization(x, g, b, m, v) }",
            weights={"v": np.array([1.0, variance], np.float32)},
        )
    )
    with np.errstate(invalid="ignore"):
        found = BatchNormView.of(model.graph[0], Scope(model, model.graph))
    assert found == "a variance is negative or not finite"


def test_the_affine_map_of_a_normalization() -> None:
    text = """net (float[2,3,4] x) => (float[2,3,4] y) <float[3] g, float[3] b, float[3] m, float[3] var>
        { y = BatchNormalization<epsilon=0.01>(x, g, b, m, var) }"""
    view = BatchNormView.of(*scope_of(text))
    assert isinstance(view, BatchNormView)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    (want,) = run(build(text), {"x": x}, LEVELS[0])
    got = x * view.scale[:, None] + view.shift[:, None]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
