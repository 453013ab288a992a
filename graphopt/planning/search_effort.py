"""How much is measured before a plan is chosen: less in a network that takes long to run or to fit.

By counts, never by clocks: the same model and data get the same treatment on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.cost.counts import macs
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import is_batch_dynamic
from graphopt.planning.choices import PROBED
from graphopt.planning.fitting import multiplications
from graphopt.rewrites.approximate.layer import Layer

_SAMPLES, _FEWEST_SAMPLES = 32, 4
_PROBED_IN_LARGE, _OFFERED_IN_LARGE = 3, 10

_TRIAL_MACS = 6e12
"""Of all trials of candidates alone: what makes a network a large one."""

_FEWEST_FITS, _FITTING_MULTIPLICATIONS = 2, 1.6e13
"""Fits of whole plans: as many as take that many multiplications, but no fewer than these."""


@dataclass(frozen=True)
class SearchEffort:
    """samples: that candidates are tried on alone. probed: candidates of a layer that are so tried.

    offered: candidates of a layer that are timed; None for all. fits: of whole plans. large: whether
    the network is one that all of this is cut down for.
    """

    samples: int
    probed: int
    offered: int | None
    fits: int
    large: bool


def search_effort(scope: Scope, layers: Sequence[Layer]) -> SearchEffort:
    """What to spend on a network and those of its layers that can be factored."""
    fits = int(_FITTING_MULTIPLICATIONS / max(multiplications(layers), 1.0))
    fits = max(_FEWEST_FITS, fits)
    each = len(layers) * sum(macs(node, scope.infos) for node in scope.graph)
    if _SAMPLES * PROBED * each <= _TRIAL_MACS or not is_batch_dynamic(scope.graph):
        return SearchEffort(_SAMPLES, PROBED, None, fits, large=False)
    samples = int(_TRIAL_MACS / (_PROBED_IN_LARGE * each))
    samples = min(max(_FEWEST_SAMPLES, samples), _SAMPLES)
    return SearchEffort(samples, _PROBED_IN_LARGE, _OFFERED_IN_LARGE, fits, large=True)
