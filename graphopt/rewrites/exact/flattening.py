"""Where a map [N, C, ...space] becomes a vector [N, K], and where a vector becomes a map again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import Scope, attribute_int, follower, is_op
from graphopt.rewrites.cleanup.axes import integers

POOLS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
"""Reductions over space, and the operators that say so."""


@dataclass(frozen=True)
class Head:
    """What stands before the first layer: the [N, C, ...space] value and the nodes that flatten it.

    kernel: size of the first convolution, one number per axis of space (ones behind a global
    pooling); () where there is no map. pool: the reduction that becomes a global pooling, if any.
    """

    source: ir.Value
    nodes: tuple[ir.Node, ...]
    kernel: tuple[int, ...]
    pool: ir.Node | None = None


def head_of(flat: ir.Value | None, width: int, scope: Scope) -> Head | str | None:
    """The head that ends in a [N, width] value, why it is none, or None where there is no map."""
    before = None if flat is None else flat.producer()
    if before is None or before.graph is not scope.graph or not before.inputs:
        return None
    source = before.inputs[0]
    rank = scope.rank(source)
    if source is None or rank is None or rank < 3:
        return None
    if is_op(before, *POOLS):
        drops = over_space(before, rank) and not attribute_int(before, "keepdims", 1)
        return _pooled(before, (before,), scope) if drops else None
    if not _flattens(before, rank, scope):
        return None
    pool = source.producer()
    reduced = _keeps_pooled(pool, rank)
    channels = scope.fixed_dim(source, 1)
    space = [scope.fixed_dim(source, axis) for axis in range(2, rank)]
    if is_op(before, "Squeeze") or is_op(pool, *POOLS.values()) or reduced:
        channels, space = width, [1 for _ in space]
    sizes = [size for size in space if size is not None]
    if channels is None or len(sizes) < len(space):
        return "the size of the map before it is not fixed"
    if channels * math.prod(sizes) != width:
        return "the flattening before it does not keep [C, H, W] together"
    if reduced and pool is not None and follower(scope, pool) is before:
        return _pooled(pool, (pool, before), scope)
    return Head(source, (before,), tuple(sizes))


def over_space(node: ir.Node, rank: int) -> bool:
    """Whether the axes of a node are those of space, all of them, in a value of this rank."""
    axes = integers(node, "axes", 1)
    return axes is not None and sorted(axis % rank for axis in axes) == list(range(2, rank))


def axes_added(node: ir.Node, scope: Scope) -> int:
    """How many axes of space a node puts behind a [N, O] value; 0 if that is not what it does."""
    if is_op(node, "Unsqueeze"):
        count = len(integers(node, "axes", 1) or ())
        return count if over_space(node, 2 + count) else 0
    rank = scope.rank(node.outputs[0])
    if not is_op(node, "Reshape") or rank is None or rank < 3:
        return 0
    return rank - 2 if _adds_ones(node, rank, scope) else 0


def _adds_ones(node: ir.Node, rank: int, scope: Scope) -> bool:
    """Whether a Reshape turns [N, O] into [N, O, 1, ...] for every N."""
    source, output, target = node.inputs[0], node.outputs[0], constant(node.inputs[1])
    width = scope.fixed_dim(source, 1)
    if target is None:  # view(b, c, 1, 1) with the batch read from another value
        dims = [scope.fixed_dim(output, axis) for axis in range(1, rank)]
        return _keeps_batch(source, output, scope) and dims == [width, *[1] * (rank - 2)]
    asked = [int(size) for size in target.reshape(-1)]
    if len(asked) != rank or (0 in asked and attribute_int(node, "allowzero", 0)):
        return False
    batch, channels, *space = asked
    keeps = batch in (0, -1) or batch == scope.fixed_dim(source, 0)
    same = channels in (width, 0) or (channels == -1 and batch != -1)
    return keeps and same and all(size == 1 for size in space)


def _flattens(node: ir.Node, rank: int, scope: Scope) -> bool:
    """Whether a node turns [N, C, ...space] into [N, C * space] for every N."""
    source, output = node.inputs[0], node.outputs[0]
    if is_op(node, "Flatten"):
        return attribute_int(node, "axis", 1) in (1, 1 - rank)
    if is_op(node, "Squeeze"):
        return over_space(node, rank)
    if not is_op(node, "Reshape") or scope.rank(output) != 2:
        return False
    target = constant(node.inputs[1])
    if target is None or target.size != 2:
        return _keeps_batch(source, output, scope)
    first, last = (int(size) for size in target.reshape(-1))
    if first == 0 and not attribute_int(node, "allowzero", 0):
        return True
    if first > 0:
        return scope.fixed_dim(source, 0) == first
    # [-1, K]: the batch is kept if C * H * W is K.
    sizes = [scope.fixed_dim(source, axis) for axis in range(1, rank)]
    known = [size for size in sizes if size is not None]
    return first == -1 and len(known) == rank - 1 and math.prod(known) == last


def _pooled(pool: ir.Node, nodes: tuple[ir.Node, ...], scope: Scope) -> Head:
    """A head that begins with a reduction over space, or over space that a Reshape has merged."""
    source = pool.inputs[0]
    assert source is not None
    merge = source.producer()
    if merge is not None and _merges_space(merge, scope) and follower(scope, merge) is pool:
        assert merge.inputs[0] is not None
        source, nodes = merge.inputs[0], (merge, *nodes)
    return Head(source, nodes, (1,) * ((scope.rank(source) or 4) - 2), pool)


def _merges_space(node: ir.Node, scope: Scope) -> bool:
    """Whether a node turns [N, C, H, W] into [N, C, H * W]."""
    if not is_op(node, "Reshape") or scope.rank(node.outputs[0]) != 3:
        return False
    source, output = node.inputs[0], node.outputs[0]
    dims = [scope.dim(source, axis) for axis in (0, 1)]
    kept = None not in dims and dims == [scope.dim(output, axis) for axis in (0, 1)]
    return kept and (scope.rank(source) or 0) > 3


def _keeps_pooled(pool: ir.Node | None, rank: int) -> bool:
    """Whether a node reduces space and leaves its axes there."""
    if pool is None or not is_op(pool, *POOLS) or not over_space(pool, rank):
        return False
    return attribute_int(pool, "keepdims", 1) == 1


def _keeps_batch(source: ir.Value | None, output: ir.Value, scope: Scope) -> bool:
    """Whether both have the same first dimension, as a number or as a symbol."""
    batch = scope.dim(source, 0)
    return batch is not None and scope.dim(output, 0) == batch
