"""The ONNX package's own backend tests: every operator, through graphopt, still gives the outputs.

Each case is run twice: as shipped, where nearly everything is an input and little can be done, and
with all inputs but the first turned into initializers, so that there are weights to fuse and
constants to fold. Nothing is verified by graphopt itself here (it would roll back what is wrong);
the shipped outputs are the judge. The proving pipeline runs over the same cases for its manners:
it may refuse a model, but only with an error of its own.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.errors import InputError, VerificationError

SAMPLE = 300
CHUNKS = 10
PROVEN = 100  # of the sample, by the whole pipeline
NOT_VALID = (
    "test_affine_grid_2d_align_corners_expanded",
    "test_affine_grid_2d_expanded",
    "test_affine_grid_3d_align_corners_expanded",
    "test_affine_grid_3d_expanded",
)
"""They give Range a vector, which onnxruntime refuses as soon as the shape is known."""

ON_DISK = ("simple", "pytorch-converted", "pytorch-operator")

Case = Any  # onnx.backend.test.case.test_case.TestCase


@dataclass(frozen=True)
class Exchange:
    """What a model is fed and what it has to give."""

    feeds: dict[str, Any]
    expected: tuple[Any, ...]


@dataclass(frozen=True)
class Trial:
    """A model with its exchanges and the test's tolerance."""

    name: str
    model: onnx.ModelProto
    exchanges: tuple[Exchange, ...]
    rtol: float
    atol: float


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """All valid cases in a seeded order, so that the first few are a sample."""
    from onnx.backend.test.loader import load_model_tests

    with np.errstate(all="ignore"):
        found = [*load_model_tests(kind="node")]
    for kind in ON_DISK:
        found += load_model_tests(kind=kind)
    found = [case for case in found if case.name not in NOT_VALID]
    found.sort(key=lambda case: str(case.name))
    random.Random(0).shuffle(found)
    return found


@pytest.fixture(scope="module")
def sample(cases: list[Case]) -> list[Case]:
    return cases[:SAMPLE]


