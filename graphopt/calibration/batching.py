"""How many samples go into a batch: the model's own number, else 32, less for small sets."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.errors import InputError
from graphopt.graph.shapes import dimension, true_inputs

_BATCH = 32


def fixed_batch(graph: ir.Graph) -> int | None:
    """The batch that the model's inputs declare, None where it is open."""
    return next((n for v in true_inputs(graph) if (n := dimension(v, 0)) is not None), None)


def cuts(total: int, graph: ir.Graph, where: str) -> list[slice]:
    """Cut samples into batches; an open batch is small enough that some can be held out.

    Samples beyond the last whole fixed batch are left out. `where` is named in the error.

    Raises:
        InputError: Fewer samples than the model's fixed batch.
    """
    size = fixed_batch(graph)
    if size is None:
        step = _BATCH if total >= 4 * _BATCH else max(1, total // 4)
        return [slice(start, min(start + step, total)) for start in range(0, total, step)]
    if total < size:
        raise InputError(f"{where}: {total} samples, fewer than the model's batch of {size}")
    return [slice(start, start + size) for start in range(0, total - total % size, size)]
