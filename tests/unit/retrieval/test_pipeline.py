"""The pipeline: what is found, for which queries, in galleries that grow; against the evaluator and brute force."""

import http.server
import threading
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import pipeline

from clip_itm import ImageTextRetrievalPipeline
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.evaluation.protocols import evaluate_retrieval
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.pipeline import load_pipeline
from clip_itm.runs.setup import make_model
from clip_itm.similarity.base import Similarity
from clip_itm.similarity.cosine import unit
from clip_itm.training.encode import encode_split
from support.tiny import tiny_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model of random weights in `model`, the photos of the sample's test split in `photos`."""
    folder = tmp_path_factory.mktemp("retrieval")
    recipe = tiny_recipe(folder, data={"train_images": 4, "val_images": 4, "test_images": 24})
    splits = load_splits(recipe.data)
    model, processor = make_model(recipe, splits)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "photos" / "below").mkdir(parents=True)
    for number, row in enumerate(splits["test"].rows):
        below = "below/" if number % 2 else ""
        read_image(row["image"]).save(folder / "photos" / f"{below}{number:02d}.png")
    splits["test"].rows.save_to_disk(str(folder / "rows"))
    return folder


@pytest.fixture(scope="module")
def rows(place) -> datasets.Dataset:
    return datasets.load_from_disk(str(place / "rows"))


@pytest.fixture
def pipe(place) -> ImageTextRetrievalPipeline:
    return load_pipeline(place / "model")


def test_transformers_finds_the_pipeline_by_its_task(place):
    assert isinstance(pipeline("image-text-retrieval", model=str(place / "model")), ImageTextRetrievalPipeline)


def test_recall_of_searches_is_that_of_the_evaluator(pipe, rows):
    from clip_itm.data.rows import Pairs

    pairs = Pairs.from_rows(rows)
    embeddings = encode_split(pipe.model, rows, pairs, pipe.processor)
    expected = evaluate_retrieval(embeddings.images, embeddings.texts, pairs.image, bootstrap=0)["all"].metrics
    pipe.index(rows, "image")
    pipe.index(rows, "text")
    captions, owner = pairs.captions.to_pylist(), pairs.image_ids.to_pylist()
    own = [set(ids) for ids in rows["caption_ids"]]
    photos = [read_image(image) for image in rows["image"]]
    for k in (1, 5, 10):
        found = pipe(captions, top_k=k)
        hit = [any(h["id"] == owner[image] for h in hits) for hits, image in zip(found, pairs.image, strict=True)]
        assert 100 * np.mean(hit) == expected[f"t2i_r{k}"]
        hit = [any(h["id"] in ids for h in hits) for hits, ids in zip(pipe(photos, top_k=k), own, strict=True)]
        assert 100 * np.mean(hit) == expected[f"i2t_r{k}"]
    assert 0 < expected["t2i_r10"] < 100


def test_results_are_sorted_and_whole(pipe, place):
    pipe.index(place / "photos")
    answer = pipe("a red circle", top_k=1000)
    assert len(answer) == 24
    assert {hit["id"] for hit in answer} == {
        path.relative_to(place / "photos").as_posix() for path in place.rglob("*.png")
    }
    assert all(Path(hit["image"]).is_file() for hit in answer)
    scores = [hit["score"] for hit in answer]
    assert scores == sorted(scores, reverse=True)
    assert [hit["rank"] for hit in answer] == [1 + sum(other > score for other in scores) for score in scores]
    assert pipe("a red circle", top_k=3) == answer[:3]
    assert pipe(["a red circle", "a ring"], top_k=3)[0] == answer[:3]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def assert_same_answer(found, expected):
    """The same items in the same order; a tower rounds differently in a batch of another size."""
    assert [{**item, "score": None} for item in found] == [{**item, "score": None} for item in expected]
    assert [item["score"] for item in found] == pytest.approx([item["score"] for item in expected], abs=1e-6)


def test_every_way_to_name_a_photo_finds_the_same(pipe, place, rows):
    pipe.index(rows, "text")
    file = place / "photos" / "00.png"
    image = Image.open(file)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=file.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/00.png"
    queries = [str(file), file, image, np.asarray(image), file.read_bytes(), {"image": image}, url]
    found = pipe(queries, top_k=4)
    server.shutdown()
    for answer in found:
        assert_same_answer(answer, found[0])
    assert {"id", "score", "rank", "caption"} == set(found[0][0])


