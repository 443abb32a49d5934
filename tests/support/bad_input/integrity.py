"""Bad input of what was kept: damaged files, and things in the way of what is to be written."""

import numpy as np

from clip_itm.data.noise import CaptionNoise
from clip_itm.methods.npc.bank import MemoryBank
from support.bad_input.cases import case, photos, recipe
from support.bad_input.retrieval import index, model, searched
from support.damage import flip


def noise(place) -> CaptionNoise:
    return CaptionNoise(np.arange(8), 0.0, "caption", 0, "ab" * 32)


@case("a saved model with a flipped bit")
def _(place):
    model(place)
    index(place, "00")
    flip(place / "model" / "model.safetensors")
    return searched(place)


@case("a saved model of which a file was cut off")
def _(place):
    model(place)
    index(place, "00")
    path = place / "model" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:1000])
    return searched(place)


@case("a saved model whose configuration was edited")
def _(place):
    model(place)
    index(place, "00")
    path = place / "model" / "config.json"
    path.write_text(path.read_text() + "\n")
    return searched(place)


@case("checksums that are damaged themselves")
def _(place):
    model(place)
    index(place, "00")
    (place / "model" / "checksums.json").write_text('{"files": {')
    return searched(place)


@case("a noise file with a flipped bit")
def _(place):
    noise(place).save(place / "noise.npz")
    flip(place / "noise.npz")
    return ["noise", "info", str(place / "noise.npz")]


@case("a memory bank with a flipped bit")
def _(place):
    bank = MemoryBank(np.zeros(4, np.int64), np.zeros(8, np.int64), None, "a model", "ab" * 32)
    bank.save(place / "bank.npz")
    flip(place / "bank.npz")
    return ["bank", "info", str(place / "bank.npz")]


@case("verify: a path that is not there")
def _(place):
    return ["verify", str(place / "runs" / "nope")]


@case("verify: a folder of something else")
def _(place):
    photos(place / "photos")
    return ["verify", str(place / "photos")]


@case("verify: a file without a checksum")
def _(place):
    (place / "notes.txt").write_text("mine")
    return ["verify", str(place / "notes.txt")]


@case("a folder in the way of a file that is to be written")
def _(place):
    recipe(place)
    (place / "noise.npz").mkdir()
    return ["noise", "make", str(place / "recipe.yaml"), "--out", str(place / "noise.npz")]


@case("a file in the way of a folder that is to be written")
def _(place):
    model(place)
    (place / "out").write_text("mine")
    return ["export", str(place / "model"), "--to", "open_clip", "--out", str(place / "out" / "export")]


@case("two files for standard output")
def _(place):
    return [*searched(place), "--json", "-", "--html", "-"]


@case("a folder for standard output")
def _(place):
    model(place)
    return ["export", str(place / "model"), "--to", "open_clip", "--out", "-"]
