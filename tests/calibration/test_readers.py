"""What the readers give: batches as the model can take them, every sample once, in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.calibration.readers import read
from graphopt.errors import InputError

OPEN = "net (float[N,2] x) => (float[N,2] y) { y = Relu (x) }"
FIXED = "net (float[5,2] x) => (float[5,2] y) { y = Relu (x) }"


def numbered(count: int) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)


@given(count=st.integers(1, 300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_an_open_batch_takes_every_sample_in_order(model, tmp_path, count):
    labels = np.arange(count) % 7
    np.savez(tmp_path / "d.npz", x=numbered(count), labels=labels)
    found = read(str(tmp_path / "d.npz"), model(OPEN).graph)
    assert np.array_equal(np.concatenate([b.feeds["x"] for b in found.batches]), numbered(count))
    assert np.array_equal(np.concatenate([b.labels for b in found.batches]), labels)
    assert max(batch.size for batch in found.batches) <= 32
    assert len(found.batches) >= min(4, count), "nothing could be held out"


@pytest.mark.parametrize(("count", "kept"), [(5, 5), (9, 5), (10, 10), (64, 60)])
def test_a_fixed_batch_takes_whole_ones(model, tmp_path, count, kept):
    np.savez(tmp_path / "d.npz", x=numbered(count))
    found = read(str(tmp_path / "d.npz"), model(FIXED).graph)
    assert {batch.size for batch in found.batches} == {5}
    assert found.samples == kept


def test_a_folder_is_read_in_name_order(model, tmp_path):
    np.savez(tmp_path / "b.npz", x=numbered(4)[2:])
    np.savez(tmp_path / "a.npz", x=numbered(4)[:2])
    found = read(str(tmp_path), model(OPEN).graph)
    assert [float(b.feeds["x"][0, 0]) for b in found.batches] == [0, 1, 2, 3]


def test_functions_keep_their_batches(model, tmp_path):
    (tmp_path / "f.py").write_text(
        "import numpy as np\n"
        "def f():\n"
        "    for n in (1, 4, 2): yield {'x': np.full((n, 2), n, 'f')}\n"
    )
    found = read(f"{tmp_path}/f.py:f", model(OPEN).graph)
    assert [batch.size for batch in found.batches] == [1, 4, 2]
    assert found.description == f"{tmp_path}/f.py:f"


def test_a_function_may_use_the_module_it_lives_in(model, tmp_path):
    (tmp_path / "f.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import numpy as np\n"
        "@dataclass\n"
        "class Part:\n"
        "    n: int\n"
        "def f(): return [{'x': np.zeros((Part(3).n, 2), 'f')}]\n"
    )
    assert read(f"{tmp_path}/f.py:f", model(OPEN).graph).samples == 3


def test_a_function_for_a_fixed_batch_must_give_it(model, tmp_path):
    (tmp_path / "f.py").write_text(
        "import numpy as np\ndef f(): return [{'x': np.zeros((3, 2), 'f')}]\n"
    )
    with pytest.raises(InputError, match="batch 0: 'x' is 3x2, the input takes 5x2"):
        read(f"{tmp_path}/f.py:f", model(FIXED).graph)


def test_initializers_listed_as_inputs_need_no_data(model, tmp_path):
    found = model("net (float[N,2] x) => (float[N,2] y) <float[2] k> { y = Mul (x, k) }")
    found.graph.inputs.append(found.graph.initializers["k"])
    np.savez(tmp_path / "d.npz", x=numbered(8))
    assert read(str(tmp_path / "d.npz"), found.graph).samples == 8


def test_nested_labels_are_flattened(model, tmp_path):
    np.savez(tmp_path / "d.npz", x=numbered(8), labels=np.arange(8).reshape(8, 1))
    found = read(str(tmp_path / "d.npz"), model(OPEN).graph)
    assert all(batch.labels.shape == (batch.size,) for batch in found.batches)
