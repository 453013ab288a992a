from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.planning.choices import with_candidates

BLOCK = 4


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Layer:
    """One convolution x [N, C, *size] -> y as a model."""

    weight: np.ndarray[Any, Any]
    size: tuple[int, ...]
    bias: bool = True
    group: int = 1
    strides: tuple[int, ...] | None = None
    dilations: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    auto_pad: str | None = None
    open_size: bool = False
    batch: int = 2
    opset: int = 13

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.weight.shape[1] * self.group, *self.size)

    def proto(self) -> onnx.ModelProto:
        names = ("group", "strides", "dilations", "pads", "auto_pad")
        attributes = {n: v for n in names if (v := getattr(self, n)) not in (None, 1)}
        kind = helper.np_dtype_to_tensor_dtype(self.weight.dtype)
        constants = [numpy_helper.from_array(self.weight, "w")]
        if self.bias:
            values = np.random.default_rng(9).standard_normal(len(self.weight))
            constants.append(numpy_helper.from_array(values.astype(self.weight.dtype), "b"))
        node = helper.make_node(
            "Conv", ["x", *(t.name for t in constants)], ["y"], name="layer", **attributes
        )
        declared = (*self.x_shape[:2], "h", "w") if self.open_size else self.x_shape
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


def scope_of(proto: onnx.ModelProto, **shapes: tuple[int, ...]) -> Scope:
    """The scope of a model's main graph for its declared (or these) input shapes."""
    model = ir.serde.deserialize_model(proto)
    declared = {
        v.name: tuple(d for d in v.shape) for v in model.graph.inputs if v.name not in shapes
    }
    return Scope(model, model.graph, infer(model, declared | shapes))


def node_of(scope: Scope, name: str = "layer") -> ir.Node:
    return next(node for node in scope.graph if node.name == name)


def rewritten(scope: Scope, candidate: Any, output: str = "y") -> onnx.ModelProto:
    """The written form of a clone with a candidate in place, accepted by the ONNX checker."""
    model = ir.serde.serialize_model(with_candidates(scope, [(output, candidate)]))
    onnx.checker.check_model(model, full_check=True)
    return model


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
    return float(np.linalg.norm(exact - other) / np.linalg.norm(exact))


def border(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The outermost pixels of [N, O, *size]."""
    inner = np.zeros(array.shape[2:], bool)
    inner[tuple(slice(1, -1) for _ in inner.shape)] = True
    return array[:, :, ~inner]


def weights(proto: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """Convolution weights in the order of their nodes, by node name."""
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return {n.name: arrays[n.input[1]] for n in proto.graph.node if n.op_type == "Conv"}


def counted(proto: onnx.ModelProto) -> SimpleNamespace:
    """MACs and weights of all convolutions, counted by hand from the file."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.graph.value_info, *inferred.graph.output)
    }
    found = weights(proto)
    outputs = {n.name: n.output[0] for n in proto.graph.node}
    macs = sum(int(np.prod(shapes[outputs[n]]) * np.prod(w.shape[1:])) for n, w in found.items())
    return SimpleNamespace(macs=macs, parameters=sum(w.size for w in found.values()))


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this folder (--import-mode=importlib has no sibling imports)."""
    return SimpleNamespace(
        BLOCK=BLOCK,
        Layer=Layer,
        scope_of=scope_of,
        node_of=node_of,
        rewritten=rewritten,
        run=run,
        distance=distance,
        border=border,
        weights=weights,
        counted=counted,
    )
