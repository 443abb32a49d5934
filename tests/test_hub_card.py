"""Model cards: valid metadata, every figure where it belongs, nothing that does not belong on the Hub."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from tiny import tiny_recipe

from clip_itm.cli import main
from clip_itm.data.load import load_splits
from clip_itm.hub.card import PLACE, bare_card, model_card
from clip_itm.hub.card_data import base_models, base_name
from clip_itm.hub.curves import draw_curves
from clip_itm.recipe import load_recipe, parse_recipe
from clip_itm.training.run import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = tiny_recipe(tmp_path_factory.mktemp("finished"), training={"max_steps": 4})
    return recipe, train(recipe)


def test_the_results_are_a_model_index_with_intervals(finished):
    recipe, results = finished
    card = ModelCard(model_card(recipe, results, "@x{}"))
    assert (card.data.library_name, card.data.license) == ("transformers", "apache-2.0")
    found = {result.metric_name: result for result in card.data.eval_results}
    assert len(found) == 7
    best = results["best"]["all"]
    for name, metric in (("Image to text R@1", "i2t_r1"), ("Text to image R@10", "t2i_r10")):
        result = found[name]
        assert result.metric_value == round(best["metrics"][metric], 2)
        assert result.metric_args == {"interval_95": [round(end, 2) for end in best["intervals"][metric]]}
        assert (result.dataset_split, result.dataset_config) == ("test", "all")
        assert result.dataset_args["split_sha256"] == results["provenance"]["splits"]["test"]["sha256"]
    assert found["Sum of the six recalls"].metric_value == round(best["metrics"]["rsum"], 2)
    assert card.data.base_model is None  # a file of this machine has no name on the Hub
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_without_a_bootstrap_there_are_no_intervals(finished):
    recipe, results = finished
    results = json.loads(json.dumps(results))
    results["best"]["all"]["intervals"] = {}
    assert ModelCard(model_card(recipe, results, "@x{}")).data.eval_results[0].metric_args is None


def test_the_card_tells_what_made_the_model_and_repeats_it(finished, tmp_path):
    recipe, results = finished
    text = model_card(recipe, results, "@inproceedings{x}", note="No checkpoint beats it.")
    noise, provenance = results["noise"], results["provenance"]
    wanted = [noise["sha256"], "ratio 0.4 at caption level, seed 99", results["recipe_sha256"], "@inproceedings{x}"]
    wanted += [split["sha256"] for split in provenance["splits"].values()]
    wanted += [f"{package} {number}" for package, number in provenance["versions"].items()]
    wanted += ["No checkpoint beats it.", "step 0 (before training)", "best by dev (this model)", "last step"]
    assert [part for part in wanted if part not in text] == []
    block = re.findall(r"```yaml\n(.*?)```", text, re.S)[0]
    assert parse_recipe(yaml.safe_load(block), "card") == recipe
    (tmp_path / "recipe.yaml").write_text(block)
    assert load_recipe(tmp_path).sha256 == results["recipe_sha256"]
    assert "clip-itm train recipe.yaml --output_dir runs/again\n" in text


def test_the_command_names_what_the_reader_must_have(finished):
    recipe, results = finished
    content = recipe.model_dump(mode="json")
    content["data"] = {"source": "folder", "root": "/home/somebody/photos"}
    content["noise"]["file"] = "noise/file.npy"
    results = json.loads(json.dumps(results))
    results["provenance"]["machine"]["processes"] = 8
    text = model_card(parse_recipe(content, "test"), results, "@x{}")
    assert (
        "accelerate launch --num_processes 8 --module clip_itm.cli train recipe.yaml --output_dir runs/again "
        "--data.root PHOTOS --noise.file noise.npz\n" in text
    )


def test_wrong_pairs_and_cautions_stand_where_they_are_known(finished):
    recipe, results = finished
    assert "suspicio" not in model_card(recipe, results, "@x{}")
    found = {"wrong": 80, "auc": 0.9876, "precision": 0.75}
    text = model_card(recipe, {**results, "wrong_pairs": found, "split": "val"}, "@x{}")
    assert "Of 200 training pairs 80 are wrong" in text
    assert "AUC of 0.988; among the 80 most suspicious, 75.0 % are wrong" in text
    assert "flattering" in text


def test_the_code_on_the_card_runs(finished, tmp_path, monkeypatch, capsys):
    """In the run's folder, with the folder in the place of the name on the Hub, and what `hf download` would bring."""
    recipe, _ = finished
    best = Path(recipe.output_dir).absolute() / "best"
    text = (best / "README.md").read_text().replace(PLACE, str(best))
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("beach", "forest", "street")):
        Image.new("RGB", (48, 40), (80 * number, 90, 200)).save(f"{name}.jpg")
    shutil.copytree(best, "model")
    (words,) = re.findall(r"^clip-itm (export .*)$", text, re.M)
    assert main(words.split()) == 0
    capsys.readouterr()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    assert names["texts"].shape == (1, 16)
    found = capsys.readouterr().out.splitlines()
    assert len(ast.literal_eval(found[0])) == 2
    assert names["tokenizer"](["a dog"]).shape == (1, 24)


