"""Images: what decodes, with which shape, and what is found broken."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from hsr_train.data.images import examine_image

FORMATS = {
    "jpg": "JPEG",
    "png": "PNG",
    "bmp": "BMP",
    "webp": "WEBP",
    "tif": "TIFF",
    "jp2": "JPEG2000",
    "avif": "AVIF",
}


def picture(height: int = 60, width: int = 80, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)).convert(mode)


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


@pytest.mark.parametrize("suffix", FORMATS)
def test_shape_is_height_and_width(suffix):
    assert examine_image(encoded(picture(), FORMATS[suffix]), suffix) == ((60, 80), "")


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpeg_decode(mode):
    assert examine_image(encoded(picture(mode=mode), "JPEG"), "jpg") == ((60, 80), "")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_decodes(suffix):
    raw = cv2.imencode(f".{suffix}", np.full((60, 80), 40_000, np.uint16))[1].tobytes()
    assert examine_image(raw, suffix) == ((60, 80), "")


@pytest.mark.parametrize(("value", "shape"), [(1, (60, 80)), (3, (60, 80)), (6, (80, 60)), (8, (80, 60))])
def test_exif_rotation_turns_the_shape(value, shape):
    assert examine_image(encoded(picture(), "JPEG", exif=orientation(value)), "jpg") == (shape, "")


def test_jpeg_shape_is_that_of_a_full_decode_for_all_sizes_and_rotations():
    rng = np.random.default_rng(1)
    for turn in range(1, 9):
        for height, width in [(16, 16), (64, 60), (57, 64), (65, 64), *rng.integers(10, 90, (12, 2)).tolist()]:
            options = {"progressive": True} if (height + width) % 2 else {}
            raw = encoded(picture(height, width), "JPEG", exif=orientation(turn), **options)
            full = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)
            assert examine_image(raw, "jpg") == (full.shape[:2], ""), (turn, height, width)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.999])
def test_truncated_jpeg_is_found(progressive, share):
    raw = encoded(picture(240, 320), "JPEG", progressive=progressive)
    assert "cut off" in examine_image(raw[: int(len(raw) * share)], "jpg")[1]


def test_jpeg_whose_end_was_never_written_is_found():
    raw = encoded(picture(240, 320), "JPEG")
    half = len(raw) // 2
    assert "cut off" in examine_image(raw[:half] + bytes(len(raw) - half), "jpg")[1]


def test_end_marker_of_a_thumbnail_does_not_hide_a_truncation():
    thumbnail = encoded(picture(16, 16), "JPEG")
    segment = b"Exif\0\0" + thumbnail
    raw = encoded(picture(240, 320), "JPEG")
    raw = raw[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + raw[2:]
    assert examine_image(raw, "jpg") == ((240, 320), "")
    assert "cut off" in examine_image(raw[: len(raw) * 3 // 4], "jpg")[1]


@pytest.mark.parametrize("tail", [b"camera data after the image", bytes(100), encoded(picture(20, 20), "JPEG")])
def test_data_after_the_end_of_a_jpeg_is_no_fault(tail):
    assert examine_image(encoded(picture(), "JPEG") + tail, "jpg") == ((60, 80), "")


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != "jpg"])
def test_other_truncated_formats_are_found(suffix):
    raw = encoded(picture(), FORMATS[suffix])
    assert examine_image(raw[: len(raw) // 2], suffix)[1] == "cannot be decoded"


@pytest.mark.parametrize("raw", [b"not an image", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_other_content_is_found(raw):
    assert examine_image(raw, "jpg") == ((0, 0), "cannot be decoded")


def test_empty_file_is_found():
    assert examine_image(b"", "png") == ((0, 0), "the file is empty")


@pytest.mark.parametrize(("height", "width"), [(9, 40), (40, 9)])
def test_smaller_than_ten_pixels_is_refused(height, width):
    assert "smaller than 10" in examine_image(encoded(picture(height, width), "PNG"), "png")[1]
    assert examine_image(encoded(picture(10, 10), "PNG"), "png") == ((10, 10), "")
