"""What every value of a network is when the picture may have any size: states, and how rules speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, TypeAlias

import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import Scope, site_of

Form = Literal["map", "last", "flat", "labels"]
Extent = tuple[int, int]
"""Height and width."""

CHANNEL_AXIS: Mapping[Form, int | None] = {"map": 1, "last": 3, "flat": 1, "labels": None}
SPACE_AXES: Mapping[Form, tuple[int, ...]] = {
    "map": (2, 3),
    "last": (1, 2),
    "flat": (),
    "labels": (),
}


@dataclass(frozen=True)
class Map:
    """A value with something to say for every place in the picture.

    channels, size: what it has at the original size. form: how the file has it, at rank `rank`:
    "map" [N, C, H, W]; "last" [N, H, W, C]; "flat" [N, C*H*W], of one cell also [N, C, 1];
    "labels" without channels, [N, H, W] or of one cell [N]. All but "last" are [N, C, h, w] or
    [N, h, w] in the dense network. stride: pixels of the picture from one cell to the next.
    inexact: why a cell is not what the original answers on its window; None where it is. pools:
    the global poolings that it comes from.
    """

    channels: int
    size: Extent
    rank: int = 4
    form: Form = "map"
    stride: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    inexact: str | None = None
    pools: frozenset[ir.Node] = frozenset()

    @property
    def is_one_cell(self) -> bool:
        """Whether it has no extent at the original size."""
        return self.size == (1, 1)

    @property
    def channel_axis(self) -> int | None:
        """Where the file has the channels."""
        return CHANNEL_AXIS[self.form]

    def told(self, reason: str | None) -> Map:
        """The same, with one more reason not to be exact (the first one is kept)."""
        return replace(self, inexact=self.inexact or reason)


@dataclass(frozen=True)
class Context:
    """A value about the picture as a whole, of the same shape whatever its size: squeeze-and-excite."""

    pools: frozenset[ir.Node]


@dataclass(frozen=True)
class Sizes:
    """Integers computed from the shape of a value. stale: of one that has another shape now."""

    stale: bool


@dataclass(frozen=True)
class Groups:
    """A map [N, *parts, H, W] or [N, *parts, H*W] whose channels were split into several axes.

    order: the channels as they stand now, by their numbers in `origin`. start: the Reshape that
    split them.
    """

    origin: Map
    start: ir.Node
    parts: tuple[int, ...]
    order: tuple[int, ...]
    space: tuple[int, ...]


State: TypeAlias = Map | Context | Sizes | Groups

Change = Callable[[Scope], None]
"""Makes one node dense; called when those before it are."""


@dataclass(frozen=True)
class Ruling:
    """What a node's outputs are (None: the same whatever is fed), and the change that it needs.

    doubt: why it cannot be dense, unless it turns out to be about the whole picture.
    """

    outputs: tuple[State | None, ...]
    change: Change | None = None
    doubt: NotDenseError | None = None


class NotDenseError(Exception):
    """The network has no dense form; the message names the node and the reason."""


class WideError(Exception):
    """A global pooling has turned out to weight a map: it has to stay global."""

    def __init__(self, pools: frozenset[ir.Node]) -> None:
        super().__init__()
        self.pools = pools


@dataclass(frozen=True)
class Site:
    """A node, and what is known of its operands.

    scope: its shapes are those at the original size. wide: poolings that stay global. sized:
    whether the original size is known, or just one that the network happens to run at.
    """

    node: ir.Node
    scope: Scope
    states: Mapping[ir.Value, State]
    wide: frozenset[ir.Node]
    sized: bool

    def state(self, index: int) -> State | None:
        """The state of an operand; None for what does not depend on the picture."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return None if value is None else self.states.get(value)

    def found(self) -> list[tuple[int, State]]:
        """The operands that depend on the picture, with their positions."""
        states = ((index, self.state(index)) for index in range(len(self.node.inputs)))
        return [(index, state) for index, state in states if state is not None]

    def map(self, *forms: Form, others: bool = False) -> Map:
        """The first operand, a map in one of these forms (none: any).

        others: whether other operands may depend on the picture too.
        """
        state = self.state(0)
        if not isinstance(state, Map):
            raise self.refusal("takes its first operand from no map")
        if not others and len(self.found()) > 1:
            raise self.refusal("takes more than its first operand from the picture")
        if forms and state.form not in forms:
            raise self.refusal(f"works on {_FORMS[forms[0]]}, and gets {_FORMS[state.form]}")
        return state

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an operand at the original size."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        array = constant(value) if self.scope.shape(value) is None else None
        return self._known(value) if array is None else tuple(array.shape)

    def result(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an output at the original size."""
        return self._known(self.node.outputs[index])

    def _known(self, value: ir.Value | None) -> tuple[int, ...]:
        shape = self.scope.shape(value)
        if shape is None:
            raise self.refusal("has operands or results of unknown shape")
        return shape

    def same(self, state: State | None, change: Change | None = None) -> Ruling:
        """All outputs in one state."""
        return Ruling((state,) * len(self.node.outputs), change)

    def refusal(self, reason: str) -> NotDenseError:
        """An error that names the node and the reason."""
        return NotDenseError(f"{label(self.node)} {reason}")


def label(node: ir.Node) -> str:
    """How messages name a node."""
    return f"{node.op_type} {site_of(node)[0]!r}"


def with_result(state: Map, shape: tuple[int, ...]) -> Map:
    """A map of the same form with the channels and the size that a result's shape says."""
    if state.form == "map":
        return replace(state, channels=shape[1], size=(shape[2], shape[3]))
    if state.form == "last":
        return replace(state, channels=shape[3], size=(shape[1], shape[2]))
    if state.form == "flat":
        cells = state.size[0] * state.size[1]
        return replace(state, channels=shape[1] // cells)
    return state


_FORMS: Mapping[Form, str] = {
    "map": "a map [N, C, H, W]",
    "last": "a map [N, H, W, C]",
    "flat": "a flattened map",
    "labels": "a map without channels",
}
