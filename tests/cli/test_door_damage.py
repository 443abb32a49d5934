"""Every file of a run, damaged in every way, under every command that reads it: told by name, and never executed.

Checksums, which would find each of these first, are taken away before.
"""

import os
import pickle
import shutil

import pytest

from clip_itm.cli import main
from clip_itm.reading import read_json
from support.bad_input.cases import recipe


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


DAMAGES = {
    "cut": lambda data, place: data[: len(data) // 2],
    "empty": lambda data, place: b"",
    "text": lambda data, place: b"hello, world\n" * 20,
    "picture": lambda data, place: b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 4,
    "pickle": lambda data, place: pickle.dumps(Hostile(place / "executed")),
    "list": lambda data, place: b"[]",
    "mapping": lambda data, place: b"{}",
    "deep": lambda data, place: b"[" * 100_000,
}
WORD = "photo 1 seen the 0. time"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run, its data, and an index that it made."""
    place = tmp_path_factory.mktemp("damage")
    assert main([*recipe(place), "--training.max_steps", "2", "--training.save_every", "1"]) == 0
    assert main(["index", str(place / "run"), str(place / "photos"), "--out", str(place / "gallery")]) == 0
    for path in place.rglob("checksums.json"):
        path.unlink()
    return place


def commands(place):
    run, gallery, new = str(place / "run"), str(place / "gallery"), str(place / "new")
    return {
        "evaluate": ["evaluate", run, "--json", f"{new}.json"],
        "search": ["search", run, gallery, WORD],
        "index": ["index", run, str(place / "photos"), "--out", new],
        "export": ["export", run, "--to", "open_clip", "--out", new],
        "audit": ["audit", "--run", run, "--out", new],
        "interpolate": [
            "interpolate",
            "--tuned",
            run,
            "--base",
            run,
            "--alphas",
            "1:1:1",
            "--choose",
            "1",
            "--out",
            new,
        ],
        "show": ["train", str(place / "recipe.yaml"), "--training.max_steps", "2", "--training.save_every", "1"],
        "resume": ["train", str(place / "recipe.yaml"), "--training.max_steps", "2", "--training.save_every", "1"],
    }


MODEL = ("best/config.json", "best/model.safetensors", "best/tokenizer.json", "best/processor_config.json")
STATE = "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "provenance.json", "recipe.yaml"
# files that a command reads, so that damage to them must be told
READ = {
    "evaluate": [*MODEL, "best/recipe.yaml", "best/tokenizer_config.json", "best/provenance.json"],
    "search": ["best/model.safetensors", "best/tokenizer.json"],
    "index": ["best/config.json", "best/processor_config.json"],
    "export": ["best/model.safetensors", "best/provenance.json"],
    "audit": ["recipe.yaml", "provenance.json", "noise.npz", "best/model.safetensors"],
    "interpolate": ["best/config.json", "best/model.safetensors"],
    "show": ["recipe.yaml", "provenance.json", "results.json"],
    "resume": [f"checkpoint-1/{name}" for name in STATE],
}


def tries():
    for command, files in READ.items():
        for number, file in enumerate(files):
            kinds = ["empty", "text", "picture", "pickle"]
            if not file.endswith(".yaml"):  # half a recipe may be a recipe
                kinds.append("cut")
            if file.endswith(".json"):
                kinds += ["list", "deep"] + ["mapping"] * (not file.endswith("tokenizer_config.json"))
            # each command sees each kind somewhere; what only torch reads sees them all
            all_of_them = file.endswith((".pt", ".pth"))
            for kind in kinds if all_of_them else {kinds[number % len(kinds)], kinds[(number + 2) % len(kinds)]}:
                yield pytest.param(command, file, kind, id=f"{command}-{file}-{kind}")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "file", "kind"), sorted(tries(), key=lambda param: param.id))
def test_damage_is_told_by_the_file(place, capsys, command, file, kind):
    run, kept = place / "run", place / "kept"
    shutil.copytree(run, kept)
    try:
        if command == "resume":
            (run / "results.json").unlink()
            shutil.rmtree(run / "checkpoint-2")
        path = run / file
        path.write_bytes(DAMAGES[kind](path.read_bytes(), place))
        capsys.readouterr()
        status = main(commands(place)[command])
        said = capsys.readouterr().err.replace("\n", " ")
    finally:
        shutil.rmtree(run)
        kept.rename(run)
        for left in (place / "new", place / "new.json"):
            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True) if left.is_file() else None
    assert status == 2, said
    assert path.name in said[said.rfind(f"clip-itm {commands(place)[command][0]}: ") :], said
    assert "weights_only" not in said
    assert "Traceback" not in said
    assert not (place / "executed").exists()


@pytest.mark.parametrize("kind", DAMAGES)
def test_json_of_a_user_is_told_by_its_file(tmp_path, kind):
    path = tmp_path / "some.json"
    path.write_bytes(DAMAGES[kind](b'{"a": 1}', tmp_path))
    with pytest.raises(ValueError, match=r"some\.json is not the thing, or it is damaged"):
        read_json(path, "the thing", ("a",))
    path.write_text('{"a": ' + "9" * 5000 + "}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"some\.json is not the thing"):
        read_json(path, "the thing")
    with pytest.raises(ValueError, match=r"other\.json: there is no such file; expected the thing"):
        read_json(tmp_path / "other.json", "the thing")
    with pytest.raises(ValueError, match=r"cannot be read \(is a directory\)"):
        read_json(tmp_path, "the thing")
