"""`clip-itm index` and `clip-itm search`, from a folder to a table, a page, a picture and JSON."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_itm.cli import main
from clip_itm.data.caption_file import caption_id
from clip_itm.data.images import small_jpeg
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Hit, Item
from clip_itm.retrieval.pipeline import load_pipeline
from clip_itm.retrieval.show import Answer, draw_montage, image_of, results_page
from support.bad_input.retrieval import model
from support.forks import run_python
from support.processes import ENVIRONMENT

RED, BLUE = (200, 30, 30), (30, 30, 200)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    model(folder)
    (folder / "photos").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    return folder


def test_a_folder_is_indexed_and_searched(place, capsys):
    paths = {name: str(place / name) for name in ("model", "photos", "gallery", "a.html", "a.png", "a.json")}
    assert main(["index", paths["model"], paths["photos"], "--out", paths["gallery"]]) == 0
    said = capsys.readouterr().out
    assert "gallery: 6 photos; exact search over 6 vectors" in said
    words = ["search", paths["model"], paths["gallery"], "a [dog]", str(place / "photos" / "3.png"), "--top-k", "4"]
    pages = ["--html", paths["a.html"], "--montage", paths["a.png"], "--json", paths["a.json"]]
    assert main([*words, *pages]) == 0
    said = capsys.readouterr().out
    assert "a [dog]" in said, "a query is no markup"
    text, photo = json.loads((place / "a.json").read_text())
    assert text["query"] == "a [dog]"
    assert [hit["rank"] for hit in text["results"]] == [1, 2, 3, 4]
    assert photo["results"][0]["id"] == "3.png", "photos alone are searched by photos, too"
    pipe = load_pipeline(place / "model")
    pipe.load_index(place / "gallery")
    expected = pipe("a [dog]", top_k=4)
    assert [(hit["id"], hit["score"]) for hit in text["results"]] == [(hit["id"], hit["score"]) for hit in expected]
    page = (place / "a.html").read_text()
    assert page.count("<li>") == 8
    assert page.count("data:image/jpeg") == 9, "eight results, and the query that is a photo"
    assert Image.open(place / "a.png").width > 4 * 224


@pytest.mark.parametrize(
    ("name", "content", "captions"),
    [
        ("captions.txt", "a dog\n\n  a cat \n", ["a dog", "a cat"]),
        ("captions.csv", "name,Caption\nmug,a red mug\njar,a jar\n", ["a red mug", "a jar"]),
        ("captions.tsv", 'captions\n["a dog", "two dogs"]\n', ["a dog", "two dogs"]),
        ("captions.jsonl", '{"text": "a dog"}\n{"text": ["a cat", "a dog"]}\n', ["a dog", "a cat", "a dog"]),
    ],
)
def test_captions_come_from_files(place, tmp_path, name, content, captions):
    (tmp_path / name).write_text(content)
    assert main(["index", str(place / "model"), str(tmp_path / name), "--out", str(tmp_path / "index")]) == 0
    items = list(LocalIndex.load(tmp_path / "index").items())
    assert [item.caption for item in items] == captions
    repeats = [captions[: number + 1].count(caption) for number, caption in enumerate(captions)]
    assert [item.id for item in items] == list(map(caption_id, captions, repeats))


def test_a_caption_between_others_leaves_their_vectors_alone(place, tmp_path, capsys):
    words = ["index", str(place / "model"), str(tmp_path / "captions.txt"), "--out", str(tmp_path / "index")]
    (tmp_path / "captions.txt").write_text("a dog\na cat\n")
    assert main(words) == 0
    (tmp_path / "captions.txt").write_text("a horse\na dog\na cat\n")
    assert main(words) == 0
    index = LocalIndex.load(tmp_path / "index")
    found = {item.caption: item.id for item in index.items()}
    assert found == {caption: caption_id(caption) for caption in ("a dog", "a cat", "a horse")}


def test_captions_that_cannot_be_used_are_left_out_where_asked_for(place, tmp_path, capsys):
    (tmp_path / "c.jsonl").write_text(
        '{"text": "a dog"}\n{"text": null}\n\n{"text": "half \\ud800"}\n{"text": "a cat"}\n'
    )
    words = ["index", str(place / "model"), str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "index")]
    assert main(words) == 2
    assert "c.jsonl:2, column 'text': the caption is empty" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"(?s)2 captions cannot be used .*c.jsonl:2.*c.jsonl:4.*lone surrogate"):
        assert main([*words, "--skip-broken"]) == 0
    assert [item.caption for item in LocalIndex.load(tmp_path / "index").items()] == ["a dog", "a cat"]


def test_broken_photos_are_left_out_and_gone_ones_pruned(place, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in (place / "photos").iterdir():
        (photos / file.name).write_bytes(file.read_bytes())
    (photos / "bad.png").write_bytes(b"nothing")
    words = ["index", str(place / "model"), str(photos), "--out", str(tmp_path / "index")]
    assert main(words) == 2
    assert "bad.png: this is not a photo" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"1 photo cannot be read and is left out:\n.*bad\.png"):
        assert main([*words, "--skip-broken", "--thumbnails"]) == 0
    (photos / "0.png").unlink()
    (photos / "bad.png").unlink()
    assert main(words) == 0
    assert len(LocalIndex.load(tmp_path / "index")) == 6
    assert main([*words, "--prune"]) == 0
    index = LocalIndex.load(tmp_path / "index")
    assert [item.id for item in index.items()] == ["1.png", "2.png", "3.png", "4.png", "5.png"]
    assert all(item.thumbnail for item in index.items())


def photo_items(tmp_path) -> list[Item]:
    """A file, a thumbnail, and a file that is gone."""
    Image.new("RGB", (40, 20), RED).save(tmp_path / "red.png")
    jpeg = small_jpeg(Image.new("RGB", (20, 40), BLUE), 32)
    return [Item("red<1>", path=str(tmp_path / "red.png")), Item("blue", thumbnail=jpeg), Item("gone", path="/no/such")]


def test_a_picture_shows_files_thumbnails_and_what_is_gone(tmp_path):
    items = photo_items(tmp_path)
    assert image_of(items[2]) is None
    answer = Answer("a long query " * 20, [Hit(item, 0.5, 1) for item in items])
    draw_montage(
        [answer, Answer(str(tmp_path / "red.png"), [Hit(Item("0", caption="a caption"), 0.1, 1)])], tmp_path / "m.png"
    )
    colors = {
        tuple(round(channel / 40) for channel in color): count
        for count, color in Image.open(tmp_path / "m.png").convert("RGB").getcolors(2**24)
    }
    assert colors[tuple(round(c / 40) for c in RED)] > 2 * 224 * 112 * 0.9
    assert colors[tuple(round(c / 40) for c in BLUE)] > 224 * 112 * 0.9


def test_a_page_escapes_what_it_shows_and_runs_nothing(tmp_path):
    hits = [Hit(item, 0.5, 1) for item in photo_items(tmp_path)]
    page = results_page([Answer("<script>alert(1)</script>", hits), Answer("text", [])], "index <b>")
    assert "<script" not in page
    assert "red&lt;1&gt;" in page
    assert page.count("data:image/jpeg") == 2
    assert page.count("no photo") == 1
    assert re.search(r"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"", page)


@pytest.mark.slow
def test_a_killed_index_command_leaves_one_index_or_the_other(tmp_path):
    assert "'kills': 8" in run_python("-m", "support.kill_index", str(tmp_path), "11", env=ENVIRONMENT)


def test_a_second_command_is_told_who_is_at_it(place, tmp_path, capsys):
    (tmp_path / "index").mkdir()
    code = "import sys; from clip_itm.lock import locked\nwith locked(sys.argv[1], 'index'): print(flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    words = ["index", str(place / "no model"), str(place / "photos"), "--out", str(tmp_path / "index")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        assert main(words) == 2
        owner.communicate(b"\n")
    assert f"is being written by process {owner.pid} on " in capsys.readouterr().err, "before the model is looked for"


def test_the_command_counts_and_a_second_run_writes_nothing(place, tmp_path, capsys):
    photos = Path(shutil.copytree(place / "photos", tmp_path / "photos"))
    words = ["index", str(place / "model"), str(photos), "--out", str(tmp_path / "index")]
    assert main(words) == 0
    files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "index").iterdir()}
    capsys.readouterr()
    assert main(words) == 0
    assert "this run: 0 new, 6 kept\n" in capsys.readouterr().out
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "index").iterdir()} == files
    Image.new("RGB", (20, 20), RED).save(photos / "1.png")
    (photos / "2.png").rename(photos / "new.png")
    assert main(words) == 0
    assert "this run: 0 new, 1 changed, 1 moved, 4 kept; 1 no longer in the gallery: still" in capsys.readouterr().out
    pipe = load_pipeline(place / "model")
    pipe.load_index(tmp_path / "index")
    assert pipe(photos / "1.png", top_k=1)[0]["id"] == "1.png"
