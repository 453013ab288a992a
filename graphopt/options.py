"""Everything a run of `optimize` can be told, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from graphopt.planning.budget import Budget
from graphopt.planning.method import Method
from graphopt.rewrites.cleanup.freeze_initializers import FreezeMode

Target = Literal["ort-cpu", "npu"]
OnFail = Literal["rollback", "stop"]


@dataclass(frozen=True)
class Options:
    """Options of `graphopt optimize`, named like its flags.

    shapes: input name -> concrete shape, for inputs with dynamic dimensions. passes: names of the
    only rewrites to use (None: all); skip: names not to use. threads: for measuring and verifying.
    preprocess: how pictures become inputs ("size=224,mean=0.5"). grow: let constant folding make
    the file bigger. resume: a folder to keep statistics in, and to go on from. pareto: write so many models,
    from close to the original to what the budget allows. ranks: the structures of `--ranks`, in place of a
    search ("conv1=64,conv2=two-sided:64x64"). dense: make the network fully convolutional.
    """

    budget: Budget = field(default_factory=Budget)
    method: Method = field(default_factory=Method)
    data: str | None = None
    eval_data: str | None = None
    preprocess: str | None = None
    metric: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    threads: int = 1
    seed: int = 0
    target: Target = "ort-cpu"
    passes: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()
    freeze: FreezeMode = "auto"
    grow: bool = False
    dry_run: bool = False
    verify: bool = True
    bench: bool = True
    in_place: bool = False
    on_fail: OnFail = "rollback"
    output: Path | None = None
    resume: Path | None = None
    pareto: int | None = None
    ranks: str | None = None
    dense: bool = False
