"""Models stated in ONNX text, and the checks that every rewritten one has to pass."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from graphopt.graph.shapes import bind_inputs, infer, true_inputs
from graphopt.rewrites.base import Decline, ExactRewrite, WholeModelPass
from graphopt.rewrites.driver import Gate, always
from graphopt.rewrites.ledger import Applied, Permit
from graphopt.rewriting import finished, rewrite_exactly

Array = np.ndarray[Any, Any]
Rewrite = ExactRewrite | WholeModelPass
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def build(
    text: str,
    *,
    opset: int = 17,
    ir_version: int = 8,
    weights: Mapping[str, Array] | None = None,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """Parse a graph in ONNX text; `<float[4] b>` declared but never computed becomes a weight.

    Weights are random, the same for the same name; those called `var*` are positive. `weights`
    replaces some by given values.
    """
    imports = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in domains)])
    header = f"<ir_version: {ir_version}, opset_import: [{imports}]>"
    model = onnx.parser.parse_model(header + text)
    made = {name for node in model.graph.node for name in node.output}
    declared = [v for v in model.graph.value_info if v.name not in made]
    given = dict(weights or {})
    for value in declared:
        model.graph.value_info.remove(value)
        array = given.pop(value.name, None)
        tensor = numpy_helper.from_array(_random(value) if array is None else np.asarray(array))
        tensor.name = value.name
        model.graph.initializer.append(tensor)
    for name, array in given.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def _random(value: onnx.ValueInfoProto) -> Array:
    tensor = value.type.tensor_type
    shape = [dim.dim_value for dim in tensor.shape.dim]
    rng = np.random.default_rng(zlib.crc32(value.name.encode()))
    positive = value.name.startswith("var")
    array = rng.uniform(0.5, 2.0, shape) if positive else rng.standard_normal(shape)
    return np.asarray(array, helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def listed(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The model with these initializers (all of them without names) also among its inputs."""
    for tensor in model.graph.initializer:
        if tensor.name in names or not names:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return model


@dataclass(frozen=True)
class Result:
    """A rewritten model and what was done to it."""

    proto: onnx.ModelProto
    applied: tuple[Applied, ...]
    declined: tuple[Decline, ...]

    @property
    def ops(self) -> list[str]:
        """Operator types of the main graph, in order."""
        return [node.op_type for node in self.proto.graph.node]

    @property
    def names(self) -> list[str]:
        """Names of the rewrites that were applied, in order."""
        return [change.name for change in self.applied]

    @property
    def reasons(self) -> list[str]:
        """Why sites were declined."""
        return [decline.reason for decline in self.declined]

    def weight(self, node: int, index: int) -> Array:
        """The initializer that a node reads."""
        name = self.proto.graph.node[node].input[index]
        found = next(t for t in self.proto.graph.initializer if t.name == name)
        return numpy_helper.to_array(found)


def rewrite(
    proto: onnx.ModelProto,
    *rewrites: Rewrite,
    gate: Gate = always,
    permit: Permit | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Result:
    """Rewrite to the fixpoint, as the pipeline does; nothing is checked."""
    model = ir.from_proto(onnx.load_from_string(proto.SerializeToString()))
    bound = bind_inputs(model.graph, shapes or {}, batch=1, size=8)
    done = rewrite_exactly(model, rewrites, infer(model, bound), gate, permit or Permit())
    return Result(ir.to_proto(finished(done, "test")), done.applied, done.declined)


def optimize(
    proto: onnx.ModelProto,
    *rewrites: Rewrite,
    tolerance: float = 1e-5,
    runs: Sequence[Mapping[str, tuple[int, ...]]] = ({},),
    feeds: Mapping[str, Array] | None = None,
) -> Result:
    """Rewrite and check: valid, same interface, same numbers at both levels, a fixpoint.

    runs: input shapes to compare at, for inputs with open dimensions. feeds: given input arrays.
    """
    result = rewrite(proto, *rewrites)
    for shapes in runs:
        check_same(proto, result.proto, tolerance=tolerance, shapes=shapes, feeds=feeds)
    again = rewrite(result.proto, *rewrites)
    assert again.names == [], "a second run found something to do"
    assert structure(again.proto) == structure(result.proto)
    return result


def check_same(
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    *,
    tolerance: float = 1e-5,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    feeds: Mapping[str, Array] | None = None,
) -> None:
    """The result is valid, keeps the interface and computes what the original does (relative L2)."""
    onnx.checker.check_model(result, full_check=True)
    weights = {tensor.name for tensor in original.graph.initializer}
    fed = [value for value in original.graph.input if value.name not in weights]
    kept = {tensor.name for tensor in result.graph.initializer}
    assert [v for v in result.graph.input if v.name not in kept] == fed
    assert list(result.graph.output) == list(original.graph.output)
    values = {**random_feeds(original, shapes or {}), **(feeds or {})}
    expected = run(original, values, LEVELS[0])
    for level in LEVELS:
        for name, want, got in zip(
            (output.name for output in original.graph.output),
            expected,
            run(result, values, level),
            strict=True,
        ):
            assert got.shape == want.shape, name
            assert got.dtype == want.dtype, name
            assert error(want, got) <= tolerance, (name, level)


def error(want: Array, got: Array) -> float:
    """Relative L2 distance; exact equality for what is not a float."""
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(want, got) else np.inf
    a, b = want.astype(np.float64), got.astype(np.float64)
    assert np.all(np.isfinite(a)), "the test's own model does not compute numbers"
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-12))


def random_feeds(
    proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int = 7
) -> dict[str, Array]:
    """Random arrays for the inputs that have no initializer."""
    graph = ir.from_proto(proto).graph
    rng, feeds = np.random.default_rng(seed), {}
    bound = bind_inputs(graph, shapes, batch=1, size=8)
    for value in true_inputs(graph):
        assert value.dtype is not None
        dtype, shape = value.dtype.numpy(), bound[value.name or ""]
        if dtype == np.bool_:
            feeds[value.name or ""] = np.asarray(rng.integers(0, 2, shape), dtype)
        elif dtype.kind in "iu":
            feeds[value.name or ""] = np.asarray(rng.integers(0, 9, shape), dtype)
        else:
            feeds[value.name or ""] = np.asarray(rng.standard_normal(shape), dtype)
    return feeds


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array], level: Any) -> list[Array]:
    """Outputs of one run on the CPU."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def structure(proto: onnx.ModelProto) -> Any:
    """Nodes and weights of the main graph, without metadata."""
    nodes = [
        (n.op_type, tuple(n.input), tuple(n.output), tuple(map(str, n.attribute)))
        for n in proto.graph.node
    ]
    return nodes, sorted((t.name, tuple(t.dims)) for t in proto.graph.initializer)


def body(proto: onnx.ModelProto, op_type: str, attribute: str) -> onnx.GraphProto:
    """A body of the first node of this type in the main graph."""
    node = next(n for n in proto.graph.node if n.op_type == op_type)
    return next(a.g for a in node.attribute if a.name == attribute)


def has(reasons: Sequence[str], pattern: str) -> bool:
    """Whether one of the reasons matches."""
    return any(re.search(pattern, reason) for reason in reasons)


FLOAT16, DOUBLE = TensorProto.FLOAT16, TensorProto.DOUBLE
