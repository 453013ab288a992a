"""Which rewrites a run uses: the explicit lists, configured by the options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphopt.errors import InputError
from graphopt.options import Options
from graphopt.rewrites import all_rewrites, exact_rewrites
from graphopt.rewrites.base import ApproximateRewrite, ExactRewrite, Rewrite, WholeModelPass
from graphopt.rewrites.cleanup.freeze_initializers import FreezeInitializers
from graphopt.rewrites.cleanup.library import FoldConstants
from graphopt.rewrites.exact.compose_convs import ComposeConvs
from graphopt.rewrites.exact.compose_fcs import ComposeFcs
from graphopt.rewrites.exact.fc_to_conv import FcToConv
from graphopt.rewrites.exact.merge_branches import MergeBranches
from graphopt.rewrites.exact.merge_parallel import MergeParallel
from graphopt.rewrites.exact.push_transposes import MatMulToConv
from graphopt.rewrites.exact.recognise_pooling import RecognisePooling
from graphopt.rewrites.exact.recognise_swish import RecogniseSwish

if TYPE_CHECKING:
    from graphopt.rewrites.approximate.scheme import Scheme

_GATED = (MatMulToConv, MergeBranches, MergeParallel, RecognisePooling, RecogniseSwish)
"""Measured before they are taken, except for a target whose times this machine's do not tell."""


@dataclass(frozen=True)
class Selection:
    """The rewrites of a run: what is applied to a fixpoint, and what the planner may choose from."""

    exact: tuple[ExactRewrite | WholeModelPass, ...]
    approximate: tuple[Scheme, ...]


def select(options: Options, *, approximate: bool = True) -> Selection:
    """The rewrites that `--passes` and `--skip` leave, set up for the target.

    approximate: whether the run can use approximate ones; else they are not even imported, unless
    names have to be told from mistakes.

    Raises:
        InputError: A name that is no rewrite (the message suggests the nearest).
    """
    named = (*(options.passes or ()), *options.skip)
    rewrites = all_rewrites() if approximate or named else exact_rewrites()
    names = [rewrite.name for rewrite in rewrites]
    for name in named:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else "see `graphopt passes`"
            raise InputError(f"there is no rewrite {name!r}: {hint}")
    kept = [
        _configured(rewrite, options)
        for rewrite in rewrites
        if (options.passes is None or rewrite.name in options.passes)
        and rewrite.name not in options.skip
    ]
    return Selection(
        tuple(r for r in kept if not isinstance(r, ApproximateRewrite)),
        _schemes(kept) if approximate else (),
    )


def _schemes(rewrites: Iterable[Rewrite]) -> tuple[Scheme, ...]:
    from graphopt.rewrites.approximate.scheme import Scheme

    return tuple(rewrite for rewrite in rewrites if isinstance(rewrite, Scheme))


def _configured(rewrite: Rewrite, options: Options) -> Rewrite:
    if isinstance(rewrite, FreezeInitializers):
        return replace(rewrite, mode=options.freeze)
    if isinstance(rewrite, ComposeConvs):
        # What this machine measures does not tell whether more multiplications are faster elsewhere.
        return replace(rewrite, grow=options.grow, dearer=options.target == "ort-cpu")
    if isinstance(rewrite, FoldConstants | ComposeFcs):
        return replace(rewrite, grow=options.grow)
    if options.target == "npu":
        if isinstance(rewrite, FcToConv):
            return replace(rewrite, gated=False, everywhere=True)
        if isinstance(rewrite, _GATED):
            return replace(rewrite, gated=False)
    return rewrite
