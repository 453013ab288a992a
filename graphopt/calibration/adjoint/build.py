"""Builds the adjoint model: clone, seeds, one rule per node from the last to the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from graphopt.calibration.adjoint.rules import RULES
from graphopt.calibration.adjoint.tape import NoRuleError, Step, Tape
from graphopt.graph.scope import Scope, is_op

_FLAT = ("Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "Less")
"""Operators whose results do not change with small changes of their inputs."""

_LEAST_IR_VERSION = 4
"""From here on initializers need not be listed among the inputs."""


@dataclass(frozen=True)
class Adjoint:
    """A model of gradients.

    model: takes the original's inputs and the seeds, gives the gradients.
    seeds: original output -> input that takes the loss's gradient by it; only of outputs that
        depend on a wanted value.
    gradients: wanted value -> output with the loss's gradient by it, of the value's shape. Two
        values may share an output (both operands of an Add).
    """

    model: ir.Model
    seeds: Mapping[str, str]
    gradients: Mapping[str, str]


def adjoint(scope: Scope, wanted: Sequence[str]) -> Adjoint | str:
    """The gradients of a function of the float outputs by the named values of the main graph.

    The model is not touched. Returns why not when an operator between a wanted value and an output
    has no rule, or when no float output depends on a wanted value.
    """
    if not scope.is_main:
        return "only the main graph is differentiated"
    clone = scope.model.clone()
    clone.ir_version = max(clone.ir_version, _LEAST_IR_VERSION)
    tape = Tape(Scope(clone, clone.graph, scope.infos))
    try:
        return _differentiate(tape, clone, wanted)
    except NoRuleError as reason:
        return str(reason)


def _differentiate(tape: Tape, clone: ir.Model, wanted: Sequence[str]) -> Adjoint:
    graph = clone.graph
    known = {value.name: value for value in graph.inputs}
    known |= {value.name: value for node in graph for value in node.outputs}
    for name in wanted:
        if name not in known:
            raise NoRuleError(f"{name} is no value of the main graph")
    targets = [known[name] for name in wanted]
    nodes = tuple(graph)
    outputs = [value for value in graph.outputs if tape.is_float(value)]
    live = _between(nodes, targets, outputs)
    seeds: dict[str, str] = {}
    for value in outputs:
        if value in live and value.name and value.name not in seeds:
            seed = tape.input(f"{value.name}_seed", value)
            seeds[value.name] = seed.name or ""
            tape.add(value, tape.op("Identity", seed))  # an input cannot be an output
    for node in reversed(nodes):
        received = tuple(tape.gradient(value) for value in node.outputs)
        active = frozenset(i for i, v in enumerate(node.inputs) if v is not None and v in live)
        if active and any(gradient is not None for gradient in received):
            _back(tape, node, received, active)
    graph.outputs.clear()
    gradients = {name: _expose(tape, graph, known[name]) for name in wanted}
    common_passes.RemoveUnusedNodesPass()(clone)
    return Adjoint(clone, seeds, gradients)


def _between(
    nodes: Sequence[ir.Node], targets: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> set[ir.Value]:
    """Values that depend on a target and that an output depends on."""
    depending = set(targets)
    for node in nodes:
        if any(value in depending for value in _reads(node)) and not is_op(node, *_FLAT):
            depending.update(node.outputs)
    needed = set(outputs)
    for node in reversed(nodes):
        if any(value in needed for value in node.outputs):
            needed.update(_reads(node))
    return depending & needed


def _reads(node: ir.Node) -> list[ir.Value]:
    """What a node and the bodies in it read."""
    found = list(node.inputs)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.extend(
                value for inner in attribute.as_graph().all_nodes() for value in inner.inputs
            )
    return [value for value in found if value is not None]


def _back(
    tape: Tape, node: ir.Node, received: tuple[ir.Value | None, ...], active: frozenset[int]
) -> None:
    """Hand the gradients of a node's outputs on to its inputs."""
    step = Step(tape, node, received, active)
    rule = RULES.get(node.op_type) if is_op(node, node.op_type) else None
    if rule is None:
        step.refuse("there is no rule for this operator")
    found = rule(step)
    for index in sorted(active):
        value = node.inputs[index]
        if index not in found:
            step.refuse(f"there is no rule for its input {index}")
        if value is not None:
            tape.add(value, found[index])


def _expose(tape: Tape, graph: ir.Graph, value: ir.Value) -> str:
    """Make the gradient by a value an output."""
    gradient = tape.gradient(value)
    if gradient is None:
        raise NoRuleError(f"no float output depends on {value.name}")
    if gradient not in graph.outputs:
        graph.outputs.append(tape.declare(gradient, value))
    return gradient.name or ""
