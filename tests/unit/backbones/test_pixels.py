"""Every kind of backbone gives the pixels of its own reference processor, whatever size and mode a photo has."""

import io
import json
import resource
from functools import cache

import numpy as np
import open_clip
import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor, SiglipImageProcessor

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.configuration import OpenClipBackbone, TimmWordsBackbone
from clip_itm.backbones.openclip_source import openai_tokenizer
from clip_itm.data.images import read_image, small_jpeg
from clip_itm.image_processing import OpenClipImageProcessor
from clip_itm.processing import ItmProcessor
from clip_itm.resizing import WHOLE, resized_part, shortest_edge
from support.forks import run_python
from support.tiny_backbones import CAPTIONS, KINDS, tiny_config

pytestmark = pytest.mark.slow

SIDE = 32
# (long - n) mod 4 = 0 .. 3 for 224 and for 32, upright and lying; odd, square, tiny, thin, large
SIZES = [(SIDE + more, SIDE) for more in range(8)] + [(SIDE, SIDE + more) for more in range(1, 8)]
SIZES += [(640, 427), (427, 640), (500, 334), (334, 500), (640, 480), (480, 640), (500, 375), (1024, 767), (767, 1024)]
SIZES += [(224, 224), (333, 333), (31, 33), (97, 31), (1, 1), (1, 2), (2, 1), (1, 50), (50, 1), (3, 7), (5, 90)]
SIZES += [(1500, 40), (40, 1500), (2000, 1500), (800, 9), (1100, 1000)]
ROUNDING = 1e-5  # of float32, in normalised pixels; a grey level is more than 0.01


@cache
def photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Noise above, smooth below: what rounding and what a shift would show."""
    draw = np.random.default_rng([seed, *size])
    noise = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, 3))
    return Image.fromarray(np.where(np.arange(size[1])[:, None, None] < size[1] // 2, noise, smooth))


def demand_equal(processor: ItmProcessor, reference, sizes=SIZES, atol: float = ROUNDING) -> None:
    assert len(sizes) >= 40
    photos = [photo(size) for size in sizes]
    ours = processor(images=photos)["pixel_values"]
    for size, own, expected in zip(sizes, ours, map(reference, photos), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=atol, msg=lambda text, size=size: f"{size}: {text}")


def open_clip_transform(processor: ItmProcessor, size=SIDE, **options):
    images = processor.image_processor
    return open_clip.image_transform(size, False, mean=images.image_mean, std=images.image_std, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_pixels_of_its_own_reference(kind, tmp_path):
    config = tiny_config(kind, tmp_path)
    processor = build_processor(config, CAPTIONS)
    if kind.startswith("open_clip"):
        size = 160 if kind == "open_clip-timm" else SIDE
        return demand_equal(processor, open_clip_transform(processor, size))
    if kind in ("clip", "siglip", "siglip2", "bert-vit"):
        own = AutoImageProcessor.from_pretrained(config.vision_model if kind == "bert-vit" else config.model)
        return demand_equal(processor, lambda image: own(image, return_tensors="pt")["pixel_values"][0], atol=0)
    options = {"mean": config.image_mean, "std": config.image_std, "crop_pct": 1.0, "interpolation": "bicubic"}
    demand_equal(processor, timm.data.create_transform((3, SIDE, SIDE), **options))


@pytest.mark.parametrize("size", [SIDE, (24, 40), (40, 24)])
@pytest.mark.parametrize(
    ("mode", "interpolation"),
    [(mode, how) for mode in ("shortest", "longest", "squash") for how in ("bicubic", "bilinear")]
    + [(None, None), (None, "random")],
)
def test_every_preprocessing_that_open_clip_has(mode, interpolation, size, tmp_path):
    vision = {"image_size": size, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    options = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 90, "mean": 0.4, "std": 0.3}
    source = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": options}
    (tmp_path / "model.json").write_text(json.dumps(source))
    made = build_processor(OpenClipBackbone(model=str(tmp_path / "model.json")), None)
    made.save_pretrained(tmp_path)
    reference = open_clip.image_transform(size, False, **options)
    sizes = [size if max(size) <= 16 * min(size) else (size[0] + 16, size[1] + 16) for size in SIZES]
    for processor in (made, ItmProcessor.from_pretrained(tmp_path)):
        demand_equal(processor, reference, sizes)  # the reference cannot make a side of less than half a pixel


def test_openai_models_at_their_own_size():
    """(long - 224) mod 4 = 3 is what a crop rounded down shows; OpenAI's program is these transforms of torchvision."""
    processor = build_processor(OpenClipBackbone(model="ViT-B-32-quickgelu"), None)
    sizes = [(224 + more, 224) for more in range(8)] + [(224, 224 + more) for more in range(1, 8)]
    sizes += [(640, 427), (427, 640), (500, 334), (334, 500), (1024, 767), (767, 1024), *SIZES[-19:]]
    demand_equal(processor, open_clip_transform(processor, 224), sizes)
    old, new = (
        images(photo((640, 427)), return_tensors="pt")["pixel_values"]
        for images in (CLIPImageProcessor(), processor.image_processor)
    )
    assert (old - new).abs().max() > 1, "these sizes show the offset"


