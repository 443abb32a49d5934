"""Pushing to a stand-in for the Hub (hub_server.py), and loading from there where this package is not installed."""

import json
import os
import shutil
import site
import subprocess
import sys
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load

from clip_itm.cli import main
from clip_itm.hub.space import space_files
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import load_recipe
from clip_itm.retrieval.pipeline import ImageTextRetrievalPipeline
from clip_itm.runs.build import make_trainer
from clip_itm.runs.card import PLACE
from clip_itm.runs.publish import model_files
from clip_itm.runs.setup import make_encoder, make_model, prepare
from clip_itm.runs.train import train
from support.fresh_loads import assert_same, inside, run_fresh
from support.tiny import tiny_recipe
from support.tiny_backbones import PHOTOS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    recipe = tiny_recipe(tmp_path_factory.mktemp("finished"), training={"max_steps": 4})
    train(recipe)
    return Path(recipe.output_dir)


@pytest.mark.slow
def test_a_pushed_run_loads_by_name_in_a_process_without_this_package(run, hub, tmp_path):
    assert main(["push", str(run), "me/tiny"]) == 0
    PHOTOS[0].save(tmp_path / "photo.png")
    (found,) = run_fresh(tmp_path, ["me/tiny"], tmp_path / "photo.png", None, **hub.environment)
    assert_same(found, inside(run / "best", Image.open(tmp_path / "photo.png").convert("RGB")))


@pytest.mark.slow
def test_saved_and_pushed_models_load_in_a_new_virtual_environment(run, hub, tmp_path):
    """It sees the packages of this one, and not this package, which only a .pth file of this one leads to."""
    assert main(["push", str(run), "me/tiny"]) == 0
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    assert subprocess.run([python, "-c", "import torch"], cwd=tmp_path).returncode == 0
    assert subprocess.run([python, "-c", "import clip_itm"], cwd=tmp_path, capture_output=True).returncode == 1
    PHOTOS[0].save(tmp_path / "photo.png")
    expected = inside(run / "best", Image.open(tmp_path / "photo.png").convert("RGB"))
    models = [str(run / "best"), "me/tiny"]
    for found in run_fresh(tmp_path, models, tmp_path / "photo.png", None, python, hide=False, **hub.environment):
        assert_same(found, expected)


def test_a_push_is_one_commit_with_everything_and_its_name_in_the_card(run, hub):
    assert main(["push", str(run), "me/tiny", "--private", "--message", "First"]) == 0
    repo = hub.repos["model", "me/tiny"]
    assert (repo.private, repo.messages) == (True, ["First"])
    files = repo.files()
    assert set(files) == {path.name for path in (run / "best").iterdir()}
    assert all(files[name] == (run / "best" / name).read_bytes() for name in files if name != "README.md")
    card = files["README.md"].decode()
    assert PLACE not in card
    assert 'pipeline("image-text-retrieval", model="me/tiny", trust_remote_code=True)' in card
    assert ModelCard(card).data.eval_results is None  # of so few test photos
    assert main(["push", str(run / "best"), "me/tiny"]) == 0
    assert repo.messages == ["First", "Upload model with clip-itm"]
    assert repo.files() == files


def test_a_branch_is_made_and_main_stays(run, hub):
    assert main(["push", str(run), "me/tiny"]) == 0
    before = hub.repos["model", "me/tiny"].files()
    (run / "best" / "extra.json").write_text("{}")
    try:
        assert main(["push", str(run), "me/tiny", "--revision", "second"]) == 0
    finally:
        (run / "best" / "extra.json").unlink()
    repo = hub.repos["model", "me/tiny"]
    assert repo.files() == before
    assert set(repo.files("second")) == {*before, "extra.json"}


def test_of_a_checkpoint_only_the_model_is_pushed(run, hub):
    checkpoint = next(run.glob("checkpoint-*"))
    assert (checkpoint / "optimizer.pt").is_file()
    assert main(["push", str(checkpoint), "me/checkpoint"]) == 0
    files = hub.repos["model", "me/checkpoint"].files()
    assert not [name for name in files if name.endswith((".pt", ".pth", ".bin"))]
    assert "trainer_state.json" not in files
    assert "No finished run" in files["README.md"].decode()
    saved = ItmModel.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in load(files["model.safetensors"]).items())


