"""Building blocks of the literature as ONNX files: each as published, and what it takes the place of.

    python models/blocks.py FOLDER      # write all of them, and print what they cost

Weights are random (seeded) and there are no biases: what the papers count are weights. Every
convolution but the last of a block is followed by a Relu, as in the papers. Nothing but onnx and
numpy is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


class Net:
    """A network under construction, from the input `image` [1, C, size, size]."""

    def __init__(self, channels: int, size: int | None) -> None:
        """With `size` None the input is [1, C], for fully connected layers."""
        self.shape = [1, channels] if size is None else [1, channels, size, size]
        self._channels = {"image": channels}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def conv(
        self,
        name: str,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        source: str = "image",
        *,
        depthwise: bool = False,
        relu: bool = True,
    ) -> str:
        """A convolution called `name` that keeps height and width, then a Relu. The value's name."""
        rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        inputs = self._channels[source]
        group = inputs if depthwise else 1
        self._weight(name, (outputs, inputs // group, rows, columns))
        pads = [rows // 2, columns // 2] * 2
        operands = [source, f"{name}.weight"]
        self._add("Conv", name, operands, kernel_shape=[rows, columns], pads=pads, group=group)
        return self._relu(name, outputs) if relu else self._known(name, outputs)

    def fc(self, name: str, outputs: int, source: str = "image") -> str:
        """A fully connected layer."""
        self._weight(name, (self._channels[source], outputs))
        self._add("MatMul", name, [source, f"{name}.weight"])
        return self._known(name, outputs)

    def pool(self, name: str, source: str = "image") -> str:
        """3x3 max pooling of stride 1."""
        self._add("MaxPool", name, [source], kernel_shape=[3, 3], pads=[1] * 4)
        return self._known(name, self._channels[source])

    def concat(self, name: str, sources: Sequence[str]) -> str:
        """The sources side by side, along the channels."""
        self._add("Concat", name, sources, axis=1)
        return self._known(name, sum(self._channels[source] for source in sources))

    def model(self, output: str) -> onnx.ModelProto:
        """The network that computes this value, checked."""
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "block",
            [value("image", TensorProto.FLOAT, self.shape)],
            [value(output, TensorProto.FLOAT, [1, self._channels[output], *self.shape[2:]])],
            self._weights,
        )
        opset = helper.make_opsetid("", OPSET)
        made = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return made

    def _weight(self, name: str, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(len(self._weights))
        fan_in = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        array = rng.standard_normal(shape) * np.sqrt(2 / fan_in)
        self._weights.append(numpy_helper.from_array(array.astype(np.float32), f"{name}.weight"))

    def _add(self, op_type: str, name: str, inputs: Sequence[str], **attributes: object) -> None:
        self._nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))

    def _relu(self, source: str, channels: int) -> str:
        self._add("Relu", f"{source}.relu", [source])
        return self._known(f"{source}.relu", channels)

    def _known(self, name: str, channels: int) -> str:
        self._channels[name] = channels
        return name


def inception_3a(*, reducers: bool, projection: bool = False) -> onnx.ModelProto:
    """GoogLeNet's module 3a on 28 x 28 x 192, with or without 1x1 reducers.

    Szegedy et al. 2015, "Going deeper with convolutions", figure 2 (a) and (b), table 1. In (a) the
    pooled input goes into the concatenation as it is; (b) projects it to 32 channels first.
    """
    net = Net(192, 28)
    branches = [net.conv("branch1x1", 64)]
    for kernel, outputs, width in ((3, 128, 96), (5, 32, 16)):
        name = f"branch{kernel}x{kernel}"
        source = net.conv(f"{name}.reduce", width) if reducers else "image"
        branches.append(net.conv(name, outputs, kernel, source))
    pooled = net.pool("pool")
    branches.append(net.conv("pool.projection", 32, 1, pooled) if projection else pooled)
    return net.model(net.concat("output", branches))


def dense_3x3(channels: int = 256, size: int = 14) -> onnx.ModelProto:
    """One 3x3 convolution that keeps its channels."""
    net = Net(channels, size)
    return net.model(net.conv("conv", channels, 3, relu=False))


def reduced_3x3(channels: int = 256, width: int = 64, size: int = 14) -> onnx.ModelProto:
    """1x1 down to `width`, then the 3x3 (GoogLeNet's reducer)."""
    net = Net(channels, size)
    return net.model(net.conv("conv", channels, 3, net.conv("reduce", width), relu=False))


def bottleneck(channels: int = 256, width: int = 64, size: int = 14) -> onnx.ModelProto:
    """1x1, 3x3, 1x1. He et al. 2016, "Deep residual learning", figure 5."""
    net = Net(channels, size)
    inner = net.conv("conv", width, 3, net.conv("reduce", width))
    return net.model(net.conv("expand", channels, 1, inner, relu=False))


def separable_3x3(channels: int = 256, size: int = 14) -> onnx.ModelProto:
    """Depthwise 3x3, then pointwise. Howard et al. 2017, "MobileNets", section 3.1."""
    net = Net(channels, size)
    inner = net.conv("depthwise", channels, 3, depthwise=True)
    return net.model(net.conv("pointwise", channels, 1, inner, relu=False))


def square(kernel: int, channels: int = 32, size: int = 14) -> onnx.ModelProto:
    """One k x k convolution that keeps its channels."""
    net = Net(channels, size)
    return net.model(net.conv("conv", channels, kernel, relu=False))


def chain(
    kernels: Sequence[tuple[int, int]], channels: int = 32, size: int = 14
) -> onnx.ModelProto:
    """Convolutions after one another. Szegedy et al. 2016, "Rethinking the Inception architecture"."""
    net, value = Net(channels, size), "image"
    for index, kernel in enumerate(kernels, start=1):
        last = index == len(kernels)
        value = net.conv(f"conv{index}", channels, kernel, value, relu=not last)
    return net.model(value)


def fully_connected(inputs: int = 1024, outputs: int = 1000) -> onnx.ModelProto:
    """A classifier's last layer."""
    net = Net(inputs, None)
    return net.model(net.fc("fc", outputs))


def pointwise(inputs: int = 1024, outputs: int = 1000) -> onnx.ModelProto:
    """The same layer as a 1x1 convolution. Long et al. 2015, "Fully convolutional networks"."""
    net = Net(inputs, 1)
    return net.model(net.conv("fc", outputs, relu=False))


BLOCKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "inception_3a_naive": lambda: inception_3a(reducers=False),
    "inception_3a_reduced": lambda: inception_3a(reducers=True),
    "inception_3a": lambda: inception_3a(reducers=True, projection=True),
    "conv3x3_256": dense_3x3,
    "conv3x3_256_reduced": reduced_3x3,
    "conv3x3_256_bottleneck": bottleneck,
    "conv3x3_256_separable": separable_3x3,
    "conv5x5": lambda: square(5),
    "conv5x5_as_two_3x3": lambda: chain([(3, 3), (3, 3)]),
    "conv3x3": lambda: square(3),
    "conv3x3_as_3x1_1x3": lambda: chain([(3, 1), (1, 3)]),
    "conv7x7": lambda: square(7),
    "conv7x7_as_1x7_7x1": lambda: chain([(1, 7), (7, 1)]),
    "fc": fully_connected,
    "fc_as_1x1": pointwise,
}
"""What the papers compare, by file name."""


def main(folder: Path) -> None:
    """Write all blocks and print what each costs, as graphopt counts it."""
    from graphopt import Options, audit

    folder.mkdir(parents=True, exist_ok=True)
    count = Options(bench=False, verify=False, passes=("remove-dead",))  # no candidates: fast
    for name, build in BLOCKS.items():
        path = folder / f"{name}.onnx"
        onnx.save(build(), path)
        totals = audit(path, count).totals
        print(f"{name:<24}{totals.parameters:>12,} weights{totals.macs:>15,} MACs")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python models/blocks.py FOLDER")
    main(Path(sys.argv[1]))
