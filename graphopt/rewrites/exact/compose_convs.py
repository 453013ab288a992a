"""Compose two convolutions with nothing between them into one, where that is cheaper or faster."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.factorize.compose import (
    Window,
    borders_agree,
    compose_bias,
    compose_kernels,
    compose_windows,
    stays_uniform,
    swap_channels,
)
from graphopt.graph.constants import stored
from graphopt.graph.edit import is_approximate
from graphopt.graph.scope import Scope, is_op
from graphopt.graph.views import ConvView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.composition import (
    SPARE_BYTES,
    Bill,
    Composed,
    edit_of,
    kept_between,
)


@dataclass(frozen=True)
class Pair:
    """Two convolutions in a row, first and second, and the one that takes their place.

    scatters: which of the two (0 or 1) is a ConvTranspose, if one is. Its geometry stays as it is
    and its window says nothing of it but the kernel; the other is then pointwise.
    """

    nodes: tuple[ir.Node, ir.Node]
    views: tuple[ConvView, ConvView]
    windows: tuple[Window, Window]
    scatters: int | None

    @property
    def window(self) -> Window:
        """What the one reads."""
        return compose_windows(*self.windows)

    @property
    def groups(self) -> tuple[int, int]:
        """Of the first and of the second."""
        return self.views[0].group, self.views[1].group

    @property
    def group(self) -> int:
        """Of the one: blocks that neither of the two mixes."""
        return math.gcd(*self.groups)

    @property
    def taps(self) -> int:
        """Products per pixel of the one: inputs a group times the kernel."""
        return self.views[0].in_channels // self.group * self.window.taps


@dataclass(frozen=True)
class ComposeConvs(ExactRewrite):
    """Conv -> Conv  ==>  Conv, where that costs fewer multiplications or is measured not slower.

        W[o, c, u1 d1 + u2 d2 s1] = sum_m W2[o, m, u2] W1[m, c, u1]
        b = b2 + sum_(m, u) W2[o, m, u] b1[m]          s = s1 s2          p = p1 + s1 p2

    1x1 then k x k, k x k then 1x1, 1 x k then k x 1, k x k then m x m, 1-D to 3-D, with strides,
    dilations and groups (g = gcd(g1, g2): depthwise then pointwise becomes dense). A ConvTranspose
    composes with a 1x1 Conv before or behind it.

    Measured first unless a tenth of the multiplications goes and the weights do not grow. With
    `dearer` that includes what costs up to a million multiplications more: on small maps one
    operator is faster than two. Not for what an approximation has taken apart: with more
    multiplications that never goes back together.

    Declines when the one would cost more still, or its weights take more bytes than the two and
    64 kB (unless `grow`); when the output in between is used elsewhere or is a graph output; when a
    weight is not constant. The second one pads the map in between with zeros, where the one reads
    what the first gives there: so it declines when the second pads and the first has a bias, or
    does not give zeros there (a 1x1 does, and a fully padded one).
    Source: https://onnx.ai/onnx/operators/onnx__Conv.html
    """

    grow: bool = False
    dearer: bool = True
    name = "compose-convs"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per convolution that reads another one's output."""
        for node in scope.graph:
            before = _before(node)
            if before is None:
                continue
            pair = _pair(scope, before, node)
            if pair is None:
                continue
            if isinstance(pair, str):
                yield self.decline(pair, before, node)
                continue
            bill = _bill(scope, pair)
            factors = [is_approximate(n) for n in (before, node)]
            dearer = self.dearer and not any(factors)
            objection = bill if isinstance(bill, str) else bill.objection(self.grow, dearer)
            if isinstance(bill, str) or objection is not None:
                if not all(factors):  # that graphopt made on purpose: no news
                    yield self.decline(objection or "", before, node)
                continue
            composed = _composed(pair)
            if isinstance(composed, str):
                yield self.decline(composed, before, node)
                continue
            yield Proposal(
                self.name,
                (before, node),
                partial(_replace, scope, pair, composed),
                {"kernel": "x".join(map(str, pair.window.kernel))},
                gated=not bill.is_clear or (bill.grows and not self.grow),
            )


def _before(node: ir.Node) -> ir.Node | None:
    if not is_op(node, "Conv", "ConvTranspose") or node.inputs[0] is None:
        return None
    before = node.inputs[0].producer()
    if before is None or not is_op(before, "Conv", "ConvTranspose"):
        return None
    both = is_op(before, "ConvTranspose") and is_op(node, "ConvTranspose")
    return None if both else before


