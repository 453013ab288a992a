"""Deformable convolution: two implementations of it, what it costs, and a network inside a budget.

| claim                                                        | figure            | where                  |
| ------------------------------------------------------------ | ----------------- | ---------------------- |
| zero offsets and a mask of ones: the plain convolution       | equal             | Dai 2017, 2.1          |
| 3x3 C->C between 1x1 of a quarter the width, as a ResNet's   | 8.47x fewer MACs  | ResNet, figure 5       |
| ... and samples a quarter of the channels                    | 4x fewer samples  |                        |
| mixing channels of one offset group commutes with sampling   | equal             | (linearity)            |

Dai et al. 2017, "Deformable convolutional networks"; Zhu et al. 2019, "Deformable ConvNets v2" (masks).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_text import build, rewrite

from graphopt import Budget, Options, audit, optimize
from graphopt.calibration.accumulate import Accumulator
from graphopt.calibration.patches import patches, positions, sampled_patches
from graphopt.cost.counts import macs
from graphopt.evidence import geometry_of
from graphopt.graph.scope import Scope
from graphopt.graph.shapes import infer
from graphopt.planning.choices import with_candidates
from graphopt.planning.method import Method
from graphopt.planning.workshop import Workshop, identity_moments, metric
from graphopt.rewrites import EXACT
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.two_sided import TwoSided

Array = np.ndarray[Any, Any]
MODELS = Path(__file__).parents[2] / "models"


def run(model: onnx.ModelProto | Path, feeds: dict[str, Array], *names: str) -> list[Array]:
    """Outputs by onnxruntime, nothing optimized."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names) or None, feeds))


def distance(want: Array, got: Array) -> float:
    return float(np.linalg.norm(want - got) / np.linalg.norm(want))


# The operator: onnx.reference and onnxruntime, as it is and as graphopt rewrites what is around it.

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pads": {"pads": (1, 0, 2, 1)},
    "strides": {"strides": (2, 1), "pads": (1, 1, 1, 1)},
    "dilations": {"dilations": (2, 1), "pads": (1, 0, 1, 0)},
    "groups": {"group": 2},
    "offset groups": {"offset_group": 2, "pads": (1, 1, 0, 0)},
    "both": {"group": 2, "offset_group": 4},
    "more groups": {"group": 4, "offset_group": 2},
    "no mask": {"mask": False},
    "no bias": {"bias": False},
    "neither": {"bias": False, "mask": False},
    "far outside": {"reach": 20.0},
    "whole pixels": {"whole": True, "pads": (1, 1, 1, 1)},
    "double": {"dtype": np.float64},
}


