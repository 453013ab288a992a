"""Reading and writing model files: every complaint about a file is made here, before any work.

Writing is atomic: the model goes into a temporary folder beside the output, is verified there, and
is renamed into place only then. External data stay external past 1.5 GB or when the input had them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import onnx
import onnx_ir as ir

from graphopt.errors import InputError
from graphopt.graph.scope import graphs
from graphopt.runtime import first_line, shorten

EXTERNAL_DATA_THRESHOLD = 1_500_000_000
"""Weight bytes past which a model is written with external data (protobuf ends at 2 GiB)."""

_PROTOBUF_LIMIT = 2_000_000_000


@dataclass(frozen=True)
class Source:
    """A model as read: the in-memory IR and the facts about its file.

    external: the files its weights are in, by name, where they are not in it.
    """

    model: ir.Model
    path: Path
    external: tuple[Path, ...] = ()
    unknown_operator: str | None = None

    @property
    def has_external_data(self) -> bool:
        """Whether weights are kept in files beside it."""
        return bool(self.external)

    @property
    def bytes(self) -> int:
        """Size of the model file with its external data."""
        return sum(file.stat().st_size for file in (self.path, *self.external))


def load(path: Path) -> Source:
    """Read a model; its weights stay memory-mapped or in the protobuf's own buffers.

    `unknown_operator` carries the checker's complaint about an operator this onnx does not know;
    such a model can be rewritten but not verified.

    Raises:
        InputError: No such file, a folder, empty, truncated, not ONNX, rejected by the ONNX
            checker, or external data missing or too short.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the .onnx file in it")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty: export or copy the model again")
        model = ir.load(path, format="protobuf")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} is not an ONNX model, or is truncated: {first_line(error)}"
        ) from error
    if len(model.graph) == 0 and not model.graph.outputs:
        raise InputError(f"{path} is not an ONNX model: it has no graph")
    external = list(_external_tensors(model))
    _check_external_data(path, external)
    unknown = _check(path)
    files = sorted({Path(tensor.path) for tensor in external})
    return Source(model, path, tuple(files), unknown)


def _check(path: Path) -> str | None:
    try:
        onnx.checker.check_model(os.fspath(path))
    except Exception as error:
        text = str(error)
        if "No Op registered for" in text or "No opset import for domain" in text:
            return first_line(error)
        # The checker breaks its sentences over lines.
        text = shorten(" ".join(text.split()))
        raise InputError(f"{path} is rejected by the ONNX checker: {text}") from error
    return None


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            yield tensor


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol | None]:
    """Every initializer and every tensor in an attribute (Constant), in bodies too."""
    for graph in graphs(model):
        for value in graph.initializers.values():
            yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor()


def _check_external_data(path: Path, tensors: list[ir.ExternalTensor]) -> None:
    for tensor in tensors:
        data = Path(tensor.path)
        if not data.is_file():
            raise InputError(
                f"{path} keeps its weights in {data.name}, which is missing: put it beside the model"
            )
        end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if end > data.stat().st_size:
            raise InputError(
                f"{data} is too short for {path} (tensor {tensor.name}): copy it again"
            )


class StagedModel:
    """A model written beside its destination, not yet visible under its name.

    `path` is the staged file, which can be run and verified; `commit` renames it (and its external
    data) into place; leaving the context without that removes every trace.
    """

    def __init__(self, model: ir.Model, destination: Path, *, external: bool) -> None:
        self._destination = destination
        try:
            folder = destination.parent
            self._folder = Path(tempfile.mkdtemp(prefix=".graphopt-", dir=folder))
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}") from error
        self.path = self._folder / destination.name
        try:
            _write(model, self.path, external=external)
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Make the staged files visible under their final names, data before model."""
        try:
            for file in sorted(self._folder.iterdir(), key=lambda f: f == self.path):
                _sync(file)
                os.replace(file, self._destination.parent / file.name)
            _sync(self._destination.parent)
        except OSError as error:
            raise InputError(f"cannot write {self._destination}: {error.strerror}") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what was staged and not committed."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> StagedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, in the main graph and in bodies."""
    return sum(
        value.const_value.nbytes
        for graph in graphs(model)
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def data_name(path: Path) -> str:
    """The file that the external data of a model written to `path` go to, beside it."""
    return path.name + ".data"


def _write(model: ir.Model, path: Path, *, external: bool) -> None:
    large = weight_bytes(model) > EXTERNAL_DATA_THRESHOLD
    try:
        if external or large:
            ir.save(model, path, format="protobuf", external_data=data_name(path))
        else:
            ir.save(model, path, format="protobuf")
    except OSError as error:
        raise InputError(f"cannot write {path.name}: {error.strerror}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def session_source(model: ir.Model) -> Iterator[bytes | Path]:
    """Something onnxruntime can open: bytes, or a temporary file for a model too big for them."""
    if weight_bytes(model) < _PROTOBUF_LIMIT and not any(_external_tensors(model)):
        yield ir.serde.serialize_model(model).SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, format="protobuf", external_data="model.data")
        yield path


def digest(source: Source) -> str:
    """SHA-256 of a model file and, in name order, of the external data it refers to."""
    total = hashlib.sha256()
    for file in (source.path, *source.external):
        with file.open("rb") as handle:
            while chunk := handle.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()