def test_no_caption_leaks(finished):
    recipe, results = finished
    text = model_card(recipe, results, "@x{}", "a note")
    for split in load_splits(recipe.data).values():
        assert not [caption for caption in split.pairs.captions.to_pylist() if caption in text]


def test_curves_are_drawn_and_the_card_shows_them(finished, tmp_path, monkeypatch):
    recipe, results = finished
    assert draw_curves(results["dev_history"], results["best_step"], tmp_path / "curves.png")
    assert min(Image.open(tmp_path / "curves.png").size) > 300
    assert "](curves.png)" in model_card(recipe, results, "@x{}", curves=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_curves(results["dev_history"], results["best_step"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert "curves.png" not in model_card(recipe, results, "@x{}", curves=False)


@pytest.mark.parametrize(
    ("backbone", "name", "hub"),
    [
        (
            {"kind": "open_clip", "model": "ViT-B-32-quickgelu", "pretrained": "openai"},
            "ViT-B-32-quickgelu (openai)",
            ["timm/vit_base_patch32_clip_224.openai"],
        ),
        ({"kind": "open_clip", "model": "hf-hub:some/clip"}, "some/clip", ["some/clip"]),
        ({"kind": "open_clip", "model": "local-dir:/home/somebody/clip"}, "clip", []),
        ({"kind": "open_clip", "model": "/home/somebody/tiny.json"}, "tiny", []),
        ({"kind": "transformers", "model": "openai/clip-vit-base-patch32"}, "openai/clip-vit-base-patch32", None),
        ({"kind": "transformers", "model": "openai/clip-vit-base-patch32", "from_scratch": True}, None, []),
        ({"kind": "transformers", "model": "/home/somebody/clip"}, "clip", []),
        (
            {"kind": "bert-vit"},
            "bert-base-uncased + google/vit-base-patch16-224-in21k",
            ["bert-base-uncased", "google/vit-base-patch16-224-in21k"],
        ),
        ({"kind": "timm-words"}, "mobilenetv2_100 + words", []),
        ({"kind": "timm-words", "image_model": "hf-hub:timm/vit"}, None, ["timm/vit"]),
    ],
)
def test_base_models_have_their_name_on_the_hub_or_none(backbone, name, hub):
    recipe = parse_recipe({"data": {"source": "sample"}, "backbone": backbone}, "test")
    assert base_name(recipe) == (name or base_name(recipe))
    assert base_models(recipe) == ([backbone["model"]] if hub is None else hub)
    assert "somebody" not in base_name(recipe)


def test_a_model_without_a_run_has_a_card_that_says_so():
    config = {"backbone": {"kind": "open_clip"}, "head": None}
    text = bare_card(config, {"file": "epoch4.pt", "sha256": "0" * 64})
    card = ModelCard(text)
    assert card.data.eval_results is None
    assert "No finished run" in text
    assert "epoch4.pt" in text
    assert PLACE in text
    assert "Imported" not in bare_card(config, None)
