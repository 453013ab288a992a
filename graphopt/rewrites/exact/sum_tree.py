"""A tree of additions as one sum with signs."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.scope import Scope, follower, is_op

_FAMILIES = (("Add", "Sub"), ("Sum",))
"""Operators whose nested uses are one sum."""


@dataclass(frozen=True)
class Total:
    """A tree of additions: its values with their signs, and the nodes, the root first."""

    terms: tuple[tuple[ir.Value, int], ...]
    nodes: tuple[ir.Node, ...]

    @property
    def root(self) -> ir.Node:
        """The node that computes the whole sum."""
        return self.nodes[0]

    @classmethod
    def at(cls, node: ir.Node, scope: Scope) -> Total | None:
        """The sum that a node computes; None if it is a part of a larger one, or none at all."""
        family = next((names for names in _FAMILIES if is_op(node, *names)), None)
        if family is None:
            return None
        after = follower(scope, node)
        if after is not None and is_op(after, *family):
            return None
        terms: list[tuple[ir.Value, int]] = []
        nodes = [node]
        pending = _operands(node, 1)
        while pending:
            value, sign = pending.pop()
            inner = value.producer()
            if inner is not None and is_op(inner, *family) and follower(scope, inner) in nodes:
                nodes.append(inner)
                pending += _operands(inner, sign)
            else:
                terms.append((value, sign))
        return cls(tuple(terms), tuple(nodes))


def _operands(node: ir.Node, sign: int) -> list[tuple[ir.Value, int]]:
    """The operands with their signs, the last first."""
    signs = [sign] * len(node.inputs)
    if is_op(node, "Sub"):
        signs[1] = -sign
    operands = zip(node.inputs, signs, strict=True)
    return [(value, s) for value, s in operands if value is not None][::-1]
