"""A small builder of ONNX graphs that draws its choices from hypothesis and tracks shapes.

A value has one shape for each *binding*: a graph with open dimensions is built for two sets of input
shapes at once, and a step is only taken if it is valid for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
T = TypeVar("T")

MOST_ELEMENTS = 9000
"""Of one value: a graph runs in well under a millisecond."""


class ImpossibleError(Exception):
    """A step that makes no valid graph here; it is taken back."""


@dataclass(frozen=True)
class Value:
    """A value of the graph and its shapes, one a binding."""

    name: str
    shapes: tuple[Shape, ...]
    dtype: int

    @property
    def rank(self) -> int:
        return len(self.shapes[0])

    def size(self, axis: int) -> int | None:
        """A dimension that is the same in all bindings, or None."""
        if not -self.rank <= axis < self.rank:
            raise ImpossibleError(f"no axis {axis}")
        sizes = {shape[axis] for shape in self.shapes}
        return sizes.pop() if len(sizes) == 1 else None

    def fixed(self, axis: int) -> int:
        """A dimension that has to be the same in all bindings."""
        size = self.size(axis)
        if size is None:
            raise ImpossibleError(f"axis {axis} is open")
        return size


@dataclass
class Store:
    """What a graph and the bodies in it share."""

    opset: int
    dtype: np.dtype[Any]
    bindings: int
    rng: np.random.Generator
    inputs: list[tuple[Value, list[str | int]]] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    known: dict[str, Array] = field(default_factory=dict)
    shared: dict[tuple[str, Shape], Value] = field(default_factory=dict)
    count: int = 0


@dataclass
class Builder:
    """Nodes of one graph (or body) in the making. `pick` draws one of its arguments."""

    draw: Callable[[Any], Any]
    store: Store
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    is_body: bool = False

    # -- choices -------------------------------------------------------------------------------

    def pick(self, *options: T) -> T:
        """One of the options; failures shrink towards the first."""
        from hypothesis import strategies as st

        chosen: T = self.draw(st.sampled_from(options))
        return chosen

    def rarely(self, one_in: int) -> bool:
        """True about once in so many times; failures shrink towards False."""
        from hypothesis import strategies as st

        return bool(self.draw(st.integers(0, one_in - 1)) == one_in - 1)

    # -- nodes ---------------------------------------------------------------------------------

    @property
    def opset(self) -> int:
        return self.store.opset

    @property
    def dtype(self) -> int:
        """Element type of the network."""
        return int(helper.np_dtype_to_tensor_dtype(self.store.dtype))

    def needs(self, opset: int) -> None:
        """The step needs this version of the operator set or a newer one."""
        if self.opset < opset:
            raise ImpossibleError(f"opset {self.opset}")

    def fresh(self, hint: str) -> str:
        self.store.count += 1
        return f"{hint}{self.store.count}"

    def input(self, hint: str, shapes: Sequence[Shape], dims: list[str | int], dtype: int) -> Value:
        """A graph input; dims: as declared."""
        value = Value(self.fresh(hint), tuple(shapes), dtype)
        self.store.inputs.append((value, dims))
        return value

    def add(self, op: str, inputs: Sequence[Value | None], **attributes: Any) -> Value:
        """A new node with one output."""
        return self.add_many(op, inputs, 1, **attributes)[0]

    def add_many(
        self, op: str, inputs: Sequence[Value | None], outputs: int, **attributes: Any
    ) -> list[Value]:
        """A new node. None among the inputs is one left out, None among the attributes too."""
        given = {name: value for name, value in attributes.items() if value is not None}
        names = [self.fresh(op[0].lower() if op != "Constant" else "k") for _ in range(outputs)]
        node = helper.make_node(op, ["" if v is None else v.name for v in inputs], names, **given)
        made = self._infer(node, [value for value in inputs if value is not None])
        self.nodes.append(node)
        return made

    def _infer(self, node: onnx.NodeProto, inputs: Sequence[Value]) -> list[Value]:
        data = {
            value.name: numpy_helper.from_array(self.store.known[value.name], value.name)
            for value in inputs
            if value.name in self.store.known
        }
        found: list[tuple[int, list[Shape]]] = [(0, []) for _ in node.output]
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
            for binding in range(self.store.bindings):
                types = {
                    value.name: helper.make_tensor_type_proto(value.dtype, value.shapes[binding])
                    for value in inputs
                }
                made = onnx.shape_inference.infer_node_outputs(
                    schema, node, types, data, opset_imports=[helper.make_opsetid("", self.opset)]
                )
                for index, name in enumerate(node.output):
                    tensor = made[name].tensor_type
                    known = all(dim.HasField("dim_value") for dim in tensor.shape.dim)
                    if not (known and tensor.HasField("shape")):
                        raise ImpossibleError(f"shape of {node.op_type} unknown")
                    shape = tuple(dim.dim_value for dim in tensor.shape.dim)
                    if min(shape, default=1) < 1 or math.prod(shape) > MOST_ELEMENTS:
                        raise ImpossibleError(f"{node.op_type} makes {shape}")
                    found[index] = (tensor.elem_type, [*found[index][1], shape])
        except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, KeyError) as error:
            raise ImpossibleError(str(error)) from error
        return [
            Value(name, tuple(shapes), dtype)
            for name, (dtype, shapes) in zip(node.output, found, strict=True)
        ]

    # -- constants -----------------------------------------------------------------------------

    def initializer(self, array: Array, hint: str = "w") -> Value:
        """A plain initializer of the main graph."""
        array = np.asarray(array)
        name = self.fresh(hint)
        self.store.initializers[name] = array
        self.store.known[name] = array
        return self._constant_value(name, array)

    def ints(self, numbers: Sequence[int]) -> Value:
        """A shape, axes or the like: an initializer or a Constant node."""
        array = np.asarray(numbers, np.int64)
        return self.constant_node(array) if self.rarely(5) else self.initializer(array, "i")

    def scalar(self, number: float) -> Value:
        """A number of the network's type without dimensions."""
        array = np.asarray(number, self.store.dtype)
        return self.constant_node(array) if self.rarely(3) else self.initializer(array, "s")

    def constant_node(self, array: Array) -> Value:
        """A Constant node; an initializer where the operator set has none of the type."""
        if array.dtype.kind != "f" and self.opset < 9:
            return self.initializer(array, "k")
        name = self.fresh("k")
        self.nodes.append(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, "value"))
        )
        self.store.known[name] = array
        return self._constant_value(name, array)

    def _constant_value(self, name: str, array: Array) -> Value:
        dtype = int(helper.np_dtype_to_tensor_dtype(array.dtype))
        return Value(name, (tuple(array.shape),) * self.store.bindings, dtype)

    def random(self, shape: Shape, deviation: float = 1.0) -> Array:
        """Normally distributed numbers of the network's type."""
        return np.asarray(self.store.rng.standard_normal(shape) * deviation, self.store.dtype)

    def factors(self, shape: Shape) -> Array:
        """Numbers between 0.5 and 1.5, a third of them negative."""
        rng = self.store.rng
        signs = np.where(rng.uniform(size=shape) < 0.33, -1.0, 1.0)
        return np.asarray(rng.uniform(0.5, 1.5, shape) * signs, self.store.dtype)

    def weight(self, array: Array, role: str) -> Value:
        """A weight of the network: plain, shared with another node, hidden, or fed at run time."""
        shape = tuple(array.shape)
        if (role, shape) in self.store.shared and self.rarely(4):
            return self.store.shared[role, shape]
        form = self.pick(*(["plain"] * 8), *_HIDDEN) if not self.rarely(30) else "fed"
        if form == "zero" and role != "bias":  # a variance or divisor of zero makes no numbers
            form = "expanded"
        if form == "fed" and self.store.dtype == np.float32 and role in ("w", "bias"):
            return self.input("fed", (shape,) * self.store.bindings, list(shape), self.dtype)
        try:
            value = _HIDDEN.get(form, Builder.initializer)(self, array)
        except ImpossibleError:
            value = self.initializer(array)
        if not self.is_body:
            self.store.shared[role, shape] = value
        return value

    # -- bodies and attempts -------------------------------------------------------------------

    def body(self) -> Builder:
        """A builder for a body of a node of this graph."""
        return Builder(self.draw, self.store, is_body=True)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """What is built inside is taken back if it raises `ImpossibleError`."""
        nodes, store = len(self.nodes), self.store
        inputs, initializers, shared = (
            len(store.inputs),
            dict(store.initializers),
            dict(store.shared),
        )
        try:
            yield
        except ImpossibleError:
            del self.nodes[nodes:]
            del store.inputs[inputs:]
            store.initializers = initializers
            store.shared = shared


