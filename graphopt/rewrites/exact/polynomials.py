"""Shared by the recognisers of activations: arithmetic with scalar constants, read as a polynomial.

Exporters write one function in a dozen ways: x * (0.5 * t + 0.5), (x * 0.5) * (1 + t), x^3 as Pow
or as x * x * x. As a polynomial in the values it starts from, each of them reads the same, so a
recogniser compares coefficients instead of shapes of graphs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import Scope, is_op

ARITHMETIC = ("Mul", "Div", "Add", "Sub", "Neg", "Pow")

Powers = tuple[int, ...]
"""Exponents of one monomial, one for each leaf."""

_MOST_DEEP = 8
_MOST_VALUES = 12
_HIGHEST_DEGREE = 4


@dataclass(frozen=True)
class Polynomial:
    """sum of terms[p] * prod_i leaf_i ^ p_i, without zero terms. nodes: what computes it."""

    terms: Mapping[Powers, float]
    nodes: frozenset[ir.Node] = frozenset()

    @property
    def number(self) -> float | None:
        """Its value, if it is a constant."""
        if any(any(powers) for powers in self.terms):
            return None
        return next(iter(self.terms.values()), 0.0)

    def is_close(self, wanted: Mapping[Powers, float], tolerance: float) -> bool:
        """Whether it has the same terms with the same coefficients, up to a relative tolerance."""
        return self.terms.keys() == wanted.keys() and all(
            math.isclose(self.terms[powers], number, rel_tol=tolerance)
            for powers, number in wanted.items()
        )

    def __add__(self, other: Polynomial) -> Polynomial:
        terms = dict(self.terms)
        for powers, number in other.terms.items():
            terms[powers] = terms.get(powers, 0.0) + number
        return Polynomial(_without_zeros(terms), self.nodes | other.nodes)

    def __mul__(self, other: Polynomial) -> Polynomial:
        terms: dict[Powers, float] = {}
        for p, a in self.terms.items():
            for q, b in other.terms.items():
                powers = tuple(i + j for i, j in zip(p, q, strict=True))
                terms[powers] = terms.get(powers, 0.0) + a * b
        return Polynomial(_without_zeros(terms), self.nodes | other.nodes)

    def scaled(self, factor: float) -> Polynomial:
        """Every coefficient times a factor."""
        terms = {powers: number * factor for powers, number in self.terms.items()}
        return Polynomial(_without_zeros(terms), self.nodes)

    def made_by(self, node: ir.Node) -> Polynomial:
        """The same, with one more node that it takes to compute it."""
        return Polynomial(self.terms, self.nodes | {node})


def _without_zeros(terms: Mapping[Powers, float]) -> Mapping[Powers, float]:
    return {powers: number for powers, number in terms.items() if number}


def read(value: ir.Value | None, leaves: Sequence[ir.Value], scope: Scope) -> Polynomial | None:
    """A value as a polynomial in `leaves` (of one shape), or None if it is computed otherwise.

    Floats only. Constants are scalars that do not give the result more dimensions than the leaves
    have.
    """
    dtype = leaves[0].dtype
    if dtype is not None and not dtype.is_floating_point():
        return None
    found = _read(value, leaves, scope, 0)
    return None if found is None or max(map(sum, found.terms), default=0) == 0 else found


def _read(
    value: ir.Value | None, leaves: Sequence[ir.Value], scope: Scope, depth: int
) -> Polynomial | None:
    if value is None or depth > _MOST_DEEP:
        return None
    if value in leaves:
        return Polynomial({tuple(int(leaf is value) for leaf in leaves): 1.0})
    number = scalar(value, leaves[0], scope)
    if number is not None:
        return Polynomial(_without_zeros({(0,) * len(leaves): number}))
    node = value.producer()
    if node is None or node.graph is not scope.graph or not is_op(node, *ARITHMETIC):
        return None
    parts = [_read(operand, leaves, scope, depth + 1) for operand in node.inputs]
    known = [part for part in parts if part is not None]
    combined = _combined(node, known) if len(known) == len(parts) else None
    if combined is None or max(map(sum, combined.terms), default=0) > _HIGHEST_DEGREE:
        return None
    return combined.made_by(node)


def _combined(node: ir.Node, parts: Sequence[Polynomial]) -> Polynomial | None:
    first, second = parts[0], parts[-1]
    match node.op_type:
        case "Neg":
            return first.scaled(-1.0)
        case "Add":
            return first + second
        case "Sub":
            return first + second.scaled(-1.0)
        case "Mul":
            return first * second
        case "Div":
            return first.scaled(1.0 / second.number) if second.number else None
    exponent = second.number
    if exponent is None or exponent not in range(1, _HIGHEST_DEGREE + 1):
        return None
    power = first
    for _ in range(int(exponent) - 1):
        power = power * first
    return power


def scalar(value: ir.Value | None, beside: ir.Value, scope: Scope) -> float | None:
    """A constant number that can be combined with `beside` without adding dimensions to it."""
    array = constant(value)
    if array is None or array.size != 1 or array.dtype == np.bool_:
        return None
    rank = scope.rank(beside)
    if array.ndim > (0 if rank is None else rank):
        return None
    number = float(array.reshape(-1)[0])
    return number if math.isfinite(number) else None


def sources(value: ir.Value | None, scope: Scope) -> list[ir.Value]:
    """What a value may be a polynomial in: the value, and those that arithmetic makes it from.

    Nearest first.
    """
    found = [] if value is None or constant(value) is not None else [value]
    for candidate in found:
        node = candidate.producer()
        if node is None or node.graph is not scope.graph or not is_op(node, *ARITHMETIC):
            continue
        for operand in node.inputs:
            if operand is None or operand in found or len(found) >= _MOST_VALUES:
                continue
            if constant(operand) is None:
                found.append(operand)
    return found


def onwards(node: ir.Node, scope: Scope) -> list[ir.Value]:
    """The output of a node, and what arithmetic makes of it and of others; nearest first."""
    found = [node.outputs[0]]
    for value in found:
        for use in value.uses():
            after = use.node
            if after.graph is not scope.graph or not is_op(after, *ARITHMETIC):
                continue
            if after.outputs[0] not in found and len(found) < _MOST_VALUES:
                found.append(after.outputs[0])
    return found


def is_closed(nodes: Collection[ir.Node], result: ir.Value) -> bool:
    """Whether nothing but `result` of what the nodes compute is seen outside them."""
    inside = set(nodes)
    return all(
        value is result
        or (not value.is_graph_output() and all(use.node in inside for use in value.uses()))
        for node in inside
        for value in node.outputs
    )
