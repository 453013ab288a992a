"""The one place where a graph is changed by a rewrite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.change import Change
from graphopt.graph.constants import is_splat
from graphopt.graph.scope import Scope, graphs
from graphopt.graph.shapes import annotate_node

Attributes = Mapping[str, int | float | str | Sequence[int] | Sequence[float] | ir.TensorProtocol]

FIRST_IR_WITHOUT_LISTING = 4
"""Before this IR version, every initializer had to be listed as a graph input as well."""

_SPLAT_BYTES = 512
_NAMES = "graphopt.names"
_KIND = "graphopt.kind"


def is_approximate(node: ir.Node) -> bool:
    """Whether an approximation made this node, now or in an earlier run: its file says so."""
    return node.metadata_props.get(_KIND) == "approximate"


class Edit:
    """Builds replacement nodes and swaps them in; nothing changes before `commit`.

    New names are derived from the value they stand for and never collide with a name anywhere in
    the model. A weight that was generated (ConstantOfShape) and is still one repeated number stays
    generated, so that a tiny file stays tiny.
    """

    def __init__(self, scope: Scope, rewrite: str, kind: str = "exact") -> None:
        self._scope = scope
        self._rewrite = rewrite
        self._origin = {"graphopt.rewrite": rewrite, _KIND: kind}
        self._nodes: list[ir.Node] = []
        self._initializers: list[ir.Value] = []

    def constant(self, array: np.ndarray[Any, Any], hint: str) -> ir.Value:
        """A constant operand; `hint` is the name to derive its name from."""
        if is_splat(array) and array.nbytes >= _SPLAT_BYTES and self._scope.opset >= 9:
            return self._generated(array, hint)
        tensor = ir.Tensor(np.asarray(array, order="C"))  # ascontiguousarray makes 0-d 1-d
        if self._scope.model.ir_version < FIRST_IR_WITHOUT_LISTING:
            # An initializer would have to be listed as an input, and could be overridden there.
            value = self.node("Constant", [], {"value": tensor}, hint=hint)
            value.shape, value.type = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
            return value
        value = ir.Value(
            name=self._fresh(hint),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._initializers.append(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Attributes | None = None,
        *,
        hint: str,
        name: str | None = None,
    ) -> ir.Value:
        """A new node; returns its (only) output.

        `hint` is the value it (partly) computes; `name` that of a removed node it stands for.
        """
        fresh = self._fresh(hint)
        made = ir.node(op_type, inputs, attributes=dict(attributes or {}), name=name or fresh)
        made.outputs[0].name = fresh
        made.metadata_props.update(self._origin)
        annotate_node(made, self._scope.opset)
        self._nodes.append(made)
        return made.outputs[0]

    def like(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        *,
        attributes: Attributes | None = None,
    ) -> ir.Value:
        """A copy of a removed one-output node, with its name, other inputs and changed attributes."""
        return self.copies(node, inputs, attributes=attributes)[0]

    def copies(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        *,
        attributes: Attributes | None = None,
        outputs: int = 1,
    ) -> list[ir.Value]:
        """Like `like`, of a node with so many outputs (the first ones): returns them all."""
        changed = ir.convenience.convert_attributes(dict(attributes or {}))
        kept = {**node.attributes, **{attribute.name: attribute for attribute in changed}}
        made = ir.Node(
            node.domain,
            node.op_type,
            list(inputs),
            attributes=list(kept.values()),
            num_outputs=outputs,
            name=node.name,
            metadata_props={**self._origin, **node.metadata_props},
        )
        for old, new in zip(node.outputs, made.outputs, strict=False):
            new.name = self._fresh(old.name or node.op_type)
        annotate_node(made, self._scope.opset)
        self._nodes.append(made)
        return list(made.outputs)

    def commit(self, removed: Sequence[ir.Node], outputs: Mapping[ir.Value, ir.Value]) -> None:
        """Replace nodes; each key of `outputs` hands its name and its uses to its value.

        A value may also be one that already exists (a node is simply bypassed). Initializers left
        without a use are dropped. New nodes stand where the last removed one stood; with several
        outputs, what reads the first may have stood before that, and the graph is sorted.
        """
        graph = self._scope.graph
        before = [value for node in removed for value in node.inputs if value is not None]
        for value in self._initializers:
            graph.register_initializer(value)
        graph.insert_after(_last(graph, removed), self._nodes)
        made = {output for node in self._nodes for output in node.outputs}
        for old, new in outputs.items():
            self._hand_over(old, new, is_new=new in made)
        graph.remove(removed, safe=True)
        unused = (v for v in before if v.is_initializer() and not v.uses())
        dropped = [v for v in unused if not v.is_graph_output() and _drop_initializer(v)]
        if len(outputs) > 1:
            graph.sort()
        self._scope.journal.append(
            Change(tuple(removed), tuple(self._nodes), tuple(dropped), tuple(self._initializers))
        )

    def _hand_over(self, old: ir.Value, new: ir.Value, *, is_new: bool) -> None:
        if is_new:
            new.type, new.shape = old.type, old.shape
            new.metadata_props.update(old.metadata_props)
            name = old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name = None
            if new.producer() is not None and name is not None:
                new.name = name
        elif old.is_graph_output():
            _keep_output_name(old, new)
        else:
            old.replace_all_uses_with(new)

    def _generated(self, array: np.ndarray[Any, Any], hint: str) -> ir.Value:
        shape = self.constant(np.asarray(array.shape, np.int64), f"{hint}_shape")
        name = self._fresh(hint)
        fill = ir.Tensor(np.asarray([array.flat[0]], array.dtype))
        made = ir.Node("", "ConstantOfShape", [shape], [ir.AttrTensor("value", fill)], name=name)
        output = made.outputs[0]
        output.name = name
        output.shape, output.type = ir.Shape(array.shape), ir.TensorType(fill.dtype)
        self._nodes.append(made)
        return output

    def _fresh(self, hint: str) -> str:
        taken = _names(self._scope.model)
        name, count = f"{hint}_{self._rewrite}", 1
        while name in taken:
            count += 1
            name = f"{hint}_{self._rewrite}_{count}"
        taken.add(name)
        return name


def bypass(scope: Scope, node: ir.Node, source: ir.Value) -> bool:
    """Whether a node whose output equals `source` can be taken out without losing a name.

    An output of the graph needs a producer of its own: a graph input, an initializer or another
    output cannot stand in for it.
    """
    output = node.outputs[0]
    if not output.is_graph_output():
        return True
    producer = source.producer()
    return producer is not None and producer.graph is scope.graph and not source.is_graph_output()


def forget_names(model: ir.Model) -> None:
    """To be called when something else than an Edit has named values."""
    model.graph.meta.pop(_NAMES, None)


def _keep_output_name(old: ir.Value, new: ir.Value) -> None:
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name = name
    if old.type is not None:
        new.type = old.type
    if old.shape is not None:
        new.shape = old.shape


def _last(graph: ir.Graph, nodes: Sequence[ir.Node]) -> ir.Node:
    """Of some nodes of a graph the one that stands last."""
    wanted = set(nodes)
    ends = [node for node in nodes if wanted.isdisjoint(_readers(node))]
    if len(ends) == 1:  # what the others come to, stands behind them
        return ends[0]
    return next(node for node in reversed(graph) if node in wanted)


def _readers(node: ir.Node) -> set[ir.Node]:
    return {use.node for output in node.outputs for use in output.uses()}


def _drop_initializer(value: ir.Value) -> bool:
    """Whether it could be taken out: it was there, and nobody may override it."""
    graph = value.graph
    if graph is None or value.name is None or value.is_graph_input():
        return False
    if value.name not in graph.initializers:
        return False
    del graph.initializers[value.name]
    return True


def _names(model: ir.Model) -> set[str]:
    """All value and node names of the model, kept with the model and grown as names are made."""
    owner, known = model.graph.meta.get(_NAMES, (None, set()))
    names: set[str] = known
    if owner is not model.graph:  # none yet, or those that a clone took along from its original
        names = set()
        for graph in graphs(model):
            names.update(v.name for v in graph.inputs if v.name)
            names.update(graph.initializers)
            for node in graph:
                names.update(v.name for v in node.outputs if v.name)
                names.add(node.name or "")
        model.graph.meta[_NAMES] = (model.graph, names)
    return names
