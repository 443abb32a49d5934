"""The grid of a comparison and its tables, without a run."""

from pathlib import Path

import pytest
import yaml

from clip_itm.recipe import RecipeError
from clip_itm.runs.compare import Cell, noise_label, plan, require_same_draw, summarise
from clip_itm.runs.compare_tables import cost_lines, detection_lines, markdown, save, table_lines
from support.tiny import tiny_recipe

SEEDS = [0, 1]


@pytest.fixture
def files(tmp_path):
    """Two recipes that differ in the head."""
    names = []
    for kind in ("clip", "crcl"):
        recipe = tiny_recipe(tmp_path, head={"kind": kind})
        (tmp_path / f"{kind}.yaml").write_text(recipe.to_yaml())
        names.append(str(tmp_path / f"{kind}.yaml"))
    return names


def folders(runs) -> list[str]:
    return ["/".join(Path(recipe.output_dir).parts[-3:-1]) for _, recipe in runs]


def test_a_level_stands_in_the_name_of_the_folder_unless_it_is_the_recipes_own(files, tmp_path):
    runs = plan(files[:1], ["0", "0.4", "image:0.4", "noun:0.25"], [0], tmp_path, [])
    assert folders(runs) == ["clip/noise-0", "clip/noise-0.4", "clip/noise-image-0.4", "clip/noise-noun-0.25"]
    assert [(recipe.noise.level, recipe.noise.ratio) for _, recipe in runs] == [
        *(("caption", 0.0), ("caption", 0.4), ("image", 0.4), ("noun", 0.25))
    ]
    runs = plan(files[:1], ["caption:0.4", "image:0", 0.6], [0], tmp_path, [])
    assert folders(runs) == ["clip/noise-0.4", "clip/noise-0", "clip/noise-0.6"]
    runs = plan(files[:1], ["0.4", "caption:0.4"], [0], tmp_path, ["--noise.level", "image"])
    assert folders(runs) == ["clip/noise-0.4", "clip/noise-caption-0.4"]
    assert [recipe.noise.level for _, recipe in runs] == ["image", "caption"]


@pytest.mark.parametrize(
    ("noises", "message"),
    [
        (["often"], "--noise often: expected a ratio such as 0.4, or level:ratio"),
        (["image:"], "--noise image:: expected a ratio"),
        (["photo:0.4"], "noise.level: .*'photo'"),
        (["1.5"], r"noise\.ratio"),
        (["0.4", "0.40"], r"noise-0\.4.* would be two runs"),
        (["0.4", "caption:0.4"], "would be two runs"),
        (["0", "image:0"], "would be two runs"),
    ],
)
def test_noises_that_cannot_be_are_named(files, tmp_path, noises, message):
    with pytest.raises(RecipeError, match=message):
        plan(files, noises, [0], tmp_path, [])


def changed(file: str, **sections: dict) -> str:
    content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    for name, keys in sections.items():
        content[name] |= keys
    other = Path(file).with_name("other.yaml")
    other.write_text(yaml.safe_dump(content))
    return str(other)


@pytest.mark.parametrize(("key", "value"), [("level", "image"), ("neighbours", 3), ("model", "x"), ("seed", 3)])
def test_recipes_of_different_draws_are_refused(files, tmp_path, key, value):
    other = changed(files[1], noise={key: value})
    with pytest.raises(RecipeError, match=rf"clip and other cannot share a table: noise\.{key} differ$"):
        plan([files[0], other], ["neighbour:0.4", "0.4"], [0], tmp_path, [])
    if key == "level":  # a named level is the same for both, wherever it lies
        runs = plan([files[0], other], ["image:0.4"], SEEDS, tmp_path, [])
        assert folders(runs)[::2] == ["clip/noise-image-0.4", "other/noise-0.4"]


def test_recipes_with_other_towers_are_refused_where_these_say_which_photos_are_near(files, tmp_path):
    wider = tmp_path / "wider.json"
    wider.write_text((tmp_path / "tiny_clip.json").read_text().replace('"width": 32', '"width": 64'))
    other = changed(files[1], backbone={"model": str(wider)})
    assert len(plan([files[0], other], ["0.4"], [0], tmp_path, [])) == 2
    with pytest.raises(RecipeError, match=r"backbone\.model differ; name a model by which photos are near"):
        plan([files[0], other], ["0.4", "neighbour:0.4"], [0], tmp_path, [])
    named = ["--noise.model", "runs/one"]
    assert len(plan([files[0], other], ["neighbour:0.4"], [0], tmp_path, named)) == 2
    frozen = changed(files[1], backbone={"image_dropout": 0.5})  # it changes no feature
    assert len(plan([files[0], frozen], ["neighbour:0.4"], [0], tmp_path, [])) == 2


