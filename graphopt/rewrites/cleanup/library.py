"""Clean-up that the ONNX libraries already do well, given names and options of ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from graphopt.graph.edit import FIRST_IR_WITHOUT_LISTING
from graphopt.graph.overridable import overridable_hidden
from graphopt.graph.scope import STANDARD_DOMAINS, all_nodes, attribute_int, graphs, is_op
from graphopt.rewrites.base import OptionValue, WholeModelPass
from graphopt.rewrites.cleanup.foldable import may_fold

logging.getLogger("onnx_ir").setLevel(logging.ERROR)
logging.getLogger("onnxscript").setLevel(logging.ERROR)

_NEVER_FOLDED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
_DRAWN_QUIETLY = {"Bernoulli", "Dropout"}
_RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
    *_DRAWN_QUIETLY,
}  # fmt: skip
_SMALL_ELEMENTS = 8192
_INITIALIZER_OVERHEAD = 16


@dataclass(frozen=True)
class LiftConstants(WholeModelPass):
    """Constant nodes  ==>  initializers (which is what onnxruntime makes of them at load)."""

    name = "lift-constants"

    def run(self, model: ir.Model) -> Mapping[str, OptionValue]:
        """Lift every Constant node that is not itself an output."""
        if model.ir_version >= FIRST_IR_WITHOUT_LISTING:
            common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(
                model
            )
        return {}


@dataclass(frozen=True)
class FoldConstants(WholeModelPass):
    """Nodes whose inputs are all constant  ==>  their value.

    Size guard: a node is folded only if the file gets no bigger by it, unless `grow` allows it.
    Quantization nodes and anything random are left alone; an initializer that a caller may
    override is not a constant.
    """

    grow: bool = False
    name = "fold-constants"

    def run(self, model: ir.Model) -> Mapping[str, OptionValue]:
        """Fold over the main graph, bodies and functions."""
        if model.ir_version < FIRST_IR_WITHOUT_LISTING or _spoils_sequences(model):
            return {}
        should_fold = partial(_should_fold, self.grow)
        with overridable_hidden(model):
            if may_fold(model, should_fold):
                from onnxscript.optimizer import fold_constants

                fold_constants(
                    model,
                    onnx_shape_inference=True,
                    output_size_limit=1 << 62,
                    should_fold=should_fold,
                )
        for graph in graphs(model):
            for value in graph.initializers.values():
                value.metadata_props.pop("pkg.onnxscript.optimizer.folded_from", None)
            for node in graph:
                for value in node.outputs:
                    value.metadata_props.pop("pkg.onnxscript.optimizer.folded_from", None)
        return {"grow": True} if self.grow else {}


def _spoils_sequences(model: ir.Model) -> bool:
    """Whether the library, which makes a Split of a SplitToSequence on the side, would do it wrongly.

    It knows the form of opset 18 alone, squeezes by `keepdims`, which the operator ignores where
    the parts are given (https://onnx.ai/onnx/operators/onnx__SplitToSequence.html), and fails on a
    scalar number of parts that only run time knows.
    """
    for node in all_nodes(model):
        if is_op(node, "SplitToSequence"):
            parts = node.inputs[1] if len(node.inputs) > 1 else None
            if parts is not None and not attribute_int(node, "keepdims", 1):
                return True
            if parts is not None and parts.const_value is None and _is_scalar(parts):
                return True
        if "Sequence" in node.op_type and (model.graph.opset_imports.get("") or 1) < 18:
            return True
    return False


def _is_scalar(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 0


def _should_fold(grow: bool, node: ir.Node) -> bool | None:
    """True or False as the size guard has it; None leaves it to the library's own limits."""
    if node.domain not in STANDARD_DOMAINS or node.op_type in _NEVER_FOLDED or _is_random(node):
        return False
    inputs = [value for value in node.inputs if value is not None]
    if grow:
        return True
    size = _output_bytes(node)
    if size is None:
        small = sum(v.const_value.size for v in inputs if v.const_value is not None)
        return None if small <= _SMALL_ELEMENTS and node.op_type not in _GROWING else False
    freed = sum(
        value.const_value.nbytes
        for value in {id(v): v for v in inputs}.values()
        if value.const_value is not None and len(value.uses()) == 1 and not value.is_graph_output()
    )
    saved = len(ir.serde.serialize_node(node).SerializeToString())
    return size + _INITIALIZER_OVERHEAD <= freed + saved


_GROWING = {"ConstantOfShape", "Expand", "Tile", "Range", "EyeLike", "OneHot", "Resize", "Pad"}


def _output_bytes(node: ir.Node) -> int | None:
    total = 0
    for value in node.outputs:
        if value.shape is None or value.dtype is None or not value.shape.is_static():
            return None
        if value.dtype == ir.DataType.STRING:
            return None
        count = 1
        for size in value.shape.numpy():
            count *= size
        total += int(count * value.dtype.itemsize)
    return total


@dataclass(frozen=True)
class RemoveDead(WholeModelPass):
    """Nodes, optional outputs, initializers and functions nothing depends on  ==>  nothing."""

    name = "remove-dead"

    def run(self, model: ir.Model) -> Mapping[str, OptionValue]:
        """Remove what is unused; the interface stays."""
        common_passes.RemoveUnusedNodesPass()(model)
        while _forget_removed_bodies(model):
            common_passes.RemoveUnusedNodesPass()(model)
        common_passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return {}


def _forget_removed_bodies(model: ir.Model) -> bool:
    """Cut the uses that bodies of removed nodes still have of outer values; whether there were any.

    The library removes an If as a whole and leaves what its branches captured looking used.
    """
    alive = set(all_nodes(model))
    stale = [
        use
        for graph in graphs(model)
        for value in (
            *graph.inputs,
            *graph.initializers.values(),
            *(output for node in graph for output in node.outputs),
        )
        for use in value.uses()
        if use.node not in alive
    ]
    for node, index in stale:
        node.replace_input_with(index, None)
    return bool(stale)


@dataclass(frozen=True)
class MergeDuplicates(WholeModelPass):
    """Equal nodes with equal inputs, equal initializers  ==>  one of them.

    Late, because a convolution that two normalizations share can no longer absorb either.
    """

    name = "merge-duplicates"
    late = True

    def run(self, model: ir.Model) -> Mapping[str, OptionValue]:
        """Deduplicate initializers, then common subexpressions."""
        _make_contiguous(model)  # which the library's hashing takes for granted
        common_passes.DeduplicateInitializersPass(size_limit=1024)(model)
        common_passes.DeduplicateHashedInitializersPass()(model)
        if not _has_hidden_randomness(model):
            common_passes.CommonSubexpressionEliminationPass()(model)
        _shorten_identities(model)
        return {}


def _shorten_identities(model: ir.Model) -> None:
    """Identity(Identity(x)) is Identity(x), as fold-constants has it: or the two would take turns."""
    for node in all_nodes(model):
        first = node.inputs[0].producer() if is_op(node, "Identity") and node.inputs[0] else None
        if first is not None and is_op(first, "Identity") and first.graph is node.graph:
            node.replace_input_with(0, first.inputs[0])


def _make_contiguous(model: ir.Model) -> None:
    for graph in graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, np.ndarray):
                array = tensor.raw
                if not array.flags.c_contiguous:
                    value.const_value = ir.Tensor(
                        np.ascontiguousarray(array), dtype=tensor.dtype, name=tensor.name
                    )


def _has_hidden_randomness(model: ir.Model) -> bool:
    """Whether equal nodes may draw different numbers without the library knowing.

    It knows the random operators by name, but not Bernoulli, a Dropout in training mode, nor a
    function that calls one of them.
    """
    inside = (node for function in model.functions.values() for node in function.all_nodes())
    return any(_is_random(node) for node in inside) or any(
        _is_random(node) for node in all_nodes(model) if node.op_type in _DRAWN_QUIETLY
    )


def _is_random(node: ir.Node) -> bool:
    if node.domain not in STANDARD_DOMAINS:
        return False
    if node.op_type == "Dropout":
        return len(node.inputs) > 2 and node.inputs[2] is not None
    return node.op_type in _RANDOM
