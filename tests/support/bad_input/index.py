"""Bad input of indexes: folders of somebody else, names, pipes, damaged files."""

import json
import os

from clip_itm.weights import model_sha256
from support.bad_input.cases import case, photos
from support.bad_input.retrieval import index, model, searched


def indexed(place) -> list[str]:
    return ["index", str(place / "model"), str(place / "photos"), "--out", str(place / "gallery")]


def gallery_file(place, kind: str):
    return next((place / "gallery").glob(f"{kind}*"))


@case("an index into a folder of something else")
def _(place):
    photos(place / "photos")
    return ["index", str(place / "model"), str(place / "photos"), "--out", str(place / "photos")]


@case("an index into a folder with files of the same names")
def _(place):
    photos(place / "photos")
    (place / "gallery").mkdir()
    (place / "gallery" / "vectors-0000.safetensors").write_text("mine")
    return indexed(place)


@case("an index into a folder with another program's index.json")
def _(place):
    photos(place / "photos")
    (place / "gallery").mkdir()
    (place / "gallery" / "index.json").write_text(json.dumps({"name": "my site"}))
    return indexed(place)


@case("an index where a file is")
def _(place):
    photos(place / "photos")
    (place / "gallery").write_text("mine")
    return indexed(place)


@case("indexing a photo whose name is not UTF-8")
def _(place):
    model(place)
    file = photos(place / "photos") / "05.jpg"
    os.rename(file, os.fsencode(file.with_name("caf")) + b"\xe9.jpg")
    return indexed(place)


@case("searching by a pipe")
def _(place):
    index(place, model_sha256(model(place)))
    os.mkfifo(place / "photo.jpg")
    return [*searched(place)[:-1], str(place / "photo.jpg")]


@case("searching by a folder with the name of a photo")
def _(place):
    index(place, model_sha256(model(place)))
    (place / "photo.jpg").mkdir()
    return [*searched(place)[:-1], str(place / "photo.jpg")]


@case("searching by a photo of two gigabytes")
def _(place):
    index(place, model_sha256(model(place)))
    with open(place / "photo.jpg", "wb") as file:
        file.truncate(2**31)
    return [*searched(place)[:-1], str(place / "photo.jpg")]


@case("searching an index in which a bit of the vectors has flipped")
def _(place):
    index(place, model_sha256(model(place)))
    path = gallery_file(place, "vectors")
    content = bytearray(path.read_bytes())
    content[-60] ^= 1  # in the last vector, before the checksum
    path.write_bytes(content)
    return searched(place)


@case("searching an index in which the items are those of another one")
def _(place):
    index(place, model_sha256(model(place)))
    path = gallery_file(place, "items")
    path.write_bytes(path.read_bytes()[::-1])
    return searched(place)


@case("searching an index of which a file is missing")
def _(place):
    index(place, model_sha256(model(place)))
    gallery_file(place, "items").unlink()
    return searched(place)


@case("searching an index whose index.json is truncated")
def _(place):
    index(place, model_sha256(model(place)))
    path = place / "gallery" / "index.json"
    path.write_bytes(path.read_bytes()[:200])
    return searched(place)


@case("searching an index whose index.json was edited")
def _(place):
    index(place, model_sha256(model(place)))
    path = place / "gallery" / "index.json"
    path.write_text(path.read_text().replace('"count": 4', '"count": 3'))
    return searched(place)


@case("searching an index whose index.json is nested 100,000 times")
def _(place):
    index(place, model_sha256(model(place)))
    (place / "gallery" / "index.json").write_text("[" * 100_000)
    return searched(place)