def cell(method: str, ratio: float, seed: int, rsum: float, level: str = "caption", **results) -> Cell:
    metrics = {f"{way}_r{k}": rsum / 6 for way in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum": rsum}
    stages = {stage: {"all": {"metrics": metrics}} for stage in ("zero_shot", "best", "last")}
    noise = {"sha256": f"{level}{ratio}".ljust(64, "0"), "level": level, "ratio": ratio}
    provenance = {"machine": {"processes": 1, "device": "cpu"}, "versions": {"torch": "2"}}
    content = {"split": "test", "noise": noise, "seconds": 10.0, "provenance": provenance}
    return Cell(method, ratio, seed, stages | content | results, Path(f"{method}-{level}-{ratio}-{seed}"))


GRID = [
    cell(method, ratio, seed, 100 * (1 - ratio) + gain + seed, level, seconds=10.0 * cost + seed)
    for method, gain, cost in (("clip", 0, 1), ("npc", 10, 3))
    for level, ratio in (("caption", 0.4), ("caption", 0.0), ("neighbour", 0.4), ("neighbour", 0.2))
    for seed in SEEDS
]


def test_rows_keep_levels_apart(tmp_path):
    rows = summarise(GRID)
    lines = table_lines(rows, "best")
    assert [line[:2] for line in lines[1:]] == [
        [noise, method] for noise in ("0", "0.4", "neighbour 0.2", "neighbour 0.4") for method in ("clip", "npc")
    ]
    assert all(line[-1] == "2" for line in lines[1:])
    row = next(
        r for r in rows if (r["method"], r["level"], r["noise"], r["stage"]) == ("npc", "neighbour", 0.4, "best")
    )
    assert row["rsum"] == pytest.approx(70.5)
    save(rows, GRID, tmp_path)
    written = (tmp_path / "comparison.md").read_text()
    assert "One draw per noise (0.4: caption0.400, 0: caption0.000, neighbour 0.4: neighbour0.4" in written


def test_the_cost_is_that_of_runs_of_the_first_recipe_with_the_same_noise():
    lines = cost_lines(GRID)
    assert lines[0] == ["noise", "method", "seconds", "in runs of clip", "seeds"]
    assert lines[1:3] == [["0", "clip", "10", "1.00", "2"], ["0", "npc", "30", "2.90", "2"]]
    interrupted = [
        cell("clip", 0.0, 0, 100, seconds=10.0),
        cell("clip", 0.4, 0, 100, seconds=None),
        cell("npc", 0.0, 0, 100, seconds=None),
        cell("npc", 0.4, 0, 100, seconds=30.0),
    ]
    assert cost_lines(interrupted)[1:] == [
        *(["0", "clip", "10", "1.00", "1"], ["0", "npc", "-", "-", "0"]),
        *(["0.4", "clip", "-", "-", "0"], ["0.4", "npc", "30", "-", "1"]),
    ]
    assert "## cost" in markdown(summarise(GRID), GRID)
    alone = [one for one in GRID if one.method == "clip"]
    assert "## cost" not in markdown(summarise(alone), alone)


def test_the_share_of_wrong_pairs_stands_beside_the_true_one():
    def share(value: float, true: float | None) -> dict:
        return {"share": value, "low": value - 0.01, "high": value + 0.02, "true": true}

    pairs = {"auc": 0.9, "precision": 0.8, "wrong": 40}
    cells = [
        cell("clip", 0.4, 0, 100),
        cell("npc", 0.4, 0, 100, wrong_pairs=pairs),
        cell("crossfit", 0.0, 0, 100, wrong_pairs=None, wrong_share=share(0.01, None)),
        cell("crossfit", 0.4, 0, 100, wrong_pairs=pairs | {"ece": 0.02}, wrong_share=share(0.41, 0.399)),
        cell("crossfit", 0.4, 1, 100, wrong_pairs=pairs | {"ece": 0.04}, wrong_share=share(0.39, 0.399)),
    ]
    assert detection_lines(cells) == [
        ["noise", "method", "share true", "share found [95 %]", "AUC", "precision", "ECE", "seeds"],
        ["0", "crossfit", "-", "0.010 [0.000, 0.030]", "-", "-", "-", "1"],
        ["0.4", "npc", "-", "-", "0.900", "0.800", "-", "1"],
        ["0.4", "crossfit", "0.399", "0.400 [0.390, 0.420]", "0.900", "0.800", "0.030", "2"],
    ]
    assert len(detection_lines(cells[:1])) == 1


def test_other_draws_of_one_noise_cannot_share_a_table():
    for number in range(len(GRID)):
        require_same_draw(GRID[: number + 1])
    other = cell("crcl", 0.4, 0, 100)
    other.results["noise"]["sha256"] = "f" * 64
    with pytest.raises(ValueError, match=r"crcl-caption-0\.4-0 cannot share a table: .*caption0\.4.* and fff"):
        require_same_draw([*GRID, other])


def test_noise_is_named_with_its_level_unless_captions_were_shuffled_alone():
    assert [noise_label("caption", 0.4), noise_label("image", 0.4), noise_label("image", 0.0)] == [
        "0.4",
        "image 0.4",
        "0",
    ]
