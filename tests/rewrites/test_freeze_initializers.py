"""freeze-initializers: which initializers listed as inputs stay overridable."""

from __future__ import annotations

import onnx
import pytest
from onnx_text import build, check_same, has, listed, rewrite

from graphopt.rewrites import CLEANUP, EXACT
from graphopt.rewrites.cleanup.freeze_initializers import FreezeInitializers, FreezeMode
from graphopt.rewrites.exact.fuse_conv_bn import FuseConvBatchNorm

ALL = ("w", "g", "b", "mean", "var")


def model(*names: str, ir_version: int = 8) -> onnx.ModelProto:
    proto = build(
        """net (float[1,3,6,6] x) => (float[1,4,4,4] y)
        <float[4,3,3,3] w, float[4] g, float[4] b, float[4] mean, float[4] var>
        { c = Conv(x, w) y = BatchNormalization(c, g, b, mean, var) }""",
        ir_version=ir_version,
        opset=9,
    )
    return listed(proto, *names) if names else proto


@pytest.mark.parametrize(
    ("mode", "names", "ir_version", "frozen", "because"),
    [
        ("auto", ALL, 8, True, "all initializers are listed"),
        ("auto", ALL, 3, True, "IR version 3 demands the listing"),
        ("auto", ("w",), 8, False, None),
        ("auto", (), 8, False, None),
        ("freeze", ("w",), 8, True, "--freeze-initializers"),
        ("freeze", ALL, 8, True, "--freeze-initializers"),
        ("keep", ALL, 8, False, None),
        ("keep", ALL, 3, False, None),
    ],
)
def test_decision(
    mode: FreezeMode, names: tuple[str, ...], ir_version: int, frozen: bool, because: str | None
) -> None:
    original = model(*names, ir_version=ir_version)
    result = rewrite(original, FreezeInitializers(mode))
    kept = [] if frozen else list(names)
    assert [value.name for value in result.proto.graph.input] == ["x", *kept]
    if frozen:
        (change,) = result.applied
        assert change.options["because"] == because
        assert change.options["initializers"] == len(names)
        assert change.options.get("ir_version") == (4 if ir_version == 3 else None)
    else:
        assert result.applied == ()
    assert result.proto.ir_version == (4 if frozen and ir_version == 3 else ir_version)
    check_same(original, result.proto)
    assert rewrite(result.proto, FreezeInitializers(mode)).applied == ()


def test_frozen_weights_can_be_fused() -> None:
    result = rewrite(model(*ALL, ir_version=3), *CLEANUP, FuseConvBatchNorm())
    assert result.ops == ["Conv"]


def test_kept_weights_are_declined() -> None:
    result = rewrite(model(*ALL), FreezeInitializers("keep"), *CLEANUP[1:], *EXACT)
    assert result.ops == ["Conv", "BatchNormalization"]
    assert has(result.reasons, "can be overridden")


def test_ir_3_without_listed_initializers_stays_valid() -> None:
    """Weights in Constant nodes: what a fusion makes must not be an unlisted initializer either."""
    ones = "Constant<value = float[2] {1.5, 0.5}>()"
    original = build(
        f"""net (float[1,1,4,4] x) => (float[1,2,4,4] y)
        {{ w = Constant<value = float[2,1,1,1] {{2.0, -1.0}}>() g = {ones} b = {ones}
           mean = {ones} var = {ones} v = Identity(w) c = Conv(x, v)
           y = BatchNormalization(c, g, b, mean, var) }}""",
        ir_version=3,
        opset=9,
    )
    result = rewrite(original, *CLEANUP, *EXACT)
    assert result.ops.count("Conv") == 1
    assert "BatchNormalization" not in result.ops
    assert result.proto.ir_version == 3
    check_same(original, result.proto)


def test_a_symbol_of_an_input_survives() -> None:
    proto = build("net (float[N,3] x) => (float[N,3] y) <float[3] w> { y = Mul(x, w) }")
    original = listed(proto, "w")
    result = rewrite(original, FreezeInitializers("freeze"))
    assert result.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
