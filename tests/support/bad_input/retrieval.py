"""Bad input of indexing and searching."""

import struct
import zlib

import torch

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.model import ItmModel
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Item
from clip_itm.weights import model_sha256
from support.bad_input.cases import case, photos
from support.tiny import TINY_CLIP


def model(place, seed: int = 0) -> ItmModel:
    """A model of random weights in `model`."""
    section = OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": TINY_CLIP})
    torch.manual_seed(seed)
    made = ItmModel.from_backbone(section)
    made.save_pretrained(place / "model")
    build_processor(section, None).save_pretrained(place / "model")
    return made


def index(place, sha256: str) -> None:
    gallery = LocalIndex("image", sha256)
    gallery.add([Item(f"{k}.jpg") for k in range(4)], torch.eye(4, 16))
    gallery.save(place / "gallery")


def searched(place) -> list[str]:
    return ["search", str(place / "model"), str(place / "gallery"), "a dog"]


@case("indexing a folder that is not there")
def _(place):
    model(place)
    return ["index", str(place / "model"), str(place / "nowhere"), "--out", str(place / "gallery")]


@case("indexing a folder without photos")
def _(place):
    model(place)
    (place / "empty").mkdir()
    (place / "empty" / "notes.txt").write_text("nothing\n")
    return ["index", str(place / "model"), str(place / "empty"), "--out", str(place / "gallery")]


@case("indexing a corrupt photo")
def _(place):
    model(place)
    damaged = photos(place / "photos") / "05.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    return ["index", str(place / "model"), str(place / "photos"), "--out", str(place / "gallery")]


@case("indexing a photo of 100 megapixels in a few kilobytes")
def _(place):
    model(place)
    photos(place / "photos")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10000, 10000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1251) * 10000, 9)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert len(png) < 20_000
    (place / "photos" / "bomb.png").write_bytes(png)
    return ["index", str(place / "model"), str(place / "photos"), "--out", str(place / "gallery")]


@case("indexing a file of an unsupported type")
def _(place):
    model(place)
    (place / "captions.parquet").write_bytes(b"PAR1")
    return ["index", str(place / "model"), str(place / "captions.parquet"), "--out", str(place / "gallery")]


@case("indexing a table without captions")
def _(place):
    model(place)
    (place / "captions.csv").write_text("name,price\nmug,3\n")
    return ["index", str(place / "model"), str(place / "captions.csv"), "--out", str(place / "gallery")]


@case("indexing a file without a caption")
def _(place):
    model(place)
    (place / "captions.txt").write_text("\n\n")
    return ["index", str(place / "model"), str(place / "captions.txt"), "--out", str(place / "gallery")]


@case("indexing without saying what")
def _(place):
    model(place)
    return ["index", str(place / "model"), "--out", str(place / "gallery")]


@case("captions into an index of photos")
def _(place):
    index(place, model_sha256(model(place)))
    (place / "captions.txt").write_text("a dog\n")
    return ["index", str(place / "model"), str(place / "captions.txt"), "--out", str(place / "gallery")]


@case("searching with a folder that holds no model")
def _(place):
    (place / "model").mkdir()
    index(place, "0" * 64)
    return searched(place)


@case("searching the index of another model")
def _(place):
    index(place, model_sha256(model(place)))
    model(place, seed=1)
    return searched(place)


@case("searching a folder without an index")
def _(place):
    model(place)
    (place / "gallery").mkdir()
    return searched(place)


@case("searching an empty index")
def _(place):
    gallery = LocalIndex("image", model_sha256(model(place)))
    gallery.save(place / "gallery")
    return searched(place)


@case("searching an index whose vectors are truncated")
def _(place):
    index(place, model_sha256(model(place)))
    vectors = next((place / "gallery").glob("vectors-*.safetensors"))
    vectors.write_bytes(vectors.read_bytes()[:-10])
    return searched(place)


@case("searching by a photo that is not there")
def _(place):
    index(place, model_sha256(model(place)))
    return [*searched(place)[:-1], str(place / "dog.jpg")]


@case("searching by a file that is no photo")
def _(place):
    index(place, model_sha256(model(place)))
    (place / "dog.jpg").write_text("a dog\n")
    return [*searched(place)[:-1], str(place / "dog.jpg")]


@case("searching for nothing")
def _(place):
    index(place, model_sha256(model(place)))
    return searched(place)[:-1]


@case("no results asked for")
def _(place):
    index(place, model_sha256(model(place)))
    return [*searched(place), "--top-k", "0"]


@case("a picture of a type that cannot be drawn")
def _(place):
    index(place, model_sha256(model(place)))
    return [*searched(place), "--montage", str(place / "answers.txt")]


@case("a key of a recipe in a search")
def _(place):
    index(place, model_sha256(model(place)))
    return [*searched(place), "--data.root", str(place)]
