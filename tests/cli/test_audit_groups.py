"""Groups and suggestions in `clip-itm audit`: on the terminal, on the page, in the table, and `--leave-out`."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clip_itm import audit
from clip_itm.auditing import judging, table
from clip_itm.auditing.cleaning import objections
from clip_itm.auditing.groups import groups_of
from clip_itm.auditing.leaving_out import left_out
from clip_itm.auditing.photos import Photos
from clip_itm.cli import main
from clip_itm.data.configuration import RegionsData
from clip_itm.data.load import load_splits
from clip_itm.data.marks import pair_hash
from support.browser import SIZES, Keys, console, nameless, press, resize, start_browser, wait_for
from support.region_data import write_regions
from support.tiny import save_tiny_model
from unit.auditing.test_duplicates import compressed, picture

HOSTILE = "<script>alert(1)</script> & a mug"
TRAIN, VAL = 30, 6
COPY, LEAK = TRAIN, TRAIN + 1  # photos of train: a copy of photo 4, and of the first one of val
HEADINGS = "return [...document.querySelectorAll('h1, h2, h3, h4')].map((heading) => heading.tagName)"
NAMES = [5, 6, 7]  # photos with a file name as their first caption


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`model`, tiny and random; `photos` with faults that are known; `sound` without any."""
    folder = tmp_path_factory.mktemp("groups")
    save_tiny_model(folder)
    for name in ("photos", "sound"):
        (folder / name).mkdir()
        rows = []
        for number in range(TRAIN + VAL):
            captions = [HOSTILE if number == 0 else f"thing {number}", f"the thing {number}"]
            if name == "photos" and number in NAMES:
                captions[0] = f"IMG_{2000 + number}.jpg"
            _add(folder / name, rows, f"{number:02d}", picture(number), captions, number >= TRAIN)
        if name == "photos":
            _add(folder / name, rows, "copy", picture(4).resize((320, 240)), ["once more", "and again"], False)
            _add(folder / name, rows, "leak", compressed(picture(TRAIN), 20), ["leaked", "and again, leaked"], False)
        (folder / name / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _add(folder: Path, rows: list, stem: str, image: Image.Image, captions: list[str], is_val: bool) -> None:
    image.save(folder / f"{stem}.png")
    rows.append({"file_name": f"{stem}.png", "captions": captions, "split": "val" if is_val else "train"})


@pytest.fixture(autouse=True)
def nothing_similar(monkeypatch):
    """A model with random weights finds photos alike that are not."""
    monkeypatch.setattr(table, "similar_photos", lambda vectors, copies: [])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def judgement(monkeypatch):
    """A function that replaces what the model says of the pairs: those that are given are wrong, if any is."""

    def put(*wrong: int):
        real = judging.judge_split

        def judged(encoder, split, *args, **keys):
            found = real(encoder, split, *args, **keys)
            values = np.linspace(0.9, 0.99, len(split.pairs))
            values[list(wrong)] = 0.01
            share = len(wrong) / len(values)
            scores = {"crossfit": judging.PairScore(-values, values)}
            return judging.replace(found, scores=scores, share=share, low=share, high=share)

        monkeypatch.setattr(judging, "judge_split", judged)

    return put


def run(place: Path, *words: str, data: str = "photos") -> int:
    cache = ["--data.cache_dir", str(place / "cache")]
    return main(["audit", str(place / data), "--model", str(place / "model"), *cache, *words])


def found(place: Path, data: str = "photos"):
    return audit(place / data, place / "model", "--data.cache_dir", str(place / "cache"))


def test_groups_are_told_before_scores_and_are_in_page_and_table(here, place, judgement, capsys):
    judgement(0, 9)
    assert run(place) == 0
    told = capsys.readouterr().out
    assert re.search(r"Photos of val, too +│ +2 ", told)
    assert re.search(r"File names +│ +3 ", told)
    assert re.search(r"Copies of photos +│ +4 ", told)
    assert told.index("Copies of photos") < told.index("scores")

    rows = {row["pair"]: row for row in pq.read_table(here / "audit" / "audit.parquet").to_pylist()}
    kinds = {pair: row["groups"] for pair, row in rows.items() if row["groups"]}
    names = {2 * number: ["file name"] for number in NAMES}
    copies = {pair: ["copies"] for pair in (8, 9, 2 * COPY, 2 * COPY + 1)}
    assert kinds == names | copies | {2 * LEAK: ["leak"], 2 * LEAK + 1: ["leak"]}
    assert rows[0]["pair_hash"] == pair_hash("00.png", HOSTILE)

    page = (here / "audit" / "audit.html").read_text()
    assert page.index("Photos of val, too") < page.index('id="single-title"')
    leak = page.partition('data-kind="leak"')[2].partition("</section>")[0]
    assert re.findall(r'"split">(\w+)<', leak) == ["train", "val"]
    assert "photo leak.png" in leak
    assert f"photo {TRAIN}.png" in leak
    assert leak.count("<img") == 2
    assert "IMG_2005.jpg" in page
    assert "<script>alert" not in page
    assert page.count("<script") == 1
    assert 'data-groups="copies"' in page


def test_nothing_found_is_said_in_one_line(here, place, judgement, capsys):
    judgement()
    assert run(place, data="sound") == 0
    assert "no groups: no copies of photos" in capsys.readouterr().out
    page = (here / "audit" / "audit.html").read_text()
    assert "Nothing found: no copies of photos" in page
    assert "There are no single pairs to show" in page
    assert 'id="filter"' not in page
    table = pq.read_table(here / "audit" / "audit.parquet")
    assert table["suggestion"].null_count == len(table) == 2 * TRAIN
    assert set(map(tuple, table["groups"].to_pylist())) == {()}


def test_a_python_audit_decodes_nothing_for_groups_until_it_is_asked(place, monkeypatch):
    copies = table.Photos.copies
    monkeypatch.setattr(table.Photos, "copies", None)
    got = found(place)
    assert len(got.head(3)) <= 3
    with pytest.raises(TypeError):
        print(got.groups)
    monkeypatch.setattr(table.Photos, "copies", copies)
    assert [group.kind for group in got.groups] == ["leak", "file name", "copies"]


def test_a_second_audit_decodes_no_photo_for_hashes(here, place, monkeypatch):
    found(place).groups  # noqa: B018
    monkeypatch.setattr("clip_itm.auditing.photo_hash.PhotoHashes.of_rows", None)
    assert run(place) == 0


def test_the_caption_that_fits_is_suggested_and_junk_is_not(place, judgement):
    judgement(0, 2)  # the captions of photos 0 and 1, which have been exchanged as far as the embeddings say
    got = found(place)
    photos = got.split.pairs.image
    vectors = torch.nn.functional.normalize(torch.randn(len(got.split), 64, generator=torch.Generator().manual_seed(0)))
    texts = vectors[got.split.pairs.image].clone()
    texts[[0, 2]] = texts[[2, 0]]
    texts[2 * NAMES[0]] = vectors[0]  # a file name that would fit best
    embeddings = judging.replace(got.embeddings, images=vectors, texts=texts)
    got = judging.replace(got, embeddings=embeddings, top=3)
    assert list(got.suggestions) == got.clean.order()[:3].tolist()
    first = got.suggestions[0]
    assert first.captions[0].text == got.captions[2]
    assert first.photos[0].text == "01.png"
    assert first.photos[0].index == photos[2]
    assert len(first.captions) == len(first.photos) == 3
    asked = [answer.text for one in got.suggestions.values() for answer in one.captions]
    assert not [text for text in asked if text.startswith("IMG_")]
    row = got.table.to_pylist()[0]
    proposed = first.proposed
    assert (row["suggestion"], row["suggestion_p"]) == (
        (None, None) if proposed is None else (proposed.text, pytest.approx(proposed.p))
    )
    assert got.table["suggestion"].null_count >= len(got.captions) - 3


def test_suggestions_are_on_the_cards(here, place, judgement):
    judgement(0, 2 * NAMES[0])
    assert run(place, "--top", "2") == 0
    page = (here / "audit" / "audit.html").read_text()
    cards = page.partition('<ol id="pairs"')[2].partition("</ol>")[0].split("<li data-pair")[1:]
    assert len(cards) == 2
    for card, photos in zip(cards, (3, 0), strict=True):  # no photo fits the name of a file
        texts = re.findall(r'class="suggestion" data-text="([^"]*)"', card)
        assert len(texts) == 3
        assert "<" not in "".join(texts)
        assert card.count("<img") == 1 + photos
        assert card.count('class="enlarge"') == 1 + photos


def test_noise_gives_groups_the_captions_that_pairs_got(here, place):
    recipe = here / "recipe.yaml"
    recipe.write_text(
        f"data: {{source: folder, root: {place / 'photos'}, cache_dir: {place / 'cache'}}}\n"
        f"backbone: {{kind: open_clip, model: {place / 'tiny.json'}}}\nnoise: {{ratio: 0.9}}\n"
    )
    got = audit(recipe, place / "model")
    (names,) = [group.pairs for group in got.groups if group.kind == "file name"]
    assert sorted(got.captions[k] for k in names) == [f"IMG_{2000 + number}.jpg" for number in NAMES]
    assert names.tolist() != [2 * number for number in NAMES]


def test_regions_have_groups_of_captions_only(here, tmp_path, place):
    root = write_regions(tmp_path / "regions")
    lines = (root / "train_caps.txt").read_text().splitlines()
    (root / "train_caps.txt").write_text("\n".join(["IMG_2031.jpg", *lines[1:]]) + "\n")
    splits = load_splits(RegionsData(root=str(root), cache_dir=str(place / "cache")))
    photos = Photos.of(splits, "train")
    pairs = splits["train"].pairs
    groups = groups_of(pairs.captions.to_pylist(), pairs.image, photos.copies(None), photos.names)
    assert [group.pairs.tolist() for group in groups if group.kind == "file name"] == [[0]]
    assert not {group.kind for group in groups} & {"leak", "copies", "similar"}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_photo_enlarges_by_keyboard_and_every_control_has_a_name(here, place, judgement, size):
    judgement(0, 9)
    assert run(place) == 0
    browser = start_browser()
    try:
        resize(browser, size)
        browser.get((here / "audit" / "audit.html").as_uri())
        assert nameless(browser) == []
        levels = [int(tag[1]) for tag in browser.execute_script(HEADINGS)]
        assert levels[0] == 1
        assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= SIZES[size][0]
        photo = browser.find_element("css selector", "#pairs .enlarge")
        browser.execute_script("arguments[0].focus()", photo)
        press(browser, Keys.ENTER)
        large = wait_for(browser, "#enlarged img")
        assert large.get_attribute("src") == photo.find_element("tag name", "img").get_attribute("src")
        assert large.size["width"] > 200
        assert HOSTILE in wait_for(browser, "#enlarged p").text
        press(browser, Keys.ESCAPE)
        assert not large.is_displayed()
        assert browser.switch_to.active_element == photo, "it is where it was"
        assert console(browser) == []
    finally:
        browser.quit()


# --leave-out ----------------------------------------------------------------------------------------------------------


def cleaned(here: Path) -> tuple[dict, list[str]]:
    rows = [json.loads(line) for line in (here / "cleaned" / "metadata.jsonl").read_text().splitlines()]
    held = [caption for row in rows if row["split"] == "train" for caption in row["captions"]]
    return json.loads((here / "cleaned" / "cleaned.json").read_text()), held


def test_groups_are_left_out_where_they_are_named_whatever_the_interval_says(here, place, judgement, capsys):
    judgement()  # no wrong captions, so that none may go by probability
    assert run(place, "--clean-to", "cleaned", "--leave-out", "file name", "leak", "copies", "link") == 0
    note, held = cleaned(here)
    assert note["rule"] == {"share_found": 0.0, "leave_out": {"file name": 3, "leak": 2, "copies": 2, "link": 0}}
    assert note["dropped_pairs"] == 7
    assert note["dropped_images"] == 2
    assert not [caption for caption in held if caption.startswith(("IMG_", "leaked"))]
    copies = ["thing 4", "the thing 4", "once more", "and again"]
    assert [caption for caption in held if caption in copies] == copies[2:], "the later one has higher probabilities"
    assert "left out as copies: 2 pairs" in capsys.readouterr().out


def test_a_photo_keeps_its_last_caption_unless_it_goes_as_a_copy(here, place, judgement, capsys):
    judgement(2 * NAMES[0] + 1)  # the other caption of a photo that has a file name
    assert run(place, "--clean-to", "cleaned", "--leave-out", "file name", "copies") == 2
    told = capsys.readouterr().err
    assert "1 photo would lose its last caption" in told
    assert "05.png" in told
    assert not (here / "cleaned").exists()
    assert run(place, "--clean-to", "cleaned", "--leave-out", "file name", "copies", "--force") == 0
    assert cleaned(here)[0]["rule"]["force"] is True


def test_a_copy_in_another_split_leaves_no_copy_behind(place, judgement):
    judgement()
    got = found(place)
    out = left_out(got, ["leak", "copies"])
    assert out.images.sum() == 2
    assert objections(got, np.ones(len(out.pairs), dtype=bool), out) == []


def test_kinds_that_are_not_known_are_told_before_anything_is_judged(here, place, monkeypatch, capsys):
    monkeypatch.setattr(judging, "audit_data", None)
    assert run(place, "--clean-to", "cleaned", "--leave-out", "copy") == 2
    assert '--leave-out copy: there are no groups of this kind; expected leak, "file name"' in capsys.readouterr().err
    assert run(place, "--leave-out", "copies") == 2
    assert "say where with --clean-to" in capsys.readouterr().err
