"""How far off a model is in which few layers differ from a known one: only what they reach is run.

What comes before is the same for all candidates of a layer, and nearly the same for the next layer's:
it is run once, and goes on from layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.convenience import create_value_mapping

from graphopt.calibration.walk import Walk, piece_of
from graphopt.graph.alike import alike
from graphopt.graph.dataflow import before
from graphopt.graph.hollow import Hollow, hollow
from graphopt.graph.io import session_source
from graphopt.graph.scope import has_bodies
from graphopt.runtime import Array, open_session, run
from graphopt.verification.compare import Reference


@dataclass
class Trials:
    """Compares models made of `known` with a reference that `known` itself keeps to.

    emptied: models run without their weights, which are fed: cheaper where it takes longer to open
    a model than to run it on the few samples of the reference.
    """

    reference: Reference
    known: ir.Model
    emptied: bool = False
    _walk: Walk = field(init=False)

    def __post_init__(self) -> None:
        self._walk = Walk(self.reference.dataset, self.reference.threads)

    def error(self, model: ir.Model) -> float:
        """The largest relative error of an output, on the reference's samples.

        An output that no change reaches has none.

        Raises:
            InputError: onnxruntime cannot load or run the model.
            VerificationError: Outputs are missing, of another shape, or not finite.
        """
        if has_bodies(model) or has_bodies(self.known):  # which may read what they do not name
            with session_source(model) as source:
                return self.reference.compare(source).error
        same = alike(self.known.graph, model.graph)
        names = [value.name or "" for value in model.graph.outputs]
        reached = [name for name in names if name not in same]
        if not reached:
            return 0.0
        values = create_value_mapping(model.graph, include_subgraphs=False)
        changed = list(before([values[name] for name in reached], same))
        read = {value.name for node in changed for value in node.inputs if value is not None}
        fed = sorted(same & read)
        piece = piece_of(model, fed, reached)
        trial = hollow(piece) if self.emptied else Hollow(piece, {})
        with session_source(trial.model) as source:
            session = open_session(source, threads=self.reference.threads)
        known = self._walk.onto(self.known, fed)

        def answers(index: int, expected: Sequence[Array]) -> list[Array]:
            given = known(index)
            feeds = {**{name: given[name] for name in fed}, **trial.weights}
            found = dict(zip(reached, run(session, feeds, reached), strict=True))
            return [found.get(name, y) for name, y in zip(names, expected, strict=True)]

        return self.reference.judge(names, answers).error
