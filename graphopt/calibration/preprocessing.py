"""What `--preprocess` says, parsed: how a picture becomes the array that a network takes.

Nothing is known of the model here; `picture_recipe` fills in what is left open.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from graphopt.errors import InputError

Layout = Literal["nchw", "nhwc"]
Color = Literal["rgb", "bgr", "gray"]
Filter = Literal["nearest", "bilinear", "bicubic"]

PRESETS = {
    "imagenet": "size=224 resize=256 mean=0.485:0.456:0.406 std=0.229:0.224:0.225",
    "caffe": "color=bgr scale=1 mean=103.939:116.779:123.68",
    "tf": "scale=127.5 mean=1",
}
"""imagenet: torchvision's classifiers. caffe, tf: the modes of that name of keras.applications."""

_LARGEST = 8192


@dataclass(frozen=True)
class Preprocessing:
    """The given keys; None is left to the model's input, or to a default.

    size: (height, width) of the result. resize: the shorter side before the middle is cut out.
    crop: keep the proportions and cut out the middle. A value is (pixel / scale - mean) / std, with
    mean and std of 1 or C numbers in the order of the network's channels.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    crop: Literal["center"] | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Layout | None = None
    color: Color | None = None
    filter: Filter | None = None


def parse(text: str) -> Preprocessing:
    """Read `--preprocess`: `key=value` separated by commas or spaces, after at most one preset.

    A key replaces that of the preset.

    Raises:
        InputError: An unknown preset or key, a key given twice, or a value that makes no sense.
    """
    words = [word for word in re.split(r"[,\s]+", text) if word]
    if not words:
        raise InputError(f"--preprocess is empty: give a preset ({_known(PRESETS)}) or key=value")
    found: dict[str, Any] = {}
    if "=" not in words[0]:
        if words[0] not in PRESETS:
            raise InputError(
                f"--preprocess has no preset {words[0]!r}: there are {_known(PRESETS)}; "
                "anything else is written key=value"
            )
        found = _values(PRESETS[words.pop(0)].split())
    return _sensible(Preprocessing(**{**found, **_values(words)}))


def _values(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            where = (
                "a preset comes first" if key in PRESETS else "numbers of one key are joined by :"
            )
            raise InputError(f"--preprocess: {word!r} is not of the form key=value ({where})")
        if key not in _READERS:
            raise InputError(f"--preprocess has no key {key!r}: there are {_known(_READERS)}")
        if key in found:
            raise InputError(f"--preprocess: {key} is given twice")
        found[key] = _READERS[key](key, value)
    return found


def _sensible(found: Preprocessing) -> Preprocessing:
    brightest = max(found.mean or (0.0,))
    if found.scale is None and brightest > 1:
        raise InputError(
            f"--preprocess: mean={brightest:g} lies beyond the pixels, which are 0 to 1 after "
            "division by 255: divide mean and std by 255, or add scale=1"
        )
    return found


def _side(key: str, text: str) -> int:
    return _pixels(key, text, text, "256")


def _size(key: str, text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    form = "224 or 480x640"
    return _pixels(key, text, height, form), _pixels(key, text, width if cross else height, form)


def _pixels(key: str, text: str, number: str, form: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", number) or not 1 <= int(number) <= _LARGEST:
        raise InputError(
            f"--preprocess: {key}={text} is not of the form {form} (1 to {_LARGEST} pixels)"
        )
    return int(number)


def _numbers(key: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(":"))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"--preprocess: {key}={text} is not one number or three (0.485:0.456:0.406)"
        )
    if key != "mean" and min(numbers) <= 0:
        raise InputError(f"--preprocess: {key}={text} is divided by: give more than 0")
    return numbers


def _scale(key: str, text: str) -> float:
    numbers = _numbers(key, text)
    if len(numbers) != 1:
        raise InputError(f"--preprocess: {key} is one number; per channel there are mean and std")
    return numbers[0]


def _one_of(*names: str) -> Callable[[str, str], str]:
    def read(key: str, text: str) -> str:
        if text.lower() not in names:
            raise InputError(f"--preprocess: {key}={text} is none of {', '.join(names)}")
        return text.lower()

    return read


_READERS: dict[str, Callable[[str, str], Any]] = {
    "size": _size,
    "resize": _side,
    "crop": _one_of("center"),
    "scale": _scale,
    "mean": _numbers,
    "std": _numbers,
    "layout": _one_of("nchw", "nhwc"),
    "color": _one_of("rgb", "bgr", "gray"),
    "filter": _one_of("nearest", "bilinear", "bicubic"),
}


def _known(names: dict[str, Any]) -> str:
    return ", ".join(names)
