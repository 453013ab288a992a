"""What a rewrite is: it proposes or declines, and never decides.

A rewrite is a frozen dataclass whose fields are its options. `propose` walks one graph and yields,
per site it recognises, a `Proposal` (how to change it) or a `Decline` (why not). The driver and the
planner decide which proposals are applied; `Proposal.apply` is the only thing that changes a graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import onnx_ir as ir

from graphopt.graph.scope import Scope, site_of

OptionValue = str | int | float | bool | None


@dataclass(frozen=True)
class Decline:
    """A site a rewrite recognised and left alone, and why."""

    rewrite: str
    site: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Proposal:
    """One change that can be made now.

    nodes: what it would remove. edit: makes the change. options: what the report says about it
    (rank, padding...). predicted_error: relative error of the layer's weight, 0 for exact rewrites.
    gated: must be measured not slower on the target before it is applied.
    """

    rewrite: str
    nodes: tuple[ir.Node, ...]
    edit: Callable[[], None]
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    predicted_error: float = 0.0
    gated: bool = False

    @property
    def site(self) -> tuple[str, ...]:
        """Names for people."""
        return site_of(*self.nodes)

    @property
    def key(self) -> tuple[str, ...]:
        """Identity across runs: the rewrite and the values its nodes produce."""
        return (self.rewrite, *(node.outputs[0].name or "" for node in self.nodes))

    def apply(self) -> None:
        """Change the graph."""
        self.edit()


Finding = Proposal | Decline


class ExactRewrite(ABC):
    """The same function up to float rounding. Applied wherever it matches."""

    name: ClassVar[str]
    kind: ClassVar[Literal["exact", "clean-up"]] = "exact"

    @abstractmethod
    def propose(self, scope: Scope) -> Iterator[Finding]:
        """Yield what can be done in one graph. The driver may apply each proposal at once."""

    def decline(self, reason: str, *nodes: ir.Node) -> Decline:
        """A decline of this rewrite at these nodes."""
        return Decline(self.name, site_of(*nodes), reason)


class WholeModelPass(ABC):
    """A clean-up that works on the whole model at once (mostly the libraries' passes)."""

    name: ClassVar[str]
    kind: ClassVar[Literal["clean-up"]] = "clean-up"
    late: ClassVar[bool] = False
    """Whether it runs only when nothing else has anything left to do."""

    @abstractmethod
    def run(self, model: ir.Model) -> Mapping[str, OptionValue]:
        """Change the model in place; returns options for the report. Must be idempotent."""


class ApproximateRewrite(ABC):
    """A cheaper function near the old one. Applied only by the planner, inside a budget.

    The interface that the planner works with is `rewrites.approximate.scheme.Scheme`.
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["approximate"]] = "approximate"


Rewrite = ExactRewrite | WholeModelPass | ApproximateRewrite
