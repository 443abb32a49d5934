"""Whatever a command is told to write goes into devices, FIFOs and links, and to standard output as "-"."""

import argparse
import errno
import json
import os
import threading
from pathlib import Path

import pytest

from clip_itm.cli import main, make_parser
from clip_itm.commands.output import OutputFile, OutputFolder
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.files import replacing, write_text
from support.forks import Forked
from support.tiny import tiny_recipe

READ_FILES = ("--marks", "--queries-from", "--vocabulary", "--templates", "--classes", "--weights")


def options(parser: argparse.ArgumentParser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from ((f"{name} {words}".strip(), option) for words, option in options(below))
        elif action.option_strings:
            yield "", action


def test_every_option_that_names_an_output_says_so():
    for words, option in options(make_parser()):
        name, metavar = option.option_strings[0], option.metavar or ""
        if metavar.startswith("FILE") and name not in READ_FILES:
            assert option.type is OutputFile, f"{words} {name}"
        if name == "--out" and option.type is not OutputFile:
            assert option.type is OutputFolder or words in ("index", "compare"), f"{words} {name}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of one step, and an index of a few photos."""
    folder = tmp_path_factory.mktemp("outputs")
    recipe = tiny_recipe(folder, training={"max_steps": 1}, data={"train_images": 8, "val_images": 4, "test_images": 4})
    recipe = recipe.with_overrides("--training.batch_size", "8")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    (folder / "photos").mkdir()
    for row in load_splits(recipe.data)["test"].rows:
        read_image(row["image"]).save(folder / "photos" / f"{row['image_id']}.png")
    assert main(["index", str(folder / "run"), str(folder / "photos"), "--out", str(folder / "gallery")]) == 0
    return folder


# the words before the name of the file, a name with a fitting suffix, and how the content begins
COMMANDS = {
    "evaluate --json": (["evaluate", "run", "--json"], "out.json", b"{"),
    "evaluate --plot": (["evaluate", "run", "--plot"], "out.png", b"\x89PNG"),
    "search --json": (["search", "run", "gallery", "a circle", "--json"], "out.json", b"["),
    "search --html": (["search", "run", "gallery", "a circle", "--html"], "out.html", b"<!"),
    "search --montage": (["search", "run", "gallery", "a circle", "--montage"], "out.png", b"\x89PNG"),
    "data check --json": (["data", "check", "recipe.yaml", "--json"], "out.json", b"{"),
    "noise make --out": (["noise", "make", "recipe.yaml", "--out"], "out.npz", b"PK"),
    "bank build --out": (["bank", "build", "--run", "run", "--rho", "0.01", "--out"], "out.npz", b"PK"),
}


@pytest.fixture(params=COMMANDS)
def command(request, made, monkeypatch):
    monkeypatch.chdir(made)
    return COMMANDS[request.param]


def read_soon(path: Path) -> tuple[threading.Thread, list[bytes]]:
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    thread.start()
    return thread, found


def test_a_fifo_and_a_link_are_written_into(command, tmp_path):
    words, name, begins = command
    os.mkfifo(tmp_path / "fifo")
    thread, found = read_soon(tmp_path / "fifo")
    assert main([*words, str(tmp_path / "fifo")]) == 0
    thread.join(10)
    assert found[0].startswith(begins)
    assert (tmp_path / "fifo").is_fifo()
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / name)
    link = tmp_path / f"link{Path(name).suffix}"
    (tmp_path / "link").rename(link)
    assert main([*words, str(link)]) == 0
    assert link.is_symlink()
    assert (tmp_path / "far" / name).read_bytes().startswith(begins)


def test_a_dash_is_standard_output_and_messages_are_not_in_it(command, capfdbinary, monkeypatch):
    words, _, begins = command
    assert main([*words, "-"]) == 0
    said = capfdbinary.readouterr()
    assert said.out.startswith(begins)
    if begins in (b"{", b"["):
        json.loads(said.out)
    assert b"\xe2\x94" in said.err or words[0] in ("data", "noise"), "the table goes elsewhere"
    assert not Path("-").exists()


def test_what_is_in_the_way_is_told_at_once(command, tmp_path, capsys):
    words, name, _ = command
    (tmp_path / name).mkdir()
    assert main([*words, str(tmp_path / name)]) == 2
    assert f"{name} is a folder; expected the name of a file to write" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert main([*words, str(tmp_path / "file" / name)]) == 2
    assert f"{tmp_path / 'file'} is no folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_folders_are_made_for_a_file(made, monkeypatch, tmp_path):
    monkeypatch.chdir(made)
    assert main(["noise", "make", "recipe.yaml", "--out", str(tmp_path / "new" / "er" / "noise.npz")]) == 0
    assert (tmp_path / "new" / "er" / "noise.npz").is_file()


def test_two_files_cannot_both_be_standard_output(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert main(["search", "run", "gallery", "a circle", "--json", "-", "--html", "-"]) == 2
    assert "only one file can be written to standard output" in capsys.readouterr().err


FOLDERS = {
    "audit --out": ["audit", "--run", "run", "--out"],
    "audit --clean-to": ["audit", "--run", "run", "--clean-to"],
    "interpolate": ["interpolate", "--tuned", "run", "--out"],
    "export": ["export", "run", "--to", "open_clip", "--out"],
    "import": ["import", "epoch.pt", "--out"],
    "data float16": ["data", "float16", "photos", "--out"],
}


@pytest.mark.parametrize("words", FOLDERS.values(), ids=FOLDERS)
def test_a_file_in_the_way_of_a_folder_is_told_at_once(words, made, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(made)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main([*words, str(place)]) == 2
        assert f"cannot be written: {tmp_path / 'file'} is no folder" in capsys.readouterr().err
    assert main([*words, "-"]) == 2
    assert "a folder cannot be written to standard output" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_audit_follows_links(made, monkeypatch, tmp_path):
    monkeypatch.chdir(made)
    (tmp_path / "audit").mkdir()
    for name in ("audit.parquet", "audit.html"):
        (tmp_path / "audit" / name).symlink_to(tmp_path / f"far.{name}")
    assert main(["audit", "--run", "run", "--out", str(tmp_path / "audit")]) == 0
    for name in ("audit.parquet", "audit.html"):
        assert (tmp_path / "audit" / name).is_symlink()
        assert (tmp_path / f"far.{name}").stat().st_size > 100


def test_errors_of_writing_name_the_file_and_not_its_temporary_name(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*out\.json'"):
        write_text(tmp_path / "out.json", "text")
    assert not list(tmp_path.iterdir())


def test_a_file_that_must_be_new_is_never_replaced(tmp_path):
    with replacing(tmp_path / "a", exclusive=True) as temporary:
        temporary.write_text("first")
    with pytest.raises(FileExistsError), replacing(tmp_path / "a", exclusive=True) as temporary:
        temporary.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_two_writers_of_noise_end_with_one_of_the_two_and_the_other_told(made, tmp_path):
    words = ["noise", "make", str(made / "recipe.yaml"), "--out", str(tmp_path / "noise.npz"), "--noise.seed"]
    both = [Forked("-m", "clip_itm.cli", *words, seed) for seed in ("1", "2")]
    statuses = [process.wait() for process in both]
    assert sorted(statuses) == [0, 2], [process.output for process in both]
    assert "holds other noise" in both[statuses.index(2)].output
    assert main(["verify", str(tmp_path / "noise.npz")]) == 0
