"""The savings that papers print, counted on ONNX files by what `audit` and the report count with.

| what becomes what                          |            weights | published         | where                |
| ------------------------------------------ | ------------------ | ----------------- | -------------------- |
| Inception 3a: naive -> 96- and 16-wide 1x1 | 387,072 -> 157,184 | 159 K, 128 M (*)  | GoogLeNet, table 1   |
| 3x3 256->256 -> 1x1 64, 3x3                | 589,824 -> 163,840 | arithmetic of it  | GoogLeNet, section 4 |
| 3x3 256->256 -> 1x1 64, 3x3 64, 1x1 256    | 589,824 ->  69,632 | about 8.5x less   | ResNet, figure 5     |
| 3x3 256->256 -> depthwise 3x3, 1x1         | 589,824 ->  67,840 | 8 to 9 times less | MobileNet, 3.1       |
| 5x5 -> 3x3, 3x3                            |   25 C^2 -> 18 C^2 | 28 % less         | Inception-v3, 3.1    |
| 3x3 -> 3x1, 1x3                            |     9 C^2 -> 6 C^2 | 33 % less         | Inception-v3, 3.2    |
| 7x7 -> 1x7, 7x1                            |   49 C^2 -> 14 C^2 | 71 % less (**)    | Inception-v3, 3.2    |
| fully connected -> 1x1 convolution         |              equal | equivalent        | NiN, 3; FCN, 3.1     |

What is counted: weights alone, as papers do; the blocks have no biases (a convolution's would be O
more). (*) 387,072 and 157,184 are the three convolved branches: the naive module (figure 2 a) hands
the pooled input on as it is, and its 1x1 projection to 32 channels (figure 2 b), 6,144 weights more,
is left out on both sides. With it the module has 163,328 weights: the table's 159 K, K = 1024, and at
28 x 28 its 128 M operations. (**) 1 - 14/49; the paper prints the third of the 3x3 and says that the
saving grows with the kernel.

GoogLeNet: Szegedy et al. 2015, "Going deeper with convolutions". ResNet: He et al. 2016, "Deep residual
learning for image recognition". MobileNet: Howard et al. 2017, "MobileNets". Inception-v3: Szegedy et
al. 2016, "Rethinking the Inception architecture". NiN: Lin et al. 2014, "Network in network". FCN:
Long et al. 2015, "Fully convolutional networks for semantic segmentation".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt import Options, audit, optimize


@dataclass(frozen=True)
class Claim:
    """A row of the table. times: (least, most) that `before` has of the weights of `after`.

    ranks: what makes the published structure of the block before, none where no factors do.
    """

    before: str
    after: str
    weights: tuple[int, int]
    times: tuple[float, float]
    ranks: str | None


TABLE = {
    "inception 3a": Claim(
        "inception_3a_naive",
        "inception_3a_reduced",
        (387_072, 157_184),
        (2.46, 2.47),
        "branch3x3=96,branch5x5=16",
    ),
    "reducer": Claim(
        "conv3x3_256", "conv3x3_256_reduced", (589_824, 163_840), (3.6, 3.6), "conv=64"
    ),
    "bottleneck": Claim(
        "conv3x3_256",
        "conv3x3_256_bottleneck",
        (589_824, 69_632),
        (8.45, 8.55),
        "conv=two-sided:64x64",
    ),
    "separable": Claim(
        "conv3x3_256", "conv3x3_256_separable", (589_824, 67_840), (8, 9), "conv=decoupled:1"
    ),
    "5x5": Claim(
        "conv5x5",
        "conv5x5_as_two_3x3",
        (25 * 32**2, 18 * 32**2),
        (1 / 0.725, 1 / 0.715),
        "conv=kernel-pair:32",
    ),
    "3x3": Claim(
        "conv3x3",
        "conv3x3_as_3x1_1x3",
        (9 * 32**2, 6 * 32**2),
        (1 / 0.675, 1 / 0.665),
        "conv=spatial:32",
    ),
    "7x7": Claim(
        "conv7x7",
        "conv7x7_as_1x7_7x1",
        (49 * 32**2, 14 * 32**2),
        (1 / 0.295, 1 / 0.285),
        "conv=spatial-transposed:32",
    ),
    "fully connected": Claim("fc", "fc_as_1x1", (1_024_000, 1_024_000), (1, 1), None),
}

MADE = [name for name, claim in TABLE.items() if claim.ranks is not None]

COUNT = Options(bench=False, verify=False, passes=("remove-dead",))
"""Counting only: what else could be saved is not looked into."""


@pytest.fixture
def file(blocks, folder):
    """file(name): the block of that name, written."""

    def written(name: str) -> Path:
        path = folder / f"{name}.onnx"
        onnx.save(blocks.BLOCKS[name](), path)
        return path

    return written


def layers(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Shapes of the weights of all layers."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    kinds = ("Conv", "MatMul", "Gemm")
    return sorted(shapes[node.input[1]] for node in model.graph.node if node.op_type in kinds)


@pytest.mark.parametrize("name", TABLE)
class TestTheTable:
    def test_audit_counts_what_is_published(self, file, name):
        claim = TABLE[name]
        totals = [audit(file(block), COUNT).totals for block in (claim.before, claim.after)]
        assert tuple(total.parameters for total in totals) == claim.weights
        before, after = claim.weights
        least, most = claim.times
        assert least <= before / after <= most
        # Stride 1, the same size everywhere: every weight is used at every position.
        positions = {total.macs / total.parameters for total in totals}
        assert len(positions) == 1

    def test_the_report_counts_alike(self, file, name):
        claim = TABLE[name]
        for block in (claim.before, claim.after):
            path = file(block)
            counted = audit(path, COUNT)
            report = optimize(path, Options(bench=False, verify=False, dry_run=True))
            assert report.before == counted.totals
            assert (
                sum(layer.cost.parameters for layer in counted.layers) == report.before.parameters
            )
            assert sum(layer.cost.macs for layer in counted.layers) == report.before.macs
            assert sum(layer.cost.weight_bytes for layer in counted.layers) == (
                4 * report.before.parameters
            )


@pytest.mark.parametrize("name", MADE)
def test_ranks_make_the_published_structure(blocks, file, name):
    claim = TABLE[name]
    path = file(claim.before)
    report = optimize(path, Options(bench=False, ranks=claim.ranks))
    result = onnx.load(path.with_suffix(".opt.onnx"))
    assert layers(result) == layers(blocks.BLOCKS[claim.after]())
    assert (report.before.parameters, report.after.parameters) == claim.weights
    assert report.verification.passed
    assert {check.level for check in report.verification.outputs} == {"disable_all", "enable_all"}
    made = [entry for entry in report.rewrites if entry.kind == "approximate"]
    assert len(made) == len(claim.ranks.split(","))
    assert all(entry.options["forced"] is True for entry in made)
    assert all(0 < entry.measured_error < 1 for entry in made)
    assert sum(e.before.parameters - e.after.parameters for e in made) == (
        claim.weights[0] - claim.weights[1]
    )
    positions = report.before.macs // report.before.parameters
    if name == "5x5":  # the first kernel of a chain computes the border of the second
        assert report.after.macs == 9 * 32**2 * (16 * 16 + 14 * 14)
    else:
        assert report.after.macs == claim.weights[1] * positions
    again = audit(path.with_suffix(".opt.onnx"), COUNT).totals
    assert again.parameters == claim.weights[1]
    assert again.macs == report.after.macs


def test_the_whole_module_3a_is_that_of_table_1(file):
    totals = audit(file("inception_3a"), COUNT).totals
    assert totals.parameters == 157_184 + 32 * 192
    assert int(totals.parameters / 1024) == 159
    assert round(totals.macs / 1e6) == 128


def test_biases_are_parameters_that_papers_leave_out(blocks, folder):
    model = blocks.BLOCKS["inception_3a_naive"]()
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":
            bias = np.zeros(shapes[node.input[1]][0], np.float32)
            model.graph.initializer.append(numpy_helper.from_array(bias, f"{node.name}.bias"))
            node.input.append(f"{node.name}.bias")
    onnx.save(model, folder / "biased.onnx")
    counted = audit(folder / "biased.onnx", COUNT)
    assert counted.totals.parameters == 387_072 + 64 + 128 + 32
    assert counted.totals.macs == 387_072 * 28 * 28


def test_batch_normalization_counts_with_its_four_vectors(blocks, folder):
    model = blocks.dense_3x3(8)
    graph = model.graph
    graph.node[0].output[0] = "before"
    names = [f"bn.{part}" for part in ("scale", "shift", "mean", "variance")]
    graph.node.append(helper.make_node("BatchNormalization", ["before", *names], ["conv"]))
    graph.initializer.extend(numpy_helper.from_array(np.ones(8, np.float32), n) for n in names)
    onnx.save(model, folder / "bn.onnx")
    report = optimize(folder / "bn.onnx", Options(bench=False, verify=False, dry_run=True))
    assert report.before.parameters == 9 * 8**2 + 4 * 8
    assert report.after.parameters == 9 * 8**2 + 8  # what is left of it is a bias
    assert report.before.macs == report.after.macs == 9 * 8**2 * 14 * 14


def test_fully_connected_to_convolution_changes_no_count(file):
    """`--target npu` makes convolutions wherever it can."""
    report = optimize(file("fc"), Options(bench=False, target="npu"))
    assert "fc-to-conv" in {entry.name for entry in report.rewrites}
    assert report.after.operators["Conv"] == 1
    assert report.before.parameters == report.after.parameters == 1_024_000
    assert report.before.macs == report.after.macs == 1_024_000
