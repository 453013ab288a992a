"""Small networks as PyTorch writes them, by both exporters: no normalization survives.

The older exporter (dynamo=False) is told to keep its BatchNormalization nodes, which it would fuse
itself; the newer one writes them as they are (optimize=False) or cleans up a little (True).
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (torch==2.13.0)")
nn = torch.nn

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4

Result = Any  # conformance_tools.Result


class Residual(nn.Module):
    """A bottleneck block with a projected shortcut, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_conv_bn_relu(8, 16, stride=2), *_conv_bn(16, 16))
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2), nn.BatchNorm2d(16))
        self.second = nn.Sequential(*_conv_bn_relu(16, 16), *_conv_bn(16, 16))

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.branch(x) + self.shortcut(x))
        return torch.relu(self.second(x) + x)


class SqueezeExcite(nn.Module):
    """Channel attention: pooled, two Linear layers, a view back to [N, C, 1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_bn_relu(8, 16))
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)

    def forward(self, x: Any) -> Any:
        x = self.body(x)
        scale = x.mean((2, 3))
        scale = torch.sigmoid(self.excite(torch.relu(self.squeeze(scale))))
        return x * scale.view(x.shape[0], -1, 1, 1)


def _conv_bn(channels: int, out: int, **options: Any) -> list[Any]:
    return [nn.Conv2d(channels, out, 3, padding=1, bias=False, **options), nn.BatchNorm2d(out)]


def _conv_bn_relu(channels: int, out: int, **options: Any) -> list[Any]:
    return [*_conv_bn(channels, out, **options), nn.ReLU()]


def _classifier() -> Any:
    return nn.Sequential(
        *_conv_bn_relu(8, 16),
        nn.AdaptiveAvgPool2d((2, 2)),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


MODULES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "conv_bn_relu": (
        lambda: nn.Sequential(*_conv_bn_relu(8, 16), *_conv_bn_relu(16, 8, stride=2)),
        (2, 8, 16, 16),
    ),
    "residual": (Residual, (2, 8, 16, 16)),
    "squeeze_excite": (SqueezeExcite, (2, 8, 16, 16)),
    "grouped": (
        lambda: nn.Sequential(*_conv_bn_relu(8, 16, groups=4), *_conv_bn(16, 16, groups=16)),
        (2, 8, 16, 16),
    ),
    "conv_transpose": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU()
        ),
        (2, 8, 8, 8),
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 5, dilation=2), nn.BatchNorm1d(8), nn.LeakyReLU()),
        (2, 4, 32),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU6()),
        (2, 2, 6, 8, 8),
    ),
    "linear_bn1d": (
        lambda: nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5, bias=False)
        ),
        (2, 12),
    ),
    "classifier": (_classifier, (2, 8, 16, 16)),
    "hardswish": (
        lambda: nn.Sequential(*_conv_bn(8, 16), nn.Hardswish(), *_conv_bn(16, 8), nn.Hardsigmoid()),
        (2, 8, 16, 16),
    ),
}


def _module(name: str) -> tuple[Any, Any]:
    """A network in eval mode with statistics that are not the initial ones, and its input."""
    torch.manual_seed(0)
    build, shape = MODULES[name]
    module = build().eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0.0, 0.3)
            nn.init.normal_(part.running_mean, 0.0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module, torch.randn(shape)


def _torchscript(module: Any, x: Any, path: Path) -> None:
    torch.onnx.export(
        module,
        (x,),
        str(path),
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        opset_version=17,
    )


def _dynamo(optimize: bool) -> Callable[[Any, Any, Path], None]:
    def export(module: Any, x: Any, path: Path) -> None:
        torch.onnx.export(
            module,
            (x,),
            str(path),
            dynamo=True,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
            optimize=optimize,
            external_data=False,
            verbose=False,
        )

    return export


EXPORTERS: dict[str, Callable[[Any, Any, Path], None]] = {"torchscript": _torchscript}
if "optimize" in inspect.signature(torch.onnx.export).parameters:
    EXPORTERS |= {"dynamo": _dynamo(False), "dynamo_optimized": _dynamo(True)}


@pytest.fixture(scope="module", params=[f"{e}-{m}" for e in EXPORTERS for m in MODULES])
def exported(
    request: pytest.FixtureRequest, tools: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    exporter, name = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    module, x = _module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        EXPORTERS[exporter](module, x, folder / f"{name}.onnx")
    return tools.run_graphopt(folder / f"{name}.onnx", folder)


def test_is_verified_at_both_levels(exported: Result, tools: ModuleType) -> None:
    tools.assert_verified(exported.report, ["y"])


def test_leaves_no_batch_normalization(
    exported: Result, tools: ModuleType, record_property: Callable[[str, object], None]
) -> None:
    before, after = (tools.operators(p) for p in (exported.original, exported.optimized))
    record_property("batch norms before", before["BatchNormalization"])
    record_property("batch norms after", after["BatchNormalization"])
    if not exported.original.parent.name.startswith("dynamo_optimized"):  # which fuses them itself
        assert before["BatchNormalization"] > 0
    assert after["BatchNormalization"] == 0, _why(exported)


def test_computes_what_pytorch_does(exported: Result, tools: ModuleType) -> None:
    module, x = _module(exported.original.stem)
    with torch.no_grad():
        expected = module(x).numpy()
    for optimized in (False, True):
        session = tools.session(exported.optimized, optimized=optimized)
        (found,) = session.run(["y"], {"x": x.numpy()})
        assert np.linalg.norm(found - expected) <= TOLERANCE * np.linalg.norm(expected)


def test_keeps_the_interface(exported: Result, tools: ModuleType) -> None:
    assert tools.interface(exported.optimized) == tools.interface(exported.original)


def test_changes_nothing_the_second_time(
    exported: Result, tools: ModuleType, tmp_path: Path
) -> None:
    tools.assert_second_run_is_idle(exported, tmp_path)


def _why(result: Result) -> Counter[str]:
    """The reasons the report gives for what was left alone."""
    return Counter(f"{item.name}: {item.reason}" for item in result.report.declined)
