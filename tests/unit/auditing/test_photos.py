"""Photos of all splits: numbered together, hashed once, and copies found within a split and across."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from clip_itm.auditing import photos as module
from clip_itm.auditing.photo_hash import PhotoHashes
from clip_itm.auditing.photos import Photos, kept_hashes, similar_photos
from clip_itm.data.rows import ROW_FEATURES, Split
from unit.auditing.test_duplicates import compressed, picture


def split_of(name: str, images: list) -> Split:
    """A split of files (paths), of bytes, or of nothing (None)."""
    rows = []
    for number, image in enumerate(images):
        if image is not None:
            image = {"path": image, "bytes": None} if isinstance(image, str) else {"path": None, "bytes": image}
        own = f"{name} {number}"
        rows.append({"image": image, "image_id": own, "captions": ["a thing"], "caption_ids": [f"{own}:0"]})
    return Split(name, Dataset.from_list(rows, features=ROW_FEATURES))


def saved(folder: Path, seeds, change=lambda image: image, suffix: str = "png") -> list[str]:
    folder.mkdir(exist_ok=True)
    names = []
    for seed in seeds:
        names.append(str(folder / f"{seed}.{suffix}"))
        change(picture(seed)).save(names[-1])
    return names


def in_memory(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return file.getvalue()


def same(first: PhotoHashes, second: PhotoHashes) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in vars(first))


def test_copies_are_found_within_a_split_and_across(tmp_path):
    train = saved(tmp_path / "train", range(12)) + saved(tmp_path / "again", [3], lambda i: i.resize((300, 200)), "jpg")
    val = saved(tmp_path / "val", [20, 5], lambda image: compressed(image, 20), "jpg")
    splits = {"val": split_of("val", val), "train": split_of("train", train)}
    photos = Photos.of(splits, "train")
    assert list(photos.names) == ["train"] * 13 + ["val"] * 2
    assert [part.tolist() for part in photos.copies(tmp_path / "kept")] == [[3, 12], [5, 14]]
    assert photos.row(14)["image_id"] == "val 1"
    with pytest.raises(IndexError, match="no photo 15"):
        photos.row(15)


def test_near_embeddings_are_similar_where_they_are_no_copies(monkeypatch):
    vectors = torch.nn.functional.normalize(torch.randn(14, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors[7] = vectors[2]
    vectors[12] = vectors[9]
    assert [part.tolist() for part in similar_photos(vectors, [])] == [[2, 7], [9, 12]]
    assert [part.tolist() for part in similar_photos(vectors, [np.array([2, 7, 20])])] == [[9, 12]]
    assert similar_photos(vectors[:1], []) == []
    monkeypatch.setattr(module, "MOST_COMPARED", 13)
    assert similar_photos(vectors, []) == []


def test_nothing_is_compared_where_there_are_no_photos(tmp_path):
    photos = Photos.of({"train": split_of("train", [None] * 3), "val": split_of("val", [None])}, "train")
    assert len(photos) == 0
    assert photos.copies(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_one_photo_has_no_copy(tmp_path):
    photos = Photos.of({"train": split_of("train", saved(tmp_path / "one", [1]))}, "train")
    assert photos.copies(tmp_path / "kept") == []


def test_hashes_are_kept_and_photos_not_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    split = split_of("train", [*saved(tmp_path / "train", range(9)), in_memory(picture(30))])
    first = kept_hashes(split, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 3
    assert same(first, PhotoHashes.of_rows(split.rows))
    assert same(first, kept_hashes(split, None))
    monkeypatch.setattr(module.PhotoHashes, "of_rows", None)
    assert same(first, kept_hashes(split, tmp_path / "kept"))


def test_what_was_killed_goes_on_after_the_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    split = split_of("train", saved(tmp_path / "train", range(10)))
    real, calls = PhotoHashes.of_rows, []

    def killed(rows, workers=None, bar=None):
        calls.append(rows[0]["image_id"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(rows, workers, bar)

    monkeypatch.setattr(module.PhotoHashes, "of_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        kept_hashes(split, tmp_path / "kept")
    assert same(kept_hashes(split, tmp_path / "kept"), real(split.rows))
    assert calls == ["train 0", "train 4", "train 8", "train 8"]


def test_another_photo_under_the_name_is_hashed_anew_and_damage_too(tmp_path):
    paths = saved(tmp_path / "train", range(3))
    split = split_of("train", paths)
    first = kept_hashes(split, tmp_path / "kept")
    picture(40, (200, 100)).save(paths[1])
    second = kept_hashes(split, tmp_path / "kept")
    assert not same(first, second)
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="hashed again"):
        assert same(second, kept_hashes(split, tmp_path / "kept"))


def test_photos_that_cannot_be_read_are_near_to_nothing(tmp_path):
    good = saved(tmp_path / "train", [1])
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    lost = [str(tmp_path / "lost.jpg")] * 2
    split = split_of("train", [*good, str(tmp_path / "broken.jpg"), str(tmp_path / "broken.jpg"), b"", *lost])
    hashes = kept_hashes(split, tmp_path / "kept")
    assert hashes.usable.tolist() == [True, False, False, False, False, False]
    assert not (tmp_path / "kept").exists(), "a lost photo may be there next time"
    assert Photos.of({"train": split}, "train").copies(tmp_path / "kept") == []