def test_mixed_queries_keep_their_places(pipe, place, rows):
    pipe.index(rows, "image")
    pipe.index(rows, "text")
    photo = str(place / "photos" / "00.png")
    text = {"text": "a photo called red.png"}
    mixed = pipe([text, photo, "a ring"], top_k=2)
    for answer, query in zip(mixed, (text, photo, "a ring"), strict=True):
        assert_same_answer(answer, pipe(query, top_k=2))
    assert "image" in mixed[0][0]
    assert "caption" in mixed[1][0]


def test_like_finds_itself_where_only_its_kind_is_indexed(pipe, place, rows):
    pipe.index(place / "photos")
    best = pipe(place / "photos" / "00.png", top_k=1)[0]
    assert best["id"] == "00.png"
    assert best["score"] == pytest.approx(1, abs=1e-6)
    pipe.index(rows, "text")
    assert pipe(place / "photos" / "00.png", top_k=1, target="image")[0]["id"] == "00.png"
    caption = rows[3]["captions"][0]
    assert pipe(caption, top_k=1, target="text")[0]["caption"] == caption


def test_a_folder_grows_and_shrinks_without_encoding_anything_again(pipe, place, tmp_path, monkeypatch):
    photos, folder = tmp_path / "photos", tmp_path / "index"
    photos.mkdir()
    files = sorted((place / "photos").rglob("*.png"))
    for file in files[:10]:
        (photos / file.name).write_bytes(file.read_bytes())
    encoded = []
    forward = pipe.forward
    monkeypatch.setattr(
        pipe, "forward", lambda inputs: encoded.append(len(next(iter(inputs.values())))) or forward(inputs)
    )
    pipe.index(photos, folder=folder, batch_size=4)
    assert encoded == [4, 4, 2]
    (photos / files[0].name).unlink()
    (photos / files[11].name).write_bytes(files[11].read_bytes())
    index = pipe.index(photos, folder=folder)
    assert encoded == [4, 4, 2, 1]
    assert len(index) == 11
    pruned = pipe.index(photos, folder=folder, prune=True)
    assert encoded == [4, 4, 2, 1]
    assert {item.id for item in pruned.items()} == {file.name for file in photos.iterdir()}
    again = LocalIndex.load(folder, pipe.model_sha256)
    fresh = load_pipeline(place / "model").index(photos)
    assert len(again) == len(fresh) == 10
    query = pipe.embed(["a red circle"])
    ours = [(hit.item.id, hit.score) for hit in again.search(query, 20)[0]]
    assert ours == [(hit.item.id, pytest.approx(hit.score, abs=1e-6)) for hit in fresh.search(query, 20)[0]]


