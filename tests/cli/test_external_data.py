"""External data stay external, under the name of the result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

LOCATIONS = ("weights.bin", "model.onnx.data")


@pytest.fixture(params=LOCATIONS)
def external(folder: Path, network: onnx.ModelProto, request: pytest.FixtureRequest) -> Path:
    onnx.save(
        network,
        "model.onnx",
        save_as_external_data=True,
        location=request.param,
        size_threshold=0,
    )
    return Path("model.onnx")


def outputs(path: Path | str, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[
        0
    ]


def locations(path: Path | str) -> set[str]:
    graph = onnx.load(path, load_external_data=False).graph
    return {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}


def test_external_in_external_out(shell, external, folder, pictures, listing):
    before, want = listing(folder), outputs(external, pictures)
    shell.passes("optimize", external, "-o", "small.onnx", "--no-bench")
    after = listing(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"small.onnx", "small.onnx.data"}
    assert locations("small.onnx") == {"small.onnx.data"}
    assert np.allclose(outputs("small.onnx", pictures), want, rtol=1e-4, atol=1e-6)


def test_the_report_counts_both_files(shell, external):
    report = json.loads(shell.passes("optimize", external, "--no-bench", "--json"))
    files = (Path("model.opt.onnx"), Path("model.opt.onnx.data"))
    assert report["output"]["bytes"] == sum(file.stat().st_size for file in files)


def test_in_place(shell, external, pictures):
    want = outputs(external, pictures)
    shell.passes("optimize", external, "--in-place", "--no-bench")
    nodes = [node.op_type for node in onnx.load(external).graph.node]
    assert "BatchNormalization" not in nodes
    assert np.allclose(outputs(external, pictures), want, rtol=1e-4, atol=1e-6)


def test_dry_run(shell, external, folder, listing):
    before = listing(folder)
    shell.passes("optimize", external, "--dry-run", "--no-bench")
    assert listing(folder) == before


def test_a_second_run_changes_nothing(shell, external):
    shell.passes("optimize", external, "-o", "one.onnx", "--no-bench")
    out = shell.passes("optimize", "one.onnx", "-o", "two.onnx", "--no-bench")
    assert "nothing to do: graph and weights are the input's" in out
    assert Path("one.onnx.data").read_bytes() == Path("two.onnx.data").read_bytes()
    one, two = (onnx.load(name).graph for name in ("one.onnx", "two.onnx"))
    assert list(one.node) == list(two.node)
    assert list(one.initializer) == list(two.initializer)


def test_in_a_folder_that_is_not_the_working_one(shell, external, folder, pictures):
    (folder / "deep").mkdir()
    for file in list(folder.iterdir()):
        if file.is_file():
            file.rename(folder / "deep" / file.name)
    want = outputs("deep/model.onnx", pictures)
    shell.passes("optimize", "deep/model.onnx", "-o", "small.onnx", "--no-bench")
    assert np.allclose(outputs("small.onnx", pictures), want, rtol=1e-4, atol=1e-6)
