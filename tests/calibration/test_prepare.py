"""Which inputs and shapes a run settles on."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from graphopt.calibration import prepare as module
from graphopt.errors import InputError

OPEN = "net (float[N,2] x) => (float[N,2] y) { y = Relu (x) }"


@pytest.fixture
def prepare():
    return partial(module.prepare, data=None, eval_data=None, given={}, seed=0, runnable=True)


@pytest.fixture
def files(tmp_path):
    x = np.arange(80, dtype=np.float32).reshape(40, 2)
    np.savez(tmp_path / "a.npz", x=x)
    np.savez(tmp_path / "b.npz", x=-1 - x[:10])
    return str(tmp_path / "a.npz"), str(tmp_path / "b.npz")


def values(dataset) -> set[float]:
    return {float(v) for batch in dataset.batches for v in batch.feeds["x"].ravel()}


def test_without_data_all_is_held_out_and_made_up(model, prepare):
    parts = prepare(model(OPEN)).split
    assert (parts.fitting.samples, parts.held_out.samples) == (0, 8)
    assert parts.held_out.source == "synthetic"


def test_nothing_is_drawn_when_nothing_is_run(model, prepare):
    found = prepare(model(OPEN), runnable=False)
    assert found.split.held_out.samples == 0
    assert found.shapes == {"x": (1, 2)}


def test_data_are_split(model, prepare, files):
    parts = prepare(model(OPEN), data=files[0]).split
    assert parts.fitting.samples + parts.held_out.samples == 40
    assert not values(parts.fitting) & values(parts.held_out)
    assert parts.fitting.samples > 0


def test_eval_data_replace_the_split(model, prepare, files):
    parts = prepare(model(OPEN), data=files[0], eval_data=files[1]).split
    assert parts.fitting.samples == 40
    assert values(parts.held_out) == {float(v) for v in range(-20, 0)}


def test_eval_data_alone_are_not_fitted_to(model, prepare, files):
    parts = prepare(model(OPEN), eval_data=files[1]).split
    assert (parts.fitting.samples, parts.held_out.samples) == (0, 10)


def test_the_split_follows_the_seed(model, prepare, files):
    held = [values(prepare(model(OPEN), data=files[0], seed=s).split.held_out) for s in (1, 1, 2)]
    assert held[0] == held[1] != held[2]


class TestShapes:
    PICTURE = "net (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }"

    def test_an_open_batch_is_one(self, model, prepare):
        assert prepare(model(OPEN)).shapes == {"x": (1, 2)}

    def test_pictures_are_224_where_that_works(self, model, prepare):
        assert prepare(model(self.PICTURE)).shapes == {"x": (1, 3, 224, 224)}

    def test_another_size_where_only_that_works(self, model, prepare):
        text = """
        net (float[N,3,H,W] x) => (float[N,5] y) <float[3072,5] w>
        { f = Flatten (x)  y = MatMul (f, w) }
        """
        assert prepare(model(text)).shapes == {"x": (1, 3, 32, 32)}

    def test_as_given(self, model, prepare):
        found = prepare(model(self.PICTURE), given={"x": (2, 3, 6, 10)})
        assert found.shapes == {"x": (2, 3, 6, 10)}

    def test_as_the_data_have_them(self, model, prepare, tmp_path):
        np.savez(tmp_path / "d.npz", x=np.zeros((8, 3, 6, 10), np.float32))
        found = prepare(model(self.PICTURE), data=str(tmp_path / "d.npz"))
        assert found.shapes == {"x": (1, 3, 6, 10)}

    def test_a_name_that_is_no_input(self, model, prepare):
        with pytest.raises(InputError, match="names 'z', which is no input"):
            prepare(model(OPEN), given={"z": (1, 2)})

    def test_an_input_without_a_rank(self, model, prepare):
        found = model(OPEN)
        found.graph.inputs[0].shape = None
        with pytest.raises(InputError, match="give --shape x:1x3x224x224"):
            prepare(found)