def _identity(b: Builder, array: Array) -> Value:
    return b.add("Identity", [b.initializer(array)])


def _from_double(b: Builder, array: Array) -> Value:
    return b.add("Cast", [b.initializer(array.astype(np.float64))], to=b.dtype)


def _cast_like(b: Builder, array: Array) -> Value:
    b.needs(15)
    return b.add("CastLike", [b.initializer(array.astype(np.float64)), b.scalar(0.0)])


def _expanded(b: Builder, array: Array) -> Value:
    """The first number along an axis, repeated."""
    b.needs(8)
    if array.ndim == 0:
        raise ImpossibleError("a scalar")
    axis = b.pick(*range(array.ndim))
    return b.add("Expand", [b.initializer(array.take([0], axis)), b.ints(array.shape)])


def _generated(b: Builder, array: Array) -> Value:
    """One number, everywhere."""
    b.needs(9)
    fill = numpy_helper.from_array(array.reshape(-1)[:1], "value")
    return b.add("ConstantOfShape", [b.ints(array.shape)], value=fill)


def _reshaped(b: Builder, array: Array) -> Value:
    return b.add("Reshape", [b.initializer(array.reshape(-1)), b.ints(array.shape)])


def _unsqueezed(b: Builder, array: Array) -> Value:
    axes = [axis for axis, size in enumerate(array.shape) if size == 1]
    if not axes:
        raise ImpossibleError("no axis to add")
    return unsqueeze(b, b.initializer(array.squeeze(tuple(axes))), axes)


