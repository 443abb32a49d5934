"""Every kind of photo becomes the RGB that a viewer shows; every broken one an error with its name."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_itm.data.images import read_image, to_rgb


@pytest.fixture
def ramp() -> np.ndarray:
    """Greys from 0 to 255 along the width, uint8 [16, 256]."""
    return np.tile(np.arange(256, dtype=np.uint8), (16, 1))


def encode(image: Image.Image, format: str = "PNG", **settings) -> dict:
    file = io.BytesIO()
    image.save(file, format, **settings)
    return {"path": None, "bytes": file.getvalue()}


def pixels(stored: dict, **settings) -> np.ndarray:
    image = read_image(stored, **settings)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def test_greyscale_one_bit_and_rgb(ramp):
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(ramp))), grey(ramp))
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(ramp > 99))), grey(np.where(ramp > 99, 255, 0)))
    colour = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(colour))), colour)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(ramp, format):
    stored = encode(Image.fromarray(ramp.astype(np.uint16) * 257), format)
    np.testing.assert_array_equal(pixels(stored), grey(ramp))


def test_dark_sixteen_bits_stay_dark():
    stored = encode(Image.fromarray(np.full((4, 4), 200, dtype=np.uint16)))
    assert pixels(stored).max() == 1


def test_thirty_two_bit_integers(ramp):
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(ramp.astype(np.int32) * 257))), grey(ramp))
    full = (ramp.astype(np.int64) * ((2**31 - 1) // 255)).astype(np.int32)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(full))), grey(ramp))


def test_sixteen_bit_big_endian():
    data = np.array([[0, 65535], [257 * 100, 257]], dtype=">u2")
    image = Image.frombytes("I;16B", (2, 2), data.tobytes())
    np.testing.assert_array_equal(np.asarray(to_rgb(image))[..., 0], [[0, 255], [100, 1]])


def test_palette(ramp):
    image = Image.fromarray(ramp[:, :4].copy(), mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    np.testing.assert_array_equal(pixels(encode(image))[0], [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_transparent_parts_are_white(mode):
    if mode in ("RGBA", "LA"):
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 255)).convert(mode)
        image.putpixel((1, 0), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
        found = pixels(encode(image))
    elif mode == "PA":
        image = Image.new("PA", (2, 1), (0, 255))
        image.putpalette([0, 0, 0])
        image.putpixel((1, 0), (0, 0))
        found = np.asarray(to_rgb(image))
    else:  # one value stands for transparent
        image = Image.new(mode, (2, 1))
        image.putpixel((1, 0), (1, 1, 1) if mode == "RGB" else 1)
        if mode == "P":
            image.putpalette([0, 0, 0, 9, 9, 9])
        found = pixels(encode(image, transparency=(1, 1, 1) if mode == "RGB" else 1))
    np.testing.assert_array_equal(found[0], [[0, 0, 0], [255, 255, 255]])


def test_half_transparent_is_mixed_with_white():
    assert pixels(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))[0, 0].tolist() == [127, 127, 127]


def test_cmyk_jpeg():
    stored = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(pixels(stored).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    stored_as = {  # what a camera writes so that the viewer sees `upright`
        1: upright,
        2: np.fliplr(upright),
        3: np.rot90(upright, 2),
        4: np.flipud(upright),
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encode(Image.fromarray(np.ascontiguousarray(stored_as)), exif=exif)
    np.testing.assert_array_equal(pixels(stored), grey(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_no_reason_to_lose_the_photo(ramp):
    stored = encode(Image.fromarray(ramp), "JPEG", exif=b"Exif\x00\x00MM\x00\x2b\xff\xff\xff\xff\xff")
    assert pixels(stored).shape == (16, 256, 3)


def test_draft_shrinks_jpegs_only(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 1200), dtype=np.uint8))
    image.save(tmp_path / "a.jpg")
    stored = {"path": str(tmp_path / "a.jpg"), "bytes": None}
    assert pixels(stored, draft_size=200).shape == (200, 300, 3)
    assert pixels(stored, draft_size=201).shape == (400, 600, 3)
    assert pixels(stored).shape == (800, 1200, 3)
    assert pixels(encode(image), draft_size=200).shape == (800, 1200, 3)


def broken(tmp_path, kind: str) -> dict:
    path = tmp_path / f"{kind}.jpg"
    picture = Image.radial_gradient("L").convert("RGB")
    data = encode(picture, "PNG" if "png" in kind else "JPEG")["bytes"]
    content = {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "truncated_png": data[: len(data) // 2],
        "header_only": data[:20],
        "damaged_png": data[:60] + b"\xff" * 40 + data[100:],
        "text": b"<html>404</html>",
    }
    if kind != "missing":
        path.write_bytes(content[kind])
    return {"path": str(path), "bytes": None}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no such photo"),
        ("empty", r"the file is empty \(0 bytes\)"),
        ("truncated", "cannot be decoded .*truncated.*; replace or remove it"),
        ("truncated_png", "cannot be decoded .*truncated"),
        ("header_only", "not a photo that Pillow can read"),
        ("damaged_png", "cannot be decoded"),
        ("text", "not a photo that Pillow can read"),
    ],
)
def test_broken_photos_are_named(tmp_path, kind, message):
    with pytest.raises(ValueError, match=rf"{kind}.jpg: .*{message}"):
        read_image(broken(tmp_path, kind))


def test_a_bomb_is_told(monkeypatch):
    stored = encode(Image.new("L", (60, 60)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        ValueError, match=r"photo stored in the data set: Image size \(3600 pixels\) exceeds limit .*shrink"
    ):
        read_image(stored)


@pytest.mark.real_data
def test_the_greyscale_photo_of_coco_mini(real_data):
    found = 0
    for path in sorted((real_data / "coco_mini" / "val2017").glob("*.jpg")):
        with Image.open(path) as image:
            if image.mode != "L":
                continue
            expected = np.asarray(image)
        found += 1
        np.testing.assert_array_equal(pixels({"path": str(path), "bytes": None}), grey(expected))
    assert found == 1
