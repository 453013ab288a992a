"""A budget without data: batch statistics reach the fit, and a note says what data would buy."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt.assembly.notes import fitted_blindly
from graphopt.evidence import _without_data
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import bind_inputs, infer
from graphopt.planning.budget import Budget
from graphopt.planning.workshop import identity_moments
from graphopt.rewrites.approximate.layer import Layer

NET = """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
    n = BatchNormalization(x, gamma, beta, mu, var)
    y = Conv<pads=[1,1,1,1]>(n, w)
}"""


@pytest.fixture
def scope():
    rng = np.random.default_rng(0)
    weights = {name: rng.uniform(0.5, 2, 3) for name in ("gamma", "beta", "mu", "var")}
    weights["w"] = rng.standard_normal((4, 3, 3, 3))
    model = ir.from_proto(build(NET, weights={k: v.astype(np.float32) for k, v in weights.items()}))
    return Scope(model, model.graph, infer(model, bind_inputs(model.graph, {})))


def fitted(scope, budget):
    job = SimpleNamespace(
        options=SimpleNamespace(budget=budget),
        source=SimpleNamespace(model=scope.model),
        infos=scope.infos,
    )
    layer = Layer.of(next(n for n in scope.graph if n.op_type == "Conv"), scope)
    return _without_data(job, scope, [layer])["y"][0]


def test_means_are_used_inside_a_budget_only(scope):
    assert np.all(fitted(scope, Budget(speedup=1.2)).mean_input > 0)
    assert not np.any(fitted(scope, Budget()).mean_input)


def plan(*moments):
    """A plan of one layer each."""
    return tuple(
        (
            SimpleNamespace(
                layer=str(i),
                candidate=SimpleNamespace(workshop=SimpleNamespace(moments={str(i): [m]})),
            ),
            None,
        )
        for i, m in enumerate(moments)
    )


def test_the_note_says_what_was_fitted_to(scope):
    layer = Layer.of(next(n for n in scope.graph if n.op_type == "Conv"), scope)
    (alone,) = identity_moments(layer)
    known = fitted(scope, Budget(speedup=1.2))
    (note,) = fitted_blindly(Budget(speedup=1.2), plan(alone, known))
    assert "to their weights and batch statistics (1 of 2 layers)" in note
    assert "64 real samples (--data)" in note
    (note,) = fitted_blindly(Budget(speedup=1.2), plan(alone))
    assert "to their weights alone;" in note


def test_there_is_no_note_with_data_without_a_budget_or_without_a_plan(scope):
    known = fitted(scope, Budget(speedup=1.2))
    real = SimpleNamespace(samples=64, mean_input=known.mean_input)
    assert fitted_blindly(Budget(max_error=0.1), plan(real)) == []
    assert fitted_blindly(Budget(), plan(known)) == []
    assert fitted_blindly(Budget(max_error=0.1), ()) == []
