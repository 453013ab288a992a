"""Unfolded input patches of a layer at sampled output positions, with the responses there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from graphopt.runtime import Array


@dataclass(frozen=True)
class Geometry:
    """How a layer slides over its input. pads: begins, then ends; () for fully connected layers.

    transposed: the output at q sees, at tap u, the input at (q + pads - dilations u) / strides, and
    zero where there is none (see `Layer`). output_padding: of transposed convolutions.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial size of the output for an input of this spatial size."""
        rank = len(self.kernel)
        if self.transposed:
            return tuple(
                (size[a] - 1) * self.strides[a]
                + self.dilations[a] * (k - 1)
                + 1
                + self.output_padding[a]
                - self.pads[a]
                - self.pads[a + rank]
                for a, k in enumerate(self.kernel)
            )
        return tuple(
            (size[a] + self.pads[a] + self.pads[a + rank] - self.dilations[a] * (k - 1) - 1)
            // self.strides[a]
            + 1
            for a, k in enumerate(self.kernel)
        )


def positions(
    geometry: Geometry, shape: tuple[int, ...], count: int, rng: np.random.Generator
) -> Array:
    """`count` output positions of a batch with input shape [N, C, *size]: rows (n, *position).

    Drawn uniformly, without replacement; all of them where there are no more than that.
    """
    outputs = geometry.output_size(shape[2:])
    total = int(np.prod((shape[0], *outputs)))
    count = min(count, total)
    flat = rng.choice(total, size=count, replace=False)
    return np.stack(np.unravel_index(np.sort(flat), (shape[0], *outputs)), axis=1)


def patches(x: Array, geometry: Geometry, at: Array) -> Array:
    """Patches [count, C * prod(kernel)] of x [N, C, *size], channel-major, zeros outside."""
    rank = len(geometry.kernel)
    if rank == 0:
        return x[at[:, 0]]
    if geometry.transposed:
        return _gathered(x, geometry, at)
    padding = [(0, 0), (0, 0)]
    padding += [(geometry.pads[a], geometry.pads[a + rank]) for a in range(rank)]
    padded = np.pad(x, padding) if any(geometry.pads) else x
    offsets = _offsets(geometry)
    starts = at[:, 1:] * np.asarray(geometry.strides)  # [count, rank]
    index = starts[:, :, None] + offsets[None]  # [count, rank, taps]
    moved = np.moveaxis(padded, 1, -1)  # [N, *size, C]
    picked = moved[(at[:, 0][:, None], *(index[:, a] for a in range(rank)))]  # [count, taps, C]
    unfolded: Array = picked.transpose(0, 2, 1).reshape(len(at), -1)
    return unfolded


def sampled_patches(
    x: Array, geometry: Geometry, at: Array, offset: Array, mask: Array | None
) -> Array:
    """Patches of a DeformConv: x interpolated linearly at shifted positions, times the mask.

    offset: [N, groups * taps * rank, *out]. mask: [N, groups * taps, *out] or None. The channels of x
    are in as many groups, one after the other. Zeros outside of x.
    """
    rank, taps = len(geometry.kernel), int(np.prod(geometry.kernel))
    size, begins = np.asarray(x.shape[2:]), np.asarray(geometry.pads[:rank])
    groups, batch = offset.shape[1] // (taps * rank), at[:, 0]
    plain = at[:, None, 1:] * np.asarray(geometry.strides) - begins + _offsets(geometry).T
    shifts = responses(offset, at).reshape(len(at), groups, taps, rank)
    where = np.clip(plain[:, None] + shifts, -2, size + 1).astype(x.dtype)  # no overflow below
    low = np.floor(where)
    share = where - low
    # [N, groups, *size, channels of a group]: whole rows of channels are picked.
    moved = np.moveaxis(x.reshape(len(x), groups, -1, *x.shape[2:]), 2, -1)
    found = np.zeros((len(at), groups, taps, moved.shape[-1]), x.dtype)
    for corner in product((0, 1), repeat=rank):
        index = low.astype(np.int64) + corner
        weight = np.where(corner, share, 1 - share).prod(axis=-1)
        weight *= np.all((index >= 0) & (index < size), axis=-1)
        index = np.clip(index, 0, size - 1)
        axes = (index[..., axis] for axis in range(rank))
        picked = moved[(batch[:, None, None], np.arange(groups)[:, None], *axes)]
        found += weight[..., None] * picked
    if mask is not None:
        found *= responses(mask, at).reshape(len(at), groups, taps, 1)
    unfolded: Array = found.transpose(0, 1, 3, 2).reshape(len(at), -1)
    return unfolded


def _gathered(x: Array, geometry: Geometry, at: Array) -> Array:
    """Patches of a transposed convolution: what is scattered to the positions."""
    rank = len(geometry.kernel)
    size, strides, begins = (
        np.asarray(v)[None, :, None] for v in (x.shape[2:], geometry.strides, geometry.pads[:rank])
    )
    index, rest = np.divmod(at[:, 1:, None] + begins - _offsets(geometry)[None], strides)
    there = np.all((rest == 0) & (index >= 0) & (index < size), axis=1)  # [count, taps]
    index = np.clip(index, 0, size - 1)
    moved = np.moveaxis(x, 1, -1)  # [N, *size, C]
    picked = moved[(at[:, 0][:, None], *(index[:, a] for a in range(rank)))]  # [count, taps, C]
    picked = np.where(there[:, :, None], picked, x.dtype.type(0))
    unfolded: Array = picked.transpose(0, 2, 1).reshape(len(at), -1)
    return unfolded


def _offsets(geometry: Geometry) -> Array:
    """How far every tap is from the first one: [rank, taps]."""
    axes = (np.arange(k) * d for k, d in zip(geometry.kernel, geometry.dilations, strict=True))
    return np.stack(np.meshgrid(*axes, indexing="ij")).reshape(len(geometry.kernel), -1)


def responses(y: Array, at: Array) -> Array:
    """Responses [count, O] of y [N, O, *size] at the positions."""
    picked: Array = np.moveaxis(y, 1, -1)[tuple(at[:, axis] for axis in range(at.shape[1]))]
    return picked


def by_group(x: Array, group: int) -> list[Array]:
    """Patches or responses [count, groups * width] split into the groups' parts."""
    return list(np.split(x, group, axis=1))
