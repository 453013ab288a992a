"""Pictures of a folder decoded into batches, within bounds on their number and on memory.

Needs Pillow (the extra `image`), which is imported only here and only when there are pictures.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.calibration.batching import cuts, fixed_batch
from graphopt.calibration.dataset import Batch, Dataset
from graphopt.calibration.picture_folder import PictureFolder
from graphopt.calibration.picture_recipe import Recipe
from graphopt.errors import InputError
from graphopt.graph.shapes import dimension
from graphopt.runtime import Array, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PICTURES = 2048
MOST_BYTES = 1 << 30
"""Of all decoded pictures of a folder together: they stay in memory."""


def read_pictures(spec: str, found: PictureFolder, recipe: Recipe, graph: ir.Graph) -> Dataset:
    """Decode the pictures of folder `spec`, or as many of them, evenly spread, as the bounds allow.

    Raises:
        InputError: No Pillow, a file that it cannot read, fewer pictures than the model's batch,
            or another number of classes than the model tells apart.
    """
    _check_pillow()
    _check_classes(spec, found, graph)
    size = fixed_batch(graph) or 1
    count = min(len(found.files), max(size, min(MOST_PICTURES, MOST_BYTES // recipe.bytes)))
    parts = cuts(count, graph, spec)
    chosen = found.spread(parts[-1].stop)
    batches = tuple(_batch(chosen, part, recipe) for part in parts)
    height, width = recipe.size
    kind = f"{height}x{width} {recipe.color}"
    classes = "" if found.labels is None else f", {found.classes} classes"
    counted = f"{len(chosen.files)} of {len(found.files)} pictures"
    return Dataset(batches, "data", f"{spec}: {counted}{classes}, {kind}")


def _batch(chosen: PictureFolder, part: slice, recipe: Recipe) -> Batch:
    samples = [recipe.sample(_pixels(file, recipe)) for file in chosen.files[part]]
    labels = None if chosen.labels is None else np.array(chosen.labels[part], np.int64)
    return Batch({recipe.name: np.stack(samples)}, labels)


def _pixels(file: Path, recipe: Recipe) -> Array:
    """A picture in the size and colours that the network takes, [H, W, C] uint8."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")  # of large pictures and odd palettes
            if image.mode.startswith(("I", "F")):  # Pillow would clip them at 255
                raise InputError(f"{file} has more than 8 bits per channel: convert it to 8")
            colored = image.convert("L" if recipe.color == "gray" else "RGB")
        pixels = np.asarray(_fitted(colored, recipe))
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{file} is not a picture that Pillow can read") from error
    except Exception as error:
        raise InputError(f"{file} cannot be read as a picture: {first_line(error)}") from error
    if recipe.color == "gray":
        return pixels[..., None]
    return pixels[..., ::-1] if recipe.color == "bgr" else pixels


def _fitted(image: Image, recipe: Recipe) -> Image:
    """Scaled and cut as torchvision's Resize and CenterCrop do, or stretched."""
    from PIL.Image import Resampling

    how = Resampling[recipe.filter.upper()]
    height, width = recipe.size
    if recipe.cover is None:
        return image.resize((width, height), how)
    high, wide = covering((image.height, image.width), recipe.cover)
    top, left = round((high - height) / 2), round((wide - width) / 2)
    return image.resize((wide, high), how).crop((left, top, left + width, top + height))


def covering(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The least (height, width) of a picture's proportions, rounded down, that covers `target`."""
    (height, width), (high, wide) = size, target
    if high * width >= wide * height:
        return high, width * high // height
    return height * wide // width, wide


def _check_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise InputError("reading pictures needs Pillow: pip install 'graphopt[image]'") from error


def _check_classes(spec: str, found: PictureFolder, graph: ir.Graph) -> None:
    """Subfolders are numbered from 0, which is right only if there are as many as classes."""
    if found.labels is None:
        return
    for output in graph.outputs:
        if output.shape is None:
            return
        sizes = [dimension(output, axis) for axis in range(1, len(output.shape))]
        if not sizes or any(size not in (1, None) for size in sizes[1:]) or sizes[0] == 1:
            continue  # no classification
        if None not in sizes and sizes[0] != found.classes:
            raise InputError(
                f"{spec} has {found.classes} subfolder{'s' * (found.classes != 1)}, output "
                f"{output.name!r} has {sizes[0]} classes, so the labels would be wrong: put all "
                "pictures into one folder (no labels), or use file.py:function"
            )
        return
