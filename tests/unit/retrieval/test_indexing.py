"""An index follows its gallery: by content, each content encoded once, and nothing goes without a word."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_itm.retrieval import indexing
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.indexing import Changes, Indexer
from clip_itm.retrieval.qdrant import QdrantIndex
from clip_itm.retrieval.sources import make_source


class Pipe:
    """Stands for a model: a photo's embedding is its mean colour, a caption's the counts of its letters."""

    def __init__(self):
        self.encoded = []

    def processor(self, images, return_tensors):
        return {"pixel_values": torch.stack([torch.from_numpy(np.array(image)).float() for image in images])}

    def forward(self, inputs):
        found = inputs["pixel_values"].flatten(1, 2).mean(1) / 256
        self.encoded += [tuple(round(256 * value) for value in row) for row in found.tolist()]
        return found

    def embed(self, queries, batch_size, progress):
        texts = [query["text"] for query in queries]
        self.encoded += texts
        return torch.tensor([[float(text.count(letter)) for letter in "abc"] for text in texts])

    def vectors_of(self, embeddings):
        return None


def update(index, gallery, save=None, prune=False, **options) -> tuple[Changes, list]:
    pipe = Pipe()
    changes = Indexer(pipe, index, save, **options).update(make_source(gallery), prune)
    return changes, sorted(pipe.encoded)


def photo(path: Path, *colour: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path, "BMP")  # all of the same size


def colours(index) -> dict[str, tuple]:
    ids = [item.id for item in index.items()]
    values = index.embeddings_of(ids) if ids else []
    return {id: tuple(round(256 * value) for value in row.tolist()) for id, row in zip(ids, values, strict=True)}


@pytest.fixture
def photos(tmp_path) -> Path:
    for k in range(4):
        photo(tmp_path / "photos" / f"{k}.bmp", k, 0, 0)
    return tmp_path / "photos"


@pytest.fixture(params=["memory", "folder", "qdrant"])
def run(request, tmp_path):
    """Bring an index up to date with a gallery: the index afterwards, what was told, what was encoded."""
    if request.param == "qdrant":
        pytest.importorskip("qdrant_client")
        index = QdrantIndex(f"qdrant+path:{tmp_path / 'store'}#photos", "image", "model")
    else:
        index = LocalIndex("image", "model")

    def do(gallery, **options):
        if request.param != "folder":
            return index, *update(index, gallery, **options)
        found = index
        if (tmp_path / "index").exists():
            found = LocalIndex.load(tmp_path / "index", verify=True)
        told = update(found, gallery, lambda: found.save(tmp_path / "index"), **options)
        return LocalIndex.load(tmp_path / "index", verify=True), *told

    yield do
    if request.param == "qdrant":
        index.close()


def test_the_same_gallery_again_is_not_encoded(run, photos):
    index, changes, encoded = run(photos)
    assert str(changes) == "4 new"
    assert encoded == [(k, 0, 0) for k in range(4)]
    index, changes, encoded = run(photos)
    assert (str(changes), encoded) == ("0 new, 4 kept", [])
    assert len(index) == 4


def test_what_changed_is_encoded_again(run, photos):
    run(photos)
    photo(photos / "1.bmp", 9, 9, 9)
    photo(photos / "new.bmp", 7, 7, 7)
    index, changes, encoded = run(photos)
    assert str(changes) == "1 new, 1 changed, 3 kept"
    assert encoded == [(7, 7, 7), (9, 9, 9)]
    expected = {"0.bmp": (0, 0, 0), "1.bmp": (9, 9, 9), "2.bmp": (2, 0, 0), "3.bmp": (3, 0, 0), "new.bmp": (7, 7, 7)}
    assert colours(index) == expected


def test_another_content_of_the_same_size_and_time_is_noticed(run, photos):
    run(photos)
    times = (photos / "1.bmp").stat()
    photo(photos / "1.bmp", 9, 9, 9)
    os.utime(photos / "1.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (photos / "1.bmp").stat().st_size == times.st_size
    index, changes, encoded = run(photos)
    assert (str(changes), encoded) == ("0 new, 1 changed, 3 kept", [(9, 9, 9)])
    assert colours(index)["1.bmp"] == (9, 9, 9)


def test_the_same_content_of_another_time_is_kept(run, photos):
    before = list(run(photos)[0].items())
    for file in photos.iterdir():
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    index, changes, encoded = run(photos)
    assert (str(changes), encoded) == ("0 new, 4 kept", [])
    assert list(index.items()) == before


def test_a_renamed_photo_and_a_moved_folder_take_their_embeddings_along(run, photos, tmp_path):
    run(photos, thumbnails=True)
    (photos / "1.bmp").rename(photos / "renamed.bmp")
    index, changes, encoded = run(photos)
    assert (changes.moved, changes.kept, encoded) == (1, 3, [])
    assert str(changes).endswith("1 no longer in the gallery: still in the index (--prune removes them)")
    assert colours(index)["renamed.bmp"] == colours(index)["1.bmp"] == (1, 0, 0)
    index, changes, encoded = run(photos, prune=True)
    assert (changes.gone, encoded) == (["1.bmp"], [])
    assert str(changes).endswith("1 no longer in the gallery: taken out")
    moved = Path(shutil.move(photos, tmp_path / "elsewhere"))
    index, changes, encoded = run(moved)
    assert (str(changes), encoded) == ("0 new, 4 moved", [])
    assert {item.id: item.path for item in index.items()} == {file.name: str(file) for file in moved.iterdir()}
    assert all(item.thumbnail for item in index.items())
    assert run(moved)[1].kept == 4


def test_another_folder_with_the_same_names_is_another_gallery(run, photos, tmp_path):
    run(photos)
    photo(tmp_path / "other" / "0.bmp", 0, 0, 0)
    photo(tmp_path / "other" / "1.bmp", 9, 9, 9)
    index, changes, encoded = run(tmp_path / "other")
    assert (changes.moved, changes.changed, len(changes.gone), encoded) == (1, 1, 2, [(9, 9, 9)])
    assert {item.id: item.path for item in index.items()}["0.bmp"] == str(tmp_path / "other" / "0.bmp")


def test_a_photo_that_broke_is_not_found_by_what_it_was(run, photos):
    run(photos)
    (photos / "2.bmp").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"2\.bmp: this is not a photo"):
        run(photos)
    index, changes, _ = run(photos, skip_broken=True)
    assert str(changes) == "0 new, 3 kept; 1 left out"
    assert changes.skipped[0].endswith("(its former version is removed)")
    assert sorted(colours(index)) == ["0.bmp", "1.bmp", "3.bmp"]


def test_items_without_a_file_are_compared_too(run):
    gallery = [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(3)]
    run(gallery)
    assert str(run([image.copy() for image in gallery])[1]) == "0 new, 3 kept"
    gallery[1] = np.full((4, 4, 3), 5, np.uint8)
    _, changes, encoded = run(gallery)
    assert (str(changes), encoded) == ("0 new, 1 changed, 2 kept", [(5, 5, 5)])


def test_captions_are_compared_by_their_text():
    index = LocalIndex("text", "model")
    assert str(update(index, {"1": "a", "2": "b", "3": "c"})[0]) == "3 new"
    changes, encoded = update(index, {"1": "a", "2": "bb", "4": "c"})
    assert (str(changes).partition(";")[0], encoded) == ("0 new, 1 changed, 1 moved, 1 kept", ["bb"])
    assert [(item.id, item.caption) for item in index.items()] == [("1", "a"), ("3", "c"), ("4", "c"), ("2", "bb")]


def test_an_index_of_an_earlier_version_knows_no_content(photos):
    index = LocalIndex("image", "model")
    update(index, photos)
    items = [indexing.replace(item, content=None, stamp=None) for item in index.items()]
    old = LocalIndex("image", "model")
    old.add(items, torch.zeros(4, 3))
    changes, encoded = update(old, photos)
    assert (changes.changed, len(encoded)) == (4, 4), "nobody can say that these photos are still the same"
    assert update(old, photos)[0].kept == 4


BAD_NAME = os.fsdecode(b"caf\xe9.bmp")


def test_names_that_are_not_utf8_are_told(run, photos):
    photo(photos / BAD_NAME, 8, 8, 8)
    with pytest.raises(ValueError, match=r"caf\\xe9\.bmp: this name is not UTF-8; rename it.*--skip-broken"):
        run(photos)
    index, changes, _ = run(photos, skip_broken=True)
    assert (str(changes), len(index)) == ("4 new; 1 left out", 4)


def test_half_characters_in_captions_are_told():
    captions = {"1": "a", "2": "b \ud83d", "3\udc80": "c"}
    with pytest.raises(ValueError, match=r"caption 2: 'b \\\\ud83d' has half a character.*\(1 more like it\)"):
        update(LocalIndex("text", "model"), captions)
    index = LocalIndex("text", "model")
    changes, encoded = update(index, captions, skip_broken=True)
    assert (str(changes), encoded) == ("1 new; 2 left out", ["a"])


def test_links_that_lead_nowhere_and_pipes_are_told(run, photos):
    (photos / "gone.jpg").symlink_to(photos / "nothing.jpg")
    os.mkfifo(photos / "pipe.jpg")
    _, changes, _ = run(photos)
    assert str(changes) == "4 new; 2 left out"


def test_what_was_encoded_is_saved_now_and_then(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "SAVE_EVERY", 2)
    (photos / "3.bmp").write_bytes(b"broken")
    index = LocalIndex("image", "model")
    with pytest.raises(ValueError, match=r"3\.bmp"):
        update(index, photos, lambda: index.save(tmp_path / "index"))
    assert sorted(colours(LocalIndex.load(tmp_path / "index"))) == ["0.bmp", "1.bmp"]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "remove", "rename", "touch", "run", "prune"]), *[st.integers(0, 3)] * 2
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_whatever_happens_to_a_folder(actions, tmp_path_factory):
    """After every run the index has each photo as it is now, and no content was encoded that was there already."""
    place = tmp_path_factory.mktemp("folder")
    folder, names = place / "photos", [f"{k}.bmp" for k in range(4)]
    photo(folder / "0.bmp", 0, 0, 0)
    known: dict[str, tuple] = {}  # what the index should have
    for action, k, other in [*actions, ("run", 0, 0), ("prune", 0, 0)]:
        file = folder / names[k]
        if action == "write":
            photo(file, other, other, 0)
        elif action == "remove":
            file.unlink(missing_ok=True)
        elif action == "rename" and file.exists():
            file.rename(folder / names[other])
        elif action == "touch" and file.exists():
            os.utime(file, ns=(k, other))
        elif action in ("run", "prune") and any(folder.iterdir()):
            index = LocalIndex.load(place / "index") if (place / "index").exists() else LocalIndex("image", "model")
            changes, encoded = update(index, folder, lambda: index.save(place / "index"), action == "prune")  # noqa: B023
            now = {name: Image.open(folder / name).getpixel((0, 0)) for name in names if (folder / name).exists()}
            fresh = [colour for name, colour in now.items() if known.get(name) != colour]
            assert not Counter(encoded) - Counter(fresh)
            gone = {name: colour for name, colour in known.items() if name not in now}
            assert sorted(changes.gone) == sorted(gone)
            known = now if action == "prune" else gone | now
            assert colours(LocalIndex.load(place / "index", verify=True)) == known
    shutil.rmtree(place)
