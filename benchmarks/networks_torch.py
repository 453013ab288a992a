"""Seven networks in plain PyTorch, for what the exporters make of them: the published layers, random weights.

Statistics of the BatchNormalizations are those that a batch of random pictures gives, their scales and shifts
are drawn: the values stay sane to the last layer, and no normalization is one by accident.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from blocks_torch import (
    CLASSES,
    Branches,
    Dense,
    Inverted,
    RepVGGBlock,
    Residual,
    SqueezeExcite,
    classifier,
    conv_bn,
    shortcut,
)
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """build: takes what all channel counts are divided by. small: side of the picture for quick tests."""

    build: Callable[[int], nn.Module]
    small: int = 64
    side: int = 224


def module_of(network: Network, *, small: bool, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, and one picture [1, 3, side, side] for it."""
    torch.manual_seed(seed)
    module = network.build(8 if small else 1)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.6, 1.4)
        nn.init.normal_(norm.bias, 0.0, 0.2)
        norm.momentum = 1.0  # the statistics become those of the one batch that follows
    side = network.small if small else network.side
    with torch.no_grad():
        module.train()(torch.randn(4, 3, side, side))
    return module.eval(), torch.randn(1, 3, side, side)


def vgg16_bn(divisor: int) -> nn.Module:
    """Simonyan and Zisserman, ICLR 2015, configuration D; the pictures are 224x224."""
    layers: list[nn.Module] = []
    channels, hidden = 3, 4096 // divisor
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            out = width // divisor
            convolution = nn.Conv2d(channels, out, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    for inputs in (channels * 49, hidden):
        layers += [nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(hidden, CLASSES))


def bottleneck(channels: int, width: int, stride: int) -> nn.Module:
    branch = (
        conv_bn(channels, width),
        conv_bn(width, width, 3, stride=stride),
        conv_bn(width, 4 * width, activation=None),
    )
    return Residual(nn.Sequential(*branch), shortcut(channels, 4 * width, stride))


def se_basic(channels: int, width: int, stride: int) -> nn.Module:
    branch = (
        conv_bn(channels, width, 3, stride=stride),
        conv_bn(width, width, 3, activation=None),
        SqueezeExcite(width),
    )
    return Residual(nn.Sequential(*branch), shortcut(channels, width, stride))


def resnet(
    block: Callable[[int, int, int], nn.Module],
    expansion: int,
    depths: tuple[int, ...],
    divisor: int,
) -> nn.Module:
    """He et al., CVPR 2016; the stride is on the 3x3 convolution, as usual now."""
    channels = 64 // divisor
    layers: list[nn.Module] = [conv_bn(3, channels, 7, stride=2), nn.MaxPool2d(3, 2, padding=1)]
    for stage, depth in enumerate(depths):
        width = (64 << stage) // divisor
        for index in range(depth):
            layers.append(block(channels, width, 2 if stage and not index else 1))
            channels = expansion * width
    return nn.Sequential(*layers, classifier(channels))


_INCEPTION = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def googlenet(divisor: int) -> nn.Module:
    """Szegedy et al., CVPR 2015, normalized, with 3x3 for 5x5, as the usual PyTorch version."""
    conv = partial(conv_bn, eps=1e-3)

    def inception(channels: int, widths: tuple[int, ...]) -> tuple[nn.Module, int]:
        one, reduce3, three, reduce5, five, pooled = (max(w // divisor, 2) for w in widths)
        module = Branches(
            conv(channels, one),
            nn.Sequential(conv(channels, reduce3), conv(reduce3, three, 3)),
            nn.Sequential(conv(channels, reduce5), conv(reduce5, five, 3)),
            nn.Sequential(nn.MaxPool2d(3, 1, padding=1, ceil_mode=True), conv(channels, pooled)),
        )
        return module, one + three + five + pooled

    first, channels = 64 // divisor, 192 // divisor
    pool = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
    layers = [conv(3, first, 7, stride=2), pool(), conv(first, first), conv(first, channels, 3)]
    for stage in _INCEPTION:
        layers.append(pool())
        for widths in stage:
            module, channels = inception(channels, widths)
            layers.append(module)
    return nn.Sequential(*layers, classifier(channels, 0.2))


_MOBILENET = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
"""Expansion, channels, blocks, stride of the first."""


def mobilenet_v2(divisor: int) -> nn.Module:
    """Sandler et al., CVPR 2018."""
    channels, last = 32 // divisor, 1280 // divisor
    layers: list[nn.Module] = [conv_bn(3, channels, 3, stride=2, activation=nn.ReLU6)]
    for expansion, width, depth, stride in _MOBILENET:
        for index in range(depth):
            out = width // divisor
            layers.append(Inverted(channels, out, 1 if index else stride, expansion))
            channels = out
    layers.append(conv_bn(channels, last, activation=nn.ReLU6))
    return nn.Sequential(*layers, classifier(last, 0.2))


def densenet121(divisor: int) -> nn.Module:
    """Huang et al., CVPR 2017: normalization before the activation and the convolution."""
    channels, growth = 64 // divisor, 32 // divisor
    layers: list[nn.Module] = [conv_bn(3, channels, 7, stride=2), nn.MaxPool2d(3, 2, padding=1)]
    for stage, depth in enumerate((6, 12, 24, 16)):
        if stage:
            halved = nn.Conv2d(channels, channels // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), halved, nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            layers.append(Dense(channels, growth))
            channels += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), classifier(channels))


def repvgg_a0(divisor: int) -> nn.Module:
    """Ding et al., CVPR 2021, as it is trained."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)):
        for index in range(depth):
            layers.append(RepVGGBlock(channels, width // divisor, 1 if index else 2))
            channels = width // divisor
    return nn.Sequential(*layers, classifier(channels))


NETWORKS = {
    "vgg16_bn": Network(vgg16_bn, small=224),  # its first Linear is made for 7x7
    "resnet50": Network(partial(resnet, bottleneck, 4, (3, 4, 6, 3))),
    "googlenet": Network(googlenet),
    "mobilenet_v2": Network(mobilenet_v2),
    "se_resnet18": Network(partial(resnet, se_basic, 1, (2, 2, 2, 2))),
    "densenet121": Network(densenet121),
    "repvgg_a0": Network(repvgg_a0),
}