def stored(image: Image.Image, kind: str, **options) -> dict:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"path": None, "bytes": file.getvalue()}


def in_every_mode(size: tuple[int, int]) -> dict[str, dict]:
    """Files of one picture in many modes."""
    colour = photo(size)
    exif = Image.Exif()
    exif[0x0112] = 6
    sixteen = Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257)
    return {
        "RGB": stored(colour, "PNG"),
        "L": stored(colour.convert("L"), "PNG"),
        "LA": stored(Image.merge("LA", [colour.convert("L"), colour.getchannel(1)]), "PNG"),
        "RGBA": stored(Image.merge("RGBA", [*colour.split(), colour.getchannel(1)]), "PNG"),
        "P": stored(colour.quantize(16), "PNG"),
        "1": stored(colour.convert("1"), "PNG"),
        "CMYK": stored(colour.convert("CMYK"), "JPEG"),
        "16-bit": stored(sixteen, "PNG"),
        "turned": stored(colour, "JPEG", exif=exif),
    }


@pytest.mark.parametrize("size", [(67, 45), (45, 67), (35, 32), (64, 64), (9, 200)])
def test_every_mode_that_a_file_may_have(size):
    processor = build_processor(TimmWordsBackbone(image_size=SIDE, min_word_count=1), CAPTIONS)
    reference = open_clip_transform(processor)
    for mode, file in in_every_mode(size).items():
        image = read_image(file)
        assert (image.mode, image.size) == ("RGB", size[::-1] if mode == "turned" else size)
        own = processor(images=[image])["pixel_values"][0]
        torch.testing.assert_close(own, reference(image), rtol=0, atol=ROUNDING)
        direct = processor(images=[Image.open(io.BytesIO(file["bytes"]))])["pixel_values"]
        assert direct.shape == (1, 3, SIDE, SIDE), "modes other than RGB are converted"


sides = st.one_of(st.integers(1, 60), st.integers(1, 700))


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.integers(1, 90), st.sampled_from([2, 3]), st.data())
def test_any_crop_of_any_size(width, height, edge, resample, data):
    crop = {name: data.draw(st.integers(1, edge)) for name in ("height", "width")}
    options = {"size": {"shortest_edge": edge}, "crop_size": crop, "resample": resample, "do_normalize": False}
    image, processor = photo((width, height)), OpenClipImageProcessor(**options)
    resized = shortest_edge(image.size, edge)
    left, top = round((resized[0] - crop["width"]) / 2), round((resized[1] - crop["height"]) / 2)
    expected = image.resize(resized, resample).crop((left, top, left + crop["width"], top + crop["height"]))
    pixels = processor(image, return_tensors="pt")["pixel_values"][0] * 255
    np.testing.assert_allclose(pixels.permute(1, 2, 0), np.asarray(expected), atol=1e-3)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from([2, 3]), st.sampled_from([0, WHOLE, 10**9]), st.data())
def test_a_part_is_that_of_the_whole(width, height, new_width, new_height, resample, whole, data):
    """To the bit, whichever way it is made."""
    left, top = data.draw(st.integers(0, new_width - 1)), data.draw(st.integers(0, new_height - 1))
    box = (left, top, data.draw(st.integers(left + 1, new_width)), data.draw(st.integers(top + 1, new_height)))
    image = photo((width, height))
    expected = image.resize((new_width, new_height), resample).crop(box)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip_itm.resizing.WHOLE", whole)
        part = resized_part(image, (new_width, new_height), box, resample)
    np.testing.assert_array_equal(np.asarray(part), np.asarray(expected))


# thin photos ----------------------------------------------------------------------------------------------------------

THIN = [(800, 3), (3, 800), (1200, 1), (1, 1200), (1500, 9), (9, 1500), (1999, 7)]


def test_thin_photos_have_the_same_pixels():
    processor = ItmProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}), openai_tokenizer()
    )
    reference = open_clip_transform(processor)
    for size in THIN:
        own = processor(images=[photo(size)])["pixel_values"][0]
        torch.testing.assert_close(own, reference(photo(size)), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("edge", "crop"), [(SIDE, SIDE), (40, SIDE), (39, SIDE)])
