"""Random inputs that fit the model's own types, shapes and index ranges."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_text import build

from graphopt.calibration.synthetic import draw
from graphopt.errors import InputError
from graphopt.runtime import open_session, run


def test_floats_are_normal(model):
    graph = model("net (float[200,50] x) => (float[200,50] y) { y = Relu (x) }").graph
    x = draw(graph, {"x": (200, 50)}, 0).batches[0].feeds["x"]
    assert x.dtype == np.float32
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float16", "f2"), ("double", "f8"), ("int64", "i8"), ("uint8", "u1")]
)
def test_types(model, kind, dtype):
    graph = model(f"net ({kind}[2,3] x) => ({kind}[2,3] y) {{ y = Identity (x) }}").graph
    x = draw(graph, {"x": (2, 3)}, 0).batches[0].feeds["x"]
    assert (x.dtype, x.shape) == (np.dtype(dtype), (2, 3))


def test_booleans_are_both(model):
    graph = model("net (bool[100] x) => (bool[100] y) { y = Not (x) }").graph
    x = draw(graph, {"x": (100,)}, 0).batches[0].feeds["x"]
    assert x.dtype == bool
    assert 10 < x.sum() < 90


EMBEDDING = """
net (int64[N,40] i) => (float[N,40,8] y) <float[5,8] table> { y = Gather (table, i) }
"""


def test_indices_stay_in_the_table_and_use_all_of_it(model):
    graph = model(EMBEDDING).graph
    made = draw(graph, {"i": (1, 40)}, 0)
    found = np.concatenate([batch.feeds["i"].ravel() for batch in made.batches])
    assert set(found) == {0, 1, 2, 3, 4}
    session = open_session(build(EMBEDDING).SerializeToString())
    for batch in made.batches:
        run(session, batch.feeds)


def test_the_smallest_of_several_tables_counts(model):
    text = """
    net (int64[2,60] i) => (float[2,60,8] y, float[2,60,4] z, float[4,2,60] t)
    <float[9,8] big, float[3,4] small, float[4,6] columns>
    { y = Gather (big, i)  z = Gather (small, i)  t = Gather <axis = 1> (columns, i) }
    """
    made = draw(model(text).graph, {"i": (2, 60)}, 0)
    assert max(batch.feeds["i"].max() for batch in made.batches) == 2


def test_the_table_is_counted_along_the_axis(model):
    text = """
    net (int64[2,60] i) => (float[4,2,60] t) <float[4,6] columns>
    { t = Gather <axis = 1> (columns, i) }
    """
    made = draw(model(text).graph, {"i": (2, 60)}, 0)
    assert max(batch.feeds["i"].max() for batch in made.batches) == 5


@pytest.mark.parametrize(("kind", "largest"), [("int64", 1), ("uint8", 255)])
def test_integers_that_index_nothing(model, kind, largest):
    graph = model(f"net ({kind}[3000] x) => (float[3000] y) {{ y = Cast <to = 1> (x) }}").graph
    made = draw(graph, {"x": (3000,)}, 0)
    values = np.concatenate([batch.feeds["x"] for batch in made.batches])
    assert (values.min(), values.max()) == (0, largest)


class TestBatches:
    def test_an_open_batch_is_tried_at_one_and_three(self, model):
        graph = model("net (float[N,4] x) => (float[N,4] y) { y = Relu (x) }").graph
        made = draw(graph, {"x": (1, 4)}, 0)
        assert [batch.feeds["x"].shape for batch in made.batches] == [(1, 4), (3, 4)] * 2
        assert made.samples == 8
        assert made.source == "synthetic"

    def test_a_fixed_one_is_kept(self, model):
        graph = model("net (float[2,4] x) => (float[2,4] y) { y = Relu (x) }").graph
        made = draw(graph, {"x": (2, 4)}, 0)
        assert {batch.feeds["x"].shape for batch in made.batches} == {(2, 4)}

    def test_inputs_agree_on_the_batch(self, model):
        text = "net (float[N,4] a, float[N,4] b) => (float[N,4] y) { y = Add (a, b) }"
        for batch in draw(model(text).graph, {"a": (1, 4), "b": (1, 4)}, 0).batches:
            assert batch.feeds["a"].shape == batch.feeds["b"].shape

    def test_the_seed_decides(self, model):
        graph = model("net (float[N,4] x) => (float[N,4] y) { y = Relu (x) }").graph
        one, same, other = (draw(graph, {"x": (1, 4)}, s).batches[0].feeds["x"] for s in (1, 1, 2))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)

    def test_batches_differ(self, model):
        graph = model("net (float[1,4] x) => (float[1,4] y) { y = Relu (x) }").graph
        made = draw(graph, {"x": (1, 4)}, 0)
        assert len({batch.feeds["x"].tobytes() for batch in made.batches}) == 4


class TestPictures:
    TEXT = "net (float[1,3,H,W] x) => (float[1,3,H,W] y) { y = Relu (x) }"

    @staticmethod
    def roughness(x: np.ndarray) -> float:
        """Share of neighbours in a row that differ."""
        return float(np.mean(np.diff(x, axis=-1) != 0))

    @pytest.mark.parametrize("side", [28, 64, 100, 224])
    def test_every_other_batch_is_coarse(self, model, side):
        made = draw(model(self.TEXT).graph, {"x": (1, 3, side, side + 4)}, 0)
        rough = [self.roughness(batch.feeds["x"]) for batch in made.batches]
        assert all(batch.feeds["x"].shape == (1, 3, side, side + 4) for batch in made.batches)
        assert rough[0] > 0.99
        assert rough[1] <= 14 / (side - 1)
        assert rough[1] > 0
        assert rough[2:] == pytest.approx(rough[:2], abs=0.2)

    def test_small_ones_are_noise(self, model):
        made = draw(model(self.TEXT).graph, {"x": (1, 3, 27, 27)}, 0)
        assert all(self.roughness(batch.feeds["x"]) > 0.99 for batch in made.batches)


@pytest.mark.parametrize("kind", ["string[3]", "seq(float[3])"])
def test_what_cannot_be_drawn(model, kind):
    graph = model(f"net ({kind} x) => ({kind} y) {{ y = Identity (x) }}").graph
    with pytest.raises(InputError, match="input 'x' is not a numeric tensor: give --data"):
        draw(graph, {"x": (3,)}, 0)
