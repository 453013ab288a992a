"""Where the adjoint is written down: nodes appended, and the gradients found so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import Array
from graphopt.graph.scope import Scope, site_of
from graphopt.graph.shapes import Shape, dimension, true_inputs


class NoRuleError(Exception):
    """A node cannot be differentiated; the message says which and why."""


@dataclass
class Tape:
    """Appends nodes to the clone and keeps the gradients found so far, by forward value."""

    scope: Scope
    _gradients: dict[ir.Value, list[ir.Value]] = field(default_factory=dict)
    _shapes: dict[ir.Value, ir.Value] = field(default_factory=dict)
    _taken: set[str | None] = field(default_factory=set)
    _open_batch: bool = False

    def __post_init__(self) -> None:
        inputs = true_inputs(self.scope.graph)
        self._open_batch = any(dimension(value, 0) is None for value in inputs)
        for graph in self.scope.model.graphs():
            self._taken.update(value.name for value in graph.inputs)
            self._taken.update(graph.initializers)
            for node in graph:
                self._taken.update((node.name, *(value.name for value in node.outputs)))

    @property
    def opset(self) -> int:
        """Version of the standard operators that the model may use."""
        return self.scope.opset

    def add(self, value: ir.Value, gradient: ir.Value) -> None:
        """Note a contribution to the gradient by a forward value."""
        self._gradients.setdefault(value, []).append(gradient)

    def gradient(self, value: ir.Value) -> ir.Value | None:
        """The sum of all contributions so far, or None."""
        parts = self._gradients.get(value)
        if not parts:
            return None
        if len(parts) > 1:
            self._gradients[value] = parts = [self.op("Sum", *parts)]
        return parts[0]

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """The output of a new node; attributes that are None are left out."""
        given = {name: value for name, value in attributes.items() if value is not None}
        return self.node(op_type, inputs, given, 1)[0]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        outputs: int,
    ) -> Sequence[ir.Value]:
        """The outputs of a new node."""
        made = ir.node(op_type, inputs, attributes=attributes, num_outputs=outputs)
        made.name = self.fresh(f"adjoint_{op_type}")
        for value in made.outputs:
            value.name = self.fresh(f"{made.name}_out")
        self.scope.graph.append(made)
        return made.outputs

    def input(self, hint: str, like: ir.Value) -> ir.Value:
        """A new input of the model that takes what has the shape of a forward value."""
        value = ir.Value(name=self.fresh(hint))
        self.scope.graph.inputs.append(value)
        return self.declare(value, like)

    def declare(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """State type and rank of an input or output: those of a forward value."""
        value.type = ir.TensorType(self.dtype(like))
        rank = self.scope.rank(like)
        value.shape = None if rank is None else ir.Shape([None] * rank)
        return value

    def constant(self, data: Array | Sequence[int]) -> ir.Value:
        """A constant; a sequence makes int64."""
        array = data if isinstance(data, np.ndarray) else np.asarray(data, np.int64)
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape))
        value = ir.Value(
            name=self.fresh("adjoint_constant"),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.scope.graph.register_initializer(value)
        return value

    def number(self, number: Any, like: ir.Value | None) -> ir.Value:
        """A number (or an array of them) as a constant of a forward value's type."""
        return self.constant(np.asarray(number, self.dtype(like).numpy()))

    def run_time_shape(self, value: ir.Value) -> ir.Value:
        """The shape a forward value has when the adjoint runs, int64 [rank]."""
        if value not in self._shapes:
            self._shapes[value] = self.op("Shape", value)
        return self._shapes[value]

    def shape(self, value: ir.Value | None) -> Shape:
        """The shape in the scope; see `size` before relying on its first axis."""
        shape = self.scope.shape(value)
        if shape is None:
            raise NoRuleError(f"the shape of {value.name if value else '-'} is unknown")
        return shape

    def size(self, value: ir.Value | None, axis: int) -> int:
        """The length of an axis that is the same for every batch."""
        if axis == 0 and self._open_batch:
            raise NoRuleError(
                f"the length of the first axis of {value.name if value else '-'} is open"
            )
        return self.shape(value)[axis]

    def dtype(self, value: ir.Value | None) -> ir.DataType:
        """Element type of a forward value."""
        info = self.scope.infos.get((value.name if value else None) or "")
        found = info.dtype if info is not None else value.dtype if value is not None else None
        if found is None:
            raise NoRuleError(f"the type of {value.name if value else '-'} is unknown")
        return found

    def is_float(self, value: ir.Value) -> bool:
        """Whether a forward value holds floats."""
        return self.dtype(value).is_floating_point()

    def fresh(self, hint: str) -> str:
        """A name that nothing in the model has, and that is taken from now on."""
        name, count = hint, 1
        while name in self._taken:
            count += 1
            name = f"{hint}_{count}"
        self._taken.add(name)
        return name


@dataclass(frozen=True)
class Step:
    """One node to differentiate. received: gradients by its outputs; active: inputs that want one."""

    tape: Tape
    node: ir.Node
    received: tuple[ir.Value | None, ...]
    active: frozenset[int]

    def refuse(self, why: str) -> NoReturn:
        """Give up on the whole adjoint.

        Raises:
            NoRuleError: Always.
        """
        raise NoRuleError(f"{self.node.op_type} {site_of(self.node)[0]}: {why}")

    @property
    def g(self) -> ir.Value:
        """The gradient by the first output."""
        gradient = self.received[0]
        return gradient if gradient is not None else self.refuse("its first output is not used")

    @property
    def y(self) -> ir.Value:
        """The first output."""
        return self.node.outputs[0]

    def input(self, index: int) -> ir.Value:
        """An input that must be there."""
        value = self.optional(index)
        return value if value is not None else self.refuse(f"input {index} is missing")

    def optional(self, index: int) -> ir.Value | None:
        """An input, or None when it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None


Found = Mapping[int, ir.Value]
"""Gradients by the inputs of a node, by index."""

Rule = Callable[[Step], Found]
"""How an operator hands its gradient back; see `rules.py`."""
