from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from threadpoolctl import threadpool_limits

from graphopt.factorize.moments import Moments
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.planning.choices import with_candidates
from graphopt.planning.workshop import Candidate, Realised, Workshop, identity_moments
from graphopt.rewrites.approximate.decoupled import Decoupled
from graphopt.rewrites.approximate.decoupled_pointwise_first import DecoupledPointwiseFirst
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.kernel_chain import KernelChain
from graphopt.rewrites.approximate.layer import Layer, swapped
from graphopt.rewrites.approximate.output_bottleneck import OutputBottleneck
from graphopt.rewrites.approximate.scheme import Scheme
from graphopt.rewrites.approximate.spatial import Spatial
from graphopt.rewrites.approximate.structure import cost
from graphopt.rewrites.approximate.two_sided import TwoSided

BLOCK = 4


@dataclass(frozen=True)
class Model:
    """One layer x [N, C, *size] -> y as a model: Conv (transposed or not), or Gemm for [O, C].

    weight: [O, C/g, *kernel], written as [C, O/g, *kernel] for a ConvTranspose.
    """

    weight: np.ndarray[Any, Any]
    size: tuple[int, ...] = ()
    bias: bool = True
    group: int = 1
    strides: tuple[int, ...] | None = None
    dilations: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    auto_pad: str | None = None
    open_size: bool = False
    batch: int = 1
    opset: int = 13
    transposed: bool = False
    output_padding: tuple[int, ...] | None = None

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.weight.shape[1] * self.group, *self.size)

    def proto(self) -> onnx.ModelProto:
        names = ("group", "strides", "dilations", "pads", "auto_pad", "output_padding")
        attributes = {n: v for n in names if (v := getattr(self, n)) not in (None, 1)}
        kind = helper.np_dtype_to_tensor_dtype(self.weight.dtype)
        weight = swapped(self.weight, self.group) if self.transposed else self.weight
        constants = [numpy_helper.from_array(weight, "w")]
        if self.bias:
            values = np.random.default_rng(9).standard_normal(len(self.weight))
            constants.append(numpy_helper.from_array(values.astype(self.weight.dtype), "b"))
        op_type = "ConvTranspose" if self.transposed else "Conv"
        if self.weight.ndim == 2:
            op_type, attributes = "Gemm", {"transB": 1}
        node = helper.make_node(
            op_type, ["x", *(t.name for t in constants)], ["y"], name="layer", **attributes
        )
        open_dims = [f"d{axis}" for axis in range(len(self.size))]
        declared = (*self.x_shape[:2], *open_dims) if self.open_size else self.x_shape
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", kind, declared)],
            [helper.make_tensor_value_info("y", kind, [None] * len(self.x_shape))],
            constants,
        )
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)

    def feeds(self) -> dict[str, np.ndarray[Any, Any]]:
        x = np.random.default_rng(7).standard_normal(self.x_shape)
        return {"x": x.astype(self.weight.dtype)}

    def scope(self) -> Scope:
        return scope_of(self.proto(), **({"x": self.x_shape} if self.open_size else {}))

    def layer(self) -> Layer:
        scope = self.scope()
        found = Layer.of(node_of(scope), scope)
        assert isinstance(found, Layer), found
        return found


def scope_of(proto: onnx.ModelProto, **shapes: tuple[int, ...]) -> Scope:
    """The scope of a model's main graph for its declared (or these) input shapes."""
    model = ir.serde.deserialize_model(proto)
    declared = {
        v.name: tuple(d for d in v.shape) for v in model.graph.inputs if v.name not in shapes
    }
    return Scope(model, model.graph, infer(model, declared | shapes))


def node_of(scope: Scope, name: str = "layer") -> ir.Node:
    return next(node for node in scope.graph if node.name == name)


def candidate(layer: Layer, scheme: Scheme, ranks: tuple[int, ...], moments: Any = None) -> Any:
    """The candidate of a scheme at any ranks, offered or not, in the identity metric or another."""
    workshop = Workshop({layer.name: moments or identity_moments(layer)}, BLOCK)
    made = workshop.decomposition(layer, scheme)
    rows = made.rows(ranks)
    return Candidate(layer, scheme, ranks, *cost(layer, rows), 0.0, workshop, rows)


def rewritten(scope: Scope, realised: Realised) -> onnx.ModelProto:
    """The written form of a clone with a candidate in place, accepted by the ONNX checker."""
    model = ir.serde.serialize_model(with_candidates(scope, [realised]))
    onnx.checker.check_model(model, full_check=True)
    return model


