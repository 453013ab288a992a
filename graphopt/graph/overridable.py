"""Initializers that a caller may override, kept out of sight of who would take them for constant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir


@contextmanager
def overridable_hidden(model: ir.Model) -> Iterator[None]:
    """Inside, initializers that are listed as graph inputs are plain inputs without a default.

    Libraries' shape inference and folding believe defaults, which need not be what is fed.
    """
    graph, before = model.graph, dict(model.graph.initializers)
    held = {value: value.const_value for value in graph.inputs if value.is_initializer()}
    for value in held:
        assert value.name is not None
        del graph.initializers[value.name]
        value.const_value = None
    try:
        yield
    finally:
        for value, tensor in held.items():
            value.const_value = tensor
        after = dict(graph.initializers)
        graph.initializers.clear()
        for name, value in {**before, **after}.items():  # the order stays
            if value in held or name in after:
                graph.initializers[name] = value
