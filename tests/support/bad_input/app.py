"""Bad input of the app. All of it is told before the server starts."""

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Item
from clip_itm.weights import model_sha256
from support.bad_input.cases import case
from support.bad_input.retrieval import index, model
from support.tiny_app import write_audit


def app(place, *words: str) -> list[str]:
    return ["app", "--model", str(place / "model"), *words]


@case("an app without a model")
def _(place):
    (place / "model").mkdir()
    return app(place)


@case("an app with an index that is not there")
def _(place):
    model(place)
    return app(place, "--index", str(place / "gallery"))


@case("an app with an index of another model")
def _(place):
    model(place)
    index(place, "0" * 64)
    return app(place, "--index", str(place / "gallery"))


@case("an app with an empty index")
def _(place):
    gallery = LocalIndex("image", model_sha256(model(place)))
    gallery.add([Item("a.jpg")], torch.eye(1, 16))
    gallery.delete(["a.jpg"])
    gallery.save(place / "gallery")
    return app(place, "--index", str(place / "gallery"))


@case("an app with two indexes of photos")
def _(place):
    index(place, model_sha256(model(place)))
    return app(place, "--index", str(place / "gallery"), "--index", str(place / "gallery"))


@case("an app with an audit that is not there")
def _(place):
    model(place)
    return app(place, "--audit", str(place / "audit.parquet"))


@case("an app with a table that is no audit")
def _(place):
    model(place)
    pq.write_table(pa.table({"caption": ["a dog"], "rank": [1]}), place / "audit.parquet")
    return app(place, "--audit", str(place / "audit.parquet"))


@case("an app with a damaged audit")
def _(place):
    model(place)
    (place / "audit.parquet").write_bytes(b"PAR1")
    return app(place, "--audit", str(place / "audit.parquet"))


@case("an app on a port that does not exist")
def _(place):
    return app(place, "--port", "70000")


@case("an app with keys of a recipe")
def _(place):
    return app(place, "--training.epochs", "3")


@case("an app with nothing to serve")
def _(place):
    return ["app", "--index", str(place / "gallery")]


@case("an app with marks and no audit")
def _(place):
    return app(place, "--marks", str(place / "marks.jsonl"))


@case("a review that is to be open to the world")
def _(place):
    return ["app", "--audit", str(place / "audit.parquet"), "--share"]


@case("a review whose marks are to lie in a folder that is not there")
def _(place):
    write_audit(place / "audit.parquet")
    return ["app", "--audit", str(place), "--marks", str(place / "none" / "marks.jsonl")]


@case("a review with other lines among its marks")
def _(place):
    write_audit(place / "audit.parquet")
    (place / "marks.jsonl").write_text("words\n")
    return ["app", "--audit", str(place / "audit.parquet")]
