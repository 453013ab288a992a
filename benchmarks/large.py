"""Wall time and memory where they could hurt: a ResNet-50 at 224x224, and many layers with many samples."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from harness import error, print_table, speedup_text
from onnx import TensorProto, helper, numpy_helper
from runs import Bench, Job, Result, of_zoo

SAMPLES = 128
_STATISTICS = 4
"""Pictures that the BatchNormalization statistics are taken from."""

_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Bottleneck width, blocks, stride of the first block: the four stages of a ResNet-50."""

_SIZE, _CLASSES, _SEED = 224, 1000, 0

Shape = list[int | str]

HEAD = ("network", "budget", "wall, s", "meant", "peak, GB", "meant", "speed-up", "error")


def large(bench: Bench) -> list[Result]:
    """Print wall time and peak memory of both; the results."""
    model, data = bench.scratch / "resnet50_random.onnx", bench.scratch / "resnet50_random.npz"
    pictures = smooth_pictures(SAMPLES, _SIZE)
    np.savez(data, x=pictures)
    onnx.save(resnet50(pictures[:_STATISTICS]), model)
    del pictures
    resnet50_job = Job(model.stem, model, str(data), {"max_error": 0.2}, threads=bench.threads)
    # graphopt takes 512 of the samples that this reader gives to fit on.
    resnet56_job = of_zoo(bench.zoo, "resnet56_cifar10", {"max_drop": 0.005}, bench.threads)
    rows, results = [], []
    for job, seconds, gigabytes in ((resnet50_job, "< 600", "< 6"), (resnet56_job, "< 180", "")):
        result = bench.run(f"large: {job.name}", job)
        ((limit, allowed),) = job.budget.items()
        report = result.report
        rows.append(
            (
                job.name,
                f"{limit} {allowed:g}",
                f"{result.seconds:.0f}",
                seconds,
                f"{result.peak_bytes / 1e9:.1f}",
                gigabytes,
                speedup_text(report) if report else result.shortcoming,
                f"{error(report):.4f}" if report else "",
            )
        )
        results.append(result)
    print_table("Time and memory", HEAD, rows, markdown=bench.markdown)
    return results


def smooth_pictures(count: int, size: int) -> np.ndarray:
    """Random pictures [count, 3, size, size] of unit variance: coarse noise dominates fine noise."""
    rng = np.random.default_rng(_SEED)
    pictures = np.zeros((count, 3, size, size), np.float32)
    for cells in (4, 8, 16, 32, 64):
        stretch = _stretch(cells, size)
        noise = rng.standard_normal((count, 3, cells, cells), dtype=np.float32)
        pictures += stretch @ noise @ stretch.T / np.float32(cells)
    return pictures / pictures.std(dtype=np.float64).astype(np.float32)


def _stretch(cells: int, size: int) -> np.ndarray:
    """Linear interpolation as a matrix [size, cells]."""
    where = np.linspace(0, cells - 1, size)
    columns = [np.interp(where, np.arange(cells), unit) for unit in np.eye(cells)]
    return np.stack(columns, axis=1).astype(np.float32)


def resnet50(pictures: np.ndarray) -> onnx.ModelProto:
    """A ResNet-50 with He's initial weights, and the BatchNormalization statistics of `pictures`."""
    net = _Network(pictures)
    x = net.relu(net.normalized(net.conv("x", 64, 7, 2)))
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for width, blocks, first_stride in _STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            y = net.relu(net.normalized(net.conv(x, width, 1, 1)))
            y = net.relu(net.normalized(net.conv(y, width, 3, stride)))
            y = net.normalized(net.conv(y, 4 * width, 1, 1))
            shortcut = x if block else net.normalized(net.conv(x, 4 * width, 1, stride))
            x = net.relu(net.node("Add", [y, shortcut]))
    return net.finished(net.node("Flatten", [net.node("GlobalAveragePool", [x])]))


class _Network:
    """Builds a graph node by node, each run at once on `pictures` for the statistics of the next."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._rng = np.random.default_rng(_SEED)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, np.ndarray] = {}
        self._values = {"x": pictures}

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"v{len(self._nodes)}"
        node = helper.make_node(op, inputs, [name], name=f"{op}_{len(self._nodes)}", **attributes)
        self._nodes.append(node)
        fed = {i: self._values[i] for i in inputs if i in self._values}
        alone = self._model([node], {i: list(value.shape) for i, value in fed.items()}, name)
        session = ort.InferenceSession(
            alone.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (self._values[name],) = session.run(None, fed)
        return name

    def conv(self, x: str, channels: int, kernel: int, stride: int) -> str:
        shape = (channels, self._values[x].shape[1], kernel, kernel)
        weight = self._weight(self._random(shape, 2))
        pads = [kernel // 2] * 4
        size = [kernel] * 2
        return self.node("Conv", [x, weight], kernel_shape=size, strides=[stride] * 2, pads=pads)

    def normalized(self, x: str) -> str:
        mean = self._values[x].mean((0, 2, 3), dtype=np.float64)
        variance = self._values[x].var((0, 2, 3), dtype=np.float64)
        parameters = (np.ones_like(mean), np.zeros_like(mean), mean, variance)
        names = [self._weight(p.astype(np.float32)) for p in parameters]
        return self.node("BatchNormalization", [x, *names])

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def finished(self, features: str) -> onnx.ModelProto:
        shape = (self._values[features].shape[1], _CLASSES)
        weight, bias = self._weight(self._random(shape, 1)), self._weight(np.zeros(_CLASSES))
        logits = self.node("Gemm", [features, weight, bias])
        return self._model(self._nodes, {"x": ["n", 3, _SIZE, _SIZE]}, logits, ["n", _CLASSES])

    def _random(self, shape: tuple[int, ...], gain: float) -> np.ndarray:
        """Normal weights of variance gain / inputs; the inputs are the first axis of a matrix."""
        inputs = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        return self._rng.standard_normal(shape) * np.sqrt(gain / inputs)

    def _weight(self, array: np.ndarray) -> str:
        name = f"w{len(self._weights)}"
        self._weights[name] = array.astype(np.float32)
        return name

    def _model(
        self,
        nodes: list[onnx.NodeProto],
        inputs: dict[str, Shape],
        output: str,
        output_shape: Shape | None = None,
    ) -> onnx.ModelProto:
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "resnet50_random",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, output_shape)],
            [numpy_helper.from_array(w, n) for n, w in self._weights.items() if n in used],
        )
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
