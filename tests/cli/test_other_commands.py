"""`graphopt verify`, `bench`, `audit`, `passes`, `--version`, `--help`."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import build

from graphopt import __version__
from graphopt.rewrites import all_rewrites


@pytest.fixture
def off(network: onnx.ModelProto, model: Path) -> Path:
    """The network with weights 3 % larger."""
    weight = next(t for t in network.graph.initializer if t.name == "w")
    weight.CopyFrom(numpy_helper.from_array(1.03 * numpy_helper.to_array(weight), "w"))
    onnx.save(network, "off.onnx")
    return Path("off.onnx")


@pytest.fixture
def other(folder: Path) -> Path:
    onnx.save(build("net (float[N,4] a) => (float[N,4] b) { b = Relu (a) }"), "other.onnx")
    return Path("other.onnx")


class TestVerify:
    def test_the_same(self, shell, model):
        out = shell.passes("verify", model, model)
        assert "FAILED" not in out
        assert "disable_all" in out
        assert "enable_all" in out

    def test_another_function(self, shell, model, off):
        ran = shell("verify", model, off)
        assert (ran.code, ran.err) == (3, "")
        assert "VERIFICATION FAILED" in ran.out

    def test_quiet_leaves_only_the_code(self, shell, model, off):
        assert shell.passes("verify", model, model, "-q") == ""
        ran = shell("verify", model, off, "-q")
        assert (ran.code, ran.out, ran.err) == (3, "", "")

    def test_the_limit_is_the_users(self, shell, model, off):
        assert shell("verify", model, off, "--max-error", "0.001").code == 3
        assert shell("verify", model, off, "--max-error", "0.2").code == 0

    def test_the_limit_on_the_metric(self, shell, model, off, data, folder):
        """What falls from one model to the other rises on the way back."""
        (folder / "m.py").write_text("def m(outputs, batch): return float(outputs['y'].mean())")
        words = ("--data", data, "--metric", "m.py:m", "--max-error", "0.5", "--max-drop", "0")
        there, back = shell("verify", model, off, *words), shell("verify", off, model, *words)
        assert sorted([there.code, back.code]) == [0, 3]
        assert shell("verify", model, model, *words).code == 0

    def test_a_result_that_computes_no_numbers(self, shell, model, network):
        shift = next(t for t in network.graph.initializer if t.name == "shift")
        shift.CopyFrom(numpy_helper.from_array(np.full(4, np.nan, np.float32), "shift"))
        onnx.save(network, "nan.onnx")
        line = shell.fails(3, "verify", model, "nan.onnx")
        assert line == ("nan.onnx cannot be compared: the result's output 'y' is NaN or infinite")

    def test_an_output_of_another_shape(self, shell, model, network):
        network.graph.node[4].attribute.append(onnx.helper.make_attribute("axis", 0))
        onnx.save(network, "flat.onnx")
        assert "shape" in shell.fails(3, "verify", model, "flat.onnx")


@pytest.mark.parametrize("command", ["verify", "bench"])
class TestTwoModels:
    def test_other_inputs(self, shell, model, other, command):
        line = shell.fails(2, command, model, other)
        assert line == "the two models differ in their inputs: ['x'] and ['a']"

    def test_other_outputs(self, shell, model, network, command):
        network.graph.node[4].output[0] = network.graph.output[0].name = "z"
        onnx.save(network, "z.onnx")
        line = shell.fails(2, command, model, "z.onnx")
        assert line == "the two models differ in their outputs: ['y'] and ['z']"

    def test_other_input_shapes(self, shell, model, network, command):
        network.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16
        onnx.save(network, "wide.onnx")
        line = shell.fails(2, command, model, "wide.onnx")
        assert line == "the two models take input 'x' in different shapes"

    def test_no_file(self, shell, model, command):
        assert shell.fails(2, command, model, "gone.onnx") == "gone.onnx: no such file"
        assert shell.fails(2, command, "gone.onnx", model) == "gone.onnx: no such file"

    def test_nothing_is_written(self, shell, model, folder, listing, command):
        before = listing(folder)
        shell.passes(command, model, model)
        assert listing(folder) == before


def test_bench_times_batch_1_and_8_of_an_open_batch(shell, model):
    out = shell.passes("bench", model, model)
    assert "batch 1: x 1x3x8x8" in out
    assert "batch 8: x 8x3x8x8" in out


def test_bench_times_a_fixed_batch_only(shell, network):
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    network.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(network, "two.onnx")
    out = shell.passes("bench", "two.onnx", "two.onnx")
    assert re.findall(r"batch \d+:", out) == ["batch 2:"]


class TestAudit:
    def test_prints_layers_and_writes_nothing(self, shell, wide, folder, listing):
        before = listing(folder)
        out = shell.passes("audit", wide, "--no-bench")
        assert listing(folder) == before
        assert "input-bottleneck" in out

    def test_json(self, shell, wide):
        schema = json.loads((files("graphopt") / "reporting" / "audit.schema.json").read_text())
        report = json.loads(shell.passes("audit", wide, "--json", "--no-bench"))
        jsonschema.validate(report, schema)
        assert sum(layer["cost"]["macs"] for layer in report["layers"]) == report["totals"]["macs"]
        assert report["totals"]["macs"] == 64 * 64 * 3 + 64 * 32 * 64 * 9

    def test_times_each_layer(self, shell, wide):
        report = json.loads(shell.passes("audit", wide, "--json"))
        assert all(layer["cost"]["latency_us"] > 0 for layer in report["layers"])

    def test_files(self, shell, model):
        out = shell.passes(
            "audit", model, "--report", "a.json", "--html", "a.html", "--json", "--no-bench"
        )
        assert Path("a.json").read_text() == out
        assert "<html" in Path("a.html").read_text()

    def test_quiet(self, shell, model):
        assert shell.passes("audit", model, "-q", "--no-bench") == ""


def test_passes_lists_every_rewrite(shell):
    out = shell.passes("passes")
    listed = [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")]
    assert listed == ["name", *(rewrite.name for rewrite in all_rewrites())]


def test_version(shell):
    assert shell.passes("--version") == f"graphopt {__version__}\n"


@pytest.mark.parametrize("command", [(), ("optimize",), ("audit",), ("verify",), ("bench",)])
def test_help(shell, command):
    assert "Usage: graphopt" in shell.passes(*command, "--help")
