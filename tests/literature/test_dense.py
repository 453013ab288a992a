"""Dense prediction: a classifier over a whole picture in one pass (OverFeat, fully convolutional networks).

Sermanet et al. 2014, "OverFeat"; Long et al. 2015, "Fully convolutional networks for semantic
segmentation"; and the course notes' arithmetic: a network of VGG's layout, made for 224x224 at
stride 32, gives 6x6x1000 scores at 384x384, in one pass instead of 36.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Options, optimize
from graphopt.reporting.schema import OptimizeReport

LAYOUT = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG-16's convolutions; a pooling by two ends each group."""


def vgg(path: Path, *, narrower: int, pads: int = 1, side: int = 224, hidden: int = 4096) -> Path:
    """VGG-16 with so many times fewer channels and random weights, 1000 classes.

    pads: of every convolution; without padding the map before the layers is smaller.
    """
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    value, channels, size = "image", 3, side
    for group, widths in enumerate(LAYOUT):
        for number, width in enumerate(widths):
            name, out = f"conv{group + 1}_{number + 1}", width // narrower
            nodes.append(
                helper.make_node(
                    "Conv", [value, weight(f"{name}.w", out, channels, 3, 3)], [name], name=name,
                    pads=[pads] * 4,
                )
            )  # fmt: skip
            nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"]))
            value, channels, size = f"{name}.relu", out, size + 2 * pads - 2
        pool = f"pool{group + 1}"
        nodes.append(
            helper.make_node("MaxPool", [value], [pool], kernel_shape=[2, 2], strides=[2, 2])
        )
        value, size = pool, size // 2
    nodes.append(helper.make_node("Flatten", [value], ["flat"]))
    value, width = "flat", channels * size * size
    for number, out in enumerate((hidden // narrower, hidden // narrower, 1000)):
        name = f"fc{number + 6}" if number < 2 else "scores"
        nodes.append(
            helper.make_node(
                "Gemm", [value, weight(f"{name}.w", out, width)], [name], name=name, transB=1
            )
        )
        value, width = name, out
        if number < 2:
            nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"]))
            value = f"{name}.relu"
    graph = helper.make_graph(
        nodes,
        "vgg",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 1000])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def densified(path: Path, *, bench: bool = False) -> OptimizeReport:
    return optimize(path, Options(dense=True, bench=bench, output=Path(f"{path.stem}.dense.onnx")))


def run(path: str | Path, picture: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: picture})[0]
    return found


def assert_proven(report: OptimizeReport, windows: tuple[int, ...] = (4, 36)) -> None:
    """Equal at the original size, at both levels; slid over two larger pictures."""
    assert report.verification is not None
    assert {check.level for check in report.verification.outputs} == {"disable_all", "enable_all"}
    for check in report.verification.outputs:
        assert check.relative_l2 is not None
        assert check.relative_l2 <= 1e-4
    assert report.dense is not None
    assert tuple(size.windows for size in report.dense.sizes) == windows


def test_vgg_gives_6x6x1000_at_384(folder: Path) -> None:
    """Stride 32, so (384 - 224) / 32 + 1 = 6 windows on each side."""
    report = densified(vgg(folder / "vgg.onnx", narrower=16))
    assert_proven(report)
    assert report.dense is not None
    assert report.dense.window == (224, 224)
    assert report.dense.stride == (32, 32)
    assert report.dense.sizes[-1].picture == (384, 384)
    assert report.dense.sizes[-1].maps == {"scores": (1, 1000, 6, 6)}
    # Its convolutions pad: a window in the middle of a picture has neighbours instead of zeros.
    assert report.dense.inexact_because == "Conv 'conv1_1' pads"
    kernels = {
        node.name: list(next(a.ints for a in node.attribute if a.name == "kernel_shape"))
        for node in onnx.load("vgg.dense.onnx").graph.node
        if node.name in ("fc6", "fc7", "scores")
    }
    assert kernels == {"fc6": [7, 7], "fc7": [1, 1], "scores": [1, 1]}


def test_without_padding_every_cell_is_exact(folder: Path) -> None:
    """The same layout without padding : 2x2 cells are left of 252x252. Slid windows agree to rounding."""
    report = densified(vgg(folder / "vgg.onnx", narrower=16, pads=0, side=252))
    assert_proven(report)
    assert report.dense is not None
    assert report.dense.exact
    assert report.dense.stride == (32, 32)
    for size in report.dense.sizes:
        assert size.worst_window is not None
        assert size.worst_window <= 1e-4
        assert size.top1_agreement == 1


