"""`graphopt optimize --dense`: a map of answers, proven at its own size, slid over larger pictures."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx_text import build

from graphopt.rewrites.dense import linear, local

QUICK = ("--dense", "--no-bench")


def small(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)


def classifier(
    pads: int = 0, head: str = "f = Flatten(p) h = Gemm(f, v, b)", k: int = 5
) -> onnx.ModelProto:
    """x [N, 1, 12, 12] -> y [N, 4], two pixels from window to window."""
    side = (12 + 2 * pads - 2) // 2
    return build(
        f"""net (float[N,1,12,12] x) => (float[N,4] y) <float[6,1,3,3] w, float[6] bias, float[16] b>
        {{ c = Conv<pads=[{pads},{pads},{pads},{pads}]>(x, w, bias) r = Relu(c)
           p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) {head} g = Relu(h)
           l = MatMul(g, u) a = Add(l, k) y = Softmax(a) }}""",
        weights={"v": small(6 * side * side, 16), "u": small(16, 4), "k": small(4)},
    )


@pytest.fixture
def plain(folder: Path) -> Path:
    onnx.save(classifier(), "plain.onnx")
    return Path("plain.onnx")


@pytest.fixture
def padded(folder: Path) -> Path:
    onnx.save(classifier(pads=1), "padded.onnx")
    return Path("padded.onnx")


@pytest.fixture
def labelled(folder: Path) -> str:
    pictures = np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)
    np.savez("data.npz", x=pictures, labels=np.arange(60) % 4)
    return "data.npz"


def dims(path: str | Path) -> dict[str, list[int | str]]:
    graph = onnx.load(path).graph
    return {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def test_a_map_for_larger_pictures(shell, plain):
    printed = shell.passes("optimize", plain, *QUICK)
    assert "Dense: an answer for every window of 12x12 pixels, 2x2 pixels apart" in printed
    assert "every cell is the answer to its window" in printed
    assert dims("plain.opt.onnx") == {
        "x": ["N", 1, "height", "width"],
        "y": ["N", 4, "y_height", "y_width"],
    }
    picture = np.random.default_rng(1).standard_normal((2, 1, 20, 16)).astype(np.float32)
    session = ort.InferenceSession("plain.opt.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": picture})
    assert found.shape == (2, 4, 5, 3)
    original = ort.InferenceSession("plain.onnx", providers=["CPUExecutionProvider"])
    (answer,) = original.run(None, {"x": picture[:, :, 8:, 4:]})
    assert np.allclose(found[:, :, 4, 2], answer, atol=1e-5)


def test_the_report(shell, plain):
    schema = json.loads((files("graphopt") / "reporting" / "optimize.schema.json").read_text())
    report = json.loads(shell.passes("optimize", plain, *QUICK, "--json", "--html", "r.html"))
    jsonschema.validate(report, schema)
    dense = report["dense"]
    assert (dense["input"], dense["window"], dense["stride"]) == ("x", [12, 12], [2, 2])
    assert dense["exact"]
    assert dense["inexact_because"] is None
    assert [size["picture"] for size in dense["sizes"]] == [[14, 14], [22, 22]]
    assert [size["maps"] for size in dense["sizes"]] == [{"y": [1, 4, 2, 2]}, {"y": [1, 4, 6, 6]}]
    assert [size["windows"] for size in dense["sizes"]] == [4, 36]
    assert all(0 <= size["relative_l2"] <= size["worst_window"] <= 1e-4 for size in dense["sizes"])
    assert all(size["top1_agreement"] == 1 and size["ratio"] is None for size in dense["sizes"])
    (entry,) = (entry for entry in report["rewrites"] if entry["name"] == "dense")
    assert entry["kind"] == "exact"
    assert entry["options"] == {"window": "12x12", "stride": "2x2"}
    page = Path("r.html").read_text()
    assert "An answer for every window of 12\N{MULTIPLICATION SIGN}12 pixels" in page
    for figure in ("nodes", "parameters", "weight_bytes", "macs"):
        before, after = (
            sum(entry[side][figure] for entry in report["rewrites"]) for side in ("before", "after")
        )
        assert report["before"][figure] - report["after"][figure] == before - after, figure


def test_where_it_pads_the_distance_is_measured(shell, padded):
    report = json.loads(shell.passes("optimize", padded, *QUICK, "--json"))
    dense = report["dense"]
    assert not dense["exact"]
    assert dense["inexact_because"] == "Conv 'c' pads"
    assert all(size["relative_l2"] > 1e-4 for size in dense["sizes"])
    assert "so their answers differ (Conv 'c' pads)" in shell.passes("optimize", padded, *QUICK)


def test_one_pass_against_the_crops(shell, plain):
    words = ("optimize", plain, "--dense", "--json", "--dry-run")
    for size in json.loads(shell.passes(*words))["dense"]["sizes"]:
        assert size["ratio_low"] <= size["ratio"] <= size["ratio_high"]
        assert size["pass_us"] > 0
        assert size["crops_us"] > size["windows"]


def test_a_second_run_changes_nothing(shell, plain):
    shell.passes("optimize", plain, *QUICK)
    printed = shell.passes("optimize", "plain.opt.onnx", "-o", "again.onnx", *QUICK)
    assert Path("again.onnx").read_bytes() == Path("plain.opt.onnx").read_bytes()
    assert "note: --dense: this network takes pictures of any size already" in printed
    words = ("optimize", "plain.opt.onnx", *QUICK, "--shape", "x:1x1x12x12", "--json")
    report = json.loads(shell.passes(*words, "-o", "third.onnx"))
    assert report["dense"]["window"] == [12, 12]
    assert report["dense"]["exact"]
    assert Path("third.onnx").read_bytes() == Path("plain.opt.onnx").read_bytes()


def test_sizes_that_only_open_count_as_a_change(shell, folder):
    text = "net (float[1,1,12,12] x) => (float[1,6,10,10] y) <float[6,1,3,3] w> { y = Conv(x, w) }"
    onnx.save(build(text), "conv.onnx")
    printed = shell.passes("optimize", "conv.onnx", *QUICK)
    assert "1x1 pixels apart" in printed
    assert dims("conv.opt.onnx") == {
        "x": [1, 1, "height", "width"],
        "y": [1, 6, "y_height", "y_width"],
    }


def test_the_batch_keeps_its_names(shell, folder):
    text = "net (float[N,1,6,6] x) => (float[M,36] y) <float[36,36] v> { f = Flatten(x) y = Gemm(f, v) }"
    onnx.save(build(text), "model.onnx")
    shell.passes("optimize", "model.onnx", *QUICK)
    assert dims("model.opt.onnx") == {
        "x": ["N", 1, "height", "width"],
        "y": ["M", 36, "y_height", "y_width"],
    }


def test_selecting_rewrites_does_not_turn_it_off(shell, plain):
    shell.passes("optimize", plain, *QUICK, "--passes", "fuse-conv-bn")
    assert dims("plain.opt.onnx")["x"][2:] == ["height", "width"]
    assert "there is no rewrite 'dense'" in shell.fails(2, "optimize", plain, "--skip", "dense")


def test_together_with_a_target(shell, plain):
    shell.passes("optimize", plain, *QUICK, "--target", "npu")
    operators = {node.op_type for node in onnx.load("plain.opt.onnx").graph.node}
    assert operators == {"Conv", "Relu", "MaxPool", "Softmax"}


@pytest.mark.parametrize("budget", [("--max-error", "0.3"), ("--max-drop", "0.2")])
def test_together_with_a_budget(shell, plain, labelled, budget):
    """Approximations are compared with the original as if it were dense."""
    words = ("optimize", plain, *QUICK, "--data", labelled, *budget, "--json")
    report = json.loads(shell.passes(*words))
    assert report["verification"]["passed"]
    assert report["verification"]["metric"] == "top1"
    assert report["dense"]["window"] == [12, 12]
    assert dims("plain.opt.onnx")["y"] == ["N", 4, "y_height", "y_width"]


def test_approximated_cells_are_measured_not_judged(shell, plain):
    """A layer of rank 1 is off by far more than rounding: inside the budget, so in the windows too."""
    words = ("optimize", plain, *QUICK, "--ranks", "h=1", "--max-error", "0.9", "--json")
    report = json.loads(shell.passes(*words))
    assert any(entry["kind"] == "approximate" for entry in report["rewrites"])
    assert report["dense"]["exact"]
    assert all(size["relative_l2"] > 1e-4 for size in report["dense"]["sizes"])


def test_unverified(shell, plain):
    report = json.loads(shell.passes("optimize", plain, "--dense", "--no-verify", "--json"))
    assert report["dense"]["sizes"] == []
    assert dims("plain.opt.onnx")["x"][2:] == ["height", "width"]


def test_several_models(shell, plain, labelled):
    words = ("optimize", plain, *QUICK, "--data", labelled, "--max-error", "0.3", "--pareto", "2")
    shell.passes(*words)
    for path in Path().glob("plain.opt.*.onnx"):
        assert dims(path)["y"][2:] == ["y_height", "y_width"]


class TestDeclined:
    def test_a_positional_weight(self, shell, folder):
        text = "net (float[1,2,6,6] x) => (float[1,2,6,6] y) <float[2,6,6] k> { y = Add(x, k) }"
        onnx.save(build(text), "model.onnx")
        said = shell.fails(2, "optimize", "model.onnx", *QUICK)
        assert said == (
            "--dense: this network cannot be dense: Add 'y' has a constant that varies over space "
            "(a positional weight)"
        )

    def test_no_picture(self, shell, folder):
        text = "net (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"
        onnx.save(build(text), "model.onnx")
        said = shell.fails(2, "optimize", "model.onnx", *QUICK)
        assert said == "--dense needs a picture [N, C, H, W]: input 'x' is of rank 2"

    def test_two_inputs(self, shell, folder):
        text = "net (float[1,1,4,4] x, float[1,1,4,4] z) => (float[1,1,4,4] y) { y = Add(x, z) }"
        onnx.save(build(text), "model.onnx")
        assert "one input, a picture" in shell.fails(2, "optimize", "model.onnx", *QUICK)

    def test_a_window_of_unknown_size(self, shell, folder):
        text = "net (float[1,3,h,w] x) => (float[1,3,1,1] y) { y = GlobalAveragePool(x) }"
        onnx.save(build(text), "model.onnx")
        assert "give --shape" in shell.fails(2, "optimize", "model.onnx", *QUICK)
        shell.passes("optimize", "model.onnx", *QUICK, "--shape", "x:1x3x12x8")
        (pool,) = onnx.load("model.opt.onnx").graph.node
        assert list(pool.attribute[0].ints) == [12, 8]


class TestUnproven:
    def test_cells_that_are_off_though_nothing_pads(self, shell, padded, monkeypatch):
        """A rule that overlooks a border is found out on the windows; nothing is written."""
        monkeypatch.setattr(local, "_border", lambda *_: None)
        said = shell.fails(3, "optimize", padded, *QUICK)
        assert "though it pads nowhere: nothing was written" in said

    def test_a_map_that_is_off_at_the_original_size(self, shell, plain, monkeypatch):
        """It is what was asked for, so it is not rolled back."""
        right = linear.reshaped_array
        monkeypatch.setattr(linear, "reshaped_array", lambda a, shape: 2 * right(a, shape))
        said = shell.fails(3, "optimize", plain, *QUICK)
        assert "dense is to blame" in said
