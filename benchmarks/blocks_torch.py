"""What the networks of networks_torch.py are made of."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

CLASSES = 1000


def conv_bn(
    channels: int, out: int, kernel: int = 1, *, activation: type[nn.Module] | None = nn.ReLU,
    eps: float = 1e-5, **options: int,
) -> nn.Sequential:  # fmt: skip
    """Convolution that keeps height and width (stride apart) -> normalization -> activation."""
    convolution = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False, **options)
    layers = [convolution, nn.BatchNorm2d(out, eps=eps)]
    return nn.Sequential(*layers, *([] if activation is None else [activation()]))


def classifier(channels: int, dropout: float = 0.0) -> nn.Sequential:
    """Global average pooling -> Linear."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(
        *head, *[nn.Dropout(dropout)] * bool(dropout), nn.Linear(channels, CLASSES)
    )


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def shortcut(channels: int, out: int, stride: int) -> nn.Module:
    """The identity where it fits, a 1x1 convolution elsewhere."""
    same = stride == 1 and channels == out
    return nn.Identity() if same else conv_bn(channels, out, stride=stride, activation=None)


class SqueezeExcite(nn.Module):
    """Hu et al., CVPR 2018: pooled, two Linear layers, a view back to [N, C, 1, 1], a product."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        narrow = max(channels // reduction, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(
            nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.size()
        weights = self.gate(self.pool(x).view(batch, channels))
        return x * weights.view(batch, channels, 1, 1)


class Branches(nn.Module):
    """Joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Inverted(nn.Module):
    """Expand, filter each channel, project; a residual sum where the shape stays."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide, conv = channels * expansion, partial(conv_bn, activation=nn.ReLU6)
        self.residual = stride == 1 and channels == out
        self.branch = nn.Sequential(
            *([conv(channels, wide)] if expansion > 1 else []),
            conv(wide, wide, 3, stride=stride, groups=wide),
            conv_bn(wide, out, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


class Dense(nn.Module):
    """The input, and what two normalized convolutions make of it, joined along the channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv_bn(channels, 4 * growth),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


class RepVGGBlock(nn.Module):
    """3x3, 1x1 and (where the shape stays) identity, each normalized, summed before the activation."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.dense = conv_bn(channels, out, 3, stride=stride, activation=None)
        self.pointwise = conv_bn(channels, out, 1, stride=stride, activation=None)
        same = stride == 1 and channels == out
        self.identity = nn.BatchNorm2d(channels) if same else None

    def forward(self, x: Tensor) -> Tensor:
        summed = self.dense(x) + self.pointwise(x)
        return torch.relu(summed if self.identity is None else summed + self.identity(x))
