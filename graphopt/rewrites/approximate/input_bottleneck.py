"""Insert a 1x1 bottleneck before an expensive convolution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import onnx_ir as ir

from graphopt.factorize.bottleneck import InputSpectrum, spectrum_values, tail_error
from graphopt.graph.scope import Scope
from graphopt.graph.views import ConvView
from graphopt.rewrites.approximate.layer import (
    WORTHWHILE_MACS_RATIO,
    conv_attributes,
    dense_conv,
    groups_of,
    ranks,
    replace_by_two,
)
from graphopt.rewrites.base import ApproximateRewrite, Candidate, Decline, Menu, Proposal


@dataclass(frozen=True)
class InputBottleneck(ApproximateRewrite):
    """Conv k x k (C -> O)  ==>  Conv 1x1 (C -> R), Conv k x k (R -> O).

        W[o, c, u] ~ sum_r B[o, r, u] A[r, c]

    Fitted to the weight alone by truncated SVD; ranks are multiples of the channel block. Strides,
    dilations, pads and the bias stay on the k x k convolution, so borders are exact. Grouped
    convolutions are factored per group.
    Declines for 1x1 and depthwise kernels, weights that are not constant, and where no rank saves
    multiplications.
    """

    name = "input-bottleneck"
    spectral = True

    def menu(self, node: ir.Node, scope: Scope, channel_block: int) -> Menu | Decline | None:
        """All ranks that save multiplications, cheapest first."""
        conv = dense_conv(node, scope)
        if conv is None:
            return None
        if isinstance(conv, str):
            return self.decline(conv, node)
        taps = int(np.prod(conv.kernel))
        if taps == 1:
            return self.decline("a 1x1 convolution has no larger kernel to put behind it", node)
        outputs, inputs = conv.weight.shape[0] // conv.group, conv.weight.shape[1]
        worth = partial(_macs_ratio, scope, conv)
        offered = [
            rank
            for rank in ranks(min(inputs - 1, outputs * taps), channel_block)
            if worth(rank) < WORTHWHILE_MACS_RATIO
        ]
        if not offered:
            return self.decline(
                f"{inputs} -> {outputs} channels: no rank saves multiplications", node
            )
        values = [spectrum_values(weight) for weight in groups_of(conv)]
        spectra = cache(lambda: [InputSpectrum.of(weight) for weight in groups_of(conv)])
        norms = np.array([np.linalg.norm(v) for v in values])
        total = float(np.linalg.norm(norms)) or 1.0

        def candidate(rank: int) -> Candidate:
            tails = [tail_error(v, rank) * n for v, n in zip(values, norms, strict=True)]
            error = float(np.linalg.norm(tails)) / total
            parameters = rank * (inputs + outputs * taps) / (inputs * outputs * taps)

            def edit(scope: Scope, node: ir.Node) -> None:
                parts = [spectrum.factors(rank) for spectrum in spectra()]
                pointwise = (1,) * len(conv.kernel)
                replace_by_two(
                    scope,
                    node,
                    self.name,
                    conv,
                    (
                        np.concatenate([part.reduce for part in parts]),
                        conv_attributes(conv, pointwise, strides=False, dilations=False, pads=None),
                    ),
                    (
                        np.concatenate([part.expand for part in parts]),
                        conv_attributes(
                            conv, conv.kernel, strides=True, dilations=True, pads=conv.pads
                        ),
                    ),
                )

            options = {"rank": rank}
            return Candidate(
                self.name,
                options,
                macs_ratio=worth(rank),
                parameters_ratio=parameters,
                error=error,
                propose=lambda scope, node: Proposal(
                    self.name, (node,), partial(edit, scope, node), options, error
                ),
            )

        return Menu(node, tuple(candidate(rank) for rank in offered))


def _macs_ratio(scope: Scope, conv: ConvView, rank: int) -> float:
    """MACs of the pair over those of the original; the 1x1 runs at the input's resolution."""
    taps = int(np.prod(conv.kernel))
    outputs, inputs = conv.weight.shape[0] // conv.group, conv.weight.shape[1]
    before, after = scope.shape(conv.node.inputs[0]), scope.shape(conv.node.outputs[0])
    grown = 1.0
    if before is not None and after is not None and np.prod(after[2:]) > 0:
        grown = float(np.prod(before[2:]) / np.prod(after[2:]))
    return float((rank * inputs * grown + rank * outputs * taps) / (inputs * outputs * taps))
