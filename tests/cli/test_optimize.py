"""`graphopt optimize` where it succeeds: what is written where, and what is printed."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx_text import build

QUICK = ("--no-bench",)


@pytest.fixture(scope="module")
def schema() -> dict:
    return json.loads((files("graphopt") / "reporting" / "optimize.schema.json").read_text())


def operators(path: str | Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def outputs(path: str | Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[
        0
    ]


def test_several_models_along_the_way(shell, wide, pictures, folder):
    np.savez("d.npz", x=pictures)
    words = ("optimize", wide, "--data", "d.npz", "--max-error", "0.3", "--no-bench")
    printed = shell.passes(*words, "--pareto", "2", "-o", "small.onnx", "--html", "r.html")
    assert "Models, from close to the original to what the budget allows" in printed
    assert "small.1.onnx" in printed
    assert sorted(path.name for path in folder.glob("small*")) == ["small.1.onnx", "small.2.onnx"]
    assert "<circle" in (folder / "r.html").read_text()
    report = json.loads(shell.passes(*words, "--pareto", "2", "--dry-run", "--json"))
    assert [point["file"]["path"] for point in report["frontier"]] == [
        "wide.opt.1.onnx",
        "wide.opt.2.onnx",
    ]
    assert not (folder / "wide.opt.1.onnx").exists()


class TestWhereTheResultGoes:
    def test_beside_the_input_by_default(self, shell, model, folder, pictures):
        before = model.read_bytes()
        shell.passes("optimize", model, *QUICK)
        assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "model.opt.onnx"]
        assert model.read_bytes() == before
        assert "BatchNormalization" not in operators("model.opt.onnx")
        want, got = outputs(model, pictures), outputs("model.opt.onnx", pictures)
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)

    def test_output(self, shell, model, folder):
        (folder / "out").mkdir()
        shell.passes("optimize", model, "-o", "out/small.onnx", *QUICK)
        assert [p.name for p in Path("out").iterdir()] == ["small.onnx"]
        assert not Path("model.opt.onnx").exists()

    def test_an_older_result_is_replaced(self, shell, model):
        Path("model.opt.onnx").write_text("an older result")
        shell.passes("optimize", model, *QUICK)
        assert "Conv" in operators("model.opt.onnx")

    def test_in_place(self, shell, model, folder):
        shell.passes("optimize", model, "--in-place", *QUICK)
        assert [p.name for p in folder.iterdir()] == ["model.onnx"]
        assert "BatchNormalization" not in operators(model)

    def test_dry_run_writes_nothing_and_tells_all(self, shell, model, folder):
        out = shell.passes("optimize", model, "--dry-run", *QUICK)
        assert [p.name for p in folder.iterdir()] == ["model.onnx"]
        assert "fuse-conv-bn" in out
        assert "(nothing written)" in out

    def test_dry_run_in_place_leaves_the_input(self, shell, model):
        before = model.read_bytes()
        report = json.loads(
            shell.passes("optimize", model, "--dry-run", "--in-place", "--json", *QUICK)
        )
        assert model.read_bytes() == before
        assert report["output"] is None

    def test_a_read_only_folder_is_enough_for_a_dry_run(self, shell, model, monkeypatch):
        monkeypatch.setattr("os.access", lambda _, mode, **__: not mode & os.W_OK)
        assert "fuse-conv-bn" in shell.passes("optimize", model, "--dry-run", *QUICK)

    def test_names_with_spaces_and_accents(self, shell, model, folder):
        (folder / "a b").mkdir()
        model.rename("a b/modèle 1.onnx")
        shell.passes("optimize", "a b/modèle 1.onnx", *QUICK)
        assert Path("a b/modèle 1.opt.onnx").is_file()


class TestNothingToDo:
    @pytest.fixture
    def clean(self, folder) -> Path:
        text = "net (float[N,4] x) => (float[N,4] y) { y = Relu (x) }"
        # Bytes that no serializer would write: the unknown field 2000.
        content = build(text).SerializeToString() + b"\x80\x7d\x05"
        (folder / "clean.onnx").write_bytes(content)
        return Path("clean.onnx")

    def test_copies_byte_for_byte(self, shell, clean):
        out = shell.passes("optimize", clean, *QUICK)
        assert Path("clean.opt.onnx").read_bytes() == clean.read_bytes()
        assert "nothing to rewrite" in out

    def test_in_place_leaves_the_bytes(self, shell, clean):
        before = clean.read_bytes()
        shell.passes("optimize", clean, "--in-place", *QUICK)
        assert clean.read_bytes() == before

    def test_with_all_rewrites_skipped(self, shell, model):
        shell.passes("optimize", model, "--passes", "merge-activations", *QUICK)
        assert Path("model.opt.onnx").read_bytes() == model.read_bytes()


def test_a_second_run_changes_nothing(shell, model):
    shell.passes("optimize", model, *QUICK)
    out = shell.passes("optimize", "model.opt.onnx", "-o", "again.onnx", "--json", *QUICK)
    assert Path("again.onnx").read_bytes() == Path("model.opt.onnx").read_bytes()
    assert json.loads(out)["rewrites"] == []


class TestWhatIsPrinted:
    def test_quiet_prints_nothing(self, shell, model):
        assert shell.passes("optimize", model, "-q", *QUICK) == ""
        assert Path("model.opt.onnx").is_file()

    def test_json_is_the_report_and_nothing_else(self, shell, model, schema):
        report = json.loads(shell.passes("optimize", model, "--json", *QUICK))
        jsonschema.validate(report, schema)
        assert report["command"] == "graphopt optimize model.onnx --json --no-bench"
        assert report["output"]["path"] == "model.opt.onnx"
        assert report["output"]["bytes"] == Path("model.opt.onnx").stat().st_size
        assert report["verification"]["passed"] is True
        assert report["latency"] == []
        assert {entry["name"] for entry in report["rewrites"]} == {"fuse-conv-bn"}

    def test_json_with_data_and_timing(self, shell, model, data, schema):
        report = json.loads(shell.passes("optimize", model, "--data", data, "--json"))
        jsonschema.validate(report, schema)
        assert [latency["batch"] for latency in report["latency"]] == [1, 8]
        assert report["verification"]["metric"] == "top1"
        assert report["verification"]["metric_before"] == report["verification"]["metric_after"]
        samples = report["verification"]["samples"]
        assert (samples["source"], samples["description"]) == ("data", data)
        assert samples["fitting"] + samples["held_out"] == 40

    def test_files(self, shell, model, schema):
        reports = ("--report", "r.json", "--html", "r.html", "--junit", "r.xml")
        out = shell.passes("optimize", model, *reports, "--json", *QUICK)
        assert Path("r.json").read_text() == out
        jsonschema.validate(json.loads(out), schema)
        page = Path("r.html").read_text()
        assert page.startswith(("<!doctype html>", "<!DOCTYPE html>"))
        assert "fuse-conv-bn" in page
        suites = ElementTree.parse("r.xml").getroot()
        cases = list(suites.iter("testcase"))
        assert cases
        assert not list(suites.iter("failure"))

    def test_warns_about_made_up_inputs(self, shell, model, data):
        assert "indicative" in shell.passes("optimize", model, *QUICK)
        assert "indicative" not in shell.passes("optimize", model, "--data", data, *QUICK)

    def test_verbose_lists_what_the_summary_cuts(self, shell, folder):
        lines = [f"c{i} = Conv (c{i - 1}, w{i})" for i in range(1, 13)]
        weights = ", ".join(f"float[{i + 3},{i + 2},1,1] w{i}" for i in range(1, 13))
        text = f"""net (float[1,3,4,4] c0) => (float[1,15,4,4] y) <{weights}>
        {{ {" ".join(lines)}  y = Relu (c12) }}"""
        onnx.save(build(text), "deep.onnx")
        flags = ("--dry-run", "--skip", "compose-convs", *QUICK)
        short = shell.passes("optimize", "deep.onnx", *flags)
        long = shell.passes("optimize", "deep.onnx", "-v", *flags)
        assert "c12" not in short
        assert "c12" in long


class TestWhatIsUsed:
    def test_passes(self, shell, folder):
        text = """
        net (float[1,3,8,8] x) => (float[1,4,8,8] y) <float[4,3,1,1] w, float[4,1,1] k>
        { c = Conv (x, w)  i = Identity (c)  m = Mul (i, k)  y = Identity (m) }
        """
        onnx.save(build(text), "m.onnx")
        shell.passes("optimize", "m.onnx", "--passes", "remove-noops", *QUICK)
        assert operators("m.opt.onnx") == ["Conv", "Mul"]
        shell.passes("optimize", "m.onnx", "--skip", "fuse-conv-affine", *QUICK)
        assert operators("m.opt.onnx") == ["Conv", "Mul"]
        shell.passes("optimize", "m.onnx", *QUICK)
        assert operators("m.opt.onnx") == ["Conv"]

    @pytest.mark.parametrize(
        ("listed", "flags", "kept"),
        [
            (("w", "k"), (), []),
            (("w", "k"), ("--keep-initializers",), ["w", "k"]),
            (("w",), (), ["w"]),
            (("w",), ("--freeze-initializers",), []),
        ],
    )
    def test_initializers_listed_as_inputs(self, shell, folder, listed, flags, kept):
        text = """
        net (float[1,3,8,8] x) => (float[1,4,8,8] y) <float[4,3,1,1] w, float[4,1,1] k>
        { c = Conv (x, w)  y = Mul (c, k) }
        """
        network = build(text)
        shapes = {tensor.name: tensor.dims for tensor in network.graph.initializer}
        for name in listed:
            info = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])
            network.graph.input.append(info)
        onnx.save(network, "m.onnx")
        shell.passes("optimize", "m.onnx", *flags, *QUICK)
        found = onnx.load("m.opt.onnx").graph
        assert [value.name for value in found.input] == ["x", *kept]
        assert [node.op_type for node in found.node] == (["Conv", "Mul"] if kept else ["Conv"])

    @pytest.mark.parametrize(("target", "operator"), [("ort-cpu", "Gemm"), ("npu", "Conv")])
    def test_target(self, shell, folder, target, operator):
        text = """
        net (float[N,3,2,2] x) => (float[N,4] y) <float[12,4] w, float[4] b>
        { f = Flatten (x)  y = Gemm (f, w, b) }
        """
        onnx.save(build(text), "m.onnx")
        shell.passes("optimize", "m.onnx", "--target", target, *QUICK)
        assert operator in operators("m.opt.onnx")

    def test_shape_is_what_is_counted_and_timed_at(self, shell, folder):
        text = """net (float[N,3,H,W] x) => (float[N,4,H,W] y) <float[4,3,1,1] w>
        { y = Conv (x, w) }"""
        onnx.save(build(text), "m.onnx")
        report = json.loads(
            shell.passes("optimize", "m.onnx", "--shape", "x:1x3x6x10", "--json", *QUICK)
        )
        assert report["before"]["macs"] == 4 * 3 * 6 * 10

    def test_no_verify_proves_nothing_and_says_so(self, shell, model):
        report = json.loads(shell.passes("optimize", model, "--no-verify", "--json"))
        assert report["verification"] is None
        out = shell.passes("optimize", model, "--no-verify")
        assert "not verified" in out.lower()


READERS = """
import numpy as np
rng = np.random.default_rng(0)
batches = [{"x": rng.standard_normal((5, 3, 8, 8)).astype("f")} for _ in range(6)]

