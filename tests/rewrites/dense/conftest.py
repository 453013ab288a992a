"""A model made dense and checked: valid, equal at its own size, equal to sliding windows beyond it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import LEVELS, error, run, structure

from graphopt.graph.annotate import annotate
from graphopt.graph.shapes import bind_inputs
from graphopt.rewrites.dense.make import Dense, make_dense

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Densed:
    """A model made dense and the facts about its maps."""

    proto: onnx.ModelProto
    facts: Dense

    @property
    def ops(self) -> list[str]:
        return [node.op_type for node in self.proto.graph.node]

    def node(self, op_type: str) -> onnx.NodeProto:
        return next(node for node in self.proto.graph.node if node.op_type == op_type)

    def attributes(self, op_type: str) -> dict[str, Any]:
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.node(op_type).attribute}

    @property
    def interface(self) -> dict[str, list[int | str]]:
        """Dimensions of the inputs and outputs."""
        return {
            value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
            for value in (*self.proto.graph.input, *self.proto.graph.output)
        }


def _made(
    proto: onnx.ModelProto, sized: bool, bound: Mapping[str, tuple[int, ...]] | None = None
) -> Densed:
    model = ir.from_proto(onnx.load_from_string(proto.SerializeToString()))
    annotate(model)
    bound = bound or bind_inputs(model.graph, {}, batch=1, size=12)
    facts = make_dense(model, bound, sized=sized)
    return Densed(ir.to_proto(model), facts)


@pytest.fixture
def make() -> Callable[..., Densed]:
    """Make a model dense; nothing is checked."""
    return lambda proto, sized=True: _made(proto, sized)


@pytest.fixture
def dense() -> Callable[..., Densed]:
    """Make a model dense and check everything that holds of every dense network."""

    def make(
        proto: onnx.ModelProto,
        *,
        sized: bool = True,
        tolerance: float = 1e-5,
        batches: Sequence[int] = (1,),
        strides: Sequence[int] = (0, 1, 3),
    ) -> Densed:
        made = _made(proto, sized)
        onnx.checker.check_model(made.proto, full_check=True)
        assert [v.name for v in made.proto.graph.input] == [v.name for v in proto.graph.input]
        assert [v.name for v in made.proto.graph.output] == [v.name for v in proto.graph.output]
        for batch in batches:
            for count in strides if made.facts.inexact is None else strides[:1]:
                _check_windows(proto, made, batch, count, tolerance)
        window = _shape(proto, made.facts, batch=1, strides=0)
        again = _made(made.proto, False, {made.facts.picture: tuple(window)})
        assert not again.facts.changed
        assert structure(again.proto) == structure(made.proto)
        return made

    return make


def _check_windows(
    proto: onnx.ModelProto, made: Densed, batch: int, strides: int, tolerance: float
) -> None:
    """Every cell is the original's answer to its window, at both levels."""
    facts, shape = made.facts, _shape(proto, made.facts, batch, strides)
    rng = np.random.default_rng(3)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    picture = (rng.standard_normal(shape) * (1 if dtype != np.uint8 else 40)).astype(dtype)
    names = [output.name for output in proto.graph.output]
    maps = [run(made.proto, {facts.picture: picture}, level) for level in LEVELS]
    for row, column in np.ndindex(strides + 1, strides + 1):
        place = _part(facts.axes, (row, column), facts.stride, facts.window, 4)
        window = np.ascontiguousarray(picture[place])
        answers = run(proto, {facts.picture: window}, LEVELS[0])
        for found in maps:
            for name, answer, whole in zip(names, answers, found, strict=True):
                if name not in facts.outputs:
                    continue
                state = facts.outputs[name]
                axes = (1, 2) if state.form in ("last", "labels") else (2, 3)
                sizes = zip(state.size, facts.cells(name), strict=True)
                assert [whole.shape[a] for a in axes] == [n + strides * s for n, s in sizes]
                cells = whole[_part(axes, (row, column), facts.cells(name), state.size, whole.ndim)]
                assert cells.dtype == answer.dtype
                assert error(answer, cells.reshape(answer.shape)) <= tolerance, (name, row, column)


def _shape(proto: onnx.ModelProto, facts: Dense, batch: int, strides: int) -> list[int]:
    """Of a picture so many strides larger than the original's."""
    shape = [d.dim_value or batch for d in proto.graph.input[0].type.tensor_type.shape.dim]
    for axis, size, step in zip(facts.axes, facts.window, facts.stride, strict=True):
        shape[axis] = size + strides * step
    return shape


def _part(
    axes: Sequence[int],
    at: Sequence[int],
    steps: Sequence[int],
    sizes: Sequence[int],
    rank: int,
) -> tuple[slice, ...]:
    part = [slice(None)] * rank
    for axis, place, step, size in zip(axes, at, steps, sizes, strict=True):
        part[axis] = slice(place * step, place * step + size)
    return tuple(part)
