"""What comes after training works for every head: audit, index, search, push; sets and token grids by a shortlist."""

import json

import pytest

from clip_itm.cli import main
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.recipe import parse_recipe
from support.region_data import WIDTH, write_regions
from support.tiny import HEADS, tiny_recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_a_trained_head_is_audited_indexed_searched_and_pushed(name, tmp_path, capsys):
    recipe = tiny_recipe(tmp_path, head=HEADS[name], training={"epochs": 4, "max_steps": 4})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    photos = tmp_path / "photos"
    photos.mkdir()
    for row in load_splits(recipe.data)["test"].rows:
        read_image(row["image"]).save(photos / f"{row['image_id']}.png")
    run, gallery, found = (str(tmp_path / each) for each in ("run", "gallery", "found.json"))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert main(["evaluate", run, "--json", found]) == 0
    again = json.loads((tmp_path / "found.json").read_text())
    assert again["all"]["metrics"] == results["best"]["all"]["metrics"], "the saved model is the trained one"
    assert main(["audit", "--run", run, "--out", str(tmp_path / "audit")]) == 0
    assert main(["index", run, str(photos), "--out", gallery]) == 0
    assert main(["search", run, gallery, "a red circle", "--top-k", "12", "--json", found]) == 0
    hits = json.loads((tmp_path / "found.json").read_text())
    assert [hit["rank"] for hit in hits[0]["results"]][:1] == [1]
    assert len(hits[0]["results"]) == 12
    assert main(["push", run, "me/mine", "--dry-run"]) == 0
    assert "README.md" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_of_regions_is_audited_without_pictures_and_its_card_names_no_photos(tmp_path, capsys):
    write_regions(tmp_path / "regions")
    backbone = {"kind": "regions", "region_dim": WIDTH, "embed_dim": 16, "word_dim": 8, "min_word_count": 1}
    content = {
        "output_dir": str(tmp_path / "run"),
        "data": {"source": "regions", "root": str(tmp_path / "regions"), "cache_dir": str(tmp_path / "cache")},
        "noise": {"ratio": 0.4},
        "backbone": backbone,
        "training": {"batch_size": 20, "max_steps": 3, "learning_rate": 1e-3, "trackers": []},
        "evaluation": {"bootstrap": 0},
    }
    (tmp_path / "recipe.yaml").write_text(parse_recipe(content, "regions").to_yaml())
    run = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert main(["audit", "--run", run, "--top", "5"]) == 0
    page = (tmp_path / "run" / "audit" / "audit.html").read_text()
    assert page.count('data-pair="') == 5
    assert "data:image" not in page
    capsys.readouterr()
    assert main(["audit", "--run", run, "--drop-fraction", "0.1", "--clean-to", str(tmp_path / "cleaned")]) == 2
    assert "these data are precomputed regions" in capsys.readouterr().err
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "image_tokens" in card
    assert "beach.jpg" not in card
