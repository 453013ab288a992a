"""`--data FOLDER` of pictures and `--preprocess`, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DIGITS = Path(__file__).parents[2] / "models"
COUNT = 120


@pytest.fixture
def digits(folder: Path) -> Path:
    """The first of the sample digits as pictures, in one subfolder a class."""
    with np.load(DIGITS / "digits.npz") as pack:
        images, labels = pack["image"][:COUNT], pack["labels"][:COUNT]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / "digits" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().astype(np.uint8)).save(place / f"{index}.png")
    return Path("digits")


@pytest.fixture
def flat(folder: Path) -> Path:
    """Noise as pictures of 8x8, without labels."""
    (folder / "flat").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "flat" / f"{index:02}.png")
    return Path("flat")


def test_optimize_within_a_drop(shell, digits):
    out = shell.passes(
        "optimize",
        DIGITS / "conv5x5_digits.onnx",
        *("--output", "o.onnx", "--data", digits, "--max-drop", "0.05", "--no-bench", "--json"),
        *("--passes", "fuse-conv-bn"),
    )
    found = json.loads(out)["verification"]
    assert found["metric"] == "top1"
    assert found["metric_before"] > 0.95, "the labels are not those of the pictures"
    assert found["samples"]["fitting"] + found["samples"]["held_out"] == COUNT
    assert found["samples"]["description"] == "digits: 120 of 120 pictures, 10 classes, 16x16 gray"


def test_verify_all_of_them(shell, digits):
    model = DIGITS / "conv5x5_digits.onnx"
    right = shell.passes("verify", model, model, "--data", digits)
    assert f"verified on {COUNT} held-out samples" in right
    wrong = shell.passes("verify", model, model, "--data", digits, "--preprocess", "mean=1")
    assert right != wrong


def test_preprocess_decides_what_the_network_sees(shell, model, flat, folder):
    (folder / "m.py").write_text("def m(outputs, batch): return float(batch['x'].mean())")
    seen = {}
    for said in ("scale=255", "scale=1", "tf", "caffe"):
        shell.passes(
            "optimize",
            model,
            *("--data", flat, "--preprocess", said, "--metric", "m.py:m", "--no-bench"),
            *("--report", "r.json"),
        )
        seen[said] = json.loads(Path("r.json").read_text())["verification"]["metric_before"]
    assert seen["scale=1"] == pytest.approx(255 * seen["scale=255"], rel=1e-4)
    assert seen["tf"] == pytest.approx(2 * seen["scale=255"] - 1, rel=1e-4)
    assert seen["caffe"] == pytest.approx(seen["scale=1"] - 114.799, rel=1e-3)


def test_pictures_to_measure_on_and_arrays_to_fit_to(shell, model, flat, pictures):
    np.savez("d.npz", x=pictures)
    out = shell.passes(
        "optimize",
        model,
        *(
            "--data",
            "d.npz",
            "--eval-data",
            flat,
            "--preprocess",
            "scale=1",
            "--no-bench",
            "--json",
        ),
    )
    samples = json.loads(out)["verification"]["samples"]
    assert (samples["fitting"], samples["held_out"]) == (40, 12)


@pytest.mark.parametrize(
    "words",
    [
        ("optimize",),
        ("optimize", "--data", "data.npz"),
        ("optimize", "--eval-data", "data.npz"),
        ("verify", "model.onnx"),
        ("verify", "model.onnx", "--data", "data.npz"),
    ],
)
def test_preprocess_without_pictures(shell, model, data, words):
    command, *rest = words
    line = shell.fails(2, command, model, *rest, "--preprocess", "imagenet")
    assert line == "--preprocess is for pictures: give a folder of them as --data or --eval-data"


@pytest.mark.parametrize("flag", ["--data", "--eval-data"])
@pytest.mark.parametrize(
    ("preprocess", "complaint"),
    [
        ("imagenet", "--preprocess makes pictures of 224x224, input 'x' takes 8x8"),
        ("size", "--preprocess has no preset 'size'"),
        ("sizes=8", "--preprocess has no key 'sizes'"),
        ("color=gray", "input 'x' takes 3 channels, pictures in color=gray have 1"),
    ],
)
def test_what_does_not_fit_is_one_line(shell, model, flat, flag, preprocess, complaint):
    line = shell.fails(2, "optimize", model, flag, flat, "--preprocess", preprocess)
    assert line.startswith(complaint)


def test_a_picture_that_cannot_be_read_is_named(shell, model, flat):
    (flat / "05.png").write_bytes(b"")
    line = shell.fails(2, "optimize", model, "--data", flat)
    assert line == "flat/05.png is not a picture that Pillow can read"
