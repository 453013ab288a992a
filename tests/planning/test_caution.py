"""Layers that predict the offsets of a DeformConv: found, and held to a tighter tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt import Options, optimize
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.planning.caution import OFFSET_CAUTION, caution, predicts_offsets
from graphopt.planning.choices import price
from graphopt.progress import Silent
from graphopt.rewrites.base import Proposal

DECLARED = "float[18,4,3,3] v, float[6,4,3,3] w, float[27,4,3,3] u, float[18,18,1,1] t"


def scope_of(nodes: str, **weights: Any) -> Scope:
    proto = build(
        f"net (float[1,4,6,5] x, float[1,18,6,5] o) => (float[1,N,6,5] y) <{DECLARED}> {{ {nodes} }}",
        opset=19,
        weights=weights,
    )
    model = ir.from_proto(proto)
    return Scope(model, model.graph, infer(model, {"x": (1, 4, 6, 5), "o": (1, 18, 6, 5)}))


def conv(source: str, weight: str) -> str:
    return f"Conv<pads=[1,1,1,1]>({source}, {weight})"


def deform(offset: str, mask: str = "") -> str:
    return f"DeformConv<pads=[1,1,1,1]>(x, w, {offset}{', , ' + mask if mask else ''})"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (f"p = {conv('x', 'v')} y = {deform('p')}", True),
        (f"p = {conv('x', 'v')} s = Mul(p, two) c = Clip(s, low, two) y = {deform('c')}", True),
        (
            f"p = {conv('x', 'u')} a, b = Split<axis=1>(p, sizes) m = Sigmoid(b) y = {deform('a', 'm')}",
            True,
        ),
        (f"p = {conv('x', 'v')} c = Add(p, o) y = {deform('c')}", True),
        (f"p = {conv('x', 'v')} c = Conv(p, t) y = {deform('c')}", False),
        (f"p = {conv('x', 'v')} y = {deform('o')}", False),
        (f"p = {conv('x', 'n')} m = Sigmoid(p) y = {deform('o', 'm')}", False),
        (f"p = {conv('x', 'v')} y = Relu(p)", False),
    ],
)
def test_which_layers_predict_offsets(nodes: str, expected: bool) -> None:
    scope = scope_of(
        nodes,
        two=np.float32(2),
        low=np.float32(-2),
        sizes=np.asarray([18, 9]),
        n=np.zeros((9, 4, 3, 3), np.float32),
    )
    first = next(iter(scope.graph))
    assert predicts_offsets(first) == expected
    assert caution(first) == (OFFSET_CAUTION if expected else 1.0)


def test_the_deformable_layer_itself_is_like_any_other() -> None:
    scope = scope_of(f"p = {conv('x', 'v')} y = {deform('p')}")
    assert [caution(node) for node in scope.graph] == [OFFSET_CAUTION, 1.0]
    assert OFFSET_CAUTION > 1


@dataclass(eq=False)
class Fake:
    """A candidate that changes nothing but the name of its layer."""

    error: float
    layer: Any
    macs_ratio: float = 0.5
    rewrite: str = "fake"

    @property
    def candidate(self) -> Any:
        return self

    @property
    def realised(self) -> Any:
        return self

    def propose(self, scope: Scope, node: ir.Node) -> Proposal:
        return Proposal(self.rewrite, (node,), lambda: None)


class Guard:
    """Whatever is put in place, the outputs differ by as much."""

    def fitting_error(self, model: ir.Model) -> float:
        return 0.01


def test_what_a_choice_costs_is_weighed() -> None:
    """The same measured output error counts more for the layer that predicts offsets."""
    scope = scope_of(f"p = {conv('x', 'v')} y = {deform('p')}")
    offered = {node.outputs[0].name: node for node in scope.graph}
    candidates = {name: [Fake(0.1, type("L", (), {"name": name}))] for name in offered}
    found = price(scope, candidates, candidates.items(), Guard(), None, Silent())
    errors = {option.layer: option.choices[0].error for option in found.options}
    assert errors["p"] == pytest.approx(OFFSET_CAUTION * errors["y"])
    assert errors["y"] == pytest.approx(0.01)


def nearly_low_rank(outputs: int, off: float) -> Any:
    """A weight [O, 64, 3, 3] that 16 input directions explain but for a share of its norm."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    main = rng.standard_normal((outputs * 9, 16)) @ basis[:16]
    rest = np.linalg.qr(rng.standard_normal((outputs * 9, 48)))[0] @ basis[16:]
    rest *= off * np.linalg.norm(main) / np.linalg.norm(rest)
    weight = (main + rest).reshape(outputs, 9, 64).transpose(0, 2, 1).reshape(outputs, 64, 3, 3)
    return (weight / 200).astype(np.float32)


@pytest.mark.parametrize(("off", "taken"), [(2e-5, (True, True)), (8.5e-5, (True, False))])
def test_without_a_budget_too(tmp_path, monkeypatch, off, taken) -> None:
    """The tolerance of 1e-4 for a weight that is of low rank already is divided."""
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    ends = (
        "p = Conv<pads=[1,1,1,1]>(x, v) y = Identity(p)",
        "p = Conv<pads=[1,1,1,1]>(x, v) y = DeformConv<pads=[1,1,1,1]>(x, w, p)",
    )
    for nodes, expected, outputs in zip(ends, taken, (18, 8), strict=True):
        proto = build(
            f"net (float[1,64,8,8] x) => (float[1,{outputs},8,8] y) <float[8,64,3,3] w> {{ {nodes} }}",
            opset=19,
            weights={"v": nearly_low_rank(18, off)},
        )
        path = tmp_path / "net.onnx"
        onnx.save(proto, path)
        report = optimize(path, Options(bench=False, dry_run=True))
        names = [entry.name for entry in report.rewrites if entry.kind == "approximate"]
        assert bool(names) == expected
