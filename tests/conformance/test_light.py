"""The nine `light_*` networks of the onnx package: as shipped, and with weights that matter.

As shipped, their weights are ConstantOfShape nodes and their outputs one constant, so that they
prove structure only. With random weights of a sensible size in place of those, they prove numbers:
each test first makes sure that the original's output is neither saturated nor constant and that a
small fault in the middle of the network would be seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SMALL = (
    "light_squeezenet",
    "light_shufflenet",
    "light_inception_v1",
    "light_inception_v2",
    "light_resnet50",
    "light_densenet121",
)
LARGE = ("light_bvlc_alexnet", "light_zfnet512", "light_vgg19")  # 230 to 575 MB of weights
TOLERANCE = 1e-4

Array = np.ndarray[Any, Any]
Result = Any  # conformance_tools.Result


def _marked(slow: Sequence[str]) -> list[Any]:
    """All nine, those that take long marked."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in slow else name
        for name in (*SMALL, *LARGE)
    ]


def _outputs(path: Path) -> list[str]:
    return [value.name for value in onnx.load(path).graph.output]


@pytest.fixture(scope="module", params=_marked(("light_densenet121", *LARGE)))
def shipped(
    request: pytest.FixtureRequest, tools: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    folder = tmp_path_factory.mktemp(request.param)
    return tools.run_graphopt(LIGHT / f"{request.param}.onnx", folder)


@pytest.fixture(scope="module", params=_marked(LARGE))
def randomized(
    request: pytest.FixtureRequest, tools: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    folder = tmp_path_factory.mktemp(request.param)
    original = folder / f"{request.param}.onnx"
    model = with_random_weights(onnx.load(LIGHT / f"{request.param}.onnx"))
    onnx.save(with_settled_scores(model, tools), original)
    return tools.run_graphopt(original, folder)


class TestAsShipped:
    def test_is_verified_at_both_levels(self, shipped: Result, tools: ModuleType) -> None:
        tools.assert_verified(shipped.report, _outputs(shipped.original))

    def test_leaves_no_foldable_batch_normalization(
        self, shipped: Result, tools: ModuleType
    ) -> None:
        assert tools.foldable_batch_norms(shipped.optimized) == []

    def test_file_grows_only_by_weights_that_a_fusion_made(self, shipped: Result) -> None:
        """A generated weight times stored statistics has to be stored itself."""
        fused = {"fuse-conv-bn", "fuse-conv-affine"} & {e.name for e in shipped.report.rewrites}
        grown = shipped.optimized.stat().st_size - shipped.original.stat().st_size
        made = shipped.report.after.weight_bytes - shipped.report.before.weight_bytes
        assert grown <= 0 or (fused and grown <= made)

    def test_changes_nothing_the_second_time(
        self, shipped: Result, tools: ModuleType, tmp_path: Path
    ) -> None:
        tools.assert_second_run_is_idle(shipped, tmp_path)

    def test_keeps_the_interface(self, shipped: Result, tools: ModuleType) -> None:
        assert tools.interface(shipped.optimized) == tools.interface(shipped.original)


class TestWithRandomWeights:
    def test_is_verified_at_both_levels(self, randomized: Result, tools: ModuleType) -> None:
        tools.assert_verified(randomized.report, _outputs(randomized.original))
        assert randomized.report.verification.tolerance == TOLERANCE

    def test_leaves_no_foldable_batch_normalization(
        self, randomized: Result, tools: ModuleType
    ) -> None:
        assert tools.foldable_batch_norms(randomized.optimized) == []

    def test_computes_the_same_and_the_comparison_would_see_a_fault(
        self, randomized: Result, tools: ModuleType
    ) -> None:
        feeds = _feeds(onnx.load(randomized.original).graph)
        _assert_says_something(randomized.original, feeds, tools)
        for optimized in (False, True):
            errors = tools.relative_errors(
                randomized.original, randomized.optimized, feeds, optimized=optimized
            )
            assert max(errors.values()) <= TOLERANCE
        faulty = randomized.optimized.with_suffix(".faulty.onnx")
        onnx.save(with_a_fault(onnx.load(randomized.optimized)), faulty)
        errors = tools.relative_errors(randomized.original, faulty, feeds[:1])
        assert max(errors.values()) > 3 * TOLERANCE


def _feeds(graph: onnx.GraphProto) -> list[dict[str, Array]]:
    stored = {tensor.name for tensor in graph.initializer}
    (value,) = (v for v in graph.input if v.name not in stored)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    rng = np.random.default_rng(7)
    return [{value.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(2)]


def _assert_says_something(path: Path, feeds: list[dict[str, Array]], tools: ModuleType) -> None:
    """The reference outputs are neither saturated, nor flat, nor the same for every input."""
    session = tools.session(path)
    first, second = (session.run(None, feed)[0].astype(np.float64).ravel() for feed in feeds)
    probable = np.all(first >= 0) and math.isclose(first.sum(), 1.0, rel_tol=1e-3)
    scores = np.log(first) if probable else first
    if probable:
        assert first.max() < 0.99
        assert -np.sum(first * scores) > 1.0  # entropy in nats; ln(1000) = 6.9 is flat
    assert scores.std() > 0.1
    assert np.linalg.norm(first - second) > 10 * TOLERANCE * np.linalg.norm(first)


def with_a_fault(model: onnx.ModelProto) -> onnx.ModelProto:
    """One weight of the middle convolution scaled by 1.05."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    name = convolutions[len(convolutions) // 2].input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array *= 1.05
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


def with_random_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Every float weight drawn anew by its role, stored as an initializer.

    Convolutions and Gemms get He's scale, normalizations statistics around (0, 1). The vectors that
    the file does store belong to weights it does not have, and are drawn anew with them. IR 3
    demands that initializers be listed as inputs too.
    """
    graph = model.graph
    shapes = _weight_shapes(graph)
    roles = _roles(graph)
    rng = np.random.default_rng(seed)
    generated = {n.output[0]: n for n in graph.node if n.op_type == "ConstantOfShape"}
    dropped = {*shapes, *(node.input[0] for node in generated.values())}
    _keep(graph.node, lambda node: node.output[0] not in generated)
    _keep(graph.initializer, lambda tensor: tensor.name not in dropped)
    _keep(graph.input, lambda value: value.name not in dropped)
    for name, shape in sorted(shapes.items()):
        array = _draw(roles.get(name, "shift"), shape, rng).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(array, name))
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


def with_settled_scores(model: onnx.ModelProto, tools: ModuleType) -> onnx.ModelProto:
    """The last layer before a Softmax scaled so that its scores have a standard deviation of one.

    Only average pooling and Relu come between, so that the scores scale with its weight and bias.
    """
    graph = model.graph
    last = graph.node[-1]
    if last.op_type != "Softmax":
        return model
    makers = {name: node for node in graph.node for name in node.output}
    layer = makers[last.input[0]]
    while layer.op_type not in ("Conv", "Gemm"):
        layer = makers[layer.input[0]]
    graph.output.append(helper.make_tensor_value_info(last.input[0], TensorProto.FLOAT, None))
    scores = tools.session(model.SerializeToString()).run([last.input[0]], _feeds(graph)[0])[0]
    del graph.output[-1]
    behind = _behind(graph)
    weights = {behind.get(name, name) for name in layer.input[1:]}
    for tensor in graph.initializer:
        if tensor.name in weights:
            array = numpy_helper.to_array(tensor) / scores.std()
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def _weight_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all float weights, stored or generated."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {t.name: tuple(t.dims) for t in stored.values() if t.data_type == TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            sizes = numpy_helper.to_array(stored[node.input[0]])
            shapes[node.output[0]] = tuple(int(size) for size in sizes)
    return shapes


def _behind(graph: onnx.GraphProto) -> dict[str, str]:
    """What a value is a reshaped form of."""
    return {n.output[0]: n.input[0] for n in graph.node if n.op_type in ("Unsqueeze", "Reshape")}


_ROLES = {
    "Conv": ("", "weight", "shift"),
    "Gemm": ("", "matrix", "shift"),
    "BatchNormalization": ("", "scale", "shift", "shift", "variance"),
    "Mul": ("scale", "scale"),
    "Add": ("shift", "shift"),
}


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """What each weight is for; a normalization right before a residual sum is made small."""
    behind = _behind(graph)
    uses = Counter(name for node in graph.node for name in node.input)
    summed = {name for node in graph.node if node.op_type == "Sum" for name in node.input}
    roles: dict[str, str] = {}
    for node in graph.node:
        for name, role in zip(node.input, _ROLES.get(node.op_type, ()), strict=False):
            roles[behind.get(name, name)] = role
        if node.op_type == "BatchNormalization" and node.output[0] in summed:
            assert uses[node.output[0]] == 1
            roles[node.input[1]] = "small scale"
    return roles


def _draw(role: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    normal = rng.standard_normal(shape)
    if role == "weight":
        return normal * math.sqrt(2 / math.prod(shape[1:]))
    if role == "matrix":  # [outputs, inputs]: these Gemms have transB
        return normal * math.sqrt(2 / shape[-1])
    if role == "variance":
        return rng.uniform(0.5, 1.5, shape)
    if role == "scale":
        return rng.uniform(0.8, 1.2, shape)
    if role == "small scale":
        return rng.uniform(0.3, 0.6, shape)
    return normal * 0.1


def _keep(field: Any, wanted: Any) -> None:
    kept = [item for item in field if wanted(item)]
    del field[:]
    field.extend(kept)
