"""Initializers that are also listed as graph inputs: freeze them, or leave them to be overridden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt.graph.edit import FIRST_IR_WITHOUT_LISTING
from graphopt.rewrites.base import OptionValue, WholeModelPass

FreezeMode = Literal["auto", "freeze", "keep"]


_KEPT = "graphopt.overridable"
"""In a model's metadata: a caller may override its listed initializers."""


@dataclass(frozen=True)
class FreezeInitializers(WholeModelPass):
    """Initializers listed as graph inputs  ==>  plain initializers.

    Such a listing means that a caller may override the value, and blocks every fusion. `auto`
    freezes when the format demanded the listing (IR below 4) or when *all* initializers are listed
    (an old exporter's habit); when only some are, somebody means to override them and they stay.
    """

    mode: FreezeMode = "auto"
    name = "freeze-initializers"

    def run(self, model: ir.Model) -> Mapping[str, OptionValue]:
        """Take initializers off the list of inputs; IR 3 becomes IR 4, which allows that."""
        listed, reason = self.decide(model)
        if reason is None:
            if listed:  # the unlisted ones may be folded away later: remember what was decided
                model.metadata_props[_KEPT] = "kept"
            return {}
        raised = model.ir_version < FIRST_IR_WITHOUT_LISTING
        keep = [value for value in model.graph.inputs if not value.is_initializer()]
        model.graph.inputs.clear()
        model.graph.inputs.extend(keep)
        options: dict[str, OptionValue] = {"initializers": listed, "because": reason}
        if raised:
            options["ir_version"] = FIRST_IR_WITHOUT_LISTING
            model.ir_version = FIRST_IR_WITHOUT_LISTING
        return options

    def decide(self, model: ir.Model) -> tuple[int, str | None]:
        """How many initializers are listed as inputs, and why they are frozen (None: they stay)."""
        listed = sum(value.is_initializer() for value in model.graph.inputs)
        total = len(model.graph.initializers)
        if listed == 0 or self.mode == "keep":
            return listed, None
        if self.mode == "freeze":
            return listed, "--freeze-initializers"
        if model.ir_version < FIRST_IR_WITHOUT_LISTING:
            return listed, f"IR version {model.ir_version} demands the listing"
        if listed == total and _KEPT not in model.metadata_props:
            return listed, "all initializers are listed"
        return listed, None
