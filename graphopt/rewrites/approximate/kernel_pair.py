"""Replace a 5x5 convolution by two 3x3 ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import onnx_ir as ir

from graphopt.factorize import kernel_pair as mathematics
from graphopt.graph.scope import Scope
from graphopt.graph.views import ConvView
from graphopt.rewrites.approximate.layer import (
    WORTHWHILE_MACS_RATIO,
    conv_attributes,
    dense_conv,
    groups_of,
    replace_by_two,
)
from graphopt.rewrites.base import ApproximateRewrite, Candidate, Decline, Menu, Proposal

_FACTOR = 3


@dataclass(frozen=True)
class KernelPair(ApproximateRewrite):
    """Conv 5x5 (C -> O)  ==>  Conv 3x3 (C -> M), Conv 3x3 (M -> O).

        W[o, c, u] ~ sum_m sum_{i + j = u} B[o, m, j] A[m, c, i]

    All padding goes on the first convolution (with some on both, border pixels would differ),
    strides on the second, dilations on both, the bias on the second. Fitted to the weight alone by
    alternating least squares. M is a multiple of the channel block; grouped convolutions are
    factored per group. Exact only from M = 1.52 C on, where nothing is saved any more.
    Declines for other kernels than 5x5, weights that are not constant, and where no M saves
    multiplications.
    """

    shares: tuple[float, ...] = (0.4, 0.6, 0.8, 1.0, 1.2)
    name = "kernel-pair"

    def menu(self, node: ir.Node, scope: Scope, channel_block: int) -> Menu | Decline | None:
        """A few widths M between 0.4 C and 1.2 C, cheapest first."""
        conv = dense_conv(node, scope)
        if conv is None:
            return None
        if isinstance(conv, str):
            return self.decline(conv, node)
        if conv.kernel != (5, 5):
            return None
        outputs, inputs = conv.weight.shape[0] // conv.group, conv.weight.shape[1]
        full = min(inputs * 1.0, outputs * 1.0)
        wanted = {
            max(channel_block, round(s * full / channel_block) * channel_block) for s in self.shares
        }
        offered = [m for m in sorted(wanted) if _macs_ratio(scope, conv, m) < WORTHWHILE_MACS_RATIO]
        if not offered:
            return self.decline(
                f"{inputs} -> {outputs} channels: no width between saves multiplications", node
            )
        return Menu(node, tuple(self._candidate(scope, conv, middle) for middle in offered))

    def _candidate(self, scope: Scope, conv: ConvView, middle: int) -> Candidate:
        fitted = cache(lambda: [mathematics.fit(weight, middle) for weight in groups_of(conv)])
        # In float64: squares of float16 weights overflow.
        norms = np.array([np.linalg.norm(w.astype(np.float64)) for w in groups_of(conv)])
        errors = np.array([part.error for part in fitted()]) * norms
        error = float(np.linalg.norm(errors) / (np.linalg.norm(norms) or 1.0))
        assert conv.pads is not None
        pads = conv.pads

        def edit(scope: Scope, node: ir.Node) -> None:
            kernel = (_FACTOR, _FACTOR)
            parts = fitted()
            replace_by_two(
                scope,
                node,
                self.name,
                conv,
                (
                    np.concatenate([part.first for part in parts]),
                    conv_attributes(conv, kernel, strides=False, dilations=True, pads=pads),
                ),
                (
                    np.concatenate([part.second for part in parts]),
                    conv_attributes(conv, kernel, strides=True, dilations=True, pads=None),
                ),
            )

        options = {"channels_between": middle}
        return Candidate(
            self.name,
            options,
            macs_ratio=_macs_ratio(scope, conv, middle),
            parameters_ratio=_parameters_ratio(conv, middle),
            error=error,
            propose=lambda scope, node: Proposal(
                self.name, (node,), partial(edit, scope, node), options, error
            ),
        )


def _parameters_ratio(conv: ConvView, middle: int) -> float:
    outputs, inputs = conv.weight.shape[0] // conv.group, conv.weight.shape[1]
    taps = _FACTOR * _FACTOR
    return float(middle * taps * (inputs + outputs) / (inputs * outputs * np.prod(conv.kernel)))


def _macs_ratio(scope: Scope, conv: ConvView, middle: int) -> float:
    """MACs of the pair over those of the original; the first runs on the padded map, unstrided."""
    outputs, inputs = conv.weight.shape[0] // conv.group, conv.weight.shape[1]
    before, after = scope.shape(conv.node.inputs[0]), scope.shape(conv.node.outputs[0])
    grown = 1.0
    if before is not None and after is not None and conv.pads is not None:
        between = 1
        for axis in range(2):
            padded = before[axis + 2] + conv.pads[axis] + conv.pads[axis + 2]
            between *= padded - conv.dilations[axis] * (_FACTOR - 1)
        grown = between / max(int(np.prod(after[2:])), 1)
    taps = _FACTOR * _FACTOR
    total = inputs * outputs * int(np.prod(conv.kernel))
    return float(middle * taps * (inputs * grown + outputs) / total)
