"""Data and metrics that do not fit the model: exit code 2, one line, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import build

Array = np.ndarray
Packs = Callable[[Array], dict[str, Array]]

UNFIT: dict[str, tuple[Packs, str]] = {
    "nothing": (lambda x: {}, "no array for input 'x' (it has nothing)"),
    "another name": (lambda x: {"z": x}, "no array for input 'x' (it has z)"),
    "one too many": (lambda x: {"x": x, "z": x}, "has 'z', which is no input (inputs: x)"),
    "channels": (lambda x: {"x": x[:, :2]}, "'x' is 40x2x8x8, the input takes Nx3x8x8"),
    "rank": (lambda x: {"x": x[0]}, "'x' is 3x8x8, the input takes Nx3x8x8"),
    "scalar": (lambda x: {"x": np.float32(1)}, "'x' is a scalar, the input takes Nx3x8x8"),
    "double": (lambda x: {"x": x.astype("f8")}, "'x' is float64, the input takes float32"),
    "integers": (lambda x: {"x": x.astype("i8")}, "'x' is int64, the input takes float32"),
    "objects": (lambda x: {"x": np.array([1, "a"], object)}, "not a readable .npz file"),
    "no samples": (lambda x: {"x": x[:0]}, "gives no samples"),
    "too few labels": (
        lambda x: {"x": x, "labels": np.zeros(39, int)},
        "the arrays differ in their number of samples [39, 40]",
    ),
    "scores as labels": (
        lambda x: {"x": x, "labels": np.zeros(40)},
        "labels are float64, not class indices",
    ),
}


@pytest.mark.parametrize("flag", ["--data", "--eval-data"])
class TestFiles:
    @pytest.mark.parametrize("case", UNFIT)
    def test_arrays_that_do_not_fit(self, shell, model, pictures, flag, case):
        arrays, complaint = UNFIT[case]
        np.savez("d.npz", **arrays(pictures))
        line = shell.fails(2, "optimize", model, flag, "d.npz")
        assert line.startswith("d.npz")
        assert complaint in line

    def test_no_file(self, shell, model, flag):
        assert shell.fails(2, "optimize", model, flag, "d.npz") == "d.npz: no such file"

    def test_no_name(self, shell, model, flag):
        line = shell.fails(2, "optimize", model, flag, "")
        assert line == "the data have no name: give an .npz, a folder, or file.py:function"

    @pytest.mark.parametrize("kept", [0, 100, 30_000])
    def test_a_truncated_file(self, shell, model, data, flag, kept):
        Path(data).write_bytes(Path(data).read_bytes()[:kept])
        line = shell.fails(2, "optimize", model, flag, data)
        assert "data.npz is not an .npz file, or is truncated" in line

    def test_a_damaged_file(self, shell, model, data, flag):
        content = bytearray(Path(data).read_bytes())
        content[2000:6000] = b"\xff" * 4000
        Path(data).write_bytes(content)
        line = shell.fails(2, "optimize", model, flag, data)
        assert "data.npz is not a readable .npz file" in line

    @pytest.mark.parametrize("content", [b"a text", b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."])
    def test_another_format(self, shell, model, folder, flag, content):
        (folder / "d.npz").write_bytes(content)
        line = shell.fails(2, "optimize", model, flag, "d.npz")
        assert "write it with numpy.savez" in line
        assert "pickle" not in line

    def test_an_empty_folder(self, shell, model, folder, flag):
        (folder / "d").mkdir()
        line = shell.fails(2, "optimize", model, flag, "d")
        assert line == "d has no .npz files and no pictures in it"

    def test_one_bad_file_of_a_folder_is_named(self, shell, model, folder, pictures, flag):
        (folder / "d").mkdir()
        np.savez("d/1.npz", x=pictures)
        np.savez("d/2.npz", y=pictures)
        line = shell.fails(2, "optimize", model, flag, "d")
        assert line.startswith("d/2.npz has no array for input 'x'")


def test_fewer_samples_than_the_fixed_batch(shell, network, pictures):
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    network.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 16
    onnx.save(network, "fixed.onnx")
    np.savez("d.npz", x=pictures[:15])
    line = shell.fails(2, "optimize", "fixed.onnx", "--data", "d.npz")
    assert line == "d.npz: 15 samples, fewer than the model's batch of 16"


def test_inputs_that_differ_in_samples(shell, folder):
    onnx.save(build("net (float[N,2] a, float[N,2] b) => (float[N,2] y) { y = Add (a, b) }"), "m")
    np.savez("d.npz", a=np.zeros((4, 2), "f"), b=np.zeros((5, 2), "f"))
    line = shell.fails(2, "optimize", "m", "--data", "d.npz")
    assert "differ in their number of samples [4, 5]" in line


def test_an_input_of_strings_needs_no_guess(shell, folder):
    text = "net (string[N] s) => (int64[r] y) { y = Shape (s) }"
    onnx.save(build(text), "m.onnx")
    line = shell.fails(2, "optimize", "m.onnx")
    assert line == "input 's' is not a numeric tensor: give --data"


FUNCTIONS = """
import sys
import numpy as np
picture = np.zeros((2, 3, 8, 8), "f")
number = 5
def none(): return None
def nothing(): return []
def arrays(): return [picture]
def argument(needed): return []
def raises(): raise RuntimeError("out of\\nfilm")
def raises_later():
    yield {"x": picture}
    raise KeyError("x")
