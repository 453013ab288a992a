"""Closed forms of rectified and clipped Gaussians against Monte Carlo sampling."""

import numpy as np
import pytest
from scipy.special import expit

from graphopt.factorize.gaussian import clipped, leaky, rectified, through

MEANS = np.array([-3.0, -0.7, 0.0, 0.4, 2.0, 9.0])
VARIANCES = np.array([1.0, 0.25, 1.0, 2.0, 0.5, 4.0])
COUNT = 1_000_000


def sampled(function):
    """Mean and variance by sampling; off by about variance / 1,000."""
    noise = np.random.default_rng(5).standard_normal(COUNT)
    y = function(MEANS[:, None] + np.sqrt(VARIANCES)[:, None] * noise)
    return y.mean(axis=1), y.var(axis=1)


def agree(found, wanted):
    np.testing.assert_allclose(found[0], wanted[0], atol=0.015)
    np.testing.assert_allclose(found[1], wanted[1], atol=0.05)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, np.inf), (0.0, 6.0), (-1.0, 1.0), (-np.inf, 0.5), (-np.inf, np.inf)]
)
def test_clipped(low, high):
    agree(clipped(MEANS, VARIANCES, low, high), sampled(lambda x: np.clip(x, low, high)))


def test_rectified():
    agree(rectified(MEANS, VARIANCES), sampled(lambda x: np.maximum(x, 0)))


def test_rectified_standard_normal():
    mean, variance = rectified(np.zeros(1), np.ones(1))
    assert mean == pytest.approx(1 / np.sqrt(2 * np.pi), rel=1e-12)
    assert variance == pytest.approx(0.5 - 0.5 / np.pi, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.1, -0.3, 1.0])
def test_leaky(alpha):
    agree(leaky(MEANS, VARIANCES, alpha), sampled(lambda x: np.where(x > 0, x, alpha * x)))


@pytest.mark.parametrize("function", [expit, np.tanh, lambda x: x * expit(x)])
def test_through(function):
    agree(through(MEANS, VARIANCES, function), sampled(function))


def test_constant_channels():
    mean, variance = clipped(np.array([-1.0, 0.5, 7.0]), np.zeros(3), 0.0, 6.0)
    np.testing.assert_allclose(mean, [0, 0.5, 6], atol=1e-12)
    np.testing.assert_allclose(variance, 0, atol=1e-12)


def test_far_channels_keep_their_digits():
    mean, variance = rectified(np.array([-1e6, 1e6]), np.ones(2))
    np.testing.assert_allclose(mean, [0, 1e6], rtol=1e-12)
    np.testing.assert_allclose(variance, [0, 1], rtol=1e-9)
