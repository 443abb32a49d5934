"""Text of others never commands a terminal, a page, a table or a picture: captions, names of files, recipes, runs."""

import html
import json
import re
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from clip_itm.cli import main
from clip_itm.commands.terminal import print_facts, print_lines, print_results, print_table
from clip_itm.data.check import CheckReport, SplitReport
from clip_itm.evaluation.plot_noise import plot_noise
from clip_itm.evaluation.report import markdown_table, terminal_table
from clip_itm.retrieval.items import Hit, Item
from clip_itm.retrieval.show import Answer, draw_montage, results_page
from clip_itm.runs.compare_tables import _markdown_lines
from clip_itm.visible import CONTROL, code, fence, markdown, visible
from support.bad_input.cases import photos
from support.hostile import HOSTILE, NAME, SIGNS, Cells, assert_no_markup
from support.tiny import TINY_CLIP

text = st.text(st.one_of(st.characters(), st.sampled_from("|`*_[]()<>\\\n\r\t\x1b~$&!#-")), max_size=40)


@given(text)
def test_no_sign_is_left_and_all_is_shown(text):
    shown = visible(text)
    assert not CONTROL.search(shown)
    assert shown.isprintable() or not text.isprintable()
    shown.encode()  # lone surrogates cannot be printed
    if not CONTROL.search(text):
        assert shown == text


def test_signs_are_shown_as_escapes():
    assert visible("a\x1b[31m\n\t\x85\u202e\u2028\ud800") == "a\\x1b[31m\\n\\t\\x85\\u202e\\u2028\\ud800"
    assert visible("a\nb\x1b", kept="\n") == "a\nb\\x1b"
    assert visible("Ärger über 猫, مرحبا, 👩‍👩‍👧 – “ok”") == "Ärger über 猫, مرحبا, 👩‍👩‍👧 – “ok”"


def rendered(cell: str) -> Cells:
    return Cells(
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(f"| a | b |\n|---|---|\n| {cell} | end |")
    )


@given(text)
@example("__0__")
@example("a__b_ _c_")
def test_a_cell_of_markdown_shows_the_text_and_nothing_else(text):
    found = rendered(markdown(text))
    assert found.cells[:2] == ["a", "b"]
    assert found.cells[3:] == ["end"]
    assert " ".join(found.cells[2].split()) == " ".join(visible(text).split())
    assert set(found.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}


@given(text.filter(lambda text: visible(text).strip()))
def test_code_in_a_line_of_markdown_shows_the_text(text):
    page = MarkdownIt("commonmark").render(f"is {code(text)} so")
    (shown,) = re.findall("<p>is <code>(.*?)</code> so</p>", page)
    assert html.unescape(shown).split() == visible(text).split()


@given(st.text("`a\n ", max_size=30))
def test_a_fence_is_not_closed_from_inside(text):
    ticks = fence(text)
    page = MarkdownIt("commonmark").render(f"{ticks}\n{text}\n{ticks}\n\nend")
    assert page.endswith("</code></pre>\n<p>end</p>\n")


def assert_plain(said: str, *shown: str) -> None:
    assert not CONTROL.search(said.replace("\n", ""))
    for part in shown:
        assert part in said


def result(metrics: dict) -> dict:
    return {
        "protocol": HOSTILE, "images": 100, "captions": 500, "folds": [], "metrics": metrics, "intervals": {},
        "tie_gap": {},
    }  # fmt: skip


