"""The tutorials, and the page on preparing data: they run, on a small model in the place of the reader's."""

import csv
import re
import shlex

import pytest
import yaml

from clip_itm.cli import main
from clip_itm.data.formats.url_tables import refuse_url_table
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.recipe import load_recipe, parse_recipe
from support.paths import ROOT
from support.tiny import save_tiny_model, tiny_recipe

TUTORIALS = ROOT / "docs" / "tutorials"
DATA_PAGE = ROOT / "docs" / "prepare_data.md"


def blocks(page, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page) -> list[list[str]]:
    """The words of every `clip-itm` of a page, in order, without the help and the server."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", "").splitlines()]
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("clip-itm ")]
    return [words for words in found if words[0] != "app"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder as the reader's: photos with captions.csv, my.yaml with a tiny CLIP, and that model by itself."""
    folder = tmp_path_factory.mktemp("reader")
    recipe = tiny_recipe(folder, training={"max_steps": 4})
    (folder / "photos").mkdir()
    with (folder / "photos" / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        number = 0
        for split, found in load_splits(recipe.data).items():
            for row in found.rows:
                number += 1
                read_image(row["image"]).convert("RGB").save(folder / "photos" / f"{number:04}.jpg")
                table.writerows((f"{number:04}.jpg", caption, split) for caption in row["captions"])
    save_tiny_model(folder)
    content = yaml.safe_load(blocks(TUTORIALS / "your_photos.md", "yaml")[0])
    assert parse_recipe(content, "my.yaml").data.source == "folder"
    content |= {"backbone": {"kind": "open_clip", "model": "tiny.json"}, "evaluation": {"bootstrap": 20}}
    content["training"] |= {"max_steps": 4, "batch_size": 32, "epochs": 2, "trackers": []}
    content["data"] |= {"cache_images": 32, "cache_dir": "cache"}
    (folder / "my.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_tutorials_run_one_after_the_other(reader, monkeypatch, capsys):
    """Your photos, noisy captions, search: each begins where the one before ended."""
    monkeypatch.chdir(reader)
    ran = []
    for name in ("your_photos", "noisy_captions", "search"):
        for words in commands(TUTORIALS / f"{name}.md"):
            if words[0] == "compare":  # on the sample, as recipes/sample/README.md has it
                continue
            words = ["model" if word.startswith("openai/") else word for word in words]
            if "--clean-to" in words:
                words.append("--force")
            if "--marks" in words or "--data.marks" in words:
                (reader / "audit" / "marks.jsonl").write_text("", encoding="utf-8")
            assert main(words) == 0, words
            ran.append(words[0])
            if words[0] == "data":
                assert capsys.readouterr().out.endswith("Training can start.\n")
    assert {"data", "train", "evaluate", "index", "search", "audit"} <= set(ran)
    assert (reader / "audit" / "audit.html").is_file()
    for name in ("your_photos", "search"):
        names: dict = {}
        exec(blocks(TUTORIALS / f"{name}.md", "python")[0], names)
    assert len(names["pipe"]("a red mug", top_k=100)) > 12


@pytest.mark.slow
def test_the_python_of_the_first_screen_runs(reader, monkeypatch, capsys):
    """That of the README beside the three commands, with a tiny model in the place of OpenAI's."""
    monkeypatch.chdir(reader)
    code = blocks(ROOT / "README.md", "python")[0]
    small = "epochs=1, batch_size=32, trackers=[], cache_dir='cache'"
    for written, here in (
        ("openai/clip-vit-base-patch32", "model"),
        ('output_dir="runs/my"', f"output_dir='py', {small}"),
    ):
        assert code.count(written) == 1
        code = code.replace(written, here)
    names: dict = {}
    exec(code, names)
    assert names["trainer"].recipe.head.kind == "crossfit"
    assert "i2t R@1" in capsys.readouterr().out


def test_yaml_of_the_page_on_data_is_a_recipe():
    shop, downloaded = (parse_recipe(yaml.safe_load(block), "page") for block in blocks(DATA_PAGE, "yaml"))
    assert (shop.data.source, shop.head.same_caption, shop.evaluation.same_caption) == ("folder", "mask", True)
    assert (downloaded.data.source, downloaded.data.root) == ("webdataset", "photos")


def test_recipes_of_the_page_on_data_read_what_it_describes():
    recipes = [words for words in commands(DATA_PAGE) if words[:2] == ["data", "check"] and "recipes/" in words[2]]
    assert {load_recipe(ROOT / words[2], words[3:]).data.source for words in recipes} == {
        *("coco", "flickr", "cc120k", "regions")
    }


def test_the_command_that_downloads_is_the_one_that_is_advised():
    """That of the page, and that in the error for a table of URLs."""
    text = DATA_PAGE.read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = re.findall(r"^img2dataset .*$", text, re.MULTILINE)
    with pytest.raises(ValueError, match="has URLs") as refused:
        refuse_url_table("products.csv", ["url", "title"])
    assert " ".join(command.split()) in str(refused.value)
