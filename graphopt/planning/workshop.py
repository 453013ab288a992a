"""Where layers are taken apart: candidates, priced from moments and made into weights on demand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from threading import Lock

import numpy as np
import onnx_ir as ir

from graphopt.factorize.moments import Moments, target
from graphopt.factorize.weighting import Weighting
from graphopt.graph.scope import Scope
from graphopt.planning.method import Method
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.scheme import Array, Decomposition, Ranks, Scheme
from graphopt.rewrites.approximate.structure import (
    WORTHWHILE_MACS_RATIO,
    Factored,
    Row,
    cost,
    put,
    sketched,
    through,
)
from graphopt.rewrites.base import Decline, OptionValue, Proposal
from graphopt.runtime import cores, give_back_memory

_KEPT_BYTES = 1 << 30

_LARGE_BYTES = 1 << 26
"""Of a metric whose schemes are not worked out side by side: each needs several of its size."""


@dataclass(frozen=True, eq=False)
class Realised:
    """A candidate with its weights and bias [O] (None: the layer had none and needs none)."""

    candidate: Candidate
    factored: Factored
    bias: Array | None

    def propose(self, scope: Scope, node: ir.Node) -> Proposal:
        """The proposal to put it in the place of a node: the layer, or its copy elsewhere."""
        chosen = self.candidate
        edit = partial(put, scope, node, chosen.rewrite, chosen.layer, self.factored, self.bias)
        return Proposal(chosen.rewrite, (node,), edit, chosen.options, chosen.error)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One entry of a layer's menu: a scheme at a rank.

    macs_ratio, parameters_ratio: after / before. error: relative response error, in the metric of
    what the layer sees (of the weight, when there are no data). rows: the structure at this rank.
    """

    layer: Layer
    scheme: Scheme
    ranks: Ranks
    macs_ratio: float
    parameters_ratio: float
    error: float
    workshop: Workshop
    rows: tuple[Row, ...]

    @property
    def rewrite(self) -> str:
        """Name of the rewrite."""
        return self.scheme.name

    @property
    def options(self) -> Mapping[str, OptionValue]:
        """What the report says: the ranks by name."""
        return dict(zip(self.scheme.rank_names, self.ranks, strict=True))

    @property
    def sketch(self) -> Realised:
        """The same structure with random weights and a bias: to be timed without any fit."""
        bias = np.random.default_rng(0).standard_normal(self.layer.group * self.layer.outputs)
        return Realised(self, sketched(self.layer, self.rows), bias)

    @cached_property
    def realised(self) -> Realised:
        """Fitted to the original layer's own inputs (or to its weight)."""
        return self._fitted(polish=False)

    @cached_property
    def polished(self) -> Realised:
        """Like `realised`, and polished."""
        return self._fitted(polish=True)

    def _fitted(self, polish: bool) -> Realised:
        made = self.workshop.decomposition(self.layer, self.scheme)
        factored = made.weights(self.ranks, polish)
        moments = self.workshop.moments[self.layer.name]
        return Realised(self, factored, _bias(self.layer, factored, moments))

    def refitted(self, seen: Sequence[Moments], polish: bool = False) -> Realised:
        """Fitted to reproduce the original response from what the layer really sees.

        polish: take the time for better factors where the closed form is no optimum.
        """
        weights = _matrices(self.layer)
        targets = [target(w, m) for w, m in zip(weights, seen, strict=True)]
        made = self.workshop.taken_apart(
            self.layer, self.scheme, targets, metric(seen, self.workshop.method)
        )
        factored = made.weights(self.ranks, polish)
        return Realised(self, factored, _bias(self.layer, factored, seen))


