"""Model cards: valid metadata, every figure where it belongs, nothing that does not belong on the Hub."""

import ast
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Literal

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from clip_itm.backbones.section import BackboneSection
from clip_itm.cli import main
from clip_itm.data.load import load_splits
from clip_itm.recipe import load_recipe, parse_recipe
from clip_itm.runs.card import NO_LICENCE, PLACE, bare_card, model_card, with_licence
from clip_itm.runs.card_data import base_models, base_name, licence
from clip_itm.runs.curves import draw_curves
from clip_itm.runs.train import train
from support.tiny import tiny_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = tiny_recipe(tmp_path_factory.mktemp("finished"), training={"max_steps": 4})
    return recipe, train(recipe)


@pytest.fixture
def results(finished) -> dict:
    """Those of the run, as if its test split had 100 photos, for each test to change."""
    results = json.loads(json.dumps(finished[1]))
    for stage in ("zero_shot", "best", "last"):
        results[stage]["all"]["images"] = 100
    return results


def test_the_results_are_a_model_index_with_intervals(finished, results):
    recipe, _ = finished
    card = ModelCard(model_card(recipe, results, "@x{}"))
    assert (card.data.library_name, card.data.license) == ("transformers", None)
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


def test_without_a_bootstrap_there_are_no_intervals(finished, results):
    recipe, _ = finished
    results["best"]["all"]["intervals"] = {}
    assert ModelCard(model_card(recipe, results, "@x{}")).data.eval_results[0].metric_args is None