def generator(): yield from batches
def as_list(): return batches
def labelled():
    for batch in batches: yield {**batch, "labels": np.arange(5) % 4}

class Reader:
    def __init__(self): self.left = iter(batches)
    def get_next(self): return next(self.left, None)

def reader(): return Reader()
"""


class TestData:
    @pytest.mark.parametrize(
        "name", ["generator", "as_list", "labelled", "Reader", "reader", "batches"]
    )
    def test_functions(self, shell, model, folder, name):
        (folder / "f.py").write_text(READERS)
        words = ("optimize", model, "--data", f"f.py:{name}", "--json", *QUICK)
        check = json.loads(shell.passes(*words))["verification"]
        samples = check["samples"]
        assert (samples["fitting"], samples["held_out"]) == (15, 15)
        assert (check["metric"] is not None) == (name == "labelled")

    def test_a_folder(self, shell, model, folder, pictures):
        (folder / "d").mkdir()
        np.savez("d/a.npz", x=pictures[:20])
        np.savez("d/b.npz", x=pictures[20:])
        (folder / "d" / "notes.txt").write_text("not data")
        report = json.loads(shell.passes("optimize", model, "--data", "d", "--json", *QUICK))
        samples = report["verification"]["samples"]
        assert samples["fitting"] + samples["held_out"] == 40

    def test_eval_data_hold_out_all_of_data(self, shell, model, data, pictures):
        np.savez("e.npz", x=pictures[:7])
        words = ("--data", data, "--eval-data", "e.npz", "--json")
        samples = json.loads(shell.passes("optimize", model, *words, *QUICK))["verification"]
        assert samples["samples"]["fitting"] == 40
        assert samples["samples"]["held_out"] == 7
        assert samples["samples"]["description"] == "e.npz"

    def test_metric(self, shell, model, data, folder):
        (folder / "m.py").write_text(
            "def largest(outputs, batch):\n"
            "    assert set(batch) == {'x', 'labels'}\n"
            "    return float(outputs['y'].max(axis=1).mean())\n"
        )
        words = ("--data", data, "--metric", "m.py:largest", "--json")
        check = json.loads(shell.passes("optimize", model, *words, *QUICK))["verification"]
        assert check["metric"] == "m.py:largest"
        assert check["metric_before"] == pytest.approx(check["metric_after"], rel=1e-5)

    def test_labels_that_are_an_input(self, shell, folder, pictures):
        text = """net (float[N,2] x, int64[N] labels) => (float[N,2] y, int64[N] l)
        { y = Relu (x)  l = Neg (labels) }"""
        onnx.save(build(text), "m.onnx")
        np.savez("d.npz", x=pictures[:, 0, 0, :2], labels=np.arange(40))
        words = ("optimize", "m.onnx", "--data", "d.npz", "--json", *QUICK)
        assert json.loads(shell.passes(*words))["verification"]["metric"] is None
