"""fuse-bn-affine: arithmetic behind a BatchNormalization that has no convolution before it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import build, has, listed, optimize

from graphopt.rewrites.exact.fuse_affine import FuseBatchNormAffine

FUSE = FuseBatchNormAffine()
RNG = np.random.default_rng(0)


def norm_then(arithmetic: str, constant: object, *, x: str = "2,4,3,3") -> onnx.ModelProto:
    return build(
        f"""net (float[{x}] x) => (float[{x}] y)
        <float[4] g, float[4] b, float[4] mean, float[4] var>
        {{ n = BatchNormalization<epsilon=0.001>(x, g, b, mean, var) y = {arithmetic} }}""",
        weights={"k": np.asarray(constant, np.float32)},
    )


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize(
    "arithmetic", ["Mul(n, k)", "Mul(k, n)", "Div(n, k)", "Add(n, k)", "Sub(n, k)", "Sub(k, n)"]
)
def test_per_channel(arithmetic: str, shape: tuple[int, ...]) -> None:
    result = optimize(norm_then(arithmetic, RNG.uniform(0.5, 2.0, shape)), FUSE)
    assert result.ops == ["BatchNormalization"]
    assert result.names == ["fuse-bn-affine"]


def test_densenet_scale_and_shift() -> None:
    model = build(
        """net (float[2,4,3,3] x) => (float[2,4,3,3] y)
        <float[4] g, float[4] b, float[4] mean, float[4] var, float[4,1,1] s, float[4,1,1] t>
        { n = BatchNormalization(x, g, b, mean, var) m = Mul(n, s) y = Add(m, t) }"""
    )
    result = optimize(model, FUSE)
    assert result.ops == ["BatchNormalization"]
    assert len(result.names) == 2


def test_two_dimensions() -> None:
    result = optimize(norm_then("Mul(n, k)", RNG.normal(size=4), x="2,4"), FUSE)
    assert result.ops == ["BatchNormalization"]


@pytest.mark.parametrize(
    ("arithmetic", "shape", "reason"),
    [
        ("Mul(n, k)", (3,), "another axis"),
        ("Mul(n, k)", (2, 1, 1, 1), "another axis"),
        ("Div(k, n)", (4, 1, 1), "is the divisor"),
    ],
)
def test_declined(arithmetic: str, shape: tuple[int, ...], reason: str) -> None:
    result = optimize(norm_then(arithmetic, RNG.uniform(0.5, 2.0, shape)), FUSE)
    assert result.names == []
    assert has(result.reasons, reason)


def test_overridable_statistic() -> None:
    result = optimize(listed(norm_then("Mul(n, k)", 2.0), "mean"), FUSE)
    assert result.names == []
    assert has(result.reasons, "the mean can be overridden")


def test_statistics_shared_by_two_normalizations() -> None:
    model = build(
        """net (float[2,4,3,3] x, float[2,4,3,3] z) => (float[2,4,3,3] y, float[2,4,3,3] m)
        <float[4] g, float[4] b, float[4] mean, float[4] var>
        { n = BatchNormalization(x, g, b, mean, var) y = Mul(n, k)
          m = BatchNormalization(z, g, b, mean, var) }""",
        weights={"k": np.float32(3)},
    )
    result = optimize(model, FUSE)
    assert result.ops == ["BatchNormalization", "BatchNormalization"]
