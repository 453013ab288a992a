"""`--preprocess`: what is read, and what is complained about in which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.calibration.preprocessing import PRESETS, Preprocessing, parse
from graphopt.errors import InputError


def test_every_key():
    text = (
        "size=48x320,resize=330,crop=center,scale=128,mean=0.5:0.4:0.3,std=0.2,"
        "layout=nhwc,color=bgr,filter=bicubic"
    )
    assert parse(text) == Preprocessing(
        (48, 320), 330, "center", 128.0, (0.5, 0.4, 0.3), (0.2,), "nhwc", "bgr", "bicubic"
    )


@given(
    st.permutations(["size=7", "mean=0.5", "color=gray"]),
    st.sampled_from([",", " ", ", ", "\n"]),
)
def test_order_and_separators_do_not_matter(words, separator):
    assert parse(separator.join(words)) == Preprocessing(size=(7, 7), mean=(0.5,), color="gray")


@given(st.text(alphabet="simagent=,: x0123456789.-+e", max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        found = parse(text)
    except InputError as error:
        complaint = str(error)
    else:
        complaint = "--preprocess was read"
        assert found == parse(f" {text},")
    assert complaint.startswith("--preprocess")
    assert "\n" not in complaint


def test_presets_are_torchvisions_and_keras_own():
    imagenet = parse("imagenet")
    assert (imagenet.size, imagenet.resize) == ((224, 224), 256)
    assert imagenet.mean == (0.485, 0.456, 0.406)
    assert imagenet.std == (0.229, 0.224, 0.225)
    assert parse("tf") == Preprocessing(scale=127.5, mean=(1.0,))
    caffe = parse("caffe")
    assert (caffe.color, caffe.scale, caffe.mean) == ("bgr", 1.0, (103.939, 116.779, 123.68))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_key_replaces_that_of_a_preset(preset):
    assert parse(f"{preset},mean=0.25").mean == (0.25,)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty: give a preset (imagenet, caffe, tf)"),
        (" , ", "is empty"),
        ("imagnet", "has no preset 'imagnet': there are imagenet, caffe, tf"),
        ("size=8,imagenet", "'imagenet' is not of the form key=value (a preset comes first)"),
        ("mean=0.4,0.5,0.6", "'0.5' is not of the form key=value (numbers of one key are joined"),
        ("Size=8", "has no key 'Size': there are size, resize, crop"),
        ("size=8,size=9", "size is given twice"),
        ("size=", "size= is not of the form 224 or 480x640"),
        ("size=0", "size=0 is not of the form"),
        ("size=8x", "size=8x is not of the form 224 or 480x640"),
        ("size=1x2x3", "size=1x2x3 is not of the form 224 or 480x640"),
        ("size=8.5", "is not of the form 224 or 480x640"),
        ("size=99999", "(1 to 8192 pixels)"),
        ("resize=8x8", "resize=8x8 is not of the form 256"),
        ("crop=left", "crop=left is none of center"),
        ("layout=chw", "layout=chw is none of nchw, nhwc"),
        ("color=cmyk", "color=cmyk is none of rgb, bgr, gray"),
        ("filter=box", "filter=box is none of nearest, bilinear, bicubic"),
        ("mean=x", "mean=x is not one number or three"),
        ("mean=0.1:0.2", "mean=0.1:0.2 is not one number or three"),
        ("mean=nan", "mean=nan is not one number or three"),
        ("mean=123.7:116.3:103.5", "mean=123.7 lies beyond the pixels"),
        ("std=0", "std=0 is divided by: give more than 0"),
        ("std=1:1:-1", "std=1:1:-1 is divided by"),
        ("scale=0", "scale=0 is divided by"),
        ("scale=inf", "scale=inf is not one number"),
        ("scale=1:2:3", "scale is one number; per channel there are mean and std"),
    ],
)
def test_what_makes_no_sense(text, complaint):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert str(caught.value).startswith("--preprocess")
    assert complaint in str(caught.value)


def test_a_mean_in_pixels_needs_the_scale_said():
    assert parse("mean=123.7:116.3:103.5,scale=1").mean == (123.7, 116.3, 103.5)
