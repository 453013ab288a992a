"""What a rewritten graph still computes as the one it was made from does."""

from __future__ import annotations

import onnx_ir as ir


def alike(one: ir.Graph, other: ir.Graph) -> set[str]:
    """Names of the values that two graphs compute alike: the same operators on the same things.

    For a clone and what was made of it: weights are the same if they are the same tensor. Values of
    nodes with bodies count as different, and so does what comes of them.
    """
    nodes = {node.outputs[0].name: node for node in one if node.outputs}
    found = {v.name for v in one.inputs if v.name} & {v.name for v in other.inputs if v.name}
    for node in other:
        twin = nodes.get(node.outputs[0].name) if node.outputs else None
        if twin is not None and _same_operator(node, twin) and _same_operands(node, twin, found):
            found.update(value.name for value in node.outputs if value.name)
    return found


def _same_operator(node: ir.Node, twin: ir.Node) -> bool:
    return (
        node.op_identifier() == twin.op_identifier()
        and [v.name for v in node.outputs] == [v.name for v in twin.outputs]
        and node.attributes.keys() == twin.attributes.keys()
        and all(attribute is twin.attributes[name] for name, attribute in node.attributes.items())
    )


def _same_operands(node: ir.Node, twin: ir.Node, found: set[str]) -> bool:
    if len(node.inputs) != len(twin.inputs):
        return False
    return all(
        value is source  # both left out
        if value is None or source is None
        else value.name == source.name and (value.name in found or _same_weight(value, source))
        for value, source in zip(node.inputs, twin.inputs, strict=True)
    )


def _same_weight(value: ir.Value, source: ir.Value) -> bool:
    return value.const_value is not None and value.const_value is source.const_value
