"""How much the outputs care about each direction of a layer's response.

For a layer with response r at one position, E[g g^T] with g = J^T v, J the Jacobian of the outputs and
v random, is the metric in which a small change of r changes the outputs (the Gauss-Newton metric, or
Fisher information of outputs with Gaussian noise). Gathered by running the adjoint graph.
Source: Martens & Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate
curvature", which uses the same factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.calibration.adjoint import adjoint
from graphopt.calibration.dataset import Dataset
from graphopt.errors import InputError
from graphopt.graph.io import session_source
from graphopt.graph.scope import Scope
from graphopt.progress import Progress
from graphopt.runtime import Array, open_session, run

_POSITIONS = 4096
"""Positions a layer's gradients are averaged over, in all."""


def sensitivities(
    scope: Scope,
    layers: Sequence[str],
    dataset: Dataset,
    *,
    seed: int,
    threads: int,
    progress: Progress,
) -> dict[str, Array] | str:
    """E[g g^T] [O, O] of every layer (named by its output value), or why there is none.

    Every sample's outputs get a random seed of unit variance relative to their size.
    """
    built = adjoint(scope, layers)
    if isinstance(built, str):
        return built
    rng = np.random.default_rng(seed)
    names = [built.gradients[layer] for layer in layers]
    totals: dict[str, Array] = {}
    with session_source(scope.model) as forward, session_source(built.model) as backward:
        outputs = list(built.seeds)
        first = open_session(forward, threads=threads)
        second = open_session(backward, threads=threads)
    per_batch = -(-_POSITIONS // max(len(dataset.batches), 1))
    for batch in dataset.batches:
        try:
            values = run(first, batch.feeds, outputs)
            seeds = {
                built.seeds[name]: _seed(value, rng)
                for name, value in zip(outputs, values, strict=True)
            }
            gradients = run(second, {**batch.feeds, **seeds}, names)
        except InputError as error:
            return str(error)
        for layer, gradient in zip(layers, gradients, strict=True):
            flat = np.moveaxis(gradient, 1, -1).reshape(-1, gradient.shape[1])
            if len(flat) > per_batch:
                flat = flat[rng.choice(len(flat), per_batch, replace=False)]
            flat = flat.astype(np.float64)
            totals[layer] = totals.get(layer, 0.0) + flat.T @ flat / len(flat)
        progress.step()
    return {layer: total / len(dataset.batches) for layer, total in totals.items()}


def _seed(value: Array, rng: np.random.Generator) -> Array:
    scale = float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) or 1.0
    seed: Array = np.asarray(rng.standard_normal(value.shape) / scale, value.dtype)
    return seed
