"""A checkpoint and an index as they were written before their code and rooms were moved, and what they found then.

The archive holds `model/` (64 modules beside the weights, named by config.json), `index/` and `expected.json`.
"""

import json
import tarfile
from pathlib import Path

import pytest
from transformers import AutoModel, AutoProcessor, pipeline

from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.retrieval.pipeline import ImageTextRetrievalPipeline, load_pipeline
from clip_itm.task import TASK
from support.paths import GOLDEN

ARCHIVE = GOLDEN / "checkpoint_layout_1.tar.xz"


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["custom_pipelines"][TASK]["impl"] == "clip_itm_retrieval_pipeline.ImageTextRetrievalPipeline"
    assert (folder / "model" / "clip_itm_heads_clip.py").exists()
    return folder


def test_an_old_index_of_an_old_checkpoint_is_searched(stored):
    expected = json.loads((stored / "expected.json").read_text())
    pipe = load_pipeline(stored / "model")
    pipe.load_index(stored / "index")  # by the hash of the model
    for hits, before in zip(pipe(expected["captions"], top_k=3), expected["hits"], strict=True):
        assert [(hit["id"], hit["rank"]) for hit in hits] == [(hit["id"], hit["rank"]) for hit in before]
        assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in before], abs=1e-6)


@pytest.mark.parametrize("trust", [None, True])
def test_the_classes_of_this_package_load_an_old_checkpoint(stored, trust):
    folder = str(stored / "model")
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=trust)) is ItmModel
    assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=trust)) is ItmProcessor
    assert type(pipeline(TASK, model=folder, trust_remote_code=trust)) is ImageTextRetrievalPipeline


def test_saved_again_it_names_the_code_of_today(stored, tmp_path):
    pipe = load_pipeline(stored / "model")
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    module, name = config["custom_pipelines"][TASK]["impl"].split(".")
    assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()
    assert not list(tmp_path.glob("clip_itm_heads*"))
    assert load_pipeline(tmp_path).model_sha256 == pipe.model_sha256
