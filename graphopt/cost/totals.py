"""What a whole model costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.cost.census import Census, Tally
from graphopt.cost.counts import operators
from graphopt.graph.dataflow import peak_activation_bytes
from graphopt.graph.shapes import TensorInfo


@dataclass(frozen=True)
class ModelCost:
    """Tally of all nodes and tensors, peak activation bytes (None if unknown), operators by type."""

    tally: Tally
    peak_activation_bytes: int | None
    operators: Mapping[str, int]


def model_cost(model: ir.Model, infos: Mapping[str, TensorInfo]) -> ModelCost:
    """Count a model, given concrete shapes of its values."""
    known = dict(infos)
    tally = Census(model, known).take().total()
    return ModelCost(tally, peak_activation_bytes(model.graph, known), operators(model))
