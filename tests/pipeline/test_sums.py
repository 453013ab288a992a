"""The report's totals and sums, recomputed from the two files with nothing but `onnx`."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import build

from graphopt import Budget

SAMPLES = Path(__file__).parents[2] / "models"
FIELDS = ("nodes", "parameters", "weight_bytes", "macs")


def recount(path: str | Path) -> dict[str, int]:
    """Nodes, parameters, bytes and MACs (batch 1) of a file without control flow."""
    model = onnx.load(path)
    tensors = list(model.graph.initializer)
    tensors += [
        attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
    return {
        "nodes": len(model.graph.node),
        "parameters": sum(array.size for array in arrays if array.dtype.kind == "f"),
        "weight_bytes": sum(array.nbytes for array in arrays),
        "macs": multiplications(model),
    }


def multiplications(model: onnx.ModelProto) -> int:
    del model.graph.value_info[:]
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim
        if value.name not in weights and first and not first[0].HasField("dim_value"):
            first[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            shapes[node.output[0]] = list(node.attribute[0].t.dims)
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            flipped = any(a.name == "transA" and a.i for a in node.attribute)
            inner = shapes[node.input[0]][0 if flipped else -1]
            total += math.prod(shapes[node.output[0]]) * inner
    return total


def check(report, before: str | Path, after: str | Path) -> None:
    first, second = recount(before), recount(after)
    for field in FIELDS:
        assert getattr(report.before, field) == first[field], field
        assert getattr(report.after, field) == second[field], field
        summed = sum(getattr(e.before, field) - getattr(e.after, field) for e in report.rewrites)
        assert summed == first[field] - second[field], field
    assert report.before.file_bytes == Path(before).stat().st_size
    assert report.after.file_bytes == Path(after).stat().st_size


def test_fusion(run, two_layers):
    report = run(two_layers)
    check(report, two_layers, "net.opt.onnx")
    assert report.after.nodes == report.before.nodes - 2


def test_constants_shared_weights_and_folding(run, folder):
    text = """
    net (float[N,3,8,8] x) => (float[N,5] y)
    <float[3,3,3,3] w, float[3,3,3,3] same, float[3] b, float[3,5] f, float[7,7] unused>
    {
        k = Constant <value = float[3,1,1] {1.0, 2.0, 3.0}> ()
        one = Constant <value = float[1] {1.0}> ()
        two = Add (one, one)
        a = Conv <pads = [1,1,1,1]> (x, w, b)
        c = Conv <pads = [1,1,1,1]> (x, w, b)
        m = Mul (a, k)
        s = Add (m, c)
        t = Mul (s, two)
        d = Conv (t, same)
        p = GlobalAveragePool (d)
        q = Flatten (p)
        y = MatMul (q, f)
    }
    """
    network = build(text)
    equal = next(t for t in network.graph.initializer if t.name == "w")
    other = next(t for t in network.graph.initializer if t.name == "same")
    other.raw_data = equal.raw_data
    onnx.save(network, "mixed.onnx")
    report = run("mixed.onnx")
    assert len({entry.name for entry in report.rewrites}) >= 4
    check(report, "mixed.onnx", "mixed.opt.onnx")


def test_fc_to_conv(run, folder):
    text = """
    net (float[N,3,4,4] x) => (float[N,5] y) <float[48,6] w, float[6] b, float[6,5] v, float[5] c>
    { f = Flatten (x)  g = Gemm (f, w, b)  r = Relu (g)  y = Gemm (r, v, c) }
    """
    onnx.save(build(text), "fc.onnx")
    report = run("fc.onnx", target="npu")
    assert "fc-to-conv" in {entry.name for entry in report.rewrites}
    check(report, "fc.onnx", "fc.opt.onnx")


def test_bottleneck(run, wide, data):
    report = run(wide, data=data, budget=Budget(max_error=0.1))
    (entry,) = (e for e in report.rewrites if e.kind == "approximate")
    assert entry.name == "input-bottleneck"
    assert entry.after.macs < entry.before.macs
    check(report, wide, "wide.opt.onnx")


def test_kernel_pair(run, folder, data):
    """5x5 kernels that are four 3x3 kernels through another 3x3."""
    rng = np.random.default_rng(5)
    first, second = rng.standard_normal((4, 16, 3, 3)), rng.standard_normal((32, 4, 3, 3))
    weight = np.zeros((32, 16, 5, 5))
    for i, j in np.ndindex(3, 3):
        weight[:, :, i : i + 3, j : j + 3] += np.einsum("om,mchw->ochw", second[:, :, i, j], first)
    text = """
    net (float[N,3,8,8] x) => (float[N,32,8,8] y) <float[16,3,1,1] v, float[32,16,5,5] w>
    { a = Conv (x, v)  r = Relu (a)  y = Conv <pads = [2,2,2,2]> (r, w) }
    """
    onnx.save(build(text, weights={"w": weight.astype(np.float32) / 10}), "pair.onnx")
    budget = Budget(max_error=0.1)
    report = run("pair.onnx", data=data, budget=budget, passes=("kernel-pair",))
    assert any(entry.kind == "approximate" for entry in report.rewrites)
    check(report, "pair.onnx", "pair.opt.onnx")


@pytest.mark.parametrize("name", ["conv5x5_digits", "inception_digits", "vgg_digits"])
def test_sample_networks(run, folder, name):
    path = SAMPLES / f"{name}.onnx"
    report = run(path, output=folder / "out.onnx")
    check(report, path, "out.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg8_cifar10", "cnn5x5_cifar10", "super_resolution10"])
def test_zoo_with_a_budget(run, folder, name):
    zoo = os.environ.get("GRAPHOPT_ZOO")
    if zoo is None:
        pytest.skip("GRAPHOPT_ZOO is not set: it names the folder of the zoo's networks and data")
    path = Path(zoo) / "models" / f"{name}.onnx"
    spec = f"{zoo}/zoo.py:{name}"
    report = run(path, data=spec, budget=Budget(max_error=0.05), output=folder / "out.onnx")
    assert report.after.macs < report.before.macs
    assert all(c.relative_l2 <= 0.05 for c in report.verification.outputs)
    check(report, path, "out.onnx")
