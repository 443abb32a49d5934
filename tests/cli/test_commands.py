"""`train`, `evaluate` and `compare` as a user runs them."""

import json
from pathlib import Path

import pytest
import yaml

from clip_itm.cli import main
from clip_itm.recipe import RecipeError
from clip_itm.runs.compare import method_names, summarise
from support.tiny import tiny_recipe


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    recipe = tiny_recipe(folder, training={"max_steps": 4})
    file = folder / "clip.yaml"
    file.write_text(recipe.to_yaml())
    return file


def test_train_then_evaluate(recipe_file, capsys):
    assert main(["train", str(recipe_file)]) == 0
    printed = capsys.readouterr()
    assert "best checkpoint by val (step 4)" in printed.out
    assert "40 photos" in printed.err
    assert main(["train", str(recipe_file)]) == 0
    assert "this run is finished" in capsys.readouterr().err

    run = recipe_file.parent / "run"
    results = json.loads((run / "results.json").read_text())
    out = recipe_file.parent / "out.json"
    picture = recipe_file.parent / "recall.png"
    assert main(["evaluate", str(run), "--json", str(out), "--plot", str(picture)]) == 0
    again = json.loads(out.read_text())
    assert again["split"] == "test"
    assert again["all"]["metrics"] == results["best"]["all"]["metrics"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", str(run), "--json", str(out), "--evaluation.split", "val"]) == 0
    assert json.loads(out.read_text())["split"] == "val"


def test_evaluate_an_untrained_backbone(recipe_file, capsys):
    out = recipe_file.parent / "zero.json"
    assert main(["evaluate", str(recipe_file), "--json", str(out)]) == 0
    results = json.loads((recipe_file.parent / "run" / "results.json").read_text())
    assert json.loads(out.read_text())["all"]["metrics"] == results["zero_shot"]["all"]["metrics"]


@pytest.mark.slow
def test_compare_runs_a_grid_once(recipe_file, capsys):
    out = recipe_file.parent / "grid"
    words = ["compare", str(recipe_file), "--noise", "0", "0.4", "--seeds", "0", "1", "--out", str(out), "--montage"]
    assert main(words) == 0
    assert "clip" in capsys.readouterr().out
    comparison = json.loads((out / "comparison.json").read_text())
    assert len(comparison["runs"]) == 4
    best = [row for row in comparison["rows"] if row["stage"] == "best"]
    assert [(row["noise"], row["seeds"]) for row in best] == [(0.0, 2), (0.4, 2)]
    written = (out / "comparison.md").read_text()
    assert "best checkpoint by val" in written
    assert "±" in written
    assert (out / "queries.png").read_bytes().startswith(b"\x89PNG")
    hashes = {run["provenance"]["noise"]["sha256"] for run in comparison["runs"]}
    assert len(hashes) == 2  # one draw per ratio, shared by the seeds

    before = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    (out / "clip" / "noise-0.4" / "seed-1" / "results.json").unlink()  # as if it had been interrupted
    assert main(words) == 0
    assert "resuming from" in capsys.readouterr().err
    after = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    assert [path for path in before if before[path] != after[path]] == [
        out / "clip" / "noise-0.4" / "seed-1" / "results.json"
    ]
    assert json.loads((out / "comparison.json").read_text())["rows"] == comparison["rows"]


@pytest.mark.slow
def test_methods_are_compared_with_the_first_one(recipe_file, capsys):
    crcl = recipe_file.parent / "crcl.yaml"
    content = yaml.safe_load(recipe_file.read_text())
    content["head"] = {"kind": "crcl", "frozen_epochs": 1}
    crcl.write_text(yaml.safe_dump(content))
    out = recipe_file.parent / "methods"
    words = ["compare", str(recipe_file), str(crcl), "--noise", "image:0.4", "--seeds", "0", "1", "--out", str(out)]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "rsum against" in shown
    assert "in runs of clip" in shown
    comparison = json.loads((out / "comparison.json").read_text())
    assert (out / "crcl" / "noise-image-0.4" / "seed-1" / "results.json").is_file()
    assert {row["level"] for row in comparison["rows"]} == {"image"}
    rows = {(row["method"], row["stage"]): row for row in comparison["rows"]}
    for stage in ("best", "last"):
        assert "rsum_difference" not in rows["clip", stage]
        value, low, high = rows["crcl", stage]["rsum_difference"]
        assert value == pytest.approx(rows["crcl", stage]["rsum"] - rows["clip", stage]["rsum"])
        assert low <= value <= high
    written = (out / "comparison.md").read_text()
    assert "rsum against clip [95 %]" in written
    assert "wrong training pairs found" in written
    runs = [run for run in comparison["runs"] if run["method"] == "crcl"]
    assert all(0 <= run["wrong_pairs"]["auc"] <= 1 and run["wrong_pairs"]["wrong"] > 0 for run in runs)


def test_mean_and_spread():
    def run(rsum):
        metrics = {f"{way}_r{k}": rsum / 6 for way in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum": rsum}
        stages = {stage: {"all": {"metrics": metrics}} for stage in ("zero_shot", "best", "last")}
        return stages | {"noise": {"level": "caption"}}

    from clip_itm.runs.compare import Cell

    rows = summarise([Cell("clip", 0.4, seed, run(rsum), Path()) for seed, rsum in enumerate((100.0, 104.0, 102.0))])
    row = next(row for row in rows if row["stage"] == "best")
    assert (row["rsum"], row["rsum_std"], row["seeds"]) == (102.0, 2.0, 3)


def test_rows_are_named_after_their_recipes():
    assert method_names(["recipes/coco/clip.yaml", "recipes/coco/npc.yaml"]) == ["clip", "npc"]
    assert method_names(["recipes/coco/clip.yaml", "recipes/sample/clip.yaml"]) == ["coco-clip", "sample-clip"]
    with pytest.raises(RecipeError, match="two recipes are called the same"):
        method_names(["a/clip.yaml", "a/clip.yaml"])


def test_a_mistake_in_any_recipe_is_told_before_the_first_run(recipe_file, tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    broken.write_text("backbone: {kind: nothing}")
    out = tmp_path / "grid"
    assert main(["compare", str(recipe_file), str(broken), "--out", str(out)]) == 2
    assert "backbone.kind" in capsys.readouterr().err
    assert not Path(out).exists()


def test_an_unfinished_run_is_not_evaluated_as_if_it_were(recipe_file, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(recipe_file.read_text())
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "this run is not finished" in capsys.readouterr().err


def test_rows_of_a_table_stand_on_the_same_data_and_noise(recipe_file, tmp_path, capsys):
    for section, key, value, message in (
        ("data", "train_images", 50, "data.train_images differ"),
        ("noise", "seed", 3, "noise.seed differ"),
        ("noise", "file", "noise.npz", "noise.file fixes the noise"),
        ("evaluation", "split", "val", "evaluation sections differ"),
    ):
        content = yaml.safe_load(recipe_file.read_text())
        content[section][key] = value
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
        words = ["compare", str(recipe_file), str(tmp_path / "other.yaml"), "--out", str(tmp_path / "grid")]
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()