def test_a_dry_run_sends_nothing(run, hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), "me/tiny", "--space", "--dry-run"]) == 0
    assert hub.requests == []
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown
    assert "clip_itm/model.py" in shown
    assert "## Recall on test" in shown


def make_index(run: Path, gallery, folder: Path, **options) -> Path:
    model, processor = ItmModel.from_pretrained(run / "best"), ItmProcessor.from_pretrained(run / "best")
    ImageTextRetrievalPipeline(model=model, processor=processor).index(gallery, folder=folder, **options)
    return folder


def test_indexes_go_along(run, hub, tmp_path):
    captions = make_index(run, ["a dog", "two cats", "a red bike"], tmp_path / "captions")
    photos = make_index(run, PHOTOS, tmp_path / "photos")
    own = {folder: sorted(path.name for path in folder.iterdir()) for folder in (captions, photos)}
    (captions / "notes.txt").write_text("mine")
    assert main(["push", str(run), "me/tiny", "--index", str(captions), "--index", str(photos)]) == 0
    files = hub.repos["model", "me/tiny"].files()
    for folder, place in ((captions, "index/text"), (photos, "index/image")):
        assert {name for name in files if name.startswith(place)} == {f"{place}/{name}" for name in own[folder]}
        for name in own[folder]:
            assert files[f"{place}/{name}"] == (folder / name).read_bytes()


def test_indexes_that_do_not_belong_are_refused(run, hub, tmp_path, capsys):
    captions = make_index(run, ["a dog", "two cats"], tmp_path / "captions")
    model, processor = ItmModel.from_pretrained(run / "best"), ItmProcessor.from_pretrained(run / "best")
    with torch.no_grad():
        model.head.logit_scale += 1
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    PHOTOS[0].save(tmp_path / "photo.png")
    photos = make_index(run, [str(tmp_path / "photo.png")], tmp_path / "photos")
    for words, message in (
        ([str(tmp_path / "other"), "--index", str(captions)], "another model"),
        ([str(run), "--index", str(run)], "no index"),
        ([str(run), "--index", str(captions), "--index", str(captions)], "both indexes of texts"),
        ([str(run), "--index", str(photos), "--space"], "clip-itm index --thumbnails"),
    ):
        assert main(["push", words[0], "me/tiny", *words[1:]]) == 2
        assert message in capsys.readouterr().err
    assert hub.requests == []


def test_the_libraries_own_pushes_carry_the_code_and_keep_the_card(run, hub, tmp_path):
    assert main(["push", str(run), "me/tiny"]) == 0
    card = ModelCard(hub.repos["model", "me/tiny"].files()["README.md"].decode())
    model, processor = ItmModel.from_pretrained(run / "best"), ItmProcessor.from_pretrained(run / "best")
    model.push_to_hub("me/tiny")
    processor.push_to_hub("me/processor")
    model.save_pretrained(str(tmp_path / "other"), push_to_hub=True, repo_id="me/other")
    processor.save_pretrained(str(tmp_path / "other"), push_to_hub=True, repo_id="me/other")
    code = {path.name for path in (run / "best").glob("clip_itm_*.py")}
    for name in ("me/tiny", "me/other"):
        assert code <= set(hub.repos["model", name].files())
        assert "auto_map" in json.loads(hub.repos["model", name].files()["config.json"])
    kept = ModelCard(hub.repos["model", "me/tiny"].files()["README.md"].decode())
    assert (kept.text, kept.data.to_dict()) == (card.text, card.data.to_dict())
    assert "clip_itm_processing.py" in hub.repos["model", "me/processor"].files()


