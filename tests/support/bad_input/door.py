"""Cases of test_bad_input.py: words of the command line, recipes beyond bounds, files of another kind."""

import json
import pickle
from pathlib import Path

from support.bad_input.cases import case, photos, recipe


def _recipe_text(place: Path, text: str) -> list[str]:
    (place / "recipe.yaml").write_text(text, encoding="utf-8")
    return ["train", str(place / "recipe.yaml")]


@case("a model that is not there")
def missing_model(place: Path) -> list[str]:
    return ["search", str(place / "runs" / "nope"), str(place / "gallery"), "a dog"]


@case("an index that is not there")
def missing_index(place: Path) -> list[str]:
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text("{}", encoding="utf-8")
    return ["search", str(place / "model"), str(place / "gallery"), "a dog"]


@case("a model of the Hub, without network")
def unreachable_model(place: Path) -> list[str]:
    return ["search", "nobody-here/nothing", str(place / "gallery"), "a dog"]


@case("pretrained weights of open_clip, without network")
def unreachable_weights(place: Path) -> list[str]:
    return recipe(place, backbone={"kind": "open_clip", "pretrained": "openai"})


@case("a data set of the Hub, without network")
def unreachable_data(place: Path) -> list[str]:
    return recipe(place, data={"source": "hub", "path": "nobody-here/nothing"})


@case("aliases of aliases of aliases in a recipe")
def nested_aliases(place: Path) -> list[str]:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    return _recipe_text(place, "\n".join(lines))


@case("a hundred thousand brackets in a recipe")
def brackets(place: Path) -> list[str]:
    return _recipe_text(place, "[" * 100_000)


@case("a key that stands twice in a recipe")
def twice(place: Path) -> list[str]:
    return _recipe_text(place, "training:\n  seed: 1\n  epochs: 2\n  seed: 3\n")


@case("a number of 5000 digits")
def digits(place: Path) -> list[str]:
    return _recipe_text(place, f"training:\n  seed: {'1' * 5000}\n")


@case("a number that is not finite")
def infinite(place: Path) -> list[str]:
    return recipe(place, training={"warmup": float("inf")})


@case("betas beyond 1")
def betas(place: Path) -> list[str]:
    return recipe(place, training={"betas": [2, 3]})


@case("more resamples than mean anything")
def resamples(place: Path) -> list[str]:
    return [*recipe(place), "--evaluation.bootstrap", "1000000000"]


@case("a number that is no number")
def no_number(place: Path) -> list[str]:
    return [*recipe(place), "--training.batch_size", "12:30"]


@case("half a character in a recipe")
def surrogate(place: Path) -> list[str]:
    return _recipe_text(place, 'data: {source: sample}\nbackbone: {kind: open_clip}\noutput_dir: "runs/\\ud800"\n')


@case("a NUL in a path")
def nul(place: Path) -> list[str]:
    return _recipe_text(place, 'data: {source: sample}\nbackbone: {kind: open_clip}\noutput_dir: "runs/\\0"\n')


@case("a recipe that is not UTF-8")
def latin1(place: Path) -> list[str]:
    (place / "recipe.yaml").write_bytes("backbone: {kind: open_clip}\noutput_dir: für\n".encode("latin1"))
    return ["train", str(place / "recipe.yaml")]


@case("a value in place of a section")
def no_section(place: Path) -> list[str]:
    return _recipe_text(place, "data: {source: sample}\nbackbone: open_clip\n")


@case("weights that are a pickle")
def pickled(place: Path) -> list[str]:
    (place / "weights.pt").write_bytes(pickle.dumps({"a": print}))
    words = recipe(place)
    return [*words, "--backbone.pretrained", str(place / "weights.pt")]


@case("weights that are cut off")
def cut(place: Path) -> list[str]:
    (place / "weights.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    return [*recipe(place), "--backbone.pretrained", str(place / "weights.safetensors")]


@case("a configuration of open_clip that is a list")
def listed(place: Path) -> list[str]:
    words = recipe(place)
    (place / "tiny.json").write_text("[]", encoding="utf-8")
    return words


@case("a configuration of a model nested a hundred thousand deep")
def deep_json(place: Path) -> list[str]:
    photos(place / "photos")
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text("[" * 100_000, encoding="utf-8")
    return ["evaluate", str(place / "model"), "--data.source", "folder", "--data.root", str(place / "photos")]


@case("a vocabulary that is no mapping")
def vocabulary(place: Path) -> list[str]:
    (place / "words.json").write_text(json.dumps([1, 2]), encoding="utf-8")
    (place / "model.pth").write_bytes(b"")
    return ["import", str(place / "model.pth"), "--vocabulary", str(place / "words.json"), "--out", str(place / "out")]