def _pair(scope: Scope, before: ir.Node, node: ir.Node) -> Pair | str | None:
    """The pair, why it does not compose, or None for a transposed one that is not simple."""
    first, second = ConvView.of(before, scope), ConvView.of(node, scope)
    scatters = next((i for i, n in enumerate((before, node)) if is_op(n, "ConvTranspose")), None)
    if scatters is not None:
        other = (second, first)[scatters]
        if isinstance(other, str) or not _is_pointwise(other):
            return None
    kept = kept_between(scope, before)
    if kept is not None:
        return kept
    for view in (first, second):
        if isinstance(view, str):
            return view
    assert isinstance(first, ConvView)
    assert isinstance(second, ConvView)
    if scatters is not None:
        if scatters == 1 and _has_bias(first):
            return "a bias before a transposed convolution does not compose"
        windows = Window.plain(first.kernel), Window.plain(second.kernel)
        return Pair((before, node), (first, second), windows, scatters)
    one, two = _window(first), _window(second)
    if one is None or two is None:
        return "auto_pad with strides depends on the size of the input"
    if any(two.pads) and _has_bias(first):
        return "a bias before a padded convolution does not compose"
    if any(two.pads) and not borders_agree(one, two):
        return "the second pads with zeros where the first one computes something else"
    return Pair((before, node), (first, second), (one, two), None)


def _is_pointwise(view: ConvView) -> bool:
    """Whether a Conv maps pixel by pixel."""
    return (
        math.prod(view.kernel) == 1
        and all(s == 1 for s in view.strides)
        and view.pads is not None
        and not any(view.pads)
    )


def _has_bias(view: ConvView) -> bool:
    return view.bias is not None and bool(np.any(view.bias))


def _window(view: ConvView) -> Window | None:
    if view.pads is None:
        return None
    return Window(view.kernel, view.strides, view.dilations, view.pads)


def _bill(scope: Scope, pair: Pair) -> Bill | str:
    """MACs with the real sizes; per pixel where these are unknown and the map can only shrink."""
    first, second = pair.views
    single = second.out_channels * pair.taps
    uniform = stays_uniform(first.weight, second.weight, pair.groups)
    kept = sum(stored(node.inputs[1]) for node in pair.nodes)
    weights = kept, 0 if uniform else single * first.weight.itemsize
    # Generated weights, or such as are kept in fewer bits, are not to be stored in full.
    spare = SPARE_BYTES if kept >= first.weight.nbytes + second.weight.nbytes else 0
    values = pair.nodes[0].inputs[0], pair.nodes[0].outputs[0], pair.nodes[1].outputs[0]
    source, middle, output = (_pixels(scope.shape(value)) for value in values)
    each = first.weight.size, second.weight.size
    # Where a convolution counts its output's pixels, a transposed one counts its input's.
    if pair.scatters is None:
        at, final = (middle, output), output
    elif pair.scatters == 0:
        at, final = (source, output), source
    else:
        at, final = (middle, middle), middle
    if at[0] is not None and at[1] is not None and final is not None:
        macs = each[0] * at[0] + each[1] * at[1], single * final
        return Bill(macs, weights, spare=spare)
    if pair.scatters is not None or any(pair.windows[1].pads):
        return "the size of the map in between is unknown"
    return Bill((sum(each), single), weights, " a pixel", spare)


def _pixels(shape: tuple[int, ...] | None) -> int | None:
    """Of a whole batch."""
    return None if shape is None else math.prod((shape[0], *shape[2:]))


def _composed(pair: Pair) -> Composed | str:
    first, second = pair.views
    one = swap_channels(first.weight, first.group) if first.transposed else first.weight
    two = swap_channels(second.weight, second.group) if second.transposed else second.weight
    weight = compose_kernels(one, two, pair.groups, pair.windows)
    carried = first.bias if _has_bias(first) else None
    bias = compose_bias(carried, second.bias, two, second.group)
    if pair.scatters is not None:
        weight = swap_channels(weight, pair.group)
    return Composed.of(weight, bias, (one, two))


def _replace(scope: Scope, pair: Pair, composed: Composed) -> None:
    before, node = pair.nodes
    change = edit_of(scope, ComposeConvs.name, before, node)
    hint = node.outputs[0].name or node.op_type
    operands = [before.inputs[0], *composed.operands(change, hint)]
    if pair.scatters is not None:
        new = change.like(pair.nodes[pair.scatters], operands, attributes={"group": pair.group})
    else:
        window = pair.window
        attributes: dict[str, int | tuple[int, ...]] = {
            "kernel_shape": window.kernel,
            "strides": window.strides,
            "dilations": window.dilations,
            "pads": window.pads,
            "group": pair.group,
        }
        new = change.node("Conv", operands, attributes, hint=hint, name=node.name)
    change.commit((before, node), {node.outputs[0]: new})
