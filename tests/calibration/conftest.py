from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from onnx_text import build


@pytest.fixture
def model() -> Callable[..., ir.Model]:
    def make(text: str, **more) -> ir.Model:
        return ir.from_proto(build(text, **more))

    return make
