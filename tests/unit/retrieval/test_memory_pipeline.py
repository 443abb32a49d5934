"""The pipeline of a checkpoint finds what the package's does, to the last digit; and what it cannot do, it says."""

import pytest
import torch

from clip_itm.backbones.build import build_processor
from clip_itm.methods.triplet.configuration import TripletHeadConfig
from clip_itm.model import ItmModel
from clip_itm.retrieval.items import Item
from clip_itm.retrieval.memory_index import MemoryIndex
from clip_itm.retrieval.memory_pipeline import RetrievalPipeline
from clip_itm.retrieval.pipeline import ImageTextRetrievalPipeline
from clip_itm.similarity.configuration import ScanSection
from support.tiny_backbones import CAPTIONS, PHOTOS, tiny_config

GALLERY = [*CAPTIONS, "the dog runs", CAPTIONS[1], "a cat", CAPTIONS[1]]  # three tie
SCAN = TripletHeadConfig(similarity=ScanSection(token_dim=8, max_words=12))


@pytest.fixture(scope="module", params=[None, SCAN], ids=["cosine", "scan"])
def pipes(request, tmp_path_factory) -> list[RetrievalPipeline]:
    config = tiny_config("clip", tmp_path_factory.mktemp("towers"))
    processor = build_processor(config, None)
    torch.manual_seed(0)
    model = ItmModel.from_backbone(config, request.param)
    return [kind(model=model, processor=processor) for kind in (RetrievalPipeline, ImageTextRetrievalPipeline)]


@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_captions_and_photos_are_found_as_by_the_package(pipes, top_k):
    found = []
    for pipe in pipes:
        pipe.index(GALLERY)
        pipe.index({f"photo {k}": photo for k, photo in enumerate(PHOTOS)})
        found.append([pipe(PHOTOS, top_k=top_k), pipe(GALLERY, top_k=top_k), pipe([PHOTOS[0]] * 2, top_k)])
    assert found[0] == found[1]
    texts = {hit["caption"]: hit for hit in found[0][0][0]}
    if top_k == 100:
        assert len(found[0][0][0]) == len(GALLERY)
        assert sum(hit["rank"] == texts[CAPTIONS[1]]["rank"] for hit in found[0][0][0]) == 3


def test_files_of_photos_keep_their_paths(pipes, tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(len(PHOTOS))]
    for photo, path in zip(PHOTOS, paths, strict=True):
        photo.save(path)
    answers = []
    for pipe in pipes:
        pipe.index(paths)
        answers.append(pipe("a dog", top_k=2))
    assert answers[0] == answers[1]
    assert {hit["image"] for hit in answers[0]} <= set(map(str, paths))


@pytest.mark.parametrize("options", [{"folder": "x"}, {"kind": "hnsw"}, {"prune": True}])
def test_other_indexes_need_the_package(pipes, options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}.*need the package clip-itm"):
        pipes[0].index(GALLERY, **options)


@pytest.mark.parametrize("gallery", ["photos", __file__])
def test_folders_need_the_package(pipes, gallery):
    with pytest.raises(ValueError, match=r"type str.*need the package clip-itm"):
        pipes[0].index(gallery)
    with pytest.raises(ValueError, match="need the package clip-itm"):
        pipes[0].load_index(gallery)


def test_broken_galleries_are_errors(pipes):
    with pytest.raises(ValueError, match="the gallery is empty"):
        pipes[0].index([])
    with pytest.raises(ValueError, match="not both"):
        pipes[0].index([CAPTIONS[0], PHOTOS[0]])
    pipes[0].galleries = {}
    with pytest.raises(ValueError, match="no images are indexed"):
        pipes[0]("a dog")


def test_an_index_in_memory_checks_what_it_gets():
    with pytest.raises(ValueError, match="more than once"):
        MemoryIndex("text", [Item("a"), Item("a")], torch.eye(2))
    with pytest.raises(ValueError, match="not finite"):
        MemoryIndex("text", [Item("a"), Item("b")], torch.eye(2) / 0)
