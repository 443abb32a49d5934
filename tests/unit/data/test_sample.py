"""The embedded data set of drawn scenes."""

import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from clip_itm.data.configuration import SampleData
from clip_itm.data.load import load_splits
from clip_itm.data.sources import sample

COUNT = 150


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("sample"))
    return load_splits(SampleData(train_images=COUNT, val_images=20, test_images=20, cache_dir=folder))


def picture(row) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"]))


def test_splits_have_the_photos_that_were_asked_for(splits):
    assert {name: len(split) for name, split in splits.items()} == {"train": COUNT, "val": 20, "test": 20}
    row = splits["train"].rows[3]
    assert picture(row).size == (64, 64)
    assert (picture(row).format, picture(row).mode) == ("PNG", "RGB")
    assert len(row["captions"]) == 5
    assert row["image_id"] == "train-00003"
    assert row["caption_ids"] == [f"train-00003#{k}" for k in range(5)]


def test_a_larger_sample_begins_with_the_smaller_one(splits, tmp_path):
    larger = load_splits(SampleData(train_images=COUNT + 9, val_images=1, test_images=1, cache_dir=str(tmp_path)))
    assert larger["train"].rows[:COUNT] == splits["train"].rows[:]
    other = load_splits(
        SampleData(train_images=3, val_images=1, test_images=1, seed=1, cache_dir=str(tmp_path), image_size=32)
    )
    assert other["train"].rows[0]["captions"] != splits["train"].rows[0]["captions"]
    assert picture(other["train"].rows[0]).size == (32, 32)


def test_splits_are_disjoint_streams_of_different_scenes(splits):
    pixels = [picture(row).tobytes() for split in splits.values() for row in split.rows]
    assert len(set(pixels)) == len(pixels)
    described = [tuple(row["captions"]) for split in splits.values() for row in split.rows]
    assert len(set(described)) == len(described)


def test_captions_of_one_scene_differ_and_are_rarely_those_of_another(splits):
    pairs = splits["train"].pairs
    owners: dict[str, set[int]] = {}
    for caption, photo in zip(pairs.captions.to_pylist(), pairs.image, strict=True):
        owners.setdefault(caption, set()).add(int(photo))
    assert sum(len(photos) > 1 for photos in owners.values()) < 0.02 * len(pairs)
    assert all(len(set(row["captions"])) == 5 for row in splits["train"].rows)
    assert max(len(caption.split()) for caption in owners) <= 26, "fits the 32 tokens of the sample's recipe"


SAID = {said: kind for kind, words in sample.SHAPES.items() for said in words}
SIZE = {said: size for size, words in sample.SIZES.items() for said in words}
GROUND = {said: kind for kind, words in sample.BACKGROUNDS.items() for said in words}
SEEN = re.compile(
    rf"\b(?:({'|'.join(SIZE)}) )?({'|'.join(sample.COLOURS)}) ({'|'.join(sorted(SAID, key=len, reverse=True))})\b"
)


@pytest.mark.parametrize("number", range(60))
def test_captions_tell_the_truth(number):
    generator = np.random.default_rng(number)
    scene = sample.draw_scene(generator)
    there = {(shape.colour, shape.kind): shape for shape in scene.shapes}
    for caption in sample.captions_for(scene, generator):
        told = [(SIZE.get(size), there[colour, SAID[kind]]) for size, colour, kind in SEEN.findall(caption)]
        assert len(told) >= 2
        assert all(size in (None, shape.size) for size, shape in told)
        grounds = {kind for said, kind in GROUND.items() if caption.endswith(said) or f" on {said}:" in caption}
        assert grounds <= {scene.background}
        for relation, words in sample.RELATIONS.items():
            if any(f" {said} a" in caption for said in words):
                (_, first), (_, second) = told
                axis, sign = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[relation]
                assert sign * (getattr(first, axis) - getattr(second, axis)) > 0


@pytest.mark.parametrize("number", range(20))
def test_shapes_are_drawn_where_the_scene_has_them(number):
    generator = np.random.default_rng([1, number])
    scene = sample.draw_scene(generator)
    assert 2 <= len(scene.shapes) <= 3
    pixels = np.asarray(sample.paint(scene, 64, generator)).astype(int)
    for shape in scene.shapes:
        x = shape.x + (0.8 * sample.RADIUS[shape.size] if shape.kind == "ring" else 0)  # a ring is hollow
        painted = pixels[int(shape.y * 64), int(x * 64)]
        assert np.abs(painted - sample.COLOURS[shape.colour]).max() <= 13


def test_the_smallest_pictures_can_be_drawn():
    scene = sample.draw_scene(np.random.default_rng(0))
    assert [sample.paint(scene, side, np.random.default_rng(0)).size for side in (1, 8)] == [(1, 1), (8, 8)]


def test_every_kind_of_scene_is_common():
    scenes = [sample.draw_scene(np.random.default_rng([2, number])) for number in range(1500)]
    shapes = [shape for scene in scenes for shape in scene.shapes]
    for values, names in [
        ((scene.background for scene in scenes), sample.BACKGROUNDS),
        ((shape.kind for shape in shapes), sample.SHAPES),
        ((shape.colour for shape in shapes), sample.COLOURS),
        ((shape.size for shape in shapes), sample.SIZES),
        ((sample.direction(scene.shapes[0], scene.shapes[1]) for scene in scenes), sample.RELATIONS),
    ]:
        counts = Counter(values)
        assert counts.keys() == names.keys()
        assert min(counts.values()) > 0.5 * sum(counts.values()) / len(names)
