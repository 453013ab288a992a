"""Through the whole program: the error measured again from the files is inside the budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import evidence
from graphopt.calibration.dataset import split
from graphopt.calibration.readers import read
from graphopt.graph.io import load
from graphopt.options import Options
from graphopt.pipeline import optimize
from graphopt.planning.budget import Budget

CHANNELS, SIZE, SAMPLES = 8, 10, 64
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def fading(rng, outputs, inputs, size):
    """A weight whose spectrum fades, as those of trained layers do."""
    mix = np.linalg.qr(rng.standard_normal((inputs, inputs)))[0]
    mix *= np.exp(-rng.uniform(0.6, 1.2) * np.arange(inputs))[:, None]
    core = rng.standard_normal((outputs, inputs, size, size)) / size
    return np.einsum("oruv,rc->ocuv", core, mix).astype(np.float32)


def network(path: Path, seed: int) -> None:
    """Two to four convolutions with activations and the odd shortcut, pooled into ten outputs."""
    rng = np.random.default_rng(seed)
    nodes, constants = [], []

    def constant(array, name):
        constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    value, width = "x", CHANNELS
    for index in range(int(rng.integers(2, 5))):
        outputs = int(rng.choice([8, 12, 16]))
        size = int(rng.choice([3, 3, 5]))
        group = 2 if rng.random() < 0.2 else 1
        weight = np.concatenate(
            [fading(rng, outputs // group, width // group, size) for _ in range(group)]
        )
        inputs = [value, constant(weight, f"w{index}")]
        if rng.random() < 0.5:
            inputs.append(constant(rng.standard_normal(outputs).astype(np.float32), f"b{index}"))
        stride = int(rng.choice([1, 1, 2]))
        nodes.append(
            helper.make_node(
                "Conv",
                inputs,
                [f"c{index}"],
                name=f"conv{index}",
                pads=[size // 2] * 4,
                strides=[stride] * 2,
                group=group,
            )
        )
        nodes.append(
            helper.make_node(str(rng.choice(["Relu", "Tanh"])), [f"c{index}"], [f"a{index}"])
        )
        value = f"a{index}"
        if stride == 1 and outputs == width and rng.random() < 0.7:
            nodes.append(helper.make_node("Add", [value, nodes[-2].input[0]], [f"s{index}"]))
            value = f"s{index}"
        width = outputs
    last = constant(rng.standard_normal((width, 10)).astype(np.float32), "fc")
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", last], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10]),
            helper.make_tensor_value_info(value, TensorProto.FLOAT, [None] * 4),
        ],
        constants,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )


def outputs_of(path: Path, level, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"x": part}) for part in x]
    return [np.concatenate(arrays).astype(np.float64) for arrays in zip(*parts, strict=True)]


def samples(path: Path, seed: int) -> str:
    x = np.random.default_rng(seed).standard_normal((SAMPLES, CHANNELS, SIZE, SIZE))
    np.savez(path, x=x.astype(np.float32))
    return str(path)


@pytest.mark.parametrize("seed", range(30))
def test_the_budget_is_kept_on_held_out_data(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(evidence, "channel_block", lambda: 4)
    model, result = tmp_path / "net.onnx", tmp_path / "out.onnx"
    network(model, seed)
    limit = (0.02, 0.05, 0.1, 0.2)[seed % 4]
    data = samples(tmp_path / "data.npz", seed + 1000)
    evaluation = samples(tmp_path / "eval.npz", seed + 2000) if seed % 2 else None
    report = optimize(
        model,
        Options(
            budget=Budget(max_error=limit),
            data=data,
            eval_data=evaluation,
            seed=seed,
            bench=False,
            output=result,
        ),
    )
    graph = load(model).model.graph
    if evaluation is None:
        held_out = split(read(data, graph), seed).held_out
        assert held_out.samples == SAMPLES // 2
    else:
        held_out = read(evaluation, graph)
    x = [batch.feeds["x"] for batch in held_out.batches]
    assert report.verification.samples.held_out == held_out.samples

    before = outputs_of(model, LEVELS[0], x)
    checks = iter(report.verification.outputs)
    for level in LEVELS:
        for exact, found in zip(before, outputs_of(result, level, x), strict=True):
            error = np.linalg.norm(exact - found) / np.linalg.norm(exact)
            assert error <= limit
            assert next(checks).relative_l2 == pytest.approx(error, rel=1e-3, abs=1e-7)

    taken = [entry for entry in report.rewrites if entry.kind == "approximate"]
    assert taken, "a network of fading spectra has something to save at 2 %"
    for field in ("nodes", "parameters", "weight_bytes", "macs"):
        change = sum(getattr(e.after, field) - getattr(e.before, field) for e in report.rewrites)
        assert getattr(report.after, field) - getattr(report.before, field) == change
    assert report.after.macs < report.before.macs
    assert all(entry.after.macs < entry.before.macs for entry in taken)
    assert report.budget.bound_by in (None, "max_error")


def test_the_same_run_twice_writes_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "channel_block", lambda: 4)
    network(tmp_path / "net.onnx", 1)
    data = samples(tmp_path / "data.npz", 1)
    written = []
    for name in ("one.onnx", "two.onnx"):
        options = Options(
            budget=Budget(max_error=0.1), data=data, bench=False, output=tmp_path / name
        )
        report = optimize(tmp_path / "net.onnx", options)
        assert any(entry.kind == "approximate" for entry in report.rewrites)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