@pytest.mark.slow
def test_one_pass_costs_a_fraction_of_the_crops(folder: Path) -> None:
    """36 crops of 224x224 are 12 times the pixels of one picture of 384x384.

    The layers cost each cell what they cost a crop, so the ratio lies between 1/12 and 1.
    """
    report = densified(vgg(folder / "vgg.onnx", narrower=4), bench=True)
    assert report.dense is not None
    last = report.dense.sizes[-1]
    assert last.ratio is not None
    assert last.pass_us is not None
    assert last.crops_us is not None
    print(
        f"6x6x1000 at 384x384: one pass {last.pass_us / 1e3:.0f} ms, 36 crops "
        f"{last.crops_us / 1e3:.0f} ms, ratio {last.ratio:.3f}"
    )
    assert last.ratio < 0.3


def _torch_vgg(torch: Any) -> Any:
    nn = torch.nn
    layers: list[Any] = []
    channels = 3
    for widths in LAYOUT:
        for width in (width // 8 for width in widths):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    head = [
        nn.AdaptiveAvgPool2d((7, 7)),
        nn.Flatten(),
        nn.Linear(channels * 49, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(512, 1000),
    ]
    network = nn.Sequential(*layers, *head).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_vgg_as_torch_exports_it(folder: Path, dynamic_batch: bool) -> None:
    """torchvision's layout, adaptive pooling (without effect at 224) and dropout included."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    path = folder / "torch.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is the old one
        torch.onnx.export(
            _torch_vgg(torch),
            (torch.zeros(1, 3, 224, 224),),
            str(path),
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}} if dynamic_batch else None,
            dynamo=False,
        )
    report = densified(path)
    assert_proven(report)
    assert report.dense is not None
    assert report.dense.sizes[-1].maps == {"scores": (1, 1000, 6, 6)}
    assert "pads" in (report.dense.inexact_because or "")


@pytest.fixture(scope="module")
def zoo() -> Path:
    """The folder of the zoo's networks, which are no part of the project."""
    place = os.environ.get("GRAPHOPT_ZOO")
    if not place:
        pytest.skip("GRAPHOPT_ZOO is not set: it names the folder of the zoo's networks and data")
    return Path(place).resolve() / "models"


def _copied(zoo: Path, name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    path.write_bytes((zoo / f"{name}.onnx").read_bytes())
    return path


def test_lenet_reads_a_row_of_digits(zoo: Path, folder: Path) -> None:
    """LeNet pads nowhere: every cell is exact; two layers become a 4x4 and a 1x1 convolution."""
    report = densified(_copied(zoo, "lenet", folder))
    assert_proven(report)
    assert report.dense is not None
    assert report.dense.exact
    assert report.dense.stride == (4, 4)
    assert report.dense.sizes[-1].maps == {"prob": (1, 10, 6, 6)}
    for size in report.dense.sizes:
        assert size.relative_l2 is not None
        assert size.relative_l2 <= 1e-5
        assert size.top1_agreement == 1
    strip = np.random.default_rng(0).uniform(0, 1, (1, 1, 28, 28 * 5)).astype(np.float32)
    cells = run("lenet.dense.onnx", strip)
    assert cells.shape == (1, 10, 1, 29)
    for place in range(29):
        alone = run("lenet.onnx", strip[..., 4 * place : 4 * place + 28])
        assert np.allclose(cells[:, :, 0, place], alone, atol=1e-5)


def test_squeezenet_pools_over_its_window(zoo: Path, folder: Path) -> None:
    """The global pooling becomes one of 13x13; its Fire modules pad, so cells are measured, not exact."""
    report = densified(_copied(zoo, "squeezenet1_1", folder))
    assert_proven(report)
    assert report.dense is not None
    assert report.dense.stride == (16, 16)
    assert report.dense.sizes[-1].maps == {"logits": (1, 1000, 6, 6)}
    assert not report.dense.exact
    assert "pads" in (report.dense.inexact_because or "")
    for size in report.dense.sizes:
        assert size.relative_l2 is not None
        assert 1e-4 < size.relative_l2 < 0.5
    pool = next(
        n for n in onnx.load("squeezenet1_1.dense.onnx").graph.node if "Average" in n.op_type
    )
    assert pool.op_type == "AveragePool"
    assert {a.name: list(a.ints) for a in pool.attribute if a.ints}["kernel_shape"] == [13, 13]


@pytest.mark.parametrize(
    "name", ["resnet20_cifar10", "vgg8_cifar10", "cifar5x5_winml", "mnist_cntk"]
)
def test_other_classifiers_of_the_zoo(zoo: Path, folder: Path, name: str) -> None:
    """Residuals with padded shortcuts, sized pooling, reshapes of weights, old opsets."""
    report = densified(_copied(zoo, name, folder))
    assert_proven(report)
