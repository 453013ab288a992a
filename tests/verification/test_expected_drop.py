"""Drops in accuracy with their standard errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from graphopt.verification.expected_drop import Judge


def world(seed, samples=4000, classes=5, sharpness=1.0):
    """Scores whose softmax (at temperature `sharpness`) is the true chance of every label."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((samples, classes))
    chances = softmax(logits, axis=1)
    labels = np.array([rng.choice(classes, p=row) for row in chances])
    return sharpness * logits, labels, rng


def spoilt(scores, rng, amount):
    noise = amount * np.abs(scores).mean() * rng.standard_normal(scores.shape)
    return (scores + noise).argmax(axis=1)


def test_no_difference_is_no_drop():
    scores, labels, _ = world(0)
    drop = Judge.of(scores, labels).drop(scores.argmax(axis=1))
    assert (drop.counted, drop.error, drop.expected, drop.expected_error) == (0, 0, 0, 0)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_the_expectation_is_right_and_surer_than_the_count(sharpness):
    """Over many draws: the same mean, a smaller spread, and errors that tell the spread."""
    counted, expected, errors = [], [], []
    for seed in range(40):
        scores, labels, rng = world(seed, samples=1000, sharpness=sharpness)
        drop = Judge.of(scores, labels).drop(spoilt(scores, rng, 0.3))
        counted.append(drop.counted)
        expected.append(drop.expected)
        errors.append((drop.error, drop.expected_error))
    assert abs(np.mean(counted) - np.mean(expected)) < 3 * np.std(counted) / np.sqrt(40)
    assert np.std(expected) < 0.7 * np.std(counted)
    told = np.mean(errors, axis=0)
    assert told[0] == pytest.approx(np.std(counted), rel=0.4)
    assert told[1] < 0.5 * told[0]


def test_probabilities_and_scores_are_told_apart():
    scores, labels, rng = world(1)
    winners = spoilt(scores, rng, 0.3)
    from_scores = Judge.of(scores, labels).drop(winners)
    from_chances = Judge.of(softmax(scores, axis=1).astype(np.float32), labels).drop(winners)
    assert from_chances.expected == pytest.approx(from_scores.expected, rel=1e-3)


def test_outputs_with_trailing_axes_and_labels_out_of_range():
    scores, labels, _ = world(2, samples=50)
    labels[:3] = 99  # a class that the output does not have: never right, no chance told
    judge = Judge.of(scores[:, :, None, None], labels)
    drop = judge.drop(np.roll(scores.argmax(axis=1), 1))
    assert np.isfinite([drop.counted, drop.expected]).all()
    assert drop.expected > 0


def test_one_sample_tells_nothing_about_the_error():
    drop = Judge.of(np.array([[1.0, 0.0]]), np.array([0])).drop(np.array([1]))
    assert drop.counted == 1
    assert np.isinf(drop.error)