def test_the_trainer_pushes_the_best_model_of_its_run(run, hub):
    recipe = load_recipe(run)
    prepared = prepare(recipe)
    data = prepared.data
    encoder = make_encoder(recipe, *make_model(recipe, data.splits))
    trainer = make_trainer(recipe, *prepared, encoder, resuming=False)
    trainer.args.hub_model_id = "me/trained"
    commit = trainer.push_to_hub(commit_message="Trained")
    repo = hub.repos["model", "me/trained"]
    assert repo.messages == ["Trained"]
    assert commit.oid in repo.commits
    assert repo.files()["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()
    assert "## Recall on test" in repo.files()["README.md"].decode()


def test_a_space_goes_along(run, hub):
    assert main(["push", str(run), "me/tiny", "--space", "--revision", "second"]) == 0
    files = hub.repos["space", "me/tiny"].files()
    metadata = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("gradio", "app.py", ["me/tiny"])
    app = files["app.py"].decode()
    compile(app, "app.py", "exec")
    assert 'snapshot_download("me/tiny", revision="second")' in app
    assert not [name for name in files if "__pycache__" in name]
    assert any(line.startswith("transformers<6,>=") for line in files["requirements.txt"].decode().splitlines())


def test_a_space_with_indexes_gets_faiss(monkeypatch):
    lines = ["torch>=2.15", 'faiss-cpu>=1.15; extra == "search"', 'peft>=0.21; extra == "lora"']
    monkeypatch.setattr("clip_itm.hub.space.requires", lambda name: lines)
    assert space_files("me/tiny", with_index=True)["requirements.txt"] == b"faiss-cpu>=1.15\ntorch>=2.15\n"
    assert space_files("me/tiny")["requirements.txt"] == b"torch>=2.15\n"


def test_the_source_in_a_space_is_this_package(tmp_path):
    """In a process that has only that copy, what the app imports comes from there."""
    for name, content in space_files("me/tiny").items():
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    code = "import sys; sys.path.insert(0, '.'); import clip_itm.cli; print(clip_itm.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "clip_itm" / "__init__.py"), done.stderr


@pytest.mark.slow
def test_a_space_serves_the_pushed_model_and_its_indexes(run, hub, tmp_path):
    captions = make_index(run, ["a dog", "two cats"], tmp_path / "captions")
    photos = make_index(run, PHOTOS, tmp_path / "photos", thumbnails=True)
    assert main(["push", str(run), "me/tiny", "--index", str(captions), "--index", str(photos), "--space"]) == 0
    for name, content in hub.repos["space", "me/tiny"].files().items():
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_bytes(content)
    environment = {**os.environ, **hub.environment, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    del environment["HF_HUB_OFFLINE"]
    server = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path / "space", env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        address = next(line for line in server.stdout if line.startswith("open http")).split()[1]
        with urllib.request.urlopen(address) as page:
            text = page.read().decode()
    finally:
        server.kill()
        server.wait()
    assert "4 photos and 2 captions" in text or "2 captions and 4 photos" in text


def test_nobody_logged_in_is_told_before_anything_is_sent(run, hub, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["push", str(run), "me/tiny"]) == 2
    assert "not logged in to the Hub: run `hf auth login`" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(run), "me/tiny"]) == 2
    assert "refuses this token" in capsys.readouterr().err
    assert {method for method, _ in hub.requests} <= {"GET"}
    assert not hub.repos


def test_what_the_hub_refuses_is_told(run, hub, capsys):
    assert main(["push", str(run), "somebody/tiny"]) == 2
    assert "somebody/tiny: the push failed" in capsys.readouterr().err
    assert not hub.repos


def test_a_hub_that_does_not_answer_is_told(run, hub, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run), "me/tiny"]) == 2
    assert "the Hub cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks model.safetensors"),
        (lambda folder: (folder / "processor_config.json").unlink(), "lacks processor_config.json"),
        (lambda folder: (folder / "clip_itm_model.py").unlink(), "lacks clip_itm_model.py"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "a model of type 'bert'"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "clip_itm"}'), "saved without its code"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(run, tmp_path, harm, message):
    shutil.copytree(run / "best", tmp_path / "model")
    harm(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        model_files(tmp_path / "model", "me/tiny")