@dataclass
class Workshop:
    """The moments of all layers, and decompositions made from them (kept up to a cap).

    moments: per layer name, one per group; the metric of the fits to come. block: the channel block
    ranks are multiples of.
    weightings: per layer name and group, the metric of the outputs; empty where it is unknown.
    method: what a fit consists of.
    """

    moments: Mapping[str, Sequence[Moments]]
    block: int
    weightings: Mapping[str, Sequence[Weighting]] = field(default_factory=dict)
    method: Method = field(default_factory=Method)
    _kept: OrderedDict[tuple[str, str], tuple[int, Decomposition]] = field(
        default_factory=OrderedDict
    )
    _lock: Lock = field(default_factory=Lock)

    def decomposition(self, layer: Layer, scheme: Scheme) -> Decomposition:
        """The decomposition of a layer by a scheme, made anew if it was dropped."""
        key = (layer.name, scheme.name)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][1]
        made = self.taken_apart(layer, scheme, _matrices(layer), self.moments[layer.name])
        size = _metric_bytes(layer)
        with self._lock:
            self._kept[key] = (size, made)
            while len(self._kept) > 1 and sum(s for s, _ in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return made

    def forget(self) -> None:
        """Drop all decompositions: what is asked for again is made anew."""
        with self._lock:
            self._kept.clear()
        give_back_memory()

    def taken_apart(
        self,
        layer: Layer,
        scheme: Scheme,
        targets: Sequence[Array],
        moments: Sequence[Moments],
    ) -> Decomposition:
        """A scheme's decomposition of target weights, in the outputs' metric where it is known."""
        weighting = self.weightings.get(layer.name)
        if weighting is None:
            return scheme.decompose(layer, targets, moments, self.block)
        if not scheme.mixes_outputs:  # fitted without that metric, and told in it how far it is off
            made = scheme.decompose(layer, targets, moments, self.block)

            def missed(ranks: Ranks) -> float:
                composites = made.factors(ranks).composite
                parts = zip(weighting, targets, composites, moments, strict=True)
                off = [(w.root @ (t - c), m.gram) for w, t, c, m in parts]
                return sum(float(np.sum((d @ gram) * d)) for d, gram in off)

            return replace(made, missed=missed)
        scaled = [w.root @ t for w, t in zip(weighting, targets, strict=True)]
        made = scheme.decompose(layer, scaled, moments, self.block)
        back = [w.inverse for w in weighting]

        def mapped(ranks: Ranks, polish: bool) -> Factored:
            return through(made.weights(ranks, polish), back)

        polished = partial(mapped, polish=True) if made.polished is not None else None
        return replace(made, factors=partial(mapped, polish=False), polished=polished)

    def _energy(self, layer: Layer) -> float:
        """Squared response of the layer, in the metrics of its inputs and of the outputs."""
        matrices = _matrices(layer)
        weighting = self.weightings.get(layer.name)
        if weighting is not None:
            matrices = [w.root @ m for w, m in zip(weighting, matrices, strict=True)]
        seen = self.moments[layer.name]
        return sum(float(np.sum((w @ m.gram) * w)) for w, m in zip(matrices, seen, strict=True))

    def menu(
        self, layer: Layer, schemes: Sequence[Scheme]
    ) -> tuple[list[Candidate], list[Decline]]:
        """All worthwhile candidates of a layer, and the schemes that do not apply or do not pay."""
        offered: list[Candidate] = []
        declined: list[Decline] = []
        unsuitable: list[Decline] = []
        site = (layer.node.name or layer.name,)
        energy = self._energy(layer)
        if not np.isfinite(energy):
            return [], [Decline("low-rank", site, "what it sees is not finite")]
        if energy <= 0:
            return [], [Decline("low-rank", site, "the layer answers nothing but its bias")]
        suited: list[Scheme] = []
        for scheme in schemes:
            reason = scheme.applies(layer)
            if reason is None:
                suited.append(scheme)
            else:
                unsuitable.append(Decline(scheme.name, site, reason))
        large = is_large(layer)
        with ThreadPoolExecutor(1 if large else cores()) as pool:
            made = list(pool.map(lambda scheme: self._candidates(layer, scheme, energy), suited))
        if large:
            give_back_memory()
        for scheme, found in zip(suited, made, strict=True):
            if not found:
                text = f"{layer.inputs} -> {layer.outputs} channels: no rank saves multiplications"
                declined.append(Decline(scheme.name, site, text))
            offered += found
        # That a 3x3 kernel is no 5x5 one goes without saying, unless nothing else is on offer.
        return offered, declined if offered else [*unsuitable, *declined]

    def _candidates(self, layer: Layer, scheme: Scheme, energy: float) -> list[Candidate]:
        made = self.decomposition(layer, scheme)
        found = []
        for ranks in made.offered:
            rows = made.rows(ranks)
            macs_ratio, parameters_ratio = cost(layer, rows)
            if macs_ratio < WORTHWHILE_MACS_RATIO:
                error = float(np.sqrt(max(made.missed(ranks), 0.0) / energy))
                ratios = macs_ratio, parameters_ratio
                found.append(Candidate(layer, scheme, ranks, *ratios, error, self, rows))
        return found


def is_large(layer: Layer) -> bool:
    """Whether one metric of a layer takes so much memory that everything is done one by one."""
    return _metric_bytes(layer) > _LARGE_BYTES


def _metric_bytes(layer: Layer) -> int:
    return 8 * layer.group * (layer.inputs * layer.taps) ** 2


def _matrices(layer: Layer) -> list[Array]:
    """The weight of every group as [O/g, C/g * taps], float64."""
    return [weight.reshape(layer.outputs, -1) for weight in layer.groups()]


def metric(seen: Sequence[Moments], method: Method) -> list[Moments]:
    """What a layer sees (one per group), as the metric of a fit."""
    shrunk = [m.shrunk(None if method.shrinkage else 0.0) for m in seen]
    return shrunk if method.activation_aware else [m.unweighted() for m in shrunk]


def identity_moments(layer: Layer) -> list[Moments]:
    """Moments for a fit to the weight alone."""
    biases: list[Array | None] = [None] * layer.group
    if layer.bias is not None:
        biases = list(np.split(np.asarray(layer.bias), layer.group))
    return [Moments.of_weight(w, b) for w, b in zip(_matrices(layer), biases, strict=True)]


def _bias(layer: Layer, factored: Factored, moments: Sequence[Moments]) -> Array | None:
    best = np.concatenate([m.bias(c) for m, c in zip(moments, factored.composite, strict=True)])
    return best if layer.bias is not None or np.any(best) else None
