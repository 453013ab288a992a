"""The three sample networks: 1x16x16 images in, ten logits out, fewer than 250,000 parameters each.

Every convolution but the stem reads 48 to 96 channels, so that factorizing it can pay, and every
one is followed by BatchNormalization and Relu.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 10


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution that keeps height and width -> batch normalization -> ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def average_pool_classifier(in_channels: int) -> nn.Sequential:
    """Global average pooling -> Flatten -> Gemm: [N, C, H, W] -> [N, 10]."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, CLASSES))


class Inception(nn.Module):
    """Four branches on one input, joined along the channels: the naive module of GoogLeNet.

    There are no 1x1 reductions in front of the 3x3 and the 5x5 convolution; finding them is what
    a low-rank compiler is for. Shapes: [N, C, H, W] -> [N, c1 + c3 + c5 + cp, H, W].

    Paper: Szegedy et al., "Going deeper with convolutions", CVPR 2015, figure 2a.
    """

    def __init__(self, in_channels: int, c1: int, c3: int, c5: int, cp: int) -> None:
        super().__init__()
        self.branch1x1 = conv_bn_relu(in_channels, c1, 1)
        self.branch3x3 = conv_bn_relu(in_channels, c3, 3)
        self.branch5x5 = conv_bn_relu(in_channels, c5, 5)
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), conv_bn_relu(in_channels, cp, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch1x1, self.branch3x3, self.branch5x5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


def inception_digits() -> nn.Module:
    """Stem and three Inception modules: 48 -> 80 channels at 16x16, 96 and 128 at 8x8."""
    return nn.Sequential(
        conv_bn_relu(1, 48, 3),
        Inception(48, c1=16, c3=32, c5=16, cp=16),
        nn.MaxPool2d(2),
        Inception(80, c1=16, c3=48, c5=16, cp=16),
        Inception(96, c1=32, c3=48, c5=32, cp=16),
        average_pool_classifier(128),
    )


def vgg_digits() -> nn.Module:
    """Pairs of 3x3 convolutions at 16x16, 8x8 and 4x4, then Flatten -> Gemm -> Relu -> Gemm.

    Paper: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
    recognition", ICLR 2015.
    """
    return nn.Sequential(
        conv_bn_relu(1, 48, 3),
        conv_bn_relu(48, 48, 3),
        nn.MaxPool2d(2),
        conv_bn_relu(48, 64, 3),
        conv_bn_relu(64, 64, 3),
        nn.MaxPool2d(2),
        conv_bn_relu(64, 80, 3),
        conv_bn_relu(80, 80, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(80 * 2 * 2, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


def conv5x5_digits() -> nn.Module:
    """Four 5x5 convolutions with padding 2: two at 16x16, one at 8x8, one at 4x4."""
    return nn.Sequential(
        conv_bn_relu(1, 48, 5),
        conv_bn_relu(48, 48, 5),
        nn.MaxPool2d(2),
        conv_bn_relu(48, 64, 5),
        nn.MaxPool2d(2),
        conv_bn_relu(64, 64, 5),
        average_pool_classifier(64),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "inception_digits": inception_digits,
    "vgg_digits": vgg_digits,
    "conv5x5_digits": conv5x5_digits,
}