def test_thin_photos_of_an_image_processor_of_transformers(edge, crop, monkeypatch):
    monkeypatch.setattr("clip_itm.image_processing.MODERATE", 0)
    own = CLIPImageProcessor(size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop})
    processor = ItmProcessor(own, openai_tokenizer(), images_as="transformers")
    for size in THIN:
        ours = processor(images=[photo(size)])["pixel_values"][0]
        levels = (ours - own(photo(size), return_tensors="pt")["pixel_values"][0]).abs() * 0.27 * 255
        assert levels.max() < 2.5
        assert (levels > 0.5).float().mean() <= 0.02
    monkeypatch.undo()
    ordinary = [photo(size) for size in SIZES[:20]]
    assert torch.equal(processor(images=ordinary)["pixel_values"], own(ordinary, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("size", [(40_000, 3), (3, 40_000), (400_000, 1), (1, 400_000)])
def test_the_thinnest_photos_are_cheap(size):
    image = Image.new("RGB", size, (200, 100, 50))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for processor in (CLIPImageProcessor(), SiglipImageProcessor()):
        for images_as in ("open_clip", "transformers"):
            wrapped = ItmProcessor(processor, openai_tokenizer(), images_as=images_as)
            assert wrapped(images=[image])["pixel_values"].std(dim=(2, 3)).max() < 1e-4
    assert len(small_jpeg(image, 256)) < 50_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes


@pytest.mark.parametrize("images_as", ["open_clip", "transformers"])
def test_a_thin_photo_of_which_all_is_wanted_is_refused(images_as):
    uncut = ItmProcessor(CLIPImageProcessor(do_center_crop=False), openai_tokenizer(), images_as=images_as)
    with pytest.raises(ValueError, match="a photo of 40000 x 3 pixels is too thin to be resized to 2986666 x 224"):
        uncut(images=[Image.new("RGB", (40_000, 3))])


# saved processors -----------------------------------------------------------------------------------------------------


def as_saved_before(folder) -> None:
    """Without the option that there was not, and without checksums."""
    (folder / "checksums.json").unlink()
    file = folder / "processor_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["image_processor"]["image_processor_type"] in (
        "CLIPImageProcessor",
        "SiglipImageProcessor",
        "Siglip2ImageProcessor",
    )
    del content["images_as"]
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip", "siglip2", "bag"])
@pytest.mark.parametrize("old", [False, True])
def test_a_saved_processor_gives_the_same_pixels(kind, old, tmp_path):
    config = tiny_config(kind, tmp_path)
    made = build_processor(config, CAPTIONS)
    made.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"model_type": "clip-itm", "backbone": {"kind": config.kind}})
    )
    if old:
        as_saved_before(tmp_path / "model")
    loaded = ItmProcessor.from_pretrained(tmp_path / "model")
    photos = [photo(size) for size in SIZES]
    assert loaded.images_as == made.images_as
    assert torch.equal(loaded(images=photos)["pixel_values"], made(images=photos)["pixel_values"])


def test_an_old_processor_without_a_model_beside_it_is_one_of_open_clip(tmp_path):
    made = build_processor(tiny_config("open_clip", tmp_path), None)
    made.save_pretrained(tmp_path)
    as_saved_before(tmp_path)
    assert isinstance(ItmProcessor.from_pretrained(tmp_path).image_processor, OpenClipImageProcessor)
    with pytest.raises(ValueError, match="images_as: expected open_clip or transformers, found 'pillow'"):
        ItmProcessor(CLIPImageProcessor(), openai_tokenizer(), images_as="pillow")


@pytest.mark.slow
def test_a_process_without_this_package_gives_the_same_pixels(tmp_path):
    processor = build_processor(tiny_config("open_clip", tmp_path), None)
    processor.save_pretrained(tmp_path / "model")
    photo((35, SIDE)).save(tmp_path / "photo.png")
    code = f"""
import sys
sys.modules["clip_itm"] = None
from PIL import Image
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
print(processor(images=[Image.open({str(tmp_path / "photo.png")!r})])["pixel_values"].tolist())
"""
    said = run_python("-c", code, cwd=tmp_path)
    pixels = torch.tensor(json.loads(said.splitlines()[-1]))
    assert torch.equal(pixels, processor(images=[photo((35, SIDE))])["pixel_values"])


def test_square_photos_of_the_models_size_are_what_they_were():
    """Of Flickr8k, whose photos are 224 x 224, no figure may move."""
    photos = [photo((224, 224), seed) for seed in range(5)]
    processor = ItmProcessor(CLIPImageProcessor(), openai_tokenizer())
    before = CLIPImageProcessor()(photos, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=photos)["pixel_values"], before)
