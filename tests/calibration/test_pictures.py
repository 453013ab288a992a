"""Folders of pictures: the numbers that come out, the labels, the bounds, the complaints."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from graphopt.calibration import pictures as module
from graphopt.calibration.picture_folder import find_pictures
from graphopt.calibration.preprocessing import parse
from graphopt.calibration.readers import read
from graphopt.errors import InputError

NCHW = "net (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }"
NHWC = "net (float[N,H,W,3] x) => (float[N,H,W,3] y) { y = Relu (x) }"
GRAY = "net (float[N,1,6,8] x) => (float[N,1,6,8] y) { y = Relu (x) }"
BYTES = "net (uint8[N,6,8,3] x) => (uint8[N,6,8,3] y) { y = Identity (x) }"
FIXED = "net (float[4,3,6,8] x) => (float[4,3,6,8] y) { y = Relu (x) }"
TEN = "net (float[N,3,6,8] x) => (float[N,10] y) <float[144,10] w> { f = Flatten (x) y = MatMul (f, w) }"


def paint(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def get(model, tmp_path):
    """All samples of a folder for a model, with what `--preprocess` says."""

    def get(text: str, preprocess: str | None = None, folder: Path | str = tmp_path, **shapes):
        spec = None if preprocess is None else parse(preprocess)
        found = read(str(folder), model(text).graph, spec, shapes)
        return np.concatenate([batch.feeds["x"] for batch in found.batches])

    return get


numbers = st.lists(st.floats(0, 1), min_size=3, max_size=3) | st.lists(
    st.floats(0, 1), min_size=1, max_size=1
)


@given(
    seed=st.integers(0, 99),
    scale=st.sampled_from([1.0, 127.5, 255.0]),
    mean=numbers,
    std=numbers,
    color=st.sampled_from(["rgb", "bgr"]),
    layout=st.sampled_from(["nchw", "nhwc"]),
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
def test_pixels_become_what_numpy_makes_of_them(
    get, tmp_path, seed, scale, mean, std, color, layout
):
    pixels = save(tmp_path / "p.png", paint(seed)).astype(np.float64)
    std = [s + 0.1 for s in std]
    said = ",".join(
        [
            f"size=6x8,scale={scale},color={color}",
            *(f"{k}={':'.join(map(repr, v))}" for k, v in (("mean", mean), ("std", std))),
        ]
    )
    expected = ((pixels[..., ::-1] if color == "bgr" else pixels) / scale - mean) / std
    found = get(NCHW if layout == "nchw" else NHWC, said)[0]
    assert found.dtype == np.float32
    shown = found.transpose(1, 2, 0) if layout == "nchw" else found
    np.testing.assert_allclose(shown, expected, rtol=1e-5, atol=1e-5)


def test_without_preprocess_pixels_are_0_to_1_in_the_models_size(get, tmp_path):
    pixels = save(tmp_path / "p.png", paint(0))
    text = NCHW.replace("H,W", "6,8")
    np.testing.assert_allclose(get(text)[0], pixels.transpose(2, 0, 1) / 255.0, rtol=1e-6)


class TestTypes:
    def test_bytes_are_the_pixels_themselves(self, get, tmp_path):
        pixels = save(tmp_path / "p.png", paint(0))
        assert get(BYTES).dtype == np.uint8
        assert np.array_equal(get(BYTES)[0], pixels)
        assert np.array_equal(get(BYTES, "color=bgr")[0], pixels[..., ::-1])

    @pytest.mark.parametrize("kind", ["float16", "double"])
    def test_floats_are_the_models(self, get, tmp_path, kind):
        pixels = save(tmp_path / "p.png", paint(0))
        found = get(NCHW.replace("float", kind), "size=6x8")[0]
        assert found.dtype == np.dtype(kind)
        accuracy = np.finfo(found.dtype).eps
        np.testing.assert_allclose(found, pixels.transpose(2, 0, 1) / 255, rtol=2 * accuracy)

    def test_gray_where_there_is_one_channel(self, get, tmp_path):
        save(tmp_path / "p.png", paint(0))
        luma = np.asarray(Image.open(tmp_path / "p.png").convert("L"))
        np.testing.assert_allclose(get(GRAY)[0, 0], luma / 255.0, rtol=1e-6)


class TestSizes:
    def test_stretched(self, get, tmp_path):
        pixels = save(tmp_path / "p.png", paint(0))
        found = get(NCHW, "size=12x24,scale=1,filter=nearest")[0]
        assert np.array_equal(found, pixels.repeat(2, 0).repeat(3, 1).transpose(2, 0, 1))

    @pytest.mark.parametrize(("height", "width"), [(6, 11), (11, 6), (6, 6)])
    def test_the_middle_is_cut_out(self, get, tmp_path, height, width):
        pixels = save(tmp_path / "p.png", paint(0, height, width))
        top, left = round((height - 4) / 2), round((width - 4) / 2)
        found = get(NCHW, "size=4,resize=6,scale=1")[0]
        assert np.array_equal(found, pixels[top : top + 4, left : left + 4].transpose(2, 0, 1))

    @pytest.mark.parametrize(("height", "width"), [(300, 401), (120, 90), (64, 64)])
    def test_imagenet_is_torchvisions(self, get, tmp_path, height, width):
        """Resize(256), CenterCrop(224), ToTensor, Normalize, as torchvision computes them."""
        picture = Image.fromarray(save(tmp_path / "p.png", paint(1, height, width)))
        short, long = sorted((height, width))
        sides = (
            (256, int(256 * long / short)) if height <= width else (int(256 * long / short), 256)
        )
        resized = np.asarray(picture.resize(sides[::-1], Image.Resampling.BILINEAR))
        top, left = (round((side - 224) / 2.0) for side in sides)
        cut = resized[top : top + 224, left : left + 224] / 255
        expected = (cut - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        found = get(NCHW, "imagenet")[0].transpose(1, 2, 0)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_cropped_without_a_resize_just_covers(self, get, tmp_path):
        pixels = save(tmp_path / "p.png", paint(0, 6, 20))
        found = get(NCHW, "size=12,crop=center,scale=1,filter=nearest")[0]
        doubled = pixels.repeat(2, 0).repeat(2, 1)[:, 14:26]
        assert np.array_equal(found, doubled.transpose(2, 0, 1))

    @given(*(st.integers(1, 500) for _ in range(4)))
    def test_covering_covers_and_not_more_than_needed(self, height, width, high, wide):
        found = module.covering((height, width), (high, wide))
        assert found[0] >= high
        assert found[1] >= wide
        assert found[0] == high or found[1] == wide

    def test_shape_closes_what_the_model_leaves_open(self, get, tmp_path):
        save(tmp_path / "p.png", paint(0))
        assert get(NCHW, x=(1, 3, 10, 12)).shape == (1, 3, 10, 12)

    def test_layout_closes_what_the_shape_leaves_open(self, get, tmp_path):
        save(tmp_path / "p.png", paint(0))
        text = "net (float[N,A,B,C] x) => (float[N,A,B,C] y) { y = Relu (x) }"
        assert get(text, "size=4x5,layout=nhwc").shape == (1, 4, 5, 3)
        assert get(text, "size=4x5,layout=nchw,color=gray").shape == (1, 1, 4, 5)


class TestFolders:
    def test_flat_ones_have_no_labels_and_keep_the_order_of_names(self, model, tmp_path):
        for index, name in enumerate(["b.PNG", "a.jpeg", "c.bmp", "d.webp"]):
            save(tmp_path / name, np.full((6, 8, 3), 40 * index, np.uint8))
        (tmp_path / "notes.txt").write_text("not a picture")
        (tmp_path / "empty").mkdir()
        (tmp_path / "._a.jpg").write_bytes(b"what macOS leaves")
        found = read(str(tmp_path), model(NCHW).graph, parse("size=6x8,scale=1"))
        assert all(batch.labels is None for batch in found.batches)
        means = [round(float(batch.feeds["x"].mean())) for batch in found.batches]
        assert means == pytest.approx([40, 0, 80, 120], abs=3)
        assert found.description == f"{tmp_path}: 4 of 4 pictures, 6x8 rgb"

    def test_subfolders_are_classes_by_sorted_name(self, model, tmp_path):
        for label, name in enumerate(["10", "2", "b"]):
            for index in range(3):
                pixels = np.full((6, 8, 3), 10 * label + index, np.uint8)
                save(tmp_path / name / "deeper" / f"{index}.png", pixels)
        found = read(str(tmp_path), model(NCHW).graph, parse("size=6x8,scale=1"))
        assert found.samples == 9
        for batch in found.batches:
            assert batch.feeds["x"].flags.c_contiguous
            assert np.array_equal(batch.feeds["x"][:, 0, 0, 0] // 10, batch.labels)
        assert found.description == f"{tmp_path}: 9 of 9 pictures, 3 classes, 6x8 rgb"

    def test_every_batch_has_its_share_of_every_class(self, model, tmp_path):
        for name in "abcd":
            for index in range(64 if name == "a" else 32):
                save(tmp_path / name / f"{index}.png", paint(0, 1, 1))
        found = read(str(tmp_path), model(NCHW).graph, parse("size=1"))
        for batch in found.batches:
            counts = Counter(batch.labels.tolist())
            assert abs(counts[0] - 0.4 * batch.size) <= 2
            assert all(abs(counts[label] - 0.2 * batch.size) <= 2 for label in (1, 2, 3))

    def test_more_than_the_bound_are_spread_evenly(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "MOST_PICTURES", 10)
        for name in "ab":
            for index in range(50):
                save(tmp_path / name / f"{index:02}.png", np.full((1, 1, 3), index, np.uint8))
        runs = [read(str(tmp_path), model(NCHW).graph, parse("size=1,scale=1")) for _ in "12"]
        labels = np.concatenate([batch.labels for batch in runs[0].batches])
        values = [np.concatenate([b.feeds["x"] for b in run.batches])[:, 0, 0, 0] for run in runs]
        assert Counter(labels.tolist()) == {0: 5, 1: 5}
        assert np.array_equal(*values)
        assert np.diff(np.sort(values[0][labels == 0])).max() <= 12
        assert "10 of 100 pictures" in runs[0].description

    def test_memory_is_bounded(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "MOST_BYTES", 3 * 4 * 6 * 8 * 7)
        for index in range(20):
            save(tmp_path / f"{index:02}.png", paint(index))
        assert read(str(tmp_path), model(NCHW).graph, parse("size=6x8")).samples == 7

    @pytest.mark.parametrize(("count", "kept"), [(4, 4), (7, 4), (9, 8)])
    def test_a_fixed_batch_takes_whole_ones(self, model, tmp_path, count, kept):
        for index in range(count):
            save(tmp_path / f"{index}.png", paint(index))
        found = read(str(tmp_path), model(FIXED).graph)
        assert {batch.size for batch in found.batches} == {4}
        assert f": {kept} of {count} pictures" in found.description

    def test_ten_folders_for_ten_classes(self, model, tmp_path):
        for label in range(10):
            save(tmp_path / str(label) / "p.png", paint(0))
        assert read(str(tmp_path), model(TEN).graph).labelled

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
    def test_any_kind_of_color(self, get, tmp_path, mode):
        name = tmp_path / ("p.jpg" if mode == "CMYK" else "p.png")
        Image.new(mode, (8, 6)).save(name)
        assert get(NCHW, "size=6x8").shape == (1, 3, 6, 8)

    def test_no_pictures_are_none(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "x.npz").touch()
        assert find_pictures(tmp_path) is None


class TestComplaints:
    @pytest.mark.parametrize(
        ("text", "preprocess", "complaint"),
        [
            (NCHW, None, "'x' leaves height or width open: say size=224"),
            (GRAY, "size=8", "makes pictures of 8x8, input 'x' takes 6x8"),
            (GRAY, "color=rgb", "takes 1 channel, pictures in color=rgb have 3"),
            (GRAY, "mean=0.1:0.2:0.3", "mean has 3 numbers for 1 channel"),
            (NCHW, "size=6,color=gray", "takes 3 channels, pictures in color=gray have 1"),
            (NCHW, "size=300,resize=256", "resize=256 is less than the 300x300 to be cut out"),
            (NCHW, "size=6,layout=nhwc", "makes pictures of 6x6, input 'x' takes 3x?"),
            (BYTES, "mean=0.5", "takes the pixels themselves (uint8): leave scale, mean and std"),
            (BYTES, "scale=255", "takes the pixels themselves (uint8)"),
            (NCHW.replace("3,", "4,"), "size=6", "does not tell where its 1 or 3 channels are"),
            (NCHW.replace("3,", "4,"), "size=6,layout=nchw", "takes 4 channels, pictures in"),
            (NCHW.replace("float", "int64"), "size=6", "'x' is int64, pictures fill float"),
            (NCHW.replace("3,", ""), "size=6", "'x' has 3 dimensions, pictures fill [N,C,H,W]"),
            (
                "net (float[N,3,6,8] a, float[N,3,6,8] b) => (float[N,3,6,8] y) { y = Add (a, b) }",
                None,
                "pictures fill one input, the model has a, b: give an .npz or file.py:function",
            ),
        ],
    )
    def test_models_that_take_something_else(self, get, tmp_path, text, preprocess, complaint):
        save(tmp_path / "p.png", paint(0))
        with pytest.raises(InputError) as caught:
            get(text, preprocess)
        assert complaint in str(caught.value)

    def test_an_input_without_a_rank(self, model, tmp_path):
        save(tmp_path / "p.png", paint(0))
        found = model(NCHW)
        found.graph.inputs[0].shape = None
        with pytest.raises(InputError, match="no declared shape: give --shape"):
            read(str(tmp_path), found.graph)

    def test_fewer_than_the_fixed_batch(self, get, tmp_path):
        save(tmp_path / "p.png", paint(0))
        with pytest.raises(InputError, match="1 samples, fewer than the model's batch of 4"):
            get(FIXED)

    @pytest.mark.parametrize("where", ["p.png", "a/p.png"])
    def test_pictures_beside_npz_files(self, get, tmp_path, where):
        save(tmp_path / where, paint(0))
        np.savez(tmp_path / "d.npz", x=np.zeros((4, 3, 6, 8), "f"))
        with pytest.raises(InputError, match=r"has both \.npz files and pictures"):
            get(NCHW, "size=6x8")

    def test_pictures_in_both_places(self, get, tmp_path):
        save(tmp_path / "p.png", paint(0))
        save(tmp_path / "a" / "p.png", paint(0))
        with pytest.raises(InputError, match="both in it and in its subfolders"):
            get(NCHW, "size=6x8")

    def test_a_class_without_pictures(self, get, tmp_path):
        save(tmp_path / "b" / "p.png", paint(0))
        (tmp_path / "a").mkdir()
        with pytest.raises(InputError, match="a has no pictures, so that classes cannot be"):
            get(NCHW, "size=6x8")

    def test_another_number_of_classes_than_the_models(self, get, tmp_path):
        save(tmp_path / "a" / "p.png", paint(0))
        with pytest.raises(InputError, match="has 1 subfolder, output 'y' has 10 classes"):
            get(TEN)

    def test_files_that_are_no_pictures(self, get, tmp_path):
        (tmp_path / "p.png").write_text("no picture")
        with pytest.raises(InputError, match=r"p\.png is not a picture that Pillow can read"):
            get(NCHW, "size=6")

    def test_truncated_files(self, get, tmp_path):
        save(tmp_path / "p.png", paint(0, 60, 60))
        content = (tmp_path / "p.png").read_bytes()
        (tmp_path / "p.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=r"p\.png cannot be read as a picture: "):
            get(NCHW, "size=6")

    def test_deeper_colors(self, get, tmp_path):
        Image.fromarray(np.full((6, 8), 40_000, np.uint16)).save(tmp_path / "p.png")
        with pytest.raises(InputError, match=r"p\.png has more than 8 bits per channel"):
            get(NCHW, "size=6")

    def test_no_pillow(self, get, tmp_path, monkeypatch):
        save(tmp_path / "p.png", paint(0))
        for name in ("PIL", "PIL.Image"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError) as caught:
            get(NCHW, "size=6")
        assert str(caught.value) == "reading pictures needs Pillow: pip install 'graphopt[image]'"
