"""What a run gathers and measures, kept in a folder (`--resume`) so that the next goes on from it.

Every file is written beside its name and renamed, so that an interrupt leaves whole files only.
`run.json` says what the run was about, `figures.json` holds measured figures, an `.npz` each the
statistics of one layer. Names and keys carry a digest of all that the content depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from graphopt.errors import InputError
from graphopt.planning.notebook import Figures
from graphopt.runtime import Array

RUN_FILE = "run.json"
_FIGURES_FILE = "figures.json"
_PREFIX = ".graphopt-"
_T = TypeVar("_T")
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass
class Records:
    """The folder of one run. resumed: something of an earlier run was used; notes: what went wrong."""

    folder: Path
    digest: str
    figures: dict[str, Figures]
    notes: list[str] = field(default_factory=list)
    resumed: bool = False
    _own: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, str]) -> Records:
        """Open the folder of a run, or make it.

        Raises:
            InputError: It belongs to another run or to something else, or cannot be written to.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            present = [path for path in folder.iterdir() if not path.name.startswith(_PREFIX)]
        except OSError as error:
            raise InputError(f"cannot keep statistics in {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"cannot keep statistics in {folder}: no permission to write to it")
        run = folder / RUN_FILE
        if present and not run.exists():
            raise InputError(
                f"{folder} holds other files than a run's statistics: give an empty one"
            )
        digest = digest_of(json.dumps(dict(identity), sort_keys=True))
        records = cls(folder, digest, {})
        if run.exists():
            before = records._read(run, _strings)
            differing = [k for k in identity if before is not None and before.get(k) != identity[k]]
            if differing:
                raise InputError(
                    f"{folder} holds the statistics of another run (not the same: "
                    f"{', '.join(differing)}): give another folder"
                )
        records._write(run, lambda file: file.write(_encoded(dict(identity))))
        if (folder / _FIGURES_FILE).exists():
            records.figures = records._read(folder / _FIGURES_FILE, _figures) or {}
        return records

    def chapter(self, about: str) -> Chapter:
        """The part of the records that is about one rewritten state of the model."""
        return Chapter(self, digest_of(self.digest + about))

    def get(self, key: str) -> Figures | None:
        """The figures noted under a key."""
        return self._used(key, self.figures.get(key))

    def put(self, key: str, figures: Figures) -> None:
        """Note figures under a key."""
        self._own.add(key)
        self.figures[key] = figures
        self._write(self.folder / _FIGURES_FILE, lambda file: file.write(_encoded(self.figures)))

    def load(self, name: str) -> dict[str, Array] | None:
        """The arrays kept under a name; None if there are none that can be read."""
        path = self.folder / f"{name}.npz"
        return self._used(name, self._read(path, _arrays) if path.exists() else None)

    def store(self, name: str, arrays: Mapping[str, Array]) -> None:
        """Keep arrays under a name."""
        self._own.add(name)

        def write(file: IO[bytes]) -> object:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            return None

        self._write(self.folder / f"{name}.npz", write)

    def complain(self, note: str) -> None:
        """Say something about the folder in the report, once."""
        if note not in self.notes:
            self.notes.append(note)

    def _used(self, name: str, content: _T | None) -> _T | None:
        self.resumed |= content is not None and name not in self._own
        return content

    def _read(self, path: Path, decode: Callable[[Path], _T]) -> _T | None:
        try:
            return decode(path)
        except _UNREADABLE:
            self.complain(f"{path} was damaged: what it held was gathered anew")
            return None

    def _write(self, path: Path, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file as a whole or not at all; a folder that takes no more is done without."""
        try:
            handle, name = tempfile.mkstemp(prefix=_PREFIX, dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    write(file)
                os.replace(name, path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            self.complain(f"not everything could be kept in {self.folder}: {error.strerror}")


@dataclass(frozen=True)
class Chapter:
    """The records about one rewritten state of the model: a planner's notebook, and arrays."""

    records: Records
    digest: str

    def get(self, key: str) -> Figures | None:
        """The figures noted under a key."""
        return self.records.get(self._name(key))

    def put(self, key: str, figures: Figures) -> None:
        """Note figures under a key."""
        self.records.put(self._name(key), figures)

    def load(self, key: str) -> dict[str, Array] | None:
        """The arrays kept under a key."""
        return self.records.load(self._name(key))

    def store(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Keep arrays under a key."""
        self.records.store(self._name(key), arrays)

    def _name(self, key: str) -> str:
        return digest_of(f"{self.digest} {key}")[:32]


def digest_of(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _encoded(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _strings(path: Path) -> dict[str, str]:
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return {key: str(value) for key, value in found.items()}


def _figures(path: Path) -> dict[str, Figures]:
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError("not an object")
    for figures in found.values():
        if not isinstance(figures, list) or not all(
            figure is None or isinstance(figure, float) for figure in figures
        ):
            raise ValueError("not figures")
    return {key: tuple(figures) for key, figures in found.items()}


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