def test_the_card_tells_what_made_the_model_and_repeats_it(finished, tmp_path):
    recipe, results = finished
    text = model_card(recipe, results, "@inproceedings{x}", note="No checkpoint beats it.")
    noise, provenance = results["noise"], results["provenance"]
    wanted = [noise["sha256"], "ratio 0.4 (caption level), seed 99", results["recipe_sha256"], "@inproceedings{x}"]
    wanted += [split["sha256"] for split in provenance["splits"].values()]
    wanted += [f"{package} {number}" for package, number in provenance["versions"].items()]
    wanted += ["No checkpoint beats it.", "step 0 (before training)", "best by val (this model)", "last step"]
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
    assert draw_curves(results["val_history"], results["best_step"], tmp_path / "curves.png")
    assert min(Image.open(tmp_path / "curves.png").size) > 300
    assert "](curves.png)" in model_card(recipe, results, "@x{}", curves=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_curves(results["val_history"], results["best_step"], tmp_path / "none.png")
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


@pytest.mark.parametrize(("photos", "shown"), [(9, False), (99, False), (100, True)])
def test_a_split_that_is_too_small_stays_out_of_the_metadata(finished, results, photos, shown):
    recipe, _ = finished
    for stage in ("zero_shot", "best", "last"):
        results[stage]["all"]["images"] = photos
    text = model_card(recipe, results, "@x{}")
    assert (ModelCard(text).data.eval_results is not None) == shown
    assert ("model-index" in text) == shown
    assert (f"split test has {photos} photos, too few" in text) != shown
    assert f"{results['best']['all']['metrics']['rsum']:.1f}" in text  # the table shows them all the same


def test_figures_that_are_no_numbers_stay_out_of_the_metadata(finished, results):
    results["best"]["all"]["metrics"]["i2t_r1"] = math.nan
    card = ModelCard(model_card(finished[0], results, "@x{}"))
    assert len(card.data.eval_results) == 6
    assert all(math.isfinite(result.metric_value) for result in card.data.eval_results)


def test_a_run_whose_every_pair_is_wrong_has_a_card(finished, results):
    results["wrong_pairs"] = {"wrong": 200, "auc": None, "precision": 1.0}
    results["noise"]["ratio"] = 1.0
    text = model_card(finished[0], results, "@x{}")
    assert "Of 200 training pairs 200 are wrong. Where all are, there is nothing to tell them from." in text
    assert "all captions exchanged (caption level)" in text


def test_a_run_that_was_never_evaluated_on_dev_has_a_card(finished, results):
    results |= {"best_step": None, "best_val_rsum": None, "val_history": [], "seconds": None, "steps": 0}
    assert "- **Weights**: step 0, the last one" in model_card(finished[0], results, "@x{}")


class OwnBackbone(BackboneSection):
    """A kind that this package does not know."""

    kind: Literal["own"] = "own"
    width: int = 3


class NamedBackbone(OwnBackbone):
    model: str


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # which knows the registered kinds only
@pytest.mark.parametrize(
    ("backbone", "name", "hub"),
    [
        (OwnBackbone(), "own", []),
        (NamedBackbone(model="some/clip"), "some/clip", ["some/clip"]),
        (NamedBackbone(model="/home/somebody/clip"), "clip", []),
    ],
)
def test_a_backbone_of_ones_own_kind_has_a_card(finished, results, backbone, name, hub):
    recipe = finished[0].model_copy(update={"backbone": backbone})
    assert (base_name(recipe), base_models(recipe)) == (name, hub)
    text = model_card(recipe, results, "@x{}")
    assert f"\n# {name}, fine-tuned" in text
    assert "(`own`)" in text
    assert "somebody" not in text.partition("## How it was made")[0]
    assert "An `own` backbone" in bare_card({"backbone": backbone.model_dump(), "head": None}, None)


def base(folder: Path, card: str | None) -> str:
    folder.mkdir()
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return str(folder)


def licence_of(**backbone) -> dict:
    return licence(parse_recipe({"data": {"source": "sample"}, "backbone": backbone}, "test"))


def test_the_licence_is_that_of_the_base_model(tmp_path):
    named = "---\nlicense: other\nlicense_name: tongyi\nlicense_link: https://example.org/l\n---\n# A model"
    mit, also, other, none = (
        base(tmp_path / name, card)
        for name, card in (
            ("mit", "---\nlicense: mit\ntags: [a]\n---\n# A model"),
            ("also", "---\nlicense: mit\n---\n"),
            ("other", named),
            ("none", "---\ntags: [a]\n---\n"),
        )
    )
    known = {"license": "other", "license_name": "tongyi", "license_link": "https://example.org/l"}
    assert licence_of(kind="transformers", model=mit) == {"license": "mit"}
    assert licence_of(kind="open_clip", model=f"local-dir:{other}") == known
    assert licence_of(kind="bert-vit", text_model=mit, vision_model=also) == {"license": "mit"}
    # they do not agree, or one of them says nothing
    assert licence_of(kind="bert-vit", text_model=mit, vision_model=other) == {}
    assert licence_of(kind="bert-vit", text_model=mit, vision_model=none) == {}
    assert licence_of(kind="timm-words", text_encoder="bert", text_model=mit) == {}  # and timm's weights
    only_text = {"kind": "timm-words", "text_encoder": "bert", "text_model": mit, "image_pretrained": False}
    assert licence_of(**only_text) == {"license": "mit"}
    # nothing is claimed of random weights, nor of a model whose card is not here
    assert licence_of(kind="transformers", model=mit, from_scratch=True) == {}
    assert licence_of(kind="open_clip", model="ViT-B-32-quickgelu", pretrained="openai") == {}
    assert licence_of(kind="transformers", model="some/clip") == {}


@pytest.mark.parametrize(
    "card",
    [None, "", "# No metadata", "---\nlicense: [mit, gpl]\n---\n", "---\nlicense: 3\n---\n", "---\n{a: [\n---\n",
     "---\n- a\n---\n", "---\nlicense:\n---\n"],
)  # fmt: skip
def test_a_base_without_a_clear_licence_gives_none(tmp_path, card):
    assert licence_of(kind="transformers", model=base(tmp_path / "base", card)) == {}
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert licence_of(kind="transformers", model=str(tmp_path / "bytes")) == {}


def test_the_licence_stands_in_the_card_and_can_be_given(finished, results, tmp_path):
    recipe, _ = finished
    assert NO_LICENCE in model_card(recipe, results, "@x{}")
    model = base(tmp_path / "mit", "---\nlicense: mit\n---\n")
    content = {"data": {"source": "sample"}, "backbone": {"kind": "transformers", "model": model}}
    backbone = parse_recipe(content, "test").backbone
    based = model_card(recipe.model_copy(update={"backbone": backbone}), results, "@x{}")
    assert ModelCard(based).data.license == "mit"
    assert "The weights are under the licence `mit`." in based
    for card in (model_card(recipe, results, "@x{}"), based, "# A card of one's own\n"):
        given = with_licence(card, "cc-by-4.0")
        assert "`mit`" not in given
        assert ModelCard(given).data.license == "cc-by-4.0"
        assert NO_LICENCE not in given
        assert given.count("cc-by-4.0") == (1 if card.startswith("# A card") else 2)
    assert ModelCard(with_licence(model_card(recipe, results, "@x{}"), "mit")).data.eval_results


def test_a_push_names_the_licence(finished, capsys):
    recipe, _ = finished
    words = ["push", recipe.output_dir, "me/mine", "--dry-run"]
    assert main([*words, "--license", "mit"]) == 0
    assert "\nlicense: mit\n" in capsys.readouterr().out
    assert main(words) == 0
    assert "\nlicense:" not in capsys.readouterr().out
    assert main([*words, "--license", "My own"]) == 2
    assert "--license 'My own': expected the name of a licence" in capsys.readouterr().err