@cache
def representable(
    scheme: Scheme,
    kernel: tuple[int, ...],
    ranks: tuple[int, ...],
    group: int = 1,
    dtype: Any = np.float32,
) -> Any:
    """(weight, factors): a weight [12 g, 8, *kernel] that a scheme represents at these ranks."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12 * group, 8, *kernel)) / np.sqrt(8 * np.prod(kernel))
    layer = Model(weight, (9,) * len(kernel), group=group).layer()
    made = scheme.decompose(layer, _matrices(layer), identity_moments(layer), BLOCK)
    factored = made.factors(ranks)
    return np.concatenate(factored.composite).reshape(weight.shape).astype(dtype), factored


def exact(model: Model, scheme: Scheme, ranks: tuple[int, ...]) -> Realised:
    """`representable` weights taken apart again; iterative schemes are told the factors."""
    layer = model.layer()
    again = candidate(layer, scheme, ranks)
    if not scheme.iterative:
        return again.realised
    kernel, dtype = layer.kernel, model.weight.dtype.type
    weight, factored = representable(scheme, kernel, ranks, model.group, dtype)
    assert np.array_equal(weight, model.weight)
    return Realised(again, factored, layer.bias)


def _matrices(layer: Layer) -> list[Any]:
    return [weight.reshape(layer.outputs, -1) for weight in layer.groups()]


def moments_of(layer: Layer, seed: int = 0, samples: int = 0) -> list[Moments]:
    """Moments of correlated inputs of different scales, and of the layer's own answers."""
    rng = np.random.default_rng(seed)
    found = []
    for weight in _matrices(layer):
        size = weight.shape[1]
        root = rng.standard_normal((size, size)) * np.geomspace(1, 0.05, size)
        gram = root @ root.T / size
        mean = rng.standard_normal(size)
        cross = weight @ gram
        energy = np.sum(cross * weight, axis=1)
        found.append(Moments(gram, cross, energy, mean, weight @ mean + 3, samples))
    return found


def run(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Outputs of a model at ORT_DISABLE_ALL."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def distance(exact: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    assert exact.shape == other.shape
    exact, other = exact.astype(np.float64), other.astype(np.float64)
    norm = float(np.linalg.norm(exact)) or 1.0  # a border that sees only padding is all zeros
    return float(np.linalg.norm(exact - other)) / norm


def border(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The outermost pixels of [N, O, *size]."""
    inner = np.zeros(array.shape[2:], bool)
    inner[tuple(slice(1, -1) for _ in inner.shape)] = True
    return array[:, :, ~inner]


def weights(proto: onnx.ModelProto) -> list[np.ndarray[Any, Any]]:
    """Weights of convolutions and matrix products in the order of their nodes."""
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return [arrays[n.input[1]] for n in proto.graph.node if n.op_type in kinds]


def counted(proto: onnx.ModelProto) -> SimpleNamespace:
    """MACs and weights of all layers, counted by hand from the file."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    }
    found = weights(proto)
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    layers = [n for n in proto.graph.node if n.op_type in kinds]
    macs = 0
    for node, weight in zip(layers, found, strict=True):
        shape = shapes[node.output[0]]
        if node.op_type == "Conv":
            macs += int(np.prod(shape) * np.prod(weight.shape[1:]))
        elif node.op_type == "ConvTranspose":
            macs += int(np.prod(shapes[node.input[0]]) * np.prod(weight.shape[1:]))
        else:
            macs += shape[0] * weight.size
    return SimpleNamespace(macs=macs, parameters=sum(w.size for w in found))


CASES = {
    "input-bottleneck": (InputBottleneck(), (3, 4), (4,)),
    "output-bottleneck": (OutputBottleneck(), (4, 3), (4,)),
    "pointwise": (OutputBottleneck(), (1, 1), (4,)),
    "two-sided": (TwoSided(), (3, 3), (4, 8)),
    "spatial": (Spatial(0), (3, 5), (8,)),
    "spatial-transposed": (Spatial(1), (3, 5), (8,)),
    "pair": (KernelChain(), (5, 5), (4,)),
    "chain": (KernelChain(), (7, 7), (4,)),
    "decoupled": (Decoupled(), (3, 3), (2,)),
    "decoupled-pointwise-first": (DecoupledPointwiseFirst(), (3, 3), (2,)),
}
"""(scheme, kernel, ranks): every scheme on a two-dimensional kernel."""


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Many small products: threads of the BLAS only get in each other's way."""
    with threadpool_limits(1):
        yield


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    """One of the CASES."""
    return CASES[request.param]


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this folder (--import-mode=importlib has no sibling imports)."""
    return SimpleNamespace(
        BLOCK=BLOCK,
        CASES=CASES,
        Model=Model,
        border=border,
        candidate=candidate,
        counted=counted,
        distance=distance,
        exact=exact,
        moments_of=moments_of,
        node_of=node_of,
        representable=representable,
        rewritten=rewritten,
        run=run,
        scope_of=scope_of,
        weights=weights,
    )