def test_tables_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)  # or tables are folded at 140
    shown = visible(HOSTILE)
    for show in (
        lambda: print_facts(HOSTILE, [(HOSTILE, HOSTILE)]),
        lambda: print_results(HOSTILE, [(1, 0.5, HOSTILE)]),
        lambda: print_lines(HOSTILE, [["method", HOSTILE], [HOSTILE, "1.0"]], left=["method"]),
    ):
        monkeypatch.setenv("NO_COLOR", "1")
        show()
        said = re.sub(r"\x1b\[[13]?m|\x1b\[0m", "", capsys.readouterr().out)  # bold and italic titles of rich's own
        assert_plain(said, shown)
        assert said.count(shown) >= 2
    figures = {f"{way}_r{k}": 50.0 for way in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum": 300.0}
    rows = [(HOSTILE, result(figures)), ("other", {**result(figures), "protocol": "all"})]
    print_table(terminal_table(rows, title=HOSTILE))
    said = re.sub(r"\x1b\[\d*(;\d+)*m", "", capsys.readouterr().out)
    assert_plain(said, shown)


def test_tables_of_markdown():
    figures = {"rsum": 300.0}
    rows = [(HOSTILE, result(figures)), ("other", {**result(figures), "protocol": "all"})]
    for table in (markdown_table(rows), _markdown_lines([["method", "x", "y"], [HOSTILE, HOSTILE, "1"]])):
        assert_plain(table)
        found = Cells(MarkdownIt("commonmark").enable("table").render(table))
        assert "script" not in found.tags
        assert "img" not in found.tags
        assert "a" not in found.tags
        assert len(found.cells) % 3 == 0
        assert found.cells[3] == " ".join(visible(HOSTILE).split())


def test_a_report_of_the_data_check():
    split = SplitReport(images=1, captions=1, sha256="0" * 64, captions_per_image={1: 1}, length={
        "mean": 1.0, "median": 1.0, "p99": 1.0, "max": 1.0}, length_unit="words", formats={HOSTILE: 1})  # fmt: skip
    report = CheckReport(splits={"[bold]a": split}, problems=[HOSTILE], warnings=[HOSTILE])
    assert_plain(report.as_text(), f"PROBLEM: {visible(HOSTILE)}", f"warning: {visible(HOSTILE)}", "[bold]a")


def hostile_photos(folder: Path) -> Path:
    """A folder of photos with such names and captions."""
    photos(folder)
    names = {}
    for number, path in enumerate(sorted(folder.glob("*.jpg"))):
        names[path.name] = f"{number} {NAME}.jpg"
        path.rename(folder / names[path.name])
    lines = []
    for row in (folder / "captions.csv").read_text().splitlines()[1:]:
        name, caption, split = row.split(",")
        lines.append({"image": names[name], "caption": f"{caption} {HOSTILE}".replace("\0", ""), "split": split})
    (folder / "captions.csv").unlink()
    (folder / "captions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """A comparison of two recipes with such names on such photos, in a folder with such a name; what it said beside."""
    place = tmp_path_factory.mktemp("compared")
    hostile_photos(place / "photos")
    (place / "tiny.json").write_text(json.dumps(TINY_CLIP))
    content = {
        "data": {"source": "folder", "root": str(place / "photos"), "cache_dir": str(place / "cache")},
        "backbone": {"kind": "open_clip", "model": str(place / "tiny.json")},
        "training": {"batch_size": 4, "max_steps": 1, "trackers": []},
        "evaluation": {"bootstrap": 0},
    }
    files = [place / f"r[bold] {NAME}.yaml", place / "b].yaml"]
    for file in files:
        file.write_text(yaml.safe_dump(content))
    words = ["compare", *map(str, files), "--noise", "0.5", "--seeds", "0", "--montage"]
    (place / "status").write_text(str(main([*words, "--out", str(place / f"out {NAME}")])))
    return place


@pytest.mark.slow
def test_a_comparison(compared, capsys):
    assert (compared / "status").read_text() == "0"
    out = compared / f"out {NAME}"
    words = ["compare", *map(str, sorted(compared.glob("*.yaml"), reverse=True)), "--noise", "0.5", "--seeds", "0"]
    assert main([*words, "--out", str(out), "--montage"]) == 0  # again, now that it is finished
    said = capsys.readouterr().out
    assert_plain(said, visible(f"r[bold] {NAME}, noise 0.5"))
    tables = (out / "comparison.md").read_text()
    assert_plain(tables)
    assert markdown(f"r[bold] {NAME}") in tables
    assert min(Image.open(out / "queries.png").size) > 100


@pytest.mark.slow
def test_commands_on_such_a_run(compared, capsys):
    run = compared / f"out {NAME}" / "b]" / "noise-0.5" / "seed-0"
    card = (run / "best" / "README.md").read_text()
    assert_plain(card)
    assert "script" not in Cells(MarkdownIt("commonmark").enable("table").render(card)).tags
    index = compared / f"index {NAME}"
    for words in (
        ["evaluate", str(run), "--plot", str(compared / f"{NAME}.png")],
        ["data", "check", str(run)],
        ["audit", "--run", str(run)],
        ["noise", "info", str(run / "noise.npz")],
        ["index", str(run), str(compared / "photos"), "--out", str(index)],
        ["search", str(run), str(index), HOSTILE.replace("\0", ""), "--html", str(compared / "page.html")],
        ["push", str(run), "me/mine", "--dry-run"],
        ["train", str(run)],
    ):
        status = main(words)
        said = capsys.readouterr()
        assert status == 0, said.err
        assert_plain(said.out)
    assert_no_markup((compared / "page.html").read_text())
    assert_no_markup((run / "audit" / "audit.html").read_text())


@pytest.mark.parametrize("verb", ["train", "evaluate", "compare", "data", "search", "audit", "export", "noise"])
def test_errors_quote_what_is_wrong_visibly(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = HOSTILE.replace("\0", "").replace("/", "")
    words = {
        "data": ["data", "check", place],
        "search": ["search", place, place, "a dog"],
        "audit": ["audit", "--run", place],
        "export": ["export", place, "--to", "open_clip", "--out", "out"],
        "noise": ["noise", "info", place],
    }.get(verb, [verb, place])
    assert main(words) == 2
    said = capsys.readouterr()
    assert_plain(said.out)
    assert_plain(said.err, visible(place))


def test_complaints_about_words_are_visible(capsys):
    with pytest.raises(SystemExit):
        main(["train", "recipe.yaml", HOSTILE])
    assert_plain(capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main([HOSTILE])
    assert_plain(capsys.readouterr().err)


def test_warnings_are_visible(capsys, monkeypatch):
    from clip_itm.commands import train

    monkeypatch.setattr(train, "run", lambda args: warnings.warn(HOSTILE, stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train", "recipe.yaml"]) == 0
        assert warnings.formatwarning(HOSTILE) == f"warning: {visible(HOSTILE)}\n"


def test_pages(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    hits = [Hit(Item(HOSTILE, path=str(tmp_path / "a.png")), 0.5, 1), Hit(Item("b", caption=HOSTILE), 0.4, 2)]
    page = results_page([Answer(HOSTILE, hits)], HOSTILE)
    assert_no_markup(page)
    assert html.unescape(page).count(visible(HOSTILE, kept="\n\t")) == 6  # title (2), query, alt, id, caption
    draw_montage([Answer(HOSTILE, hits), Answer("\ud800", hits[1:])], tmp_path / "picture.png")
    assert min(Image.open(tmp_path / "picture.png").size) > 100


@pytest.mark.filterwarnings("error")  # of glyphs that are missing
def test_dollars_in_pictures_are_dollars(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'clip-itm[plot]'")
    rows = [
        {"method": name, "noise": noise, "level": "caption", "rsum": 100.0, "rsum_std": 0.0}
        for name in ("$\\frac{$", "a $x", SIGNS)
        for noise in (0.0, 0.4)
    ]
    assert plot_noise(rows, tmp_path / "picture.png", "$\\undefined$ \x1b[31m")
