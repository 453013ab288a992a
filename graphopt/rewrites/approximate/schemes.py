"""The low-rank schemes, in the order they are tried."""

from __future__ import annotations

from graphopt.rewrites.approximate.decoupled import Decoupled
from graphopt.rewrites.approximate.decoupled_pointwise_first import DecoupledPointwiseFirst
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.kernel_chain import KernelChain
from graphopt.rewrites.approximate.output_bottleneck import OutputBottleneck
from graphopt.rewrites.approximate.scheme import Scheme
from graphopt.rewrites.approximate.spatial import Spatial
from graphopt.rewrites.approximate.two_sided import TwoSided

APPROXIMATE: tuple[Scheme, ...] = (
    InputBottleneck(),
    OutputBottleneck(),
    TwoSided(),
    Spatial(first_axis=0),
    Spatial(first_axis=1),
    KernelChain(),
    Decoupled(),
    DecoupledPointwiseFirst(),
)
