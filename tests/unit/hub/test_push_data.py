"""Pushing a cleaned data set to a stand-in for the Hub (hub_server.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from huggingface_hub import HfApi
from PIL import Image

from clip_itm import audit as find
from clip_itm.auditing.cleaning import clean
from clip_itm.cli import main
from clip_itm.data import cleaned_layouts
from clip_itm.data.cleaned import write_cleaned
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import ROW_FEATURES, Split
from clip_itm.runs.publish import push_data
from support.tiny import save_tiny_model

NAME = "me/photos"


def cleaned_data(folder: Path, photos: int) -> Path:
    """A cleaned data set in `folder`."""
    folder.mkdir()
    rows = []
    for number in range(photos):
        path = folder / f"{number}.png"
        Image.new("RGB", (8, 8), (number * 30, 0, 0)).save(path)
        image = {"path": str(path), "bytes": None}
        rows.append({"image": image, "image_id": path.name, "captions": ["a"], "caption_ids": [str(number)]})
    split = Split("train", Dataset.from_list(rows, features=ROW_FEATURES))
    keep = np.ones(photos, dtype=bool)
    out = folder / "out"
    write_cleaned(out, {"train": split}, CaptionNoise.clean(split.pairs), keep, None, {}, layout="datasets")
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_data_set_is_private_and_what_is_in_the_folder(hub, tmp_path):
    data = cleaned_data(tmp_path / "a", 3)
    push_data(data, NAME, message="cleaned")
    repo = hub.repos["dataset", NAME]
    assert repo.private
    assert repo.files() == contents(data)
    assert set(repo.files()) == {"README.md", "cleaned.json", "data/train-00000-of-00001.parquet"}
    assert repo.messages == ["cleaned"]


def test_the_second_push_replaces_the_first_and_nothing_else(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(cleaned_layouts, "SHARD_BYTES", 1)
    push_data(cleaned_data(tmp_path / "a", 3), NAME, message="first")
    repo = hub.repos["dataset", NAME]
    repo.files()["README.md"] = b"---\nlicense: mit\n---\nmy card"  # edited on the Hub
    repo.files()["data/mine.parquet"] = b"mine"
    second = cleaned_data(tmp_path / "b", 2)
    push_data(second, NAME, message="second")
    expected = contents(second) | {"README.md": repo.files()["README.md"], "data/mine.parquet": b"mine"}
    assert repo.files() == expected, "no file of three parts beside those of two"
    assert b"my card" in repo.files()["README.md"]


def test_a_data_set_of_something_else_stays(hub, tmp_path):
    data = cleaned_data(tmp_path / "a", 2)
    push_data(data, NAME, message="first")
    files = hub.repos["dataset", NAME].files()
    del files["cleaned.json"]
    before = dict(files)
    with pytest.raises(ValueError, match=r"me/photos holds data/train-.*no push of cleaned data wrote"):
        push_data(data, NAME, message="second")
    assert hub.repos["dataset", NAME].files() == before


def test_an_empty_repository_is_filled(hub, tmp_path):
    HfApi().create_repo(NAME, repo_type="dataset")
    data = cleaned_data(tmp_path / "a", 2)
    push_data(data, NAME, message="first")
    assert hub.repos["dataset", NAME].files() == contents(data)
    assert not hub.repos["dataset", NAME].private, "it stays what it was"


def test_another_folder_is_refused_before_anything_is_sent(hub, tmp_path):
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="--clean-as datasets"):
        push_data(tmp_path, NAME, message="first")
    assert not hub.repos
    assert not hub.requests


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """`model` and `photos`, in the folder to work in."""
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path)
    (tmp_path / "photos").mkdir()
    generator, rows = np.random.default_rng(0), []
    for number in range(12):
        pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": [f"photo {number}", f"{number}"], "split": "train"})
    (tmp_path / "photos/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def audit(*words: str) -> int:
    return main(["audit", "photos", "--model", "model", "--data.cache_dir", "cache", *words])


def test_the_command_cleans_and_pushes(hub, here, capsys):
    assert audit("--clean-to", "out", "--push-to", NAME, "--drop-fraction", "0.1", "--force") == 0
    repo = hub.repos["dataset", NAME]
    assert repo.private
    assert repo.files() == contents(here / "out")
    assert json.loads(repo.files()["cleaned.json"])["dropped_pairs"] == 2
    assert "me/photos/commit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--push-to", NAME], "say where with --clean-to"),
        (["--clean-as", "datasets"], "say where with --clean-to"),
        (["--clean-to", "out", "--push-to", NAME, "--clean-as", "webdataset"], "--clean-as webdataset writes none"),
        (["--clean-to", "out", "--push-to", "no name!"], "is no name of a repository"),
        (["--clean-to", "out", "--push-to", "you/photos"], None),
        (["--clean-to", "out", "--copy", "--clean-as", "datasets"], "--copy is of --clean-as folder"),
    ],
)
def test_mistakes_are_told_before_the_work(hub, here, capsys, monkeypatch, words, why):
    if why is None:
        from clip_itm.runs import publish

        files = {"notes.txt": b"mine"}
        monkeypatch.setattr(publish.HfApi, "list_repo_files", lambda *_, **__: list(files))
        why = "you/photos holds notes.txt"
    monkeypatch.setattr("clip_itm.auditing.judging.judge_split", None)
    assert audit(*words) == 2
    assert why in capsys.readouterr().err
    assert not (here / "out").exists()


def test_without_a_login_nothing_is_computed(hub, here, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another")
    monkeypatch.setattr("clip_itm.auditing.judging.judge_split", None)
    assert audit("--clean-to", "out", "--push-to", NAME) == 2
    assert "refuses this token" in capsys.readouterr().err


def test_python_cleans_and_pushes(hub, here):
    found = find("photos", "model", "--data.cache_dir", "cache")
    with pytest.raises(ValueError, match="or do it with --force"):
        clean(found, "out", "datasets", drop_fraction=0.9)
    assert clean(found, "out", "datasets", drop_fraction=0.1, force=True)["dropped_pairs"] == 2
    push_data(Path("out"), NAME, private=False)
    assert not hub.repos["dataset", NAME].private
    assert hub.repos["dataset", NAME].files() == contents(here / "out")
