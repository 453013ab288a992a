"""Hypothesis strategies for whole networks, and what a test needs to run one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import reject
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from fuzz import bodies, dense, layout, linear, merges, pointwise, pooling
from fuzz.builder import Array, Builder, ImpossibleError, Store, Value

Step = Callable[[Builder, Value], Value]

MOST_NODES = 12
OPSETS = {17: 8, 7: 3, 9: 4, 11: 6, 13: 7, 20: 9, 22: 10}
"""The IR version that goes with each operator set."""

CONVOLUTIONS: tuple[Step, ...] = (
    linear.conv, linear.conv_bn, linear.bn_conv, linear.conv_affine, linear.conv_transpose, linear.batch_norm,
    linear.affine, linear.unfolded_norm, linear.conv_same, pooling.pad_conv, pointwise.activation,
)  # fmt: skip
MERGES: tuple[Step, ...] = (
    merges.branches, merges.inception, merges.linear_chain, merges.residual,
    merges.squeeze_excite, linear.conv_bn, linear.channel_affine,
)  # fmt: skip
MOVES: tuple[Step, ...] = (
    layout.transpose_pair, layout.reshape_chain, layout.cut_and_joined, layout.joined_and_cut,
    layout.sliced, layout.gathered, layout.transpose, linear.pointwise, dense.matmul,
    linear.affine, pointwise.noise,
)  # fmt: skip
POOLS: tuple[Step, ...] = (
    pooling.pad_pool, pooling.max_pool, pooling.average_pool, pooling.reduce_space, pooling.pad,
    pooling.upsample, linear.conv,
)  # fmt: skip
POINTWISE: tuple[Step, ...] = (
    pointwise.pieces, pointwise.activation, pointwise.two_activations, pointwise.noise,
    linear.affine, linear.conv,
)  # fmt: skip
HEADS: tuple[Step, ...] = (
    dense.fully_connected, dense.dense_affine, dense.matmul, pooling.reduce_space,
    pointwise.activation, linear.affine,
)  # fmt: skip
BODIES: tuple[Step, ...] = (bodies.branch, bodies.loop, linear.conv_bn)

THEMES: dict[str, tuple[Step, ...]] = {
    "convolutions": CONVOLUTIONS,
    "merges": MERGES,
    "layout": MOVES,
    "pools": (*POOLS, pointwise.activation, linear.batch_norm),
    "pointwise": POINTWISE,
    "heads": (*HEADS, linear.conv),
    "bodies": (*BODIES, pointwise.activation),
    "anything": (
        *CONVOLUTIONS, *MERGES, *MOVES, *POOLS, *POINTWISE, *HEADS, *BODIES,
    ),
}  # fmt: skip

WITHOUT_MAPS: tuple[Step, ...] = (
    dense.fully_connected, linear.affine, pointwise.activation, pointwise.pieces,
    pointwise.noise, dense.matmul, linear.batch_norm, layout.transpose_pair,
    layout.reshape_chain, layout.cut_and_joined,
)  # fmt: skip
"""Steps for double precision, in which onnxruntime has no convolution, and for matrices."""


@dataclass(frozen=True)
class Case:
    """A network and what it is fed: inputs for each binding, and overrides of listed weights."""

    model: onnx.ModelProto
    feeds: tuple[dict[str, Array], ...]
    tolerance: float

    def __repr__(self) -> str:
        return as_text(self.model)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[object]], object], theme: str = "anything") -> Case:
    """A valid network of 1 to 12 nodes or so."""
    b, x = _begin(draw)
    values = [x]
    steps = THEMES[theme] if b.store.dtype != np.float64 else WITHOUT_MAPS
    wanted = b.pick(3, 2, 1, 4, 5, 6)
    for _ in range(2 * wanted):
        if len(values) > wanted or len(b.nodes) >= MOST_NODES:
            break
        with b.attempt():
            values.append(_step(b, values, steps))
    if len(values) == 1:
        try:
            values.append(b.add("Relu", [x]))
        except ImpossibleError:  # even the input is too large
            reject()
    return _finish(b, values)


def _begin(draw: Callable[[st.SearchStrategy[object]], object]) -> tuple[Builder, Value]:
    seed = draw(st.integers(0, 2**20))
    store = Store(17, np.dtype(np.float32), 1, np.random.default_rng(seed))  # type: ignore[arg-type]
    b = Builder(draw, store)
    store.opset = b.pick(*OPSETS)
    store.dtype = np.dtype(b.pick(*[np.float32] * 14, np.float16, np.float64))
    n = b.pick(2, 2, 2, 2, 1, 3)
    size = {1: (7, 9, 4, 1), 2: (6, 5, 8, 1), 3: (4, 3)}[n]
    more = 1 if n == 3 else 3
    open_axes = b.pick((), (), (0,), (0, *range(2, n + 2)))
    c = b.pick(4, 3, 8, 6, 2, 1)
    if (
        b.rarely(3) and c > 1
    ):  # as many rows and samples as channels: only positions tell them apart
        size = (min(c, 4),)
        c = size[0]
    first = (b.pick(1, 2, c), c, *(b.pick(*size) for _ in range(n)))
    shapes = [first]
    if open_axes:
        store.bindings = 2
        shapes.append(tuple(s + (more if a else 2) * (a in open_axes) for a, s in enumerate(first)))
    symbols = ["N", "C", "H", "W", "D"]
    dims = [symbols[axis] if axis in open_axes else size for axis, size in enumerate(first)]
    return b, b.input("x", shapes, dims, b.dtype)


def _step(b: Builder, values: list[Value], steps: tuple[Step, ...]) -> Value:
    back = b.pick(1, 1, 1, 1, 2, 3)
    x = values[-min(back, len(values))]
    if len(values) > 1 and b.rarely(8):
        return pointwise.together(b, x, values[-2])
    if x.rank < 3:
        steps = WITHOUT_MAPS
    return b.pick(*steps)(b, x)


def _finish(b: Builder, values: list[Value]) -> Case:
    store = b.store
    outputs = [values[-1]]
    for value in values[1:-1]:
        if b.rarely(4):
            outputs.append(value)
    inner = [name for node in b.nodes for name in node.output]
    used = {name for node in b.nodes for name in node.input}
    hidden = [name for name in inner if name in used and name not in {v.name for v in values}]
    model = _model(b, outputs)
    if hidden and b.rarely(4):
        _show(model, b.pick(*hidden), store)
    if b.rarely(4):
        model = onnx.shape_inference.infer_shapes(model)
    if b.rarely(3):
        for number, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}_{number}"
    feeds = tuple(_feeds(b, binding) for binding in range(store.bindings))
    feeds = feeds if len(feeds) > 1 else (*feeds, _feeds(b, 0, flipped=True))
    listed = {value.name for value in model.graph.input} & set(store.initializers)
    if listed and len(listed) < len(store.initializers) and model.ir_version > 3:
        rng = np.random.default_rng(3)
        other = {
            name: rng.permutation(store.initializers[name].reshape(-1)).reshape(
                store.initializers[name].shape
            )
            for name in sorted(listed)
            if store.initializers[name].dtype == store.dtype
        }
        feeds = (*feeds, {**feeds[0], **other})
    tolerance = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-5}[store.dtype.name]
    return Case(model, feeds, tolerance)


def _show(model: onnx.ModelProto, name: str, store: Store) -> None:
    """Make a value from the middle of a step an output too, if its shape can be told."""
    told = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    for info in told:
        if info.name == name and info.type.tensor_type.HasField("shape"):
            model.graph.output.append(info)


def _model(b: Builder, outputs: list[Value]) -> onnx.ModelProto:
    store = b.store
    inputs = [helper.make_tensor_value_info(v.name, v.dtype, dims) for v, dims in store.inputs]
    used = {name for node in b.nodes for name in _reads(node)}
    weights = {name: array for name, array in store.initializers.items() if name in used}
    if b.rarely(6) and store.initializers:
        extra = sorted(set(store.initializers) - set(weights))[:1]
        weights |= {name: store.initializers[name] for name in extra}
    store.initializers = weights
    ir_version = OPSETS[store.opset]
    if ir_version == 3 and b.rarely(2):
        ir_version = 8
    mode = "all" if ir_version == 3 else b.pick("none", "none", "none", "some", "all")
    listed = list(weights) if mode == "all" else []
    if mode == "some":
        listed = [name for name in weights if b.rarely(2)]
    inputs += [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(weights[name].dtype), weights[name].shape
        )
        for name in listed
    ]
    graph = helper.make_graph(
        b.nodes,
        "net",
        inputs,
        [_declared(value, index, store) for index, value in enumerate(outputs)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(
        graph,
        ir_version=ir_version,
        opset_imports=[helper.make_opsetid("", store.opset)],
    )


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, in its bodies too."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                names |= _reads(inner)
            names |= {output.name for output in attribute.g.output}
    return names


def _declared(value: Value, index: int, store: Store) -> onnx.ValueInfoProto:
    # onnxruntime believes it: what joins two batches has another size, and needs another name.
    first = [shape[0] for shape in store.inputs[0][0].shapes]
    batch = [shape[:1] for shape in value.shapes] == [(size,) for size in first]
    dims: list[str | int] = []
    for axis in range(value.rank):
        size = value.size(axis)
        symbol = "N" if axis == 0 and batch else f"d{index}_{axis}"
        dims.append(symbol if size is None else size)
    return helper.make_tensor_value_info(value.name, value.dtype, dims)


def _feeds(b: Builder, binding: int, *, flipped: bool = False) -> dict[str, Array]:
    rng = np.random.default_rng(binding + 10 * flipped)
    feeds: dict[str, Array] = {}
    for value, _ in b.store.inputs:
        shape = value.shapes[binding]
        if value.dtype == onnx.TensorProto.BOOL:
            feeds[value.name] = np.full(shape, bool(binding) ^ flipped)
        else:
            dtype = helper.tensor_dtype_to_np_dtype(value.dtype)
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def as_text(model: onnx.ModelProto) -> str:
    """ONNX text with the shapes of the weights only, as `onnx_text.build` reads it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.initializer[:], bare.graph.value_info[:]
    weights = []
    for tensor in model.graph.initializer:
        bare.graph.value_info.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
        array = numpy_helper.to_array(tensor)
        if array.size <= 8 and (array.dtype.kind in "ib" or len(set(array.ravel())) == 1):
            weights.append(f"{tensor.name} = {array.tolist()}")
    text: str = onnx.printer.to_text(bare)
    return "\n".join([text.strip(), *weights])
