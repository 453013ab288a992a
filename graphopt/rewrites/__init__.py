"""All rewrites, in the order they are tried. The lists are explicit; nothing registers itself.

The approximate ones come with all the mathematics and are imported when they are first asked for:
a run without verification never does.

Third parties add rewrites through the entry point group `graphopt.rewrites`: each entry point
names a rewrite instance, or a function that returns one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from graphopt.errors import InputError
from graphopt.rewrites.base import ApproximateRewrite, ExactRewrite, Rewrite, WholeModelPass
from graphopt.rewrites.cleanup.fold_known_dimensions import FoldKnownDimensions
from graphopt.rewrites.cleanup.freeze_initializers import FreezeInitializers
from graphopt.rewrites.cleanup.inline_functions import InlineFunctions
from graphopt.rewrites.cleanup.keep_reduced_axes import KeepReducedAxes
from graphopt.rewrites.cleanup.library import (
    FoldConstants,
    LiftConstants,
    MergeDuplicates,
    RemoveDead,
)
from graphopt.rewrites.cleanup.merge_reshapes import MergeReshapes
from graphopt.rewrites.cleanup.merge_transposes import MergeTransposes
from graphopt.rewrites.cleanup.remove_noops import RemoveNoops
from graphopt.rewrites.cleanup.settle_shapes import SettleReshapes
from graphopt.rewrites.cleanup.undo_splits import UndoSplits
from graphopt.rewrites.exact.compose_convs import ComposeConvs
from graphopt.rewrites.exact.compose_fcs import ComposeFcs
from graphopt.rewrites.exact.deform_to_conv import DeformToConv
from graphopt.rewrites.exact.drop_expand import DropExpand
from graphopt.rewrites.exact.drop_zero_bias import DropZeroBias
from graphopt.rewrites.exact.fc_to_conv import FcToConv
from graphopt.rewrites.exact.fold_transpose_into_fc import FoldTransposeIntoFc
from graphopt.rewrites.exact.fuse_affine import FuseBatchNormAffine, FuseConvAffine
from graphopt.rewrites.exact.fuse_affine_before import FuseAffineBefore
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm
from graphopt.rewrites.exact.fuse_pad import FusePad
from graphopt.rewrites.exact.merge_activations import MergeActivations
from graphopt.rewrites.exact.merge_arithmetic import MergeArithmetic
from graphopt.rewrites.exact.merge_branches import MergeBranches
from graphopt.rewrites.exact.merge_parallel import MergeParallel
from graphopt.rewrites.exact.push_transposes import MatMulToConv, PushTransposes
from graphopt.rewrites.exact.recognise_clips import RecogniseClips
from graphopt.rewrites.exact.recognise_gelu import RecogniseGelu
from graphopt.rewrites.exact.recognise_hard_swish import RecogniseHardSwish
from graphopt.rewrites.exact.recognise_leaky_relu import RecogniseLeakyRelu
from graphopt.rewrites.exact.recognise_pooling import RecognisePooling
from graphopt.rewrites.exact.recognise_swish import RecogniseSwish

if TYPE_CHECKING:
    from graphopt.rewrites.approximate.scheme import Scheme
    from graphopt.rewrites.approximate.schemes import APPROXIMATE as APPROXIMATE

CLEANUP: tuple[ExactRewrite | WholeModelPass, ...] = (
    FreezeInitializers(),
    InlineFunctions(),
    LiftConstants(),
    RemoveDead(),
    FoldConstants(),
    FoldKnownDimensions(),
    SettleReshapes(),
    RemoveNoops(),
    UndoSplits(),
    MergeReshapes(),
    KeepReducedAxes(),
)

EXACT: tuple[ExactRewrite | WholeModelPass, ...] = (
    # Constants and normalizations come directly behind convolutions once layouts agree.
    PushTransposes(),
    MatMulToConv(),
    FoldTransposeIntoFc(),
    MergeTransposes(),
    # A convolution takes part in everything below.
    DeformToConv(),
    FuseConvBatchNorm(),
    FuseConvAffine(),
    FuseBatchNormAffine(),
    # What is recognised is made of constants that the fusions behind would take away.
    RecogniseClips(),
    RecogniseLeakyRelu(),
    RecogniseHardSwish(),
    RecogniseSwish(),
    RecogniseGelu(),
    RecognisePooling(),
    DropExpand(),
    MergeArithmetic(),
    FusePad(),
    FuseAffineBefore(),
    ComposeConvs(),
    ComposeFcs(),
    MergeBranches(),
    MergeParallel(),
    MergeActivations(),
    FcToConv(),
    DropZeroBias(),
    MergeDuplicates(),
)

ENTRY_POINT_GROUP = "graphopt.rewrites"


def all_rewrites() -> tuple[Rewrite, ...]:
    """The built-in rewrites and those that installed packages offer.

    Raises:
        InputError: A package's entry point is not a rewrite.
    """
    return (*CLEANUP, *EXACT, *_approximate(), *_plugins())


def exact_rewrites() -> tuple[ExactRewrite | WholeModelPass, ...]:
    """Of all rewrites those that are not approximate.

    Raises:
        InputError: A package's entry point is not a rewrite.
    """
    offered = (rewrite for rewrite in _plugins() if not isinstance(rewrite, ApproximateRewrite))
    return (*CLEANUP, *EXACT, *offered)


def _approximate() -> tuple[Scheme, ...]:
    from graphopt.rewrites.approximate.schemes import APPROXIMATE

    return APPROXIMATE


def __getattr__(name: str) -> Any:
    if name == "APPROXIMATE":
        return _approximate()
    raise AttributeError(f"module 'graphopt.rewrites' has no attribute {name!r}")


def _plugins() -> Sequence[Rewrite]:
    found: list[Rewrite] = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        made = point.load()
        if callable(made) and not isinstance(made, Rewrite):
            made = made()
        if not isinstance(made, Rewrite):
            raise InputError(f"the entry point {point.name} of {ENTRY_POINT_GROUP} is no rewrite")
        found.append(made)
    return found