def case(
    *,
    group: int = 1,
    offset_group: int = 1,
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    pads: tuple[int, ...] = (0, 0, 0, 0),
    bias: bool = True,
    mask: bool = True,
    reach: float = 1.0,
    whole: bool = False,
    dtype: Any = np.float32,
    opset: int = 19,
    kernel: tuple[int, int] = (2, 2),
    size: tuple[int, int] = (4, 3),
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """x [1, 4, 4, 3] -> scale per channel -> DeformConv to 4 channels -> scale and shift."""
    rng = np.random.default_rng(0)
    out = [
        (size[a] + pads[a] + pads[a + 2] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in (0, 1)
    ]
    taps = offset_group * kernel[0] * kernel[1]
    offsets = reach * rng.standard_normal((1, 2 * taps, *out))
    feeds = {"x": rng.standard_normal((1, 4, *size)), "o": np.rint(offsets) if whole else offsets}
    if mask:
        feeds["m"] = rng.uniform(0, 1, (1, taps, *out))
    rng = np.random.default_rng(1)  # the same constants for every size
    constants = {
        "w": rng.standard_normal((4, 4 // group, *kernel)),
        "a": rng.uniform(0.5, 2, (4, 1, 1)),
        "k": rng.uniform(0.5, 2, (4, 1, 1)),
        "t": rng.standard_normal((4, 1, 1)),
    }
    if bias:
        constants["b"] = rng.standard_normal(4)
    operands = ["s", "w", "o", "b" if bias else "", "m" if mask else ""]
    while not operands[-1]:
        operands.pop()
    attributes = {"strides": strides, "dilations": dilations, "pads": pads}
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["s"]),
        helper.make_node(
            "DeformConv", operands, ["c"], group=group, offset_group=offset_group, **attributes
        ),
        helper.make_node("Mul", ["c", "k"], ["d"]),
        helper.make_node("Add", ["d", "t"], ["y"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info("y", kind, [1, 4, *out])],
        [onnx.numpy_helper.from_array(a.astype(dtype), n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return model, {name: array.astype(dtype) for name, array in feeds.items()}


@pytest.mark.parametrize(
    ("name", "opset"), [*((name, 19) for name in CASES), ("plain", 22), ("both", 22)]
)
def test_both_implementations_agree_on_it_and_on_what_it_becomes(name: str, opset: int) -> None:
    """The reference rounds its coordinates to float32 in double precision too: hence 1e-6."""
    model, feeds = case(**CASES[name], opset=opset)
    onnx.checker.check_model(model, full_check=True)
    reference = ReferenceEvaluator(model).run(None, feeds)[0]
    assert distance(reference, run(model, feeds)[0]) < 1e-6
    result = rewrite(model, *EXACT)
    assert result.ops == ["DeformConv"]
    onnx.checker.check_model(result.proto, full_check=True)
    assert distance(reference, run(result.proto, feeds)[0]) < 1e-6
    assert distance(reference, ReferenceEvaluator(result.proto).run(None, feeds)[0]) < 1e-6


def test_where_they_differ() -> None:
    """On maps one pixel high: the reference divides by height - 1. onnxruntime gives what ONNX says."""
    model, feeds = case(size=(1, 3), kernel=(1, 2), mask=False)
    with pytest.raises(ValueError, match="NaN"), np.errstate(all="ignore"):
        ReferenceEvaluator(model).run(None, feeds)
    tall, more = case(size=(2, 3), kernel=(1, 2), mask=False)
    more["x"][:, :, 0], more["x"][:, :, 1] = feeds["x"][:, :, 0], 0.0
    more["o"][:, :, 0] = feeds["o"][:, :, 0]
    want = ReferenceEvaluator(tall).run(None, more)[0][:, :, :1]
    assert distance(want, run(model, feeds)[0]) < 1e-6


@pytest.mark.parametrize("opset", [19, 22])
def test_without_offsets_both_compute_a_convolution(opset: int) -> None:
    model, feeds = case(pads=(1, 0, 1, 1), strides=(2, 1), opset=opset, mask=False, reach=0.0)
    zeros = onnx.numpy_helper.from_array(feeds.pop("o"), "o")
    model.graph.input.remove(next(v for v in model.graph.input if v.name == "o"))
    model.graph.initializer.append(zeros)
    result = rewrite(model, *EXACT)
    assert result.ops == ["Conv"]
    reference = ReferenceEvaluator(model).run(None, feeds)[0]
    for found in (
        ReferenceEvaluator(result.proto).run(None, feeds)[0],
        run(result.proto, feeds)[0],
    ):
        assert distance(reference, found) < 1e-6


# What it costs.


def scope_of(model: onnx.ModelProto, **shapes: tuple[int, ...]) -> Scope:
    made = ir.from_proto(model)
    bound = {v.name: tuple(v.shape) for v in made.graph.inputs if v.name not in shapes} | shapes
    return Scope(made, made.graph, infer(made, bound))


def test_the_savings_of_a_bottleneck_on_both_sides() -> None:
    """1x1 to a quarter, 3x3, 1x1 back: 8.47 times fewer multiplications, a quarter of the samples."""
    model = build(
        """net (float[1,64,8,8] x, float[1,18,8,8] o) => (float[1,64,8,8] y) <float[64,64,3,3] w>
        { y = DeformConv<pads=[1,1,1,1]>(x, w, o) }""",
        opset=19,
    )
    scope = scope_of(model)
    layer = Layer.of(next(iter(scope.graph)), scope)
    assert isinstance(layer, Layer)
    workshop = Workshop({layer.name: identity_moments(layer)}, 16)
    offered, _ = workshop.menu(layer, [TwoSided()])
    quarter = next(c for c in offered if c.ranks == (16, 16))
    assert 1 / quarter.macs_ratio == pytest.approx(8.47, abs=0.01)
    assert quarter.macs_ratio == quarter.parameters_ratio == 69_632 / 589_824
    after = with_candidates(scope, [quarter.realised])
    sampling = next(node for node in after.graph if node.op_type == "DeformConv")
    assert sampling.inputs[0].shape[1] * 4 == scope.graph.inputs[0].shape[1]
    before = macs(layer.node, scope.infos)
    assert before == 64 * 64 * 64 * 9  # as a convolution's: sampling is not counted


# A network whose offsets are computed, and matter.

NETWORK = """
net (float[N,3,16,16] x) => (float[N,10] y)
<float[32,3,3,3] stem, float[32] stemb, float[27,32,3,3] v1, float[27] f1, float[32,32,3,3] w1,
 float[32] scale, float[32] shift, float[32] mean, float[32] var,
 float[36,32,3,3] v2, float[36] f2, float[32,32,3,3] w2, float[32] b2, float[32,10] fc, float[10] bias>
{
    c = Conv <pads = [1,1,1,1]> (x, stem, stemb)
    r = Relu (c)
    p1 = Conv <pads = [1,1,1,1]> (r, v1, f1)
    o1, z1 = Split <axis = 1> (p1, sizes)
    m1 = Sigmoid (z1)
    d1 = DeformConv <pads = [1,1,1,1]> (r, w1, o1, , m1)
    n1 = BatchNormalization (d1, scale, shift, mean, var)
    r1 = Relu (n1)
    o2 = Conv <pads = [1,1,1,1], strides = [2,2]> (r1, v2, f2)
    d2 = DeformConv <pads = [1,1,1,1], strides = [2,2], offset_group = 2> (r1, w2, o2, b2)
    r2 = Relu (d2)
    g = GlobalAveragePool (r2)
    l = Flatten (g)
    y = Gemm (l, fc, bias)
}
"""


def decaying(rng: np.random.Generator, outputs: int, inputs: int, parts: int = 1) -> Array:
    """A kernel [O, C, 3, 3] most of whose energy is in a quarter of the input directions of a part."""
    width = inputs // parts
    bases = np.stack([np.linalg.qr(rng.standard_normal((width, width)))[0] for _ in range(parts)])
    strengths = np.geomspace(1, 0.01, width)
    rows = rng.standard_normal((outputs, 9, parts, width)) * strengths
    kernel = np.einsum("okpr,prc->opck", rows, bases).reshape(outputs, inputs, 3, 3)
    return (kernel * np.sqrt(2 / (9 * parts * np.sum(strengths**2)))).astype(np.float32)


def pictures(count: int, seed: int = 0) -> Array:
    """Random pictures as smooth as photographs: neighbours alike."""
    noise = np.random.default_rng(seed).standard_normal((count, 3, 16, 16))
    for axis in (2, 3):
        for _ in range(3):
            noise = noise + np.roll(noise, 1, axis)
    return (noise / noise.std()).astype(np.float32)


@pytest.fixture(scope="session")
def deformable() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    model = build(
        NETWORK,
        opset=19,
        weights={
            "stem": rng.standard_normal((32, 3, 3, 3)).astype(np.float32) / 5,
            "v1": decaying(rng, 27, 32),
            "w1": decaying(rng, 32, 32),
            "v2": decaying(rng, 36, 32),
            "w2": decaying(rng, 32, 32, parts=2),
            "sizes": np.asarray([18, 9]),
        },
    )
    for node in model.graph.node:
        node.name = f"make_{node.output[0]}"
    return model


def looked_at(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The model with more outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return copy


def test_its_offsets_are_real(deformable: onnx.ModelProto) -> None:
    seen = run(looked_at(deformable, "o1", "o2"), {"x": pictures(8)}, "o1", "o2")
    for offsets in seen:
        assert np.abs(offsets).mean() > 0.3
        assert np.abs(offsets - np.rint(offsets)).mean() > 0.1


@pytest.mark.parametrize("most", [0.02, 0.1])
def test_inside_a_budget(deformable: onnx.ModelProto, folder: Path, most: float) -> None:
    x = pictures(96)
    onnx.save(deformable, folder / "net.onnx")
    np.savez(folder / "fit.npz", x=x[:64])
    np.savez(folder / "held.npz", x=x[64:])
    report = optimize(
        Path("net.onnx"),
        Options(bench=False, data="fit.npz", eval_data="held.npz", budget=Budget(max_error=most)),
    )
    want, got = (run(Path(n), {"x": x[64:]})[0] for n in ("net.onnx", "net.opt.onnx"))
    assert 1e-4 < distance(want, got) <= most
    after = onnx.load("net.opt.onnx")
    kinds = [node.op_type for node in after.graph.node]
    assert kinds.count("DeformConv") == 2
    assert "BatchNormalization" not in kinds
    taken = {e.site[0]: e.name for e in report.rewrites if e.kind == "approximate"}
    assert {"make_d1", "make_d2"} & set(taken)
    assert set(taken.values()) <= {
        "input-bottleneck",
        "output-bottleneck",
        "two-sided",
        "spatial",
        "spatial-transposed",
        "decoupled",
        "decoupled-pointwise-first",
    }
    assert report.after.macs < report.before.macs


@pytest.mark.slow
def test_a_trained_network(folder: Path) -> None:
    """`models/deformable.py`: learnt offsets of a pixel; a quarter of the MACs is enough for 5 %."""
    digits = np.load(MODELS / "digits.npz")["image"]
    np.savez(folder / "digits.npz", image=digits)
    path = MODELS / "deformable_digits.onnx"
    report = optimize(
        path,
        Options(
            bench=False, data="digits.npz", output=Path("out.onnx"), budget=Budget(max_error=0.05)
        ),
    )
    want, got = (run(Path(n), {"image": digits})[0] for n in (path, "out.onnx"))
    assert distance(want, got) <= 0.055  # on the held-out half it is 5 %
    assert np.mean(want.argmax(1) == got.argmax(1)) > 0.99
    assert 4 * report.after.macs < report.before.macs
    kinds = [node.op_type for node in onnx.load("out.onnx").graph.node]
    assert kinds.count("DeformConv") == 2


def test_the_audit_names_it(deformable: onnx.ModelProto, folder: Path) -> None:
    onnx.save(deformable, folder / "net.onnx")
    report = audit(Path("net.onnx"), Options(bench=False))
    rows = {layer.name: layer for layer in report.layers}
    assert rows["make_d1"].op_type == "DeformConv"
    assert rows["make_d1"].cost.macs == 16 * 16 * 32 * 32 * 9
    assert rows["make_d2"].cost.macs == 8 * 8 * 32 * 32 * 9
    assert rows["make_d1"].savings


def test_peak_memory_counts_what_it_reads() -> None:
    """Input, offsets, mask and output are alive at once."""
    model = build(
        """net (float[1,8,8,8] x, float[1,18,8,8] o, float[1,9,8,8] m) => (float[1,4,8,8] y)
        <float[4,8,3,3] w> { y = DeformConv<pads=[1,1,1,1]>(x, w, o, , m) }""",
        opset=19,
    )
    onnx.save(model, "net.onnx")
    report = optimize(Path("net.onnx"), Options(bench=False, dry_run=True))
    assert report.before.peak_activation_bytes == 4 * 64 * (8 + 18 + 9 + 4)


# What a fit is made in: patches as they are sampled, not as a plain convolution would see them.


def fits(model: onnx.ModelProto, name: str, ranks: tuple[int, ...]) -> dict[str, list[float]]:
    """Response error on held-out pictures of input bottlenecks fitted in three metrics."""
    scope = scope_of(model, x=(1, 3, 16, 16))
    node = next(n for n in scope.graph if n.outputs[0].name == name)
    layer = Layer.of(node, scope)
    assert isinstance(layer, Layer)
    reads = [v.name for v in node.inputs if v is not None and v.const_value is None]
    watched = looked_at(model, *reads)
    geometry, matrix = geometry_of(layer), layer.weight.reshape(len(layer.weight), -1)

    def unfolded(x: Array) -> tuple[Array, Array]:
        source, offset, *mask = run(watched, {"x": x}, *reads)
        at = positions(geometry, source.shape, 8192, np.random.default_rng(0))
        seen = sampled_patches(source, geometry, at, offset, mask[0] if mask else None)
        return seen, patches(source, geometry, at)

    def moments(seen: Array) -> Any:
        accumulator = Accumulator(seen.shape[1], len(matrix))
        accumulator.add(seen, seen @ matrix.T, 64)
        return metric([accumulator.moments()], Method())

    sampled, plain = unfolded(pictures(64))
    held, _ = unfolded(pictures(32, seed=1))
    answer = held @ matrix.T
    found: dict[str, list[float]] = {}
    for label, seen in (
        ("weights alone", identity_moments(layer)),
        ("plain patches", moments(plain)),
        ("sampled patches", moments(sampled)),
    ):
        made = InputBottleneck().decompose(layer, [matrix.astype(np.float64)], seen, 4)
        found[label] = []
        for rank in ranks:
            off = answer - held @ made.factors((rank,)).composite[0].T
            found[label].append(
                float(np.linalg.norm(off - off.mean(0)) / np.linalg.norm(answer - answer.mean(0)))
            )
    return found


@pytest.mark.parametrize("name", ["d1", "d2"])
def test_a_fit_to_sampled_patches_answers_best(deformable: onnx.ModelProto, name: str) -> None:
    ranks = (8, 16, 24)
    found = fits(deformable, name, ranks)
    for index in range(len(ranks)):
        assert found["sampled patches"][index] < found["plain patches"][index]
        assert found["sampled patches"][index] < found["weights alone"][index]