def test_a_broken_photo_costs_nothing_that_was_encoded(pipe, place, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_itm.retrieval.indexing.SAVE_EVERY", 4)
    photos, folder = tmp_path / "photos", tmp_path / "index"
    photos.mkdir()
    for file in (place / "photos").rglob("*.png"):
        (photos / file.name).write_bytes(file.read_bytes())
    good = (photos / "13.png").read_bytes()
    (photos / "13.png").write_bytes(good[:100])
    with pytest.raises(ValueError, match=r"13\.png: the photo cannot be decoded"):
        pipe.index(photos, folder=folder)
    assert {item.id for item in LocalIndex.load(folder).items()} == {f"{number:02d}.png" for number in range(12)}
    with pytest.warns(UserWarning, match=r"1 photo cannot be read and is left out:\n.*13\.png"):
        assert len(pipe.index(photos, folder=folder, skip_broken=True)) == 23
    (photos / "13.png").write_bytes(good)
    assert len(pipe.index(photos, folder=folder)) == 24


def test_photos_without_a_file_keep_a_thumbnail(pipe, place, rows):
    file = place / "photos" / "00.png"
    index = pipe.index([Image.open(file), file.read_bytes()])
    assert [(item.id, item.path) for item in index.items()] == [("0", None), ("1", None)]
    assert all(item.thumbnail.startswith(b"\xff\xd8") for item in index.items())
    assert next(pipe.index(place / "photos").items()).thumbnail is None
    assert next(pipe.index(place / "photos", thumbnails=True).items()).thumbnail is not None
    decoded = rows.select_columns(["image"]).cast_column("image", datasets.Image())
    stored = pipe.index(decoded.select(range(3)))
    assert [item.id for item in stored.items()] == ["0", "1", "2"]
    assert all(item.thumbnail for item in stored.items())


def test_the_bar_counts_every_caption_once(pipe, monkeypatch):
    monkeypatch.setattr("clip_itm.retrieval.indexing.SAVE_EVERY", 4)
    steps = []
    update = tqdm.update
    monkeypatch.setattr(tqdm, "update", lambda bar, count: steps.append(count) or update(bar, count))
    pipe.index([f"caption {number % 7}" for number in range(10)], batch_size=2)
    assert sum(steps) == 10
    assert min(steps) >= 0


@pytest.mark.parametrize(
    ("gallery", "modality", "message"),
    [
        ([], None, "there is nothing to index"),
        (["a dog", "dog.jpg"], None, "photos or captions, not both: entry 0 is text, entry 1 is image"),
        ([3], None, "int is neither a text nor a photo"),
        (["a dog", 3], "text", "entry 1 is int; expected a caption"),
        ([np.zeros((4, 4, 3))], None, r"an array \[4, 4, 3\] of float64 is not a photo"),
        (["no such.jpg"], None, r"no such\.jpg: there is no such photo"),
        ("no such folder", None, "no such folder: there is no such folder of photos"),
        (datasets.Dataset.from_dict({"label": [1]}), None, "no column of texts in this data set; found label"),
    ],
)
def test_galleries_that_are_refused(pipe, gallery, modality, message):
    with pytest.raises(ValueError, match=message):
        pipe.index(gallery, modality)
    assert pipe.galleries == {}


def test_a_data_set_with_both_sides_has_to_be_told_which(pipe, rows):
    with pytest.raises(ValueError, match=r"has photos \(image\) and captions \(captions\): say which"):
        pipe.index(rows)


def test_a_search_without_an_index_is_told_what_to_do(pipe, rows):
    with pytest.raises(ValueError, match=r"no images are indexed: call pipe\.index"):
        pipe("a dog")
    pipe.index(["a dog"])
    with pytest.raises(ValueError, match=r"no images are indexed.*indexed: texts"):
        pipe("a dog", target="image")
    with pytest.raises(ValueError, match="top_k is 0"):
        pipe("a dog", top_k=0)


def test_the_index_of_another_model_is_refused(pipe, place, tmp_path):
    pipe.index(place / "photos", folder=tmp_path / "index")
    other = load_pipeline(place / "model")
    with torch.no_grad():
        other.model.head.logit_scale += 0.5  # embeddings stay, but nobody can know that of a hash
    for use in (other.load_index, lambda folder: other.index(place / "photos", folder=folder)):
        with pytest.raises(ValueError, match="this index was made by another model"):
            use(tmp_path / "index")


class TwoVectors(Similarity):
    """Two vectors an item; similar are those of which one pair is."""

    def embed_images(self, features):
        return torch.stack([unit(features.pooled), unit(features.pooled.roll(1, dims=1))], dim=1)

    embed_texts = embed_images

    def vectors(self, embeddings):
        return unit(embeddings.mean(dim=1))

    def forward(self, images, texts):
        return torch.einsum("ikd,tld->itkl", images, texts).flatten(2).amax(2)


def test_a_head_of_several_vectors_ranks_its_shortlist_exactly(pipe, place, rows, tmp_path):
    similarity = TwoVectors()
    pipe.model.head.similarity = similarity
    pipe.index(rows, "text", folder=tmp_path / "captions")
    index = pipe.load_index(tmp_path / "captions")
    pipe.index(place / "photos")
    photo = Image.open(place / "photos" / "04.png")
    captions = [item.caption for item in index.items()]
    scores = similarity(pipe.embed([photo]), pipe.embed(captions))[0]
    found = pipe(photo, top_k=120, shortlist=200)
    by_caption = dict(zip([item.id for item in index.items()], scores.tolist(), strict=True))
    assert [hit["score"] for hit in found] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-6)
    assert all(hit["score"] == pytest.approx(by_caption[hit["id"]], abs=1e-6) for hit in found)
    assert [hit["rank"] for hit in found] == [1 + sum(o["score"] > hit["score"] for o in found) for hit in found]
    order = sorted(by_caption, key=by_caption.get)
    shortlisted = {hit.item.id for hit in index.search(similarity.vectors(pipe.embed([photo])), 10)[0]}
    assert {hit["id"] for hit in pipe(photo, top_k=10, shortlist=10)} == shortlisted != set(order[-10:])
    with pytest.raises(ValueError, match="compares photos with captions only"):
        pipe(photo, target="image")


def test_a_pipeline_is_saved_and_loaded(pipe, place, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    again = load_pipeline(tmp_path / "copy")
    assert again.model_sha256 == pipe.model_sha256
    torch.testing.assert_close(again.embed(["a red circle"]), pipe.embed(["a red circle"]), rtol=0, atol=0)
