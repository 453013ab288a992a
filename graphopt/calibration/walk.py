"""Runs a model piece by piece over a dataset, while the part ahead is still being rewritten.

Values behind a layer do not change any more once everything before it is settled. So a fit that
goes through the layers in order need not start from the inputs each time: what later nodes still
need is kept, for all samples, and each piece of the model runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.convenience import create_value_mapping, extract

from graphopt.calibration.dataset import Dataset
from graphopt.graph.dataflow import before
from graphopt.graph.io import session_source
from graphopt.graph.scope import has_bodies
from graphopt.runtime import Array, open_session, run

KEPT_BYTES = 1 << 30
"""Cap on the values kept between two pieces; beyond it the next piece starts from the inputs."""

Values = Mapping[str, Array]


@dataclass
class Walk:
    """How far a model has been run on every batch of a dataset. threads: of onnxruntime."""

    dataset: Dataset
    threads: int
    most_bytes: int = KEPT_BYTES
    _kept: list[Values] = field(init=False)
    _run: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._kept = [batch.feeds for batch in self.dataset.batches]

    def onto(self, model: ir.Model, names: Sequence[str]) -> Callable[[int], Values]:
        """From a batch's index to the named values; to be called for every batch, in order.

        The model may have changed since the last call only behind what has been run. Values that
        come before that can be had too, at the price of a run from the inputs.
        """
        values = create_value_mapping(model.graph, include_subgraphs=False)
        known = set(self._kept[0])
        if known.issuperset(names):
            return lambda index: self._kept[index]
        piece = list(before([values[name] for name in names], known))
        used = {value.name for node in piece for value in node.inputs if value is not None}
        if (used.union(names) - known) & set(self.dataset.batches[0].feeds):
            self._restart()  # asked for what lies behind and is no longer kept
            return self.onto(model, names)
        made = {value.name for node in piece for value in node.outputs if value.name}
        behind = self._run | made
        # What bodies capture is not among a node's inputs: then everything is fed, nothing kept.
        keep = not has_bodies(model)
        live = {
            name
            for name in (known | made)
            if any(_first_output(user) not in behind for user in values[name].consumers())
        }
        fetched = sorted(made & (live | set(names)))
        fed = sorted(known & used if keep else known)
        session = self._session(model, fed, fetched)
        if keep:
            self._run = behind

        def values_of(index: int) -> Values:
            nonlocal keep
            before = self._kept[index]
            feeds = {name: before[name] for name in fed}
            found = {**before, **dict(zip(fetched, run(session, feeds, fetched), strict=True))}
            if index == 0 and keep:
                size = sum(found[name].nbytes for name in live)
                if size * len(self._kept) > self.most_bytes:
                    keep = False
                    self._restart()
            if keep:
                self._kept[index] = {name: found[name] for name in live}
            return found

        return values_of

    def _restart(self) -> None:
        self._run = set()
        self._kept = [batch.feeds for batch in self.dataset.batches]

    def _session(self, model: ir.Model, fed: Sequence[str], fetched: Sequence[str]) -> object:
        with session_source(piece_of(model, fed, fetched)) as source:
            return open_session(source, threads=self.threads)


def piece_of(model: ir.Model, fed: Sequence[str], fetched: Sequence[str]) -> ir.Model:
    """What computes some values of a model from others, for inputs of any shape.

    Raises:
        ValueError: It takes more than these.
    """
    graph = extract(model.graph, fed, fetched)
    for value in (*graph.inputs, *graph.outputs):
        value.shape = None  # declared for one sample, perhaps
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    functions = list(model.functions.values())
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def _first_output(node: ir.Node) -> str | None:
    return node.outputs[0].name
