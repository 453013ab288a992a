"""The dataflow graph of a model as a networkx graph, and the questions put to it.

Nodes are `onnx_ir.Node` objects; an edge u -> v says that v (or a body inside v) reads an output
of u.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.graph.shapes import TensorInfo

if TYPE_CHECKING:  # a quarter of a second to import, and few runs ask for a graph
    import networkx as nx


def dataflow(graph: ir.Graph) -> nx.DiGraph:
    """The dataflow graph of one graph; uses inside a body count for the node that owns the body."""
    import networkx as nx

    flow = nx.DiGraph()
    flow.add_nodes_from(graph)
    owner = _owners(graph)
    for node in graph:
        for output in node.outputs:
            for use in output.uses():
                if use.node in owner:
                    flow.add_edge(node, owner[use.node])
    return flow


def _owners(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """For every node of the graph and of its bodies, the node of the graph that it belongs to."""
    owner: dict[ir.Node, ir.Node] = {}
    for node in graph:
        owner[node] = node
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                owner |= dict.fromkeys(attribute.as_graph().all_nodes(), node)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    owner |= dict.fromkeys(body.all_nodes(), node)
    return owner


def is_convex(flow: nx.DiGraph, region: Collection[ir.Node]) -> bool:
    """Whether no path leaves the region and comes back: only then can it be cut out as one."""
    import networkx as nx

    inside = set(region)
    leaving = {after for node in inside for after in flow.successors(node) if after not in inside}
    reached = set(leaving)
    for node in leaving:
        reached |= nx.descendants(flow, node)
    return not (reached & inside)


def peak_activation_bytes(graph: ir.Graph, infos: Mapping[str, TensorInfo]) -> int | None:
    """Most bytes of activations alive at once, in the order of the file; None if a shape is unknown.

    A value lives from its producer to its last use (graph outputs to the end). Weights do not
    count. No buffer is reused in place.
    """
    position = {node: index for index, node in enumerate(graph)}
    order = {node: position[owner] for node, owner in _owners(graph).items()}
    end = len(position)
    events: list[tuple[int, int]] = []
    produced = [(value, -1) for value in graph.inputs if not value.is_initializer()]
    produced += [(value, order[node]) for node in graph for value in node.outputs if value.name]
    for value, born in produced:
        info = infos.get(value.name or "")
        if info is None:
            return None
        users = [order[use.node] for use in value.uses() if use.node in order]
        dies = end if value.is_graph_output() else max(users, default=born)
        count = 1
        for size in info.shape:
            count *= size
        # Strings have no fixed size; they are labels, not activations.
        itemsize = 0 if info.dtype == ir.DataType.STRING else info.dtype.itemsize
        size_bytes = int(count * itemsize)
        events += [(born, size_bytes), (dies + 1, -size_bytes)]
    alive = peak = 0
    for _, change in sorted(events, key=lambda event: (event[0], event[1])):
        alive += change
        peak = max(peak, alive)
    return peak


def before(values: Sequence[ir.Value], known: set[str]) -> Iterator[ir.Node]:
    """The nodes that have to run for these values when others are known."""
    seen: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or value.name in known or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [source for source in node.inputs if source is not None]
