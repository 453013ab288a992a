"""Model files that cannot be used: exit code 2, one line, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import build

COMMANDS = (("optimize",), ("optimize", "--no-verify"), ("audit",), ("audit", "--no-bench"))

UNKNOWN_OPERATOR = """
net (float[N,4] x) => (float[N,4] y) { a = Relu (x)  b = Identity (a)  y = Frobnicate (b) }
"""
UNKNOWN_DOMAIN = """
net (float[N,4] x) => (float[N,4] y) { a = Relu (x)  b = Identity (a)  y = mine.Magic (b) }
"""


@pytest.fixture
def external(folder: Path, network: onnx.ModelProto) -> Path:
    onnx.save(
        network, "external.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    return Path("external.onnx")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
class TestEveryCommandRefuses:
    def test_no_file(self, shell, command):
        assert shell.fails(2, *command, "gone.onnx") == "gone.onnx: no such file"

    def test_a_folder(self, shell, folder, command):
        (folder / "models").mkdir()
        line = shell.fails(2, *command, "models")
        assert line == "models is a folder: give the .onnx file in it"

    def test_an_empty_file(self, shell, folder, command):
        (folder / "a.onnx").touch()
        assert "a.onnx is empty" in shell.fails(2, *command, "a.onnx")

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    def test_a_truncated_file(self, shell, model, command, kept):
        whole = model.read_bytes()
        model.write_bytes(whole[: int(kept * len(whole))])
        assert "not an ONNX model, or is truncated" in shell.fails(2, *command, model)

    @pytest.mark.parametrize(
        "content",
        [b"just a text\n", b"\x00" * 512, b"PK\x03\x04" + b"\x07" * 60, bytes(range(256)) * 4],
        ids=["text", "zeros", "zip", "bytes"],
    )
    def test_another_format(self, shell, folder, command, content):
        (folder / "a.onnx").write_bytes(content)
        assert "not an ONNX model" in shell.fails(2, *command, "a.onnx")

    def test_a_model_without_a_graph(self, shell, folder, command):
        (folder / "a.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
        assert "not an ONNX model" in shell.fails(2, *command, "a.onnx")

    def test_a_model_the_checker_rejects(self, shell, network, command):
        network.graph.node[2].input[0] = "nowhere"
        onnx.save(network, "bad.onnx")
        line = shell.fails(2, *command, "bad.onnx")
        assert "rejected by the ONNX checker" in line
        assert "'nowhere'" in line
        assert "not output of any previous nodes" in line, "the checker's sentence is cut short"

    def test_missing_external_data(self, shell, external, command):
        Path("weights").unlink()
        line = shell.fails(2, *command, external)
        assert line == (
            "external.onnx keeps its weights in weights, which is missing: put it beside the model"
        )

    def test_external_data_that_are_too_short(self, shell, external, command):
        os.truncate("weights", 100)
        line = shell.fails(2, *command, external)
        assert line.startswith("weights is too short for external.onnx (tensor ")


@pytest.mark.parametrize(
    ("text", "domains"),
    [(UNKNOWN_OPERATOR, ()), (UNKNOWN_DOMAIN, ("mine",)), (UNKNOWN_DOMAIN, ())],
    ids=["operator", "domain", "undeclared domain"],
)
class TestUnknownOperator:
    @pytest.fixture
    def unknown(self, text, domains) -> Path:
        onnx.save(build(text, domains=domains), "unknown.onnx")
        return Path("unknown.onnx")

    def test_needs_no_verify(self, shell, unknown):
        assert "--no-verify" in shell.fails(2, "optimize", unknown)

    def test_is_optimized_with_no_verify(self, shell, unknown):
        shell.passes("optimize", unknown, "--no-verify", "-q")
        result = onnx.load("unknown.opt.onnx")
        assert next(node.op_type for node in result.graph.node) == "Relu"
        assert "Identity" not in [node.op_type for node in result.graph.node]

    def test_audit_without_timing(self, shell, unknown):
        assert "unknown.onnx" in shell.passes("audit", unknown, "--no-bench")

    def test_verify_and_bench_need_to_run_it(self, shell, unknown):
        shell.fails(2, "verify", unknown, unknown)
        shell.fails(2, "bench", unknown, unknown)


def test_audit_names_a_way(shell, folder):
    onnx.save(build(UNKNOWN_OPERATOR), "unknown.onnx")
    assert shell.fails(2, "audit", "unknown.onnx").endswith("use --no-bench")


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("extra", [(), ("--max-error", "0.1"), ("--on-fail", "stop")])
def test_an_original_that_computes_no_numbers_is_not_verified(shell, network, number, extra):
    shift = next(t for t in network.graph.initializer if t.name == "shift")
    shift.CopyFrom(numpy_helper.from_array(np.full(4, number, np.float32), "shift"))
    onnx.save(network, "nan.onnx")
    assert shell.fails(3, "optimize", "nan.onnx", "--no-bench", *extra) == (
        "the original's output 'y' is NaN or infinite on these inputs: give real ones with --data"
    )
    line = shell.fails(3, "verify", "nan.onnx", "nan.onnx")
    assert "NaN or infinite" in line


def test_no_input_size_is_accepted(shell, folder):
    text = """
    net (float[N,3,H,W] x) => (float[N,K] y) <float[7,2] w> { f = Flatten (x)  y = MatMul (f, w) }
    """
    onnx.save(build(text), "odd.onnx")
    line = shell.fails(2, "optimize", "odd.onnx")
    assert line.startswith("no input size was accepted, give one (--shape x:1x3x224x224)")
