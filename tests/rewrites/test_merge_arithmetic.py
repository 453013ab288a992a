"""merge-arithmetic: chains of Mul/Div and of Add/Sub by constants, and what must stay a chain."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import body, build, has, listed, optimize, rewrite

from graphopt.rewrites.cleanup.library import RemoveDead
from graphopt.rewrites.exact.merge_arithmetic import MergeArithmetic

MERGE = MergeArithmetic()
MULTIPLIED = ("Mul({}, {k})", "Mul({k}, {})", "Div({}, {k})", "Div({k}, {})")
ADDED = ("Add({}, {k})", "Add({k}, {})", "Sub({}, {k})", "Sub({k}, {})")


def chain(
    first: str,
    second: str,
    k: object = 2.0,
    m: object = 3.0,
    *,
    dtype: type = np.float32,
    shape: str = "2,3,4,4",
    opset: int = 17,
) -> onnx.ModelProto:
    """x -> first with k -> second with m -> y."""
    type_name = {"float32": "float", "float64": "double"}.get(np.dtype(dtype).name)
    type_name = type_name or np.dtype(dtype).name
    return build(
        f"""net ({type_name}[{shape}] x) => ({type_name}[{shape}] y)
        {{ a = {first.format("x", k="k")} y = {second.format("a", k="m")} }}""",
        weights={"k": np.asarray(k, dtype), "m": np.asarray(m, dtype)},
        opset=opset,
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [*itertools.product(MULTIPLIED, repeat=2), *itertools.product(ADDED, repeat=2)],
)
def test_every_pair_of_one_family(first: str, second: str) -> None:
    channels = np.array([1.5, -2.0, 0.75]).reshape(3, 1, 1)
    model = chain(first, second, channels, 3.0)
    result = optimize(model, MERGE, tolerance=1e-6)
    assert len(result.ops) == 1
    assert result.names == ["merge-arithmetic"]
    assert result.declined == ()


@pytest.mark.parametrize(
    ("first", "second", "merged", "number"),
    [
        ("Div({}, {k})", "Div({}, {k})", "Div", 6.0),
        ("Mul({}, {k})", "Div({}, {k})", "Mul", np.float32(2 / 3)),
        ("Div({}, {k})", "Mul({}, {k})", "Mul", 1.5),
        ("Sub({}, {k})", "Sub({}, {k})", "Sub", 5.0),
        ("Add({}, {k})", "Sub({}, {k})", "Add", -1.0),
        ("Sub({k}, {})", "Sub({k}, {})", "Add", 1.0),
    ],
)
def test_what_becomes_of_it(first: str, second: str, merged: str, number: float) -> None:
    result = optimize(chain(first, second), MERGE, tolerance=1e-6)
    assert result.ops == [merged]
    assert result.weight(0, 1) == number


@pytest.mark.parametrize("first", MULTIPLIED)
@pytest.mark.parametrize("second", ADDED)
def test_products_and_sums_do_not_mix(first: str, second: str) -> None:
    result = optimize(chain(first, second), MERGE, tolerance=1e-6)
    assert len(result.ops) == 2
    assert result.declined == ()


def test_long_chain() -> None:
    model = build(
        """net (float[2,3] x) => (float[2,3] y) <float[3] vark, float[3] varm, float[3] varn, float[1] vare>
        { a = Mul(x, vark) b = Div(a, varm) c = Mul(varn, b) d = Div(vare, c)
          e = Add(d, vark) y = Add(e, varm) }"""
    )
    assert optimize(model, MERGE).ops == ["Div", "Add"]


@pytest.mark.parametrize(
    ("k", "m", "merges"),
    [
        ((3, 1, 1), (1,), True),
        ((), (1, 3, 1, 1), True),
        ((3, 1, 1), (3, 1, 1), True),
        ((1, 1, 1, 1, 1), (2, 3, 4, 4), True),
        ((3, 1, 1), (4, 4), False),
        ((2, 1, 1, 1), (3, 1, 1), False),
        ((4,), (4, 1), False),
    ],
)
def test_shapes(k: tuple[int, ...], m: tuple[int, ...], merges: bool) -> None:
    """A merged constant is never larger than the larger of the two."""
    rng = np.random.default_rng(0)
    model = build(
        "net (float[2,3,4,4] x) => (float[?a,?b,?c,?d] y) { a = Mul(x, k) y = Mul(a, m) }".replace(
            "?a,?b,?c,?d", "1,2,3,4,4" if len(k) == 5 else "2,3,4,4"
        ),
        weights={
            "k": np.asarray(rng.uniform(1, 2, k), np.float32),
            "m": np.asarray(rng.uniform(1, 2, m), np.float32),
        },
    )
    result = optimize(model, MERGE)
    assert len(result.ops) == (1 if merges else 2)
    assert merges or has(result.reasons, "larger than either")


def test_the_first_constant_may_widen_the_value() -> None:
    model = build(
        """net (float[2,1,4,4] x) => (float[2,3,4,4] y) <float[3,1,1] k, float[3,1,1] m>
        { a = Mul(x, k) y = Mul(a, m) }"""
    )
    assert optimize(model, MERGE).ops == ["Mul"]


@pytest.mark.parametrize(
    ("first", "second", "k", "m"),
    [
        ("Mul({}, {k})", "Div({}, {k})", 2.0, 0.0),
        ("Div({}, {k})", "Mul({}, {k})", 0.0, 2.0),
        ("Div({}, {k})", "Div({k}, {})", 0.0, 2.0),
        ("Mul({}, {k})", "Div({k}, {})", 0.0, 2.0),
        ("Div({k}, {})", "Div({k}, {})", 0.0, 2.0),
    ],
)
def test_division_by_zero(first: str, second: str, k: float, m: float) -> None:
    result = rewrite(chain(first, second, k, m), MERGE)
    assert len(result.ops) == 2
    assert has(result.reasons, "divides by zero")


def test_a_factor_of_zero_is_a_factor() -> None:
    result = optimize(chain(MULTIPLIED[0], MULTIPLIED[0], [0.0, 1, 2, 3], 2.0), MERGE)
    assert result.ops == ["Mul"]


@pytest.mark.parametrize(("k", "m"), [(1e30, 1e30), (1e-30, 1e-30), (1e-25, 1e-18), (-1e20, 1e20)])
def test_range_of_single_precision(k: float, m: float) -> None:
    result = rewrite(chain(MULTIPLIED[0], MULTIPLIED[0], k, m), MERGE)
    assert result.ops == ["Mul", "Mul"]
    assert has(result.reasons, "out of the range of float32")


def test_range_of_double_precision() -> None:
    """The product is zero already where it is computed."""
    model = chain(MULTIPLIED[0], MULTIPLIED[0], 1e-200, 1e-200, dtype=np.float64)
    result = rewrite(model, MERGE)
    assert result.ops == ["Mul", "Mul"]
    assert has(result.reasons, "out of the range of float64")


def test_range_of_half_precision() -> None:
    """1.3e-6 is below what float16 holds with 11 bits."""
    model = chain(MULTIPLIED[0], MULTIPLIED[0], 1 / 255, 1 / 3000, dtype=np.float16)
    result = rewrite(model, MERGE)
    assert has(result.reasons, "out of the range of float16")
    assert rewrite(chain(ADDED[0], ADDED[0], 6e4, 6e4, dtype=np.float16), MERGE).names == []


@pytest.mark.parametrize("constant", [np.inf, -np.inf, np.nan])
def test_constants_that_are_no_numbers(constant: float) -> None:
    result = rewrite(chain(ADDED[0], ADDED[0], constant, 1.0), MERGE)
    assert len(result.ops) == 2
    assert has(result.reasons, "not finite")


def test_rounding_by_a_magic_number_stays() -> None:
    """x + 1.5 * 2^23 - 1.5 * 2^23 rounds x to an integer."""
    result = optimize(chain("Add({}, {k})", "Sub({}, {k})", 12582912.0, 12582912.0), MERGE)
    assert result.ops == ["Add", "Sub"]
    assert has(result.reasons, "cancel")
    almost = optimize(chain("Add({}, {k})", "Sub({}, {k})", 12582912.0, 12582911.0), MERGE)
    assert almost.ops == ["Add", "Sub"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 2e-3), (np.float64, 1e-14)])
def test_other_floats(dtype: type, tolerance: float) -> None:
    model = chain("Mul({}, {k})", "Div({}, {k})", [1.5, 2, 3, 0.1], 3.0, dtype=dtype)
    result = optimize(model, MERGE, tolerance=tolerance)
    assert result.ops == ["Mul"]
    assert result.weight(0, 1).dtype == dtype


def test_bfloat16() -> None:
    """onnxruntime has no bfloat16 Mul on the CPU: only the constant is looked at."""
    weights = {"k": np.array(1.5, ml_dtypes.bfloat16), "m": np.array(2.5, ml_dtypes.bfloat16)}
    model = build(
        "net (bfloat16[4] x) => (bfloat16[4] y) { a = Mul(x, k) y = Mul(a, m) }", weights=weights
    )
    result = rewrite(model, MERGE)
    assert result.ops == ["Mul"]
    tensor = result.proto.graph.initializer[0]
    assert tensor.data_type == onnx.TensorProto.BFLOAT16
    assert float(onnx.numpy_helper.to_array(tensor).reshape(-1)[0]) == 3.75


@pytest.mark.parametrize("first", ADDED)
@pytest.mark.parametrize("second", ADDED)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_sums_of_integers_wrap_as_they_did(dtype: type, first: str, second: str) -> None:
    limits = np.iinfo(dtype)
    k, m = [limits.max, 1, 7, limits.max // 2], [3, limits.min, 200 % limits.max, limits.max]
    result = optimize(chain(first, second, k, m, dtype=dtype), MERGE)
    assert len(result.ops) == 1


def test_products_of_integers_but_no_quotients() -> None:
    assert optimize(chain(MULTIPLIED[0], MULTIPLIED[1], 3, 5, dtype=np.int32), MERGE).ops == ["Mul"]
    model = chain("Mul({}, {k})", "Div({}, {k})", 3, 2, dtype=np.int32)
    result = optimize(model, MERGE)
    assert result.ops == ["Mul", "Div"]
    assert has(result.reasons, "integers round")


def test_value_in_between_used_elsewhere() -> None:
    for text in (
        "net (float[4] x) => (float[4] y, float[4] a) <float[4] k, float[4] m> "
        "{ a = Mul(x, k) y = Mul(a, m) }",
        "net (float[4] x) => (float[4] y, float[4] z) <float[4] k, float[4] m> "
        "{ a = Mul(x, k) y = Mul(a, m) z = Relu(a) }",
    ):
        result = optimize(build(text), MERGE)
        assert result.names == []
        assert has(result.reasons, "needed elsewhere")


def test_shared_constant_and_its_own_square() -> None:
    """One constant in both places, used by a third node as well; x * x is no site."""
    model = build(
        """net (float[2,4] x) => (float[2,4] y, float[2,4] z, float[2,4] q) <float[4] k>
        { a = Mul(x, k) y = Mul(k, a) z = Add(x, k) b = Mul(x, x) c = Mul(b, b) q = Mul(c, k) }"""
    )
    result = optimize(model, MERGE)
    assert result.ops == ["Mul", "Add", "Mul", "Mul", "Mul"] or len(result.ops) == 5
    assert result.names == ["merge-arithmetic"]


def test_two_values_at_run_time_are_no_site() -> None:
    model = build(
        """net (float[4] x, float[4] v) => (float[4] y) <float[4] k>
        { a = Mul(x, v) b = Mul(a, k) y = Mul(b, v) }"""
    )
    result = optimize(model, MERGE)
    assert len(result.ops) == 3
    assert result.declined == ()


def test_overridable_constant() -> None:
    model = listed(chain(MULTIPLIED[0], MULTIPLIED[0], [1, 2, 3, 4], [1, 2, 3, 4]), "k")
    result = optimize(model, MERGE)
    assert result.ops == ["Mul", "Mul"]
    assert has(result.reasons, "overridden")


def test_constants_behind_other_nodes() -> None:
    model = build(
        """net (float[2,3,4] x) => (float[2,3,4] y) <double[3,1] d, float[4] k>
        { c = Cast<to = 1>(d) i = Identity(c) a = Sub(x, i) m = Constant<value_float = 2.0>()
          y = Sub(m, a) }"""
    )
    assert optimize(model, MERGE, RemoveDead()).ops == ["Sub"]


def test_generated_constants_stay_generated() -> None:
    """400 MB that a file of 0.3 kB generates are neither computed nor stored."""
    model = build(
        """net (float[1,10000] x) => (float[10000,10000] y) <int64[2] s>
        { k = ConstantOfShape<value = float[1] {0.5}>(s) a = Mul(x, k) y = Mul(a, m) }""",
        weights={"s": np.array([10000, 10000]), "m": np.float32(3)},
    )
    result = rewrite(model, MERGE, RemoveDead())
    assert result.ops == ["ConstantOfShape", "Mul"]
    assert result.proto.ByteSize() < 1000


def test_generated_constant_is_not_stored() -> None:
    model = build(
        """net (float[1,1000] x) => (float[1000,1000] y) <int64[2] s, float[1000] m>
        { k = ConstantOfShape<value = float[1] {0.5}>(s) a = Mul(x, k) y = Mul(a, m) }""",
        weights={"s": np.array([1000, 1000])},
    )
    result = rewrite(model, MERGE)
    assert has(result.reasons, "generated constant")
    assert result.proto.ByteSize() < 10000


def test_in_a_body() -> None:
    model = build(
        """net (float[4] x, bool c) => (float[4] y) <float[4] k, float[4] m>
        { a = Mul(x, k)
          y = If (c) <then_branch = t () => (float[4] yt) { b = Mul(x, k) yt = Div(b, m) },
                      else_branch = e () => (float[4] ye) { ye = Mul(a, m) }> }"""
    )
    for cond in (True, False):
        result = optimize(model, MERGE, feeds={"c": np.asarray(cond)})
        assert [n.op_type for n in body(result.proto, "If", "then_branch").node] == ["Mul"]
        assert result.ops == ["Mul", "If"]
        assert has(result.reasons, "outside this body")


def test_open_dimensions() -> None:
    model = build(
        """net (float[N,3,H,W] x) => (float[N,3,H,W] y) <float[3,1,1] k, float[1,3,1,1] m>
        { a = Sub(x, k) y = Sub(a, m) }"""
    )
    runs = [{"x": (1, 3, 2, 5)}, {"x": (4, 3, 1, 1)}]
    assert optimize(model, MERGE, runs=runs).ops == ["Sub"]


@pytest.mark.parametrize("opset", [7, 13, 22])
def test_opsets(opset: int) -> None:
    assert optimize(chain(ADDED[0], ADDED[3], opset=opset), MERGE).ops == ["Sub"]


def test_broadcasting_by_attribute_is_declined() -> None:
    model = build(
        """net (float[4,3] x) => (float[4,3] y) <float[4] k, float[4] m>
        { a = Mul<broadcast=1, axis=0>(x, k) y = Mul<broadcast=1, axis=0>(a, m) }""",
        opset=6,
    )
    result = rewrite(model, MERGE)
    assert result.ops == ["Mul", "Mul"]
    assert has(result.reasons, "older than 7")


def test_gelu_stays_whole() -> None:
    """onnxruntime fuses it by its last factor."""
    text = """net (float[2,4] x) => (float[2,4] y)
        { d = Div(x, r) e = Erf(d) s = Add(e, one) p = Mul(x, s) a = Mul(p, half) y = Mul(a, k) }"""
    numbers = {"r": 1.4142, "one": 1.0, "half": 0.5, "k": 3.0}
    result = optimize(build(text, weights={n: np.float32(v) for n, v in numbers.items()}), MERGE)
    assert result.names == []
    assert has(result.reasons, "Gelu that onnxruntime runs as one")
    numbers["half"] = 0.25
    model = build(text, weights={n: np.float32(v) for n, v in numbers.items()})
    assert optimize(model, MERGE).names == ["merge-arithmetic"]


@given(data=st.data())
@settings(deadline=None, derandomize=True, max_examples=40)
def test_random_chains(data: st.DataObject) -> None:
    """Whatever is merged computes the same, and a chain of one family ends as one node."""
    family = data.draw(st.sampled_from([MULTIPLIED, ADDED]))
    steps = data.draw(st.lists(st.sampled_from(family), min_size=2, max_size=5))
    shapes = st.sampled_from([(), (1,), (3, 1, 1), (1, 3, 1, 1)])
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    lines, weights, value = [], {}, "x"
    for index, step in enumerate(steps):
        weights[f"k{index}"] = np.asarray(rng.uniform(0.5, 2, data.draw(shapes)), np.float32)
        lines.append(f"v{index} = {step.format(value, k=f'k{index}')}")
        value = f"v{index}"
    lines[-1] = lines[-1].replace(f"v{len(steps) - 1} =", "y =")
    model = build(
        f"net (float[2,3,2,2] x) => (float[2,3,2,2] y) {{ {' '.join(lines)} }}", weights=weights
    )
    result = optimize(model, MERGE, tolerance=1e-5)
    assert len(result.ops) == 1 or has(result.reasons, "cancel")
