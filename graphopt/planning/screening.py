"""A cheap look at all layers when there is no budget: which are exactly of low rank already?

Also gives the estimates of what a budget could buy, from the weights' spectra alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.cost.counts import macs
from graphopt.factorize.spectrum import tail_errors
from graphopt.graph.scope import Scope
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.scheme import Array

ESTIMATED = (0.01, 0.05)
"""Weight errors for which the report estimates what could be saved."""

_WORTHWHILE = 0.97


def low_rank(layers: Sequence[Layer], tolerance: float) -> list[Layer]:
    """The layers whose weight has, up to the tolerance, a rank that pays as it is."""
    return [layer for layer in layers if _macs_ratio(layer, tolerance) < _WORTHWHILE]


def estimates(scope: Scope, layers: Sequence[Layer]) -> tuple[tuple[float, float], ...]:
    """(weight error, MACs after / before) were every layer cut to the rank of that error."""
    total = sum(macs(node, scope.infos) for node in scope.graph)
    found = []
    for error in ESTIMATED:
        saved = sum(
            macs(layer.node, scope.infos) * max(0.0, 1 - _macs_ratio(layer, error))
            for layer in layers
        )
        if saved > 0 and total:
            found.append((error, 1 - saved / total))
    return tuple(found)


def _macs_ratio(layer: Layer, error: float) -> float:
    """MACs at the rank of an error over those of the layer: the better of input and output side."""
    inputs, outputs, taps = layer.inputs, layer.outputs, layer.taps
    whole = inputs * outputs * taps
    by_input = by_output = 0
    for weight in layer.groups():
        cube = weight.reshape(outputs, inputs, taps)
        by_output = max(by_output, _rank(cube.reshape(outputs, -1), error))
        by_input = max(by_input, _rank(np.moveaxis(cube, 1, 0).reshape(inputs, -1), error))
    thin = by_output * (inputs * taps + outputs * layer.spread) / whole
    reduced = by_input * (inputs + outputs * taps) / whole
    return min(thin, reduced) if taps > 1 else thin


def _rank(matrix: Array, error: float) -> int:
    return int(np.argmax(tail_errors(matrix) <= error))
