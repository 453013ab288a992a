"""A small decoder with a transposed convolution of nearly low rank, through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import build

from graphopt import Budget

NETWORK = """
net (float[N,3,8,8] x) => (float[N,4,16,16] y)
<float[64,3,3,3] v, float[64] a, float[64,32,KERNEL] w, float[32] b, float[4,32,1,1] u>
{
    c = Conv <pads = [1,1,1,1]> (x, v, a)
    r = Relu (c)
    t = ConvTranspose <strides = [2,2] GEOMETRY> (r, w, b)
    s = Relu (t)
    y = Conv (s, u)
}
"""


@pytest.fixture(params=["", ", pads = [1,1,1,1]"], ids=["2x2", "4x4"])
def decoder(request: pytest.FixtureRequest, folder: Path) -> Path:
    """Sixteen of sixty-four directions of what the transposed layer sees matter to it."""
    size = 4 if request.param else 2
    rng = np.random.default_rng(1)
    strengths = np.where(np.arange(64) < 16, 1.0, 0.02)
    basis = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    weight = (basis.T * strengths) @ rng.standard_normal((64, 32 * size**2)) / 8
    text = NETWORK.replace("GEOMETRY", request.param).replace("KERNEL", f"{size},{size}")
    network = build(text, weights={"w": weight.reshape(64, 32, size, size).astype(np.float32)})
    for node in network.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.save(network, "decoder.onnx")
    return Path("decoder.onnx")


def test_a_budget_thins_the_transposed_layer(run, decoder, data):
    report = run(decoder, data=data, budget=Budget(max_error=0.05))
    (entry,) = [e for e in report.rewrites if "make_t" in e.site]
    assert entry.kind == "approximate"
    assert 0 < entry.measured_error < 0.05
    assert report.after.macs < 0.8 * report.before.macs
    written = [n.op_type for n in onnx.load("decoder.opt.onnx").graph.node]
    assert "ConvTranspose" in written
    assert all(output.relative_l2 <= 0.05 for output in report.verification.outputs)


def test_so_it_does_without_data(run, decoder):
    report = run(decoder, budget=Budget(max_error=0.05))
    assert any("make_t" in entry.site for entry in report.rewrites)
