"""A record of what was taken out of a graph and put into it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Change:
    """One commit of an Edit. dropped, registered: initializers (of this graph or one around it)."""

    removed: tuple[ir.Node, ...]
    made: tuple[ir.Node, ...]
    dropped: tuple[ir.Value, ...]
    registered: tuple[ir.Value, ...]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Those that went and those that came."""
        return (*self.removed, *self.made)
