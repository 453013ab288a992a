"""Trains a network with two deformable convolutions on the digits and exports it to ONNX.

    python models/deformable.py     # writes deformable_digits.onnx, a minute on one core

For development only, like `train.py`, whose data, training and checks it shares. The digits are turned
and stretched at random, so that there is something for the offsets to follow. PyTorch alone has no
deformable convolution: it is trained as bilinear sampling at every tap, and exported as one DeformConv
(opset 19) with its offsets and mask predicted by a plain convolution, as Zhu et al. 2019 do.
"""

import math
from typing import Any

import numpy as np
import onnx
import torch
import train
from networks import average_pool_classifier, conv_bn_relu
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

TAPS = 9
OPSET = 19
EPOCHS = 14


class Sampled(torch.autograd.Function):
    """Stands for the operator in the exported graph; never differentiated."""

    @staticmethod
    def forward(_: Any, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return sampled(x, weight, offset, mask)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, offset: Any, mask: Any) -> Any:
        none = g.op("prim::Constant")
        none.setType(torch._C.OptionalType.ofTensor())
        return g.op("DeformConv", x, weight, offset, none, mask, pads_i=[1, 1, 1, 1])


def sampled(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    """A 3x3 deformable convolution with padding 1: [N, C, H, W] -> [N, O, H, W].

    offset: [N, 18, H, W], (y, x) of every tap; mask: [N, 9, H, W].
    """
    size = torch.tensor(x.shape[2:], dtype=x.dtype)
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
    places = torch.stack([rows, columns])
    total: Tensor = torch.zeros(())
    for tap in range(TAPS):
        shift = torch.tensor([tap // 3 - 1.0, tap % 3 - 1.0]).reshape(2, 1, 1)
        where = places + shift + offset[:, 2 * tap : 2 * tap + 2]
        scaled = 2 * where / (size - 1).reshape(1, 2, 1, 1) - 1
        picked = grid_sample(x, scaled.permute(0, 2, 3, 1).flip(-1), align_corners=True)
        kernel = weight[:, :, tap // 3, tap % 3]
        total = total + torch.einsum("oc,nchw->nohw", kernel, picked * mask[:, tap : tap + 1])
    return total


class Deformable(nn.Module):
    """Offsets and mask from a plain 3x3 convolution that starts at zero, then the deformable one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.predictor = nn.Conv2d(in_channels, 3 * TAPS, 3, padding=1)
        nn.init.zeros_(self.predictor.weight)
        nn.init.zeros_(self.predictor.bias)
        bound = math.sqrt(6 / (TAPS * in_channels))
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        offset, mask = self.predictor(x).split([2 * TAPS, TAPS], dim=1)
        function = Sampled.apply if torch.onnx.is_in_onnx_export() else sampled
        return function(x, self.weight, offset, torch.sigmoid(mask))


def network() -> nn.Module:
    """Stem at 16x16, two deformable layers at 8x8, global average pooling: under 110,000 parameters."""
    return nn.Sequential(
        conv_bn_relu(1, 48, 3),
        nn.MaxPool2d(2),
        Deformable(48, 64),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        Deformable(64, 64),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        average_pool_classifier(64),
    )


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 30 degrees and stretched by up to a quarter along both axes."""
    count = len(images)
    angle = (torch.rand(count, generator=generator) - 0.5) * math.pi / 3
    stretch = 1 + (torch.rand(count, 2, generator=generator) - 0.5) / 2
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    matrix = torch.cat([turn * stretch[:, None], torch.zeros(count, 2, 1)], dim=2)
    return grid_sample(images, affine_grid(matrix, images.shape, False), align_corners=False)


def main() -> None:
    torch.set_num_threads(1)
    images, labels, held_out, held_labels = train.split_digits()
    generator = torch.Generator().manual_seed(train.SEED)
    torch.manual_seed(train.SEED)
    made = network()
    train.shifted = lambda batch, _: turned(batch, generator)
    train.OPSET, train.EPOCHS = OPSET, EPOCHS
    train.train(made, images, labels)
    path = train.FOLDER / "deformable_digits.onnx"
    train.export(made, path)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    if kinds.count("DeformConv") != 2:
        raise ValueError(f"2 DeformConv expected among {kinds}")
    still = np.asarray(turned(held_out, torch.Generator().manual_seed(0)))
    print("upright", train.measure(path, held_out.numpy(), held_labels.numpy()))
    print("turned", train.measure(path, still, held_labels.numpy()))


if __name__ == "__main__":
    main()
