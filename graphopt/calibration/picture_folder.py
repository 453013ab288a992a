"""Which pictures a folder holds, and their labels: one class a subfolder, as torchvision has it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class PictureFolder:
    """Pictures sorted by path. labels: class index of each, None in a flat folder."""

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None = None
    classes: int = 0

    def spread(self, count: int) -> PictureFolder:
        """`count` of the pictures, evenly spread; classes take turns, each in its proportion.

        Batches are cut in this order: were it sorted by class, few would be in any of them.
        """
        chosen = np.linspace(0, len(self.files) - 1, count).round().astype(int).tolist()
        if self.labels is None:
            return PictureFolder(tuple(self.files[i] for i in chosen))
        turns = _turns([self.labels[i] for i in chosen])
        order = [i for _, i in sorted(zip(turns, chosen, strict=True))]
        files = tuple(self.files[i] for i in order)
        return PictureFolder(files, tuple(self.labels[i] for i in order), self.classes)


def _turns(labels: list[int]) -> list[float]:
    """For each member of its class, the share of the class that comes before its middle."""
    sizes, seen = Counter(labels), Counter[int]()
    turns = []
    for label in labels:
        turns.append((seen[label] + 0.5) / sizes[label])
        seen[label] += 1
    return turns


def find_pictures(folder: Path) -> PictureFolder | None:
    """The pictures of a folder, or of its subfolders; None if there are none.

    Subfolders that hold pictures are classes, numbered in the order of their names. Files and
    folders whose name starts with a dot do not count.

    Raises:
        InputError: Pictures in both places, beside .npz files, or a subfolder without any.
    """
    flat = _pictures(folder, "*")
    below = sorted(path for path in folder.glob("*") if path.is_dir() and not _hidden(path, folder))
    classes = [_pictures(path, "**/*") for path in below]
    if not flat and not any(classes):
        return None
    if any(folder.glob("*.npz")):
        raise InputError(f"{folder} has both .npz files and pictures: give a folder of one kind")
    if not any(classes):
        return PictureFolder(tuple(flat))
    if flat:
        raise InputError(
            f"{folder} has pictures both in it and in its subfolders: move all into subfolders (one "
            "a class), or all out of them (no labels)"
        )
    for path, found in zip(below, classes, strict=True):
        if not found:
            raise InputError(
                f"{path} has no pictures, so that classes cannot be numbered by subfolder: fill or "
                "remove it"
            )
    files = tuple(file for found in classes for file in found)
    labels = tuple(label for label, found in enumerate(classes) for _ in found)
    return PictureFolder(files, labels, len(classes))


def _pictures(folder: Path, pattern: str) -> list[Path]:
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in SUFFIXES and not _hidden(path, folder) and path.is_file()
    )


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
