"""Resizing where photos are read and arithmetic where the model is: together the image processor, to the bit."""

import numpy as np
import pytest
import torch
from datasets import Dataset as Rows
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import CLIPImageProcessor, CLIPImageProcessorPil, PreTrainedTokenizerFast, SiglipImageProcessor

from clip_itm.data.batches import PairDataset
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.pixels import KeptPixels, Pixels
from clip_itm.data.rows import ROW_FEATURES, Split
from clip_itm.processing import ItmProcessor
from clip_itm.training.encode import encode_images

SIZES = [(40, 30), (30, 41), (23, 57), (32, 32), (500, 3), (3, 500), (1, 1)]
SQUARE = {"size": {"height": 32, "width": 32}}


def processor_of(images, images_as: str = "open_clip") -> ItmProcessor:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[PAD]": 1}, "a")), pad_token="[PAD]"
    )
    return ItmProcessor(images, tokenizer, images_as=images_as)


def clip(**options) -> CLIPImageProcessor:
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return CLIPImageProcessor(**sizes, **options)


KINDS = {
    "open_clip": (lambda: processor_of(clip()), torch.uint8),
    "transformers": (lambda: processor_of(clip(), "transformers"), torch.uint8),
    "siglip": (lambda: processor_of(SiglipImageProcessor(**SQUARE)), torch.uint8),
    "without mean": (lambda: processor_of(clip(do_normalize=False)), torch.float32),
    "pil": (lambda: processor_of(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)), torch.float32),
}


def photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_halves_are_the_whole(kind):
    make, dtype = KINDS[kind]
    processor = make()
    images = [photo(size, seed) for seed, size in enumerate(SIZES)]
    expected = processor(images=images)["pixel_values"]
    pixels = Pixels(processor)
    read = pixels.read(images)["pixel_values"]
    assert read.dtype == dtype
    before = read.clone()
    assert torch.equal(pixels.normalize(read), expected)
    assert torch.equal(read, before), "what is kept must not change"
    assert torch.equal(processor(images=images)["pixel_values"], expected), "the processor is as it was"


@pytest.fixture
def split(tmp_path) -> Split:
    rows = {name: [] for name in ROW_FEATURES}
    for number, size in enumerate(SIZES):
        path = tmp_path / f"{number}.png"
        photo(size, number).save(path)
        rows["image"].append({"path": str(path), "bytes": None})
        rows["image_id"].append(str(number))
        rows["captions"].append(["a", "a a"])
        rows["caption_ids"].append([f"{number}#0", f"{number}#1"])
    return Split("train", Rows.from_dict(rows, features=ROW_FEATURES))


BATCHES = [[0, 3, 1, 9], [4, 0, 5, 13], [2, 12, 8, 0]]


def dataset_of(split: Split, **options) -> PairDataset:
    return PairDataset(split, CaptionNoise.clean(split.pairs), processor_of(clip()), **options)


@pytest.mark.parametrize("room", [0, 32 * 32 * 3, 32 * 32 * 3 * 3 + 1, None])
def test_batches_are_the_same_however_many_photos_are_kept(split, room):
    pixels, plain = Pixels(processor_of(clip())), dataset_of(split)
    keeping = dataset_of(split, pixels=pixels, kept=KeptPixels(room))
    for _ in range(2):
        for pairs in BATCHES:
            expected, found = plain.__getitems__(pairs), keeping.__getitems__(pairs)
            found["pixel_values"] = pixels.normalize(found["pixel_values"])
            assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_kept_photos_are_not_read_again(split, tmp_path):
    pixels, kept = Pixels(processor_of(clip())), KeptPixels()
    keeping = dataset_of(split, pixels=pixels, kept=kept)
    first = keeping.__getitems__(list(range(14)))["pixel_values"]
    for number in range(len(SIZES)):
        (tmp_path / f"{number}.png").unlink()
    assert torch.equal(keeping.__getitems__(list(range(13, -1, -1)))["pixel_values"], first.flip(0))
    device = torch.device("cpu")
    again = encode_images(
        lambda pixel_values: pixel_values, split.rows, processor_of(clip()), device, 3, kept=kept, name="train"
    )
    assert torch.equal(again, pixels.normalize(first))
    with pytest.raises(ValueError, match="there is no such photo"):
        encode_images(
            lambda pixel_values: pixel_values, split.rows, processor_of(clip()), device, 3, kept=kept, name="val"
        )


def test_cropped_photos_are_not_kept(split):
    pixels, kept = Pixels(processor_of(clip())), KeptPixels()
    cropping = dataset_of(split, pixels=pixels, kept=kept, random_crop=0.3, seed=1)
    first = cropping.__getitems__(BATCHES[0])["pixel_values"]
    cropping.set_epoch(1)
    assert not torch.equal(cropping.__getitems__(BATCHES[0])["pixel_values"], first)
    assert not kept.get("train", list(range(7)))


def test_room_is_counted():
    kept = KeptPixels(250)
    kept.keep("train", [0, 1, 2], torch.ones(3, 3, 5, 7, dtype=torch.uint8))
    assert (set(kept.get("train", [0, 1, 2])), kept.room) == ({0, 1}, 40)
    kept.keep("train", [5], torch.ones(1, 3, 2, 2))
    assert not kept.get("train", [5]), "only bytes are kept"
    assert not kept.get("val", [0])