def _exporter_zero(b: Builder, array: Array) -> Value:
    """As torch's dynamo exporter writes a bias: zero, expanded to the shape of something."""
    b.needs(15)
    like = b.initializer(array)
    number = b.add("CastLike", [b.initializer(np.zeros((), np.float64)), like])
    return b.add("Expand", [number, b.ints(array.shape)])


_HIDDEN: dict[str, Callable[[Builder, Array], Value]] = {
    "node": Builder.constant_node,
    "identity": _identity,
    "cast": _from_double,
    "cast-like": _cast_like,
    "expanded": _expanded,
    "generated": _generated,
    "reshaped": _reshaped,
    "unsqueezed": _unsqueezed,
    "zero": _exporter_zero,
}


def unsqueeze(b: Builder, x: Value, axes: Sequence[int]) -> Value:
    """Unsqueeze in the form the operator set has."""
    if b.opset < 13:
        return b.add("Unsqueeze", [x], axes=list(axes))
    return b.add("Unsqueeze", [x, b.ints(axes)])


def squeeze(b: Builder, x: Value, axes: Sequence[int]) -> Value:
    """Squeeze in the form the operator set has."""
    if b.opset < 13:
        return b.add("Squeeze", [x], axes=list(axes))
    return b.add("Squeeze", [x, b.ints(axes)])


BOOL = TensorProto.BOOL
