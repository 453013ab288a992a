"""Steps with bodies that capture values of the graph around them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from fuzz.builder import BOOL, Builder, ImpossibleError, Value
from fuzz.linear import affine, batch_norm, channel_affine, conv_same
from fuzz.pointwise import activation, noise, two_activations

Step = Callable[[Builder, Value], Value]
KEEPING: tuple[Step, ...] = (
    activation, noise, conv_same, batch_norm, channel_affine, affine, two_activations,
)  # fmt: skip


def branch(b: Builder, x: Value) -> Value:
    """An If whose branches capture x and weights."""
    if b.is_body or x.rank < 3:
        raise ImpossibleError("no branches in branches")
    if b.rarely(3):
        condition = b.initializer(np.asarray(b.pick(True, False)), "cond")
    else:
        condition = b.input("cond", ((),) * b.store.bindings, [], BOOL)
    bodies = {name: _body(b, x, name) for name in ("then_branch", "else_branch")}
    name = b.fresh("if")
    b.nodes.append(helper.make_node("If", [condition.name], [name], **bodies))
    return Value(name, x.shapes, x.dtype)


def _body(b: Builder, x: Value, title: str) -> onnx.GraphProto:
    body = b.body()
    y = x
    for _ in range(b.pick(1, 2, 3)):
        y = b.pick(*KEEPING)(body, y)
    if y.shapes != x.shapes:
        raise ImpossibleError("the branches differ in shape")
    output = helper.make_tensor_value_info(y.name, x.dtype, None)
    return helper.make_graph(body.nodes, title, [], [output])


def loop(b: Builder, x: Value) -> Value:
    """A Loop of two rounds that carries x."""
    if b.is_body or x.rank < 3:
        raise ImpossibleError("no loops in bodies")
    b.needs(11)
    body = b.body()
    carried = Value(b.fresh("carried"), x.shapes, x.dtype)
    y = b.pick(*KEEPING)(body, carried)
    y = b.pick(*KEEPING)(body, y)
    if y.shapes != x.shapes:
        raise ImpossibleError("the shape changes")
    go, went = b.fresh("go"), b.fresh("went")
    body.nodes.append(helper.make_node("Identity", [go], [went]))
    graph = helper.make_graph(
        body.nodes,
        "rounds",
        [
            helper.make_tensor_value_info(b.fresh("round"), TensorProto.INT64, []),
            helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            helper.make_tensor_value_info(carried.name, x.dtype, None),
        ],
        [
            helper.make_tensor_value_info(went, TensorProto.BOOL, []),
            helper.make_tensor_value_info(y.name, x.dtype, None),
        ],
    )
    rounds = b.initializer(np.asarray(2, np.int64), "rounds")
    name = b.fresh("loop")
    b.nodes.append(helper.make_node("Loop", [rounds.name, "", x.name], [name], body=graph))
    return Value(name, x.shapes, x.dtype)