@pytest.fixture(scope="module")
def rest(cases: list[Case]) -> list[Case]:
    return cases[SAMPLE:]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_sample_still_gives_the_shipped_outputs(
    chunk: int, sample: list[Case], tools: ModuleType, tmp_path: Path
) -> None:
    _assert_outputs_stay(sample[chunk::CHUNKS], tools, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_rest_still_gives_the_shipped_outputs(
    chunk: int, rest: list[Case], tools: ModuleType, tmp_path: Path
) -> None:
    _assert_outputs_stay(rest[chunk::CHUNKS], tools, tmp_path)


def test_the_pipeline_proves_or_refuses_a_sample(
    sample: list[Case], tools: ModuleType, tmp_path: Path
) -> None:
    _assert_proven_or_refused(sample[:PROVEN], tools, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_pipeline_proves_or_refuses_the_rest(
    chunk: int, rest: list[Case], tools: ModuleType, tmp_path: Path
) -> None:
    _assert_proven_or_refused(rest[chunk::CHUNKS], tools, tmp_path)


def _assert_outputs_stay(cases: Sequence[Case], tools: ModuleType, folder: Path) -> None:
    failures: dict[str, str] = {}
    fate: Counter[str] = Counter()
    for trial in _trials(cases):
        level = _level_that_passes(trial, tools)
        if level is None:
            fate["onnxruntime does not pass"] += 1
            continue
        try:
            optimized = _optimized(trial, tools, folder, verify=False)
            complaint = _complaint(trial, optimized, level, tools)
        except InputError as error:
            fate["refused"] += 1
            if tools.MADE_BY_GRAPHOPT in str(error):
                failures[trial.name] = str(error)[:300]
            continue
        except Exception as error:
            complaint = f"{type(error).__name__}: {error}"
        fate["failed" if complaint else "held"] += 1
        if complaint:
            failures[trial.name] = complaint[:300]
    assert failures == {}
    assert fate["held"] >= 0.6 * fate.total(), fate  # most cases do test something
    assert fate["refused"] <= 0.05 * fate.total(), fate


def _assert_proven_or_refused(cases: Sequence[Case], tools: ModuleType, folder: Path) -> None:
    failures: dict[str, str] = {}
    fate: Counter[str] = Counter()
    for trial in _trials(cases):
        if not _loads(trial, tools):
            continue
        try:
            rolled_back = _rolled_back(trial, tools, folder)
        except (InputError, VerificationError) as error:
            fate["refused"] += 1
            if tools.MADE_BY_GRAPHOPT in str(error) or "cannot load" in str(error):
                failures[trial.name] = str(error)[:300]
            continue
        except Exception as error:
            failures[trial.name] = f"{type(error).__name__}: {error}"[:300]
            continue
        fate["proven"] += 1
        if rolled_back:
            failures[trial.name] = f"rolled back: {rolled_back}"
    assert failures == {}
    assert fate["proven"] >= 0.6 * fate.total(), fate


def _rolled_back(trial: Trial, tools: ModuleType, folder: Path) -> list[str]:
    report = _run(trial, tools, folder, verify=True).report
    assert report.verification is not None
    return [item.name for item in report.verification.rolled_back]


def _optimized(trial: Trial, tools: ModuleType, folder: Path, *, verify: bool) -> Path:
    return _run(trial, tools, folder, verify=verify).optimized


def _run(trial: Trial, tools: ModuleType, folder: Path, *, verify: bool) -> Any:
    path = folder / "model.onnx"
    path.write_bytes(trial.model.SerializeToString())
    return tools.run_graphopt(path, folder, verify=verify)


def _loads(trial: Trial, tools: ModuleType) -> bool:
    try:
        tools.session(trial.model.SerializeToString())
    except Exception:
        return False
    return True


def _level_that_passes(trial: Trial, tools: ModuleType) -> bool | None:
    """The strictest level (optimized or not) at which onnxruntime passes the original."""
    model = trial.model.SerializeToString()
    for optimized in (True, False):
        try:
            if not _complaint(trial, model, optimized, tools):
                return optimized
        except Exception:
            continue
    return None


def _complaint(trial: Trial, model: Path | bytes, optimized: bool, tools: ModuleType) -> str:
    """How a model's outputs are not the expected ones, or nothing."""
    session = tools.session(model, optimized=optimized)
    for exchange in trial.exchanges:
        found = session.run(None, exchange.feeds)
        for index, (expected, array) in enumerate(zip(exchange.expected, found, strict=True)):
            try:
                _assert_close(expected, array, trial)
            except AssertionError as error:
                return f"output {index}: {' '.join(str(error).split())}"
    return ""


def _assert_close(expected: Any, found: Any, trial: Trial) -> None:
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            _assert_close(one, other, trial)
        return
    expected, found = np.asarray(expected), np.asarray(found)
    assert expected.shape == found.shape
    if expected.dtype.kind in "OSU":
        assert expected.astype(str).tolist() == found.astype(str).tolist()
        return
    assert expected.dtype == found.dtype
    np.testing.assert_allclose(found, expected, rtol=trial.rtol, atol=trial.atol)


def _trials(cases: Sequence[Case]) -> Iterator[Trial]:
    for case in cases:
        shipped = _shipped(case)
        if shipped is None:
            continue
        yield shipped
        frozen = _frozen(shipped)
        if frozen is not None:
            yield frozen


def _shipped(case: Case) -> Trial | None:
    """The case as it is; None where it feeds nothing that can be fed (an empty optional)."""
    model = case.model or onnx.load(Path(case.model_dir) / "model.onnx")
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    try:
        sets = case.data_sets or list(_data_sets(Path(case.model_dir), model, inputs))
    except (TypeError, ValueError):
        return None
    exchanges = []
    for given, expected in sets:
        if any(value is None for value in (*given, *expected)):
            return None
        names = [value.name for value in inputs]
        exchanges.append(Exchange(dict(zip(names, given, strict=False)), tuple(expected)))
    if not exchanges:
        return None
    return Trial(str(case.name), model, tuple(exchanges), case.rtol, case.atol)


def _data_sets(
    folder: Path, model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]
) -> Iterator[tuple[list[Any], list[Any]]]:
    for data in sorted(folder.glob("test_data_set_*")):
        yield (
            [_read(data / f"input_{i}.pb", value) for i, value in enumerate(inputs)],
            [_read(data / f"output_{i}.pb", value) for i, value in enumerate(model.graph.output)],
        )


def _read(file: Path, value: onnx.ValueInfoProto) -> Any:
    if value.type.HasField("sequence_type"):
        sequence = onnx.SequenceProto.FromString(file.read_bytes())
        return numpy_helper.to_list(sequence)
    return numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


def _frozen(trial: Trial) -> Trial | None:
    """All inputs but the first as initializers, for cases of one exchange of plain tensors."""
    if len(trial.exchanges) != 1 or trial.model.ir_version < 4:
        return None
    (exchange,) = trial.exchanges
    if not exchange.feeds:
        return None
    first, *others = exchange.feeds
    arrays = {name: exchange.feeds[name] for name in others}
    if not arrays or any(not isinstance(a, np.ndarray | np.generic) for a in arrays.values()):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(trial.model)
    kept = [value for value in model.graph.input if value.name == first]
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for name, array in arrays.items():
        tensor = numpy_helper.from_array(np.asarray(array), name)
        if tensor.data_type != types[name] or math.prod(tensor.dims) == 0:
            return None
        model.graph.initializer.append(tensor)
    feeds = {first: exchange.feeds[first]}
    name = f"{trial.name} (constants)"
    return Trial(name, model, (Exchange(feeds, exchange.expected),), trial.rtol, trial.atol)
