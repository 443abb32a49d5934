"""Several models as one: the mean of their scores."""

import json

import torch

from clip_itm.cli import main
from clip_itm.evaluation.ranking import compute_ranks
from clip_itm.runs.setup import load_data, make_encoder, make_model
from clip_itm.runs.train import retrieve
from support.tiny import tiny_recipe

SCAN = {"kind": "triplet", "similarity": {"kind": "scan", "max_words": 20, "token_dim": 16}}


def test_the_scores_of_two_models_are_averaged(tmp_path):
    recipes = [tiny_recipe(tmp_path, training={"seed": seed}, head=head) for seed, head in ((0, {}), (1, SCAN))]
    data = load_data(recipes[0])
    encoders = [make_encoder(recipe, *make_model(recipe, data.splits)) for recipe in recipes]
    found = retrieve(recipes[0], data.val, *encoders)["all"]
    scores = 0
    for encoder in encoders:
        embeddings = encoder.encode(data.val)
        with torch.inference_mode():
            scores += encoder.model.head.similarity.eval()(embeddings.images, embeddings.texts) / 2
    ranks = compute_ranks(torch.eye(len(data.val)), scores.T, embeddings.caption_image)
    for name in ("image_to_text", "text_to_image"):
        assert getattr(found.folds[0], name).tolist() == getattr(ranks, name).tolist()
    alone = retrieve(recipes[0], data.val, encoders[0])["all"]
    assert alone.folds[0].text_to_image.tolist() != ranks.text_to_image.tolist()


def test_the_command_takes_several_models_of_one_data_set(tmp_path, capsys):
    recipe = tiny_recipe(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(recipe.to_yaml())
    one, two, out = (str(tmp_path / name) for name in ("one.yaml", "two.yaml", "out.json"))
    assert main(["evaluate", one, two, "--json", out]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["model"] == f"{one} + {two}"
    other = recipe.with_overrides("--data.test_images", "10")
    (tmp_path / "two.yaml").write_text(other.to_yaml())
    assert main(["evaluate", one, two]) == 2
    assert "have different data" in capsys.readouterr().err
