"""Maps of one cell against the original's answers, and windows of larger pictures against cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import build

from graphopt.calibration.dataset import Batch, Dataset
from graphopt.errors import VerificationError
from graphopt.progress import Silent
from graphopt.rewrites.dense.make import Dense, make_dense
from graphopt.verification.compare import Reference
from graphopt.verification.windows import Slide

ORIGINAL = """net (float[N,2,6,6] x) => (float[N,3] y, int64[N] best) <float[72,3] v>
{ f = Flatten(x) y = Gemm(f, v) best = ArgMax<axis=1, keepdims=0>(y) }"""


@pytest.fixture
def original(tmp_path: Path) -> Path:
    onnx.save(build(ORIGINAL), tmp_path / "original.onnx")
    return tmp_path / "original.onnx"


@pytest.fixture
def dense(original: Path) -> tuple[Path, Dense]:
    model = ir.load(original)
    facts = make_dense(model, {"x": (1, 2, 6, 6)}, sized=True)
    path = original.with_name("dense.onnx")
    ir.save(model, path)
    return path, facts


@pytest.fixture
def slide(original: Path, dense: tuple[Path, Dense]) -> Slide:
    graph = ir.load(original).graph
    return Slide(original, *dense[:1], graph, dense[1], 1e-4, seed=0, threads=1, timed=None)


def pictures(*labels: int) -> Dataset:
    array = np.random.default_rng(0).standard_normal((len(labels), 2, 6, 6)).astype(np.float32)
    return Dataset((Batch({"x": array}, np.array(labels)),), "data", "")


class TestOneCell:
    def test_counts_as_the_original_s_answer(self, original, dense):
        found = Reference(original, pictures(0, 1, 2), maps=True).compare(dense[0])
        assert found.error < 1e-6
        assert found.distances["best"].mismatches == 0
        assert found.distances["y"].top1_agreement == 1
        assert found.metric_before == found.metric_after

    def test_the_metric_sees_the_original_s_shape(self, original, dense):
        shapes = []

        def metric(outputs, _):
            shapes.append({name: array.shape for name, array in outputs.items()})
            return 0.0

        Reference(original, pictures(0, 1), metric=metric, maps=True).compare(dense[0])
        assert shapes == [{"y": (2, 3), "best": (2,)}] * 2

    def test_is_another_shape_without_being_told(self, original, dense):
        with pytest.raises(VerificationError, match=r"shape \(2, 3, 1, 1\) instead of \(2, 3\)"):
            Reference(original, pictures(0, 1)).compare(dense[0])

    @pytest.mark.parametrize(
        ("body", "dims"),
        [
            ("y = Transpose(y0)", "a,b"),
            ("y = Concat<axis=0>(y0, y0)", "a,b"),
            ("u = Unsqueeze(y0, axes) y = Concat<axis=2>(u, u)", "a,b,c,d"),
        ],
    )
    def test_other_shapes_stay_wrong(self, original, body, dims):
        text = ORIGINAL.replace("y = Gemm(f, v)", f"y0 = Gemm(f, v) {body}")
        text = text.replace("float[N,3] y", f"float[{dims}] y").replace(
            "keepdims=0>(y)", "keepdims=0>(y0)"
        )
        other = build(text, weights={"axes": np.array([2, 3])}).SerializeToString()
        with pytest.raises(VerificationError, match="instead of"):
            Reference(original, pictures(0, 1), maps=True).compare(other)


class TestSlide:
    def test_two_sizes(self, slide):
        checks = slide.checks({"x": (1, 2, 6, 6)}, Silent())
        assert [check.picture for check in checks] == [(7, 7), (11, 11)]
        assert [check.windows for check in checks] == [4, 36]
        assert checks[1].maps == {"y": (1, 3, 6, 6), "best": (1, 6, 6)}
        assert all(check.worst_window < 1e-5 for check in checks)
        assert all(check.relative_l2 <= check.worst_window for check in checks)
        assert all(check.top1_agreement == 1 and check.timing is None for check in checks)

    def test_a_fixed_batch(self, slide):
        (check, _) = slide.checks({"x": (3, 2, 6, 6)}, Silent())
        assert check.maps["y"] == (3, 3, 2, 2)

    def test_the_same_seed_is_the_same_picture(self, slide):
        shapes = {"x": (1, 2, 6, 6)}
        first, second = (slide.checks(shapes, Silent())[0].relative_l2 for _ in range(2))
        other = replace(slide, seed=1).checks(shapes, Silent())[0].relative_l2
        assert first == second != other

    def test_timing(self, slide):
        check = replace(slide, timed=1).checks({"x": (1, 2, 6, 6)}, Silent())[0]
        assert check.timing is not None
        assert check.timing.before_us > 0

    def _scaled(self, slide: Slide, factor: float) -> Slide:
        proto = onnx.load(slide.result)
        tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(proto, slide.result)
        return slide

    def test_cells_that_are_off(self, slide):
        with pytest.raises(VerificationError, match=r"on a picture of 7x7 .* off by 0.01 from"):
            self._scaled(slide, 1.01).checks({"x": (1, 2, 6, 6)}, Silent())

    def test_cells_that_may_be_off_are_measured(self, slide):
        loose = replace(self._scaled(slide, 1.01), tolerance=None)
        check = loose.checks({"x": (1, 2, 6, 6)}, Silent())[0]
        assert check.relative_l2 == pytest.approx(0.01, rel=1e-3)

    def test_classes_alone_that_are_off(self, slide):
        """Without a float output the share of other classes counts."""
        labels = {"best": slide.dense.outputs["best"]}
        other = replace(self._scaled(slide, -1.0), dense=replace(slide.dense, outputs=labels))
        with pytest.raises(VerificationError, match="off by its classes"):
            other.checks({"x": (1, 2, 6, 6)}, Silent())

    def test_a_map_of_another_size(self, slide):
        outputs = {
            name: replace(state, stride=(state.stride[0] * 2, state.stride[1] * 2))
            for name, state in slide.dense.outputs.items()
        }
        wrong = replace(slide, dense=replace(slide.dense, outputs=outputs))
        with pytest.raises(
            VerificationError, match="is a map of 3x3 for a picture of 8x8, not of 2x2"
        ):
            wrong.checks({"x": (1, 2, 6, 6)}, Silent())
