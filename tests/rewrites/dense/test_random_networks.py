"""Random small classifiers: every cell is the original's answer to its window, whatever comes together."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_text import build

LAYERS = st.sampled_from(
    [
        "Conv<kernel_shape=[3,3]>({x}, w3)",
        "Conv<kernel_shape=[1,1]>({x}, w1)",
        "Conv<kernel_shape=[2,3], strides=[2,1]>({x}, w23)",
        "Conv<kernel_shape=[3,3], strides=[2,2], group=2>({x}, wg)",
        "MaxPool<kernel_shape=[2,2], strides=[2,2]>({x})",
        "AveragePool<kernel_shape=[3,2], strides=[1,2]>({x})",
        "Relu({x})",
        "Mul({x}, scale)",
        "Gather<axis=1>({x}, order)",
    ]
)
HEADS = st.sampled_from(
    [
        "f = Flatten({x}) y = Gemm(f, v, b)",
        "f = Flatten({x}) h = MatMul(f, v) r = Relu(h) y = Gemm(r, u, b)",
        "g = GlobalAveragePool({x}) f = Flatten(g) y = Gemm(f, v4, b)",
        "f = ReduceMax<axes=[2,3], keepdims=0>({x}) h = Gemm(f, v4, b) y = Softmax(h)",
    ]
)


def _extent(layer: str, size: tuple[int, int]) -> tuple[int, int]:
    """The size of a layer's result."""
    kernel = {"w3": (3, 3), "w23": (2, 3), "wg": (3, 3), "Max": (2, 2), "Ave": (3, 2)}
    strides = {"w23": (2, 1), "wg": (2, 2), "Max": (2, 2), "Ave": (1, 2)}
    key = next((key for key in ("w23", "w3", "wg", "Max", "Ave") if key in layer), None)
    if key is None:
        return size
    steps = strides.get(key, (1, 1))
    height, width = ((n - k) // s + 1 for n, k, s in zip(size, kernel[key], steps, strict=True))
    return height, width


def network(layers: list[str], head: str, seed: int) -> onnx.ModelProto | None:
    """x [N, 4, 17, 19] -> layers, residuals where shapes allow -> y [N, 5]; None if nothing is left."""
    body, value, size = [], "x", (17, 19)
    for number, layer in enumerate(layers):
        result, after = f"l{number}", _extent(layer, size)
        body.append(f"{result} = " + layer.format(x=value))
        if after == size:
            body.append(f"s{number} = Add({result}, {value})")
            result = f"s{number}"
        value, size = result, after
    if min(size) < 1:
        return None
    weights = _weights(seed, size[0] * size[1])
    text = " ".join([*body, head.format(x=value)])
    used = {
        name: array for name, array in weights.items() if f" {name})" in text or f" {name}," in text
    }
    return build(f"net (float[N,4,17,19] x) => (float[N,5] y) {{ {text} }}", weights=used)


def _weights(seed: int, places: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def made(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return {
        "w3": made(4, 4, 3, 3),
        "w1": made(4, 4, 1, 1),
        "w23": made(4, 4, 2, 3),
        "wg": made(4, 2, 3, 3),
        "scale": made(4, 1, 1),
        "order": np.array([2, 0, 3, 1]),
        "v": made(5, 4 * places).T.copy(),
        "v4": made(4, 5),
        "u": made(5, 5),
        "b": made(5),
    }


@settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(LAYERS, min_size=1, max_size=6), HEADS, st.integers(0, 5))
def test_windows_agree(dense, layers, head, seed):
    model = network(layers, head, seed)
    if model is None:
        return
    made = dense(model, strides=(0, 2))
    assert made.facts.inexact is None
    assert set(made.ops) <= {
        "Conv", "MaxPool", "AveragePool", "Relu", "Mul", "Add", "Gather", "Softmax",
    }  # fmt: skip
