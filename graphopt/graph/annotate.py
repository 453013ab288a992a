"""Shape annotations: inferred for the work, and put back to what the file had at the end."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from graphopt.graph.overridable import overridable_hidden
from graphopt.graph.scope import all_nodes, graphs


@dataclass(frozen=True)
class Annotations:
    """The value_info of a file: type and shape by value name (main graph)."""

    declared: Mapping[str, tuple[ir.TypeProtocol | None, ir.Shape | None]]


def annotate(model: ir.Model, *, frozen: bool = True) -> Annotations:
    """Replace the declared shapes of intermediate values by inferred ones, symbols kept.

    frozen: whether initializers listed as inputs will be frozen, so that their values count.
    Declared shapes are not trusted (exporters get them wrong); where inference finds nothing, the
    value is left without. Returns what the file declared.
    """
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    declared: dict[str, tuple[ir.TypeProtocol | None, ir.Shape | None]] = {}
    for node in all_nodes(model):
        for value in node.outputs:
            if value.shape is not None or value.type is not None:
                declared[value.name or ""] = (value.type, value.shape)
                value.shape = None
    infer = common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
    with nullcontext() if frozen else overridable_hidden(model):
        infer(model)
    return Annotations(declared)


def restore(model: ir.Model, annotations: Annotations) -> None:
    """Keep annotations only of values the file had them for, corrected where inference knew better."""
    for output in model.graph.outputs:  # the interface is the user's, right or wrong
        if not output.is_initializer() and not output.is_graph_input():
            output.type, output.shape = annotations.declared[output.name or ""]
    outputs = {id(output) for output in model.graph.outputs}
    symbols = symbols_of(model.graph)
    for weight in (value for graph in graphs(model) for value in graph.initializers.values()):
        if not weight.is_graph_input() and not weight.is_graph_output():
            weight.type = weight.shape = None  # the tensor has both; value_info would repeat them
    for node in all_nodes(model):
        for value in node.outputs:
            if id(value) in outputs:
                continue
            known = annotations.declared.get(value.name or "")
            if known is None:
                value.shape = None
                value.type = None
            elif value.shape is None:
                value.type, value.shape = known
            else:
                value.shape = _with_symbols(value.shape, known[1], symbols)


def symbols_of(graph: ir.Graph) -> set[str]:
    """The names that the inputs give to their open dimensions."""
    return {
        size.value
        for value in graph.inputs
        for size in value.shape or ()
        if not isinstance(size, int) and size.value is not None
    }


def is_settled(value: ir.Value, symbols: Container[str | None]) -> bool:
    """Whether inference has no more to say: type known, every dimension a number or an input's own."""
    return (
        value.type is not None
        and value.shape is not None
        and all(isinstance(size, int) or size.value in symbols for size in value.shape)
    )


def _with_symbols(
    inferred: ir.Shape, declared: ir.Shape | None, symbols: Container[str | None]
) -> ir.Shape:
    """The inferred shape; for what it knows neither a number nor one of the symbols, the declared one."""
    if declared is None or len(declared) != len(inferred):
        return inferred
    pairs = zip(inferred, declared, strict=True)
    return ir.Shape(
        [new if isinstance(new, int) or new.value in symbols else old for new, old in pairs]
    )


def stamp(model: ir.Model, version: str, rewrites: Mapping[str, int]) -> None:
    """Write into the model which rewrites made it, and how often each was applied."""
    summary = ", ".join(f"{name} {count}" for name, count in rewrites.items())
    model.metadata_props["graphopt.version"] = version
    model.metadata_props["graphopt.rewrites"] = summary
