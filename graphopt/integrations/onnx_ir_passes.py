"""graphopt's exact rewrites as onnx-ir passes, to be mixed with anyone else's.

    >>> import onnx_ir as ir
    >>> from graphopt.integrations.onnx_ir_passes import as_pass
    >>> from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm
    >>> pipeline = ir.passes.Sequential(as_pass(FuseConvBatchNorm()))

No measuring and no proof here: that is what `graphopt.optimize` is for. Rewrites that are gated by
measured latency are applied wherever they match.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.annotate import annotate, restore
from graphopt.rewrites.base import ExactRewrite, WholeModelPass
from graphopt.rewrites.driver import Driver
from graphopt.rewrites.ledger import Ledger


class RewritePass(ir.passes.InPlacePass):
    """One exact rewrite or clean-up, applied to a fixpoint."""

    def __init__(self, rewrite: ExactRewrite | WholeModelPass) -> None:
        super().__init__()
        self.rewrite = rewrite

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite wherever it matches; `modified` says whether it did anywhere."""
        annotations = annotate(model)
        driver = Driver(model, {}, Ledger())
        driver.to_fixpoint((self.rewrite,))
        restore(model, annotations)
        return ir.passes.PassResult(model, modified=bool(driver.ledger.applied))


def as_pass(rewrite: ExactRewrite | WholeModelPass) -> RewritePass:
    """The rewrite as an `onnx_ir.passes.InPlacePass`."""
    return RewritePass(rewrite)