def ragged(): return [{"x": [[1.0, 2.0], [3.0]]}]
def name(): return [{"x": picture}, {"y": picture}]
def shape(): return [{"x": picture}, {"x": picture[0]}]
def dtype(): return [{"x": picture.astype("f8")}]
def extra(): return [{"x": picture, "z": picture}]
def labels(): return [{"x": picture, "labels": np.zeros(3, int)}]
def scores(): return [{"x": picture, "labels": np.zeros(2)}]
def leaves(): sys.exit(7)
"""

COMPLAINTS = {
    "gone": "f.py has no function 'gone'",
    "number": "f.py:number raised TypeError: 'int' object is not iterable",
    "none": "f.py:none raised TypeError: 'NoneType' object is not iterable",
    "nothing": "f.py:nothing gives no samples",
    "arrays": "f.py:arrays, batch 0 is a ndarray, not a dict of input name to array",
    "argument": "f.py:argument raised TypeError: argument() missing 1 required positional",
    "raises": "f.py:raises raised RuntimeError: out of",
    "raises_later": "f.py:raises_later raised KeyError: 'x'",
    "ragged": "f.py:ragged raised ValueError: ",
    "name": "f.py:name, batch 1 has no array for input 'x' (it has y)",
    "shape": "f.py:shape, batch 1: 'x' is 3x8x8, the input takes Nx3x8x8",
    "dtype": "f.py:dtype, batch 0: 'x' is float64, the input takes float32: convert it",
    "extra": "f.py:extra, batch 0 has 'z', which is no input (inputs: x)",
    "labels": "f.py:labels, batch 0: 3 labels for 2 samples",
    "scores": "f.py:scores, batch 0: labels are float64, not class indices",
    "leaves": "f.py:leaves raised SystemExit: 7",
}


class TestFunctions:
    @pytest.mark.parametrize("name", COMPLAINTS)
    def test_what_they_give(self, shell, model, folder, name):
        (folder / "f.py").write_text(FUNCTIONS)
        line = shell.fails(2, "optimize", model, "--data", f"f.py:{name}")
        assert line.startswith(COMPLAINTS[name])

    @pytest.mark.parametrize("flag", ["--data", "--metric"])
    def test_no_file(self, shell, model, flag):
        line = shell.fails(2, "optimize", model, flag, "f.py:name")
        assert line == "f.py: no such file (expected file.py:function)"

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            ("def f(:", "SyntaxError"),
            ("import no_such_module_anywhere", "ModuleNotFoundError"),
            ("1 / 0", "ZeroDivisionError"),
            ("raise SystemExit(9)", "SystemExit"),
        ],
    )
    @pytest.mark.parametrize("flag", ["--data", "--metric"])
    def test_a_file_that_does_not_import(self, shell, model, folder, content, kind, flag):
        (folder / "f.py").write_text(content)
        line = shell.fails(2, "optimize", model, flag, "f.py:name")
        assert line.startswith(f"f.py fails to import: {kind}: ")


METRICS = """
constant = 3.0
def text(outputs, batch): return "good"
def raises(outputs, batch): return outputs["scores"]
def nan(outputs, batch): return float("nan")
def one(outputs): return 1.0
"""


class TestMetrics:
    @pytest.mark.parametrize(
        ("name", "complaint"),
        [
            ("gone", "m.py has no function 'gone'"),
            ("constant", "m.py:constant is not a function"),
            ("text", "the metric raised ValueError: could not convert string to float"),
            ("raises", "the metric raised KeyError: 'scores'"),
            ("nan", "the metric is nan, not a finite number"),
            ("one", "the metric raised TypeError: one() takes 1 positional argument"),
        ],
    )
    @pytest.mark.parametrize("command", ["optimize", "verify"])
    def test_that_are_none(self, shell, model, data, folder, name, complaint, command):
        (folder / "m.py").write_text(METRICS)
        files = [model] if command == "optimize" else [model, model]
        line = shell.fails(
            2, command, *files, "--data", data, "--metric", f"m.py:{name}", "--max-drop", "0.1"
        )
        assert line.startswith(complaint)

    def test_without_a_colon(self, shell, model, data):
        line = shell.fails(2, "optimize", model, "--data", data, "--metric", "top1")
        assert line == "'top1' is not of the form file.py:function"

    @pytest.mark.parametrize("command", ["optimize", "verify"])
    @pytest.mark.parametrize("given", [(), ("--data", "plain.npz")])
    def test_a_drop_of_nothing(self, shell, model, pictures, command, given):
        np.savez("plain.npz", x=pictures)
        files = [model] if command == "optimize" else [model, model]
        line = shell.fails(2, command, *files, "--max-drop", "0.01", *given)
        assert line == "--max-drop needs data with labels, or --metric file.py:function"

    def test_labels_for_a_network_that_does_not_classify(self, shell, folder, pictures):
        text = "net (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu (x) }"
        onnx.save(build(text), "m.onnx")
        np.savez("d.npz", x=pictures, labels=np.zeros(40, int))
        line = shell.fails(2, "optimize", "m.onnx", "--data", "d.npz")
        assert line.startswith("the data carry labels, but no output is a classification")
