"""Reading and writing: every bad file is one clear InputError, writing is atomic, data stay external."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import LEVELS, build, check_same, run

from graphopt.errors import InputError
from graphopt.graph.annotate import annotate, restore, stamp
from graphopt.graph.io import (
    StagedModel,
    digest,
    load,
    session_source,
)

TEXT = """net (float[2,64] x) => (float[2,64] y) <float[64,64] w, float[64] b>
    { c = MatMul(x, w) y = Add(c, b) }"""


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.onnx"
    onnx.save(build(TEXT), path)
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "external.onnx"
    path.parent.mkdir()
    onnx.save(
        build(TEXT), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path  # fmt: skip


def test_plain(plain: Path) -> None:
    source = load(plain)
    assert not source.has_external_data
    assert source.unknown_operator is None
    assert source.external == ()
    assert source.bytes == plain.stat().st_size


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.onnx")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path)


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    with pytest.raises(InputError, match="is empty"):
        load(path)


@pytest.mark.parametrize(
    "content", [b"\x00" * 100, b"hello, world\n" * 9, b"\x89PNG\r\n\x1a\n", b"{}"]
)
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX model"):
        load(path)


def test_truncated_anywhere(plain: Path, tmp_path: Path) -> None:
    """Whatever a prefix happens to parse as, the answer is one line."""
    whole = plain.read_bytes()
    path = tmp_path / "cut.onnx"
    for length in (*range(1, 120), *range(120, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_rejected_by_the_checker(tmp_path: Path) -> None:
    model = build(TEXT)
    del model.graph.node[0]
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="rejected by the ONNX checker"):
        load(path)


def test_unknown_operator_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "custom.onnx"
    model = build("net (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }")
    path.write_bytes(model.SerializeToString())
    assert "NoSuchOperator" in (load(path).unknown_operator or "")


def test_missing_external_data(external: Path) -> None:
    (external.parent / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"keeps its weights in weights\.bin, which is missing"):
        load(external)


def test_short_external_data(external: Path) -> None:
    data = external.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(InputError, match="too short"):
        load(external)


def test_missing_external_data_of_a_constant_node(tmp_path: Path) -> None:
    numbers = ", ".join(["1.5"] * 64)
    model = build(
        f"""net (float[64] x) => (float[64] y)
        {{ k = Constant<value = float[64] {{{numbers}}}>() y = Mul(x, k) }}"""
    )
    tensor = model.graph.node[0].attribute[0].t
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(64, 1.5, np.float32), "t"))
    path = tmp_path / "constant.onnx"
    onnx.save(
        model, path, save_as_external_data=True, location="k.bin", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    assert load(path).has_external_data
    with session_source(load(path).model) as source:
        assert isinstance(source, Path)
    (tmp_path / "k.bin").unlink()
    with pytest.raises(InputError, match="which is missing"):
        load(path)


def test_external_data_are_mapped_not_read(external: Path) -> None:
    source = load(external)
    assert source.has_external_data
    tensor = source.model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    array: object = tensor.numpy()
    while array is not None and not isinstance(array, np.memmap) and hasattr(array, "base"):
        array = array.base
    assert array is not None


def test_external_round_trip(external: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    with StagedModel(load(external).model, target, external=True) as stage:
        assert not target.exists()
        stage.commit()
    assert [f.name for f in sorted(tmp_path.glob("out*"))] == ["out.onnx", "out.onnx.data"]
    written = load(target)
    assert written.external == (tmp_path / "out.onnx.data",)
    assert written.bytes == sum(f.stat().st_size for f in tmp_path.glob("out*"))
    check_same(build(TEXT), onnx.load(target))
    x = np.ones((2, 64), np.float32)
    with session_source(load(external).model) as source:
        assert isinstance(source, Path)
        found = onnx.load(source)
    np.testing.assert_array_equal(
        run(found, {"x": x}, LEVELS[0])[0], run(build(TEXT), {"x": x}, LEVELS[0])[0]
    )


def test_digest_covers_the_data(external: Path) -> None:
    before = digest(load(external))
    data = external.parent / "weights.bin"
    content = bytearray(data.read_bytes())
    content[7] ^= 1
    data.write_bytes(content)
    assert digest(load(external)) != before


def test_commit_replaces_what_was_there(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_text("old")
    with StagedModel(load(plain).model, target, external=False) as stage:
        assert target.read_text() == "old"
        stage.commit()
    onnx.checker.check_model(str(target))
    assert not list(tmp_path.glob(".graphopt-*"))


def test_without_commit_nothing_is_left(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    with StagedModel(load(plain).model, target, external=False) as stage:
        assert stage.path.is_file()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["plain.onnx"]


def test_an_error_inside_leaves_nothing(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError), StagedModel(load(plain).model, tmp_path / "o", external=False):
        raise KeyError
    assert sorted(f.name for f in tmp_path.iterdir()) == ["plain.onnx"]


def test_an_error_while_writing_leaves_nothing(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: ir.Model, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    model = load(plain).model
    monkeypatch.setattr(ir, "save", fail)
    with pytest.raises(InputError, match="No space left"):
        StagedModel(model, tmp_path / "out.onnx", external=False)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["plain.onnx"]


def test_destination_without_a_folder(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write to"):
        StagedModel(load(plain).model, tmp_path / "none" / "out.onnx", external=False)


def test_annotations_are_put_back() -> None:
    """Declared: c, with a wrong size, and y. Inferred for the work: a as well, c corrected."""
    model = build("net (float[N,4] x) => (float[M,4] y) { a = Abs(x) c = Exp(a) y = Relu(c) }")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("c", 1, [99, 4]))
    work = ir.from_proto(model)
    kept = annotate(work)
    a, c, y = (node.outputs[0] for node in work.graph)
    assert [str(v.shape) for v in (a, c, y)] == ["[N,4]"] * 3
    restore(work, kept)
    proto = ir.to_proto(work)
    assert [v.name for v in proto.graph.value_info] == ["c"]
    assert proto.graph.value_info[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert proto.graph.output == model.graph.output
    assert proto.graph.input == model.graph.input


def test_what_cannot_be_inferred_is_called_as_the_file_calls_it() -> None:
    model = build(
        "net (float[N,4] x) => (float[M] y) { a = NonZero(x) b = Cast<to=1>(a) y = ReduceSum(b) }"
    )
    info = onnx.helper.make_tensor_value_info
    model.graph.value_info.append(info("b", 1, ["rank", "found"]))
    work = ir.from_proto(model)
    kept = annotate(work)
    assert str(work.graph[1].outputs[0].shape) != "[2,found]"
    restore(work, kept)
    assert str(work.graph[1].outputs[0].shape) == "[2,found]"


def test_stamp() -> None:
    model = ir.from_proto(build(TEXT))
    stamp(model, "1.2", {"fuse-conv-bn": 3, "remove-dead": 1})
    assert model.metadata_props["graphopt.rewrites"] == "fuse-conv-bn 3, remove-dead 1"
    assert model.metadata_props["graphopt.version"] == "1.2"
