"""Bad tables of captions."""

import json

import datasets

from support.bad_input.cases import case, photos, recipe
from support.bad_input.retrieval import model


def table(place, text: str, name: str = "captions.csv") -> list[str]:
    """`train` on the folder of photos with another table of captions."""
    (photos(place / "photos") / "captions.csv").unlink()
    (place / "photos" / name).write_text(text, encoding="utf-8")
    return recipe(place, data={"source": "folder", "root": str(place / "photos"), "captions": name})


def hub(place, **columns) -> list[str]:
    photos(place / "photos")
    datasets.Dataset.from_dict(columns).save_to_disk(place / "set")
    return recipe(place, data={"source": "hub", "path": str(place / "set")})


@case("a NumPy array written into a cell")
def _(place):
    return table(place, "image,captions\n00.jpg,['a dog' 'two dogs']\n")


@case("a list in a cell that was cut")
def _(place):
    return table(place, "image,captions\n00.jpg,\"['a dog', 'two do\"\n")


@case("a quote that opens and never closes")
def _(place):
    return table(place, 'image,caption\n00.jpg,a dog\n01.jpg,"a cat\n02.jpg,a horse\n')


@case("a quote too much that another one closes rows later")
def _(place):
    return table(place, 'image,caption\n00.jpg,a dog\n01.jpg,"a cat\n02.jpg,a horse\n03.jpg,two horses"\n')


@case("a quote in the middle of a field of a CSV")
def _(place):
    return table(place, 'image,caption\n00.jpg,a 5" pipe\n')


@case("a TSV with the quoting of a CSV")
def _(place):
    return table(place, 'image\tcaption\n00.jpg\t"a ""red"" dog"\n', "captions.tsv")


@case("semicolons between the columns")
def _(place):
    return table(place, "image;caption\n00.jpg;a dog\n")


@case("a column that is there twice")
def _(place):
    return table(place, "image,caption,caption\n00.jpg,a,b\n")


@case("captions in UTF-16")
def _(place):
    words = table(place, "")
    (place / "photos" / "captions.csv").write_text("image,caption\n00.jpg,a dog\n", encoding="utf-16")
    return words


@case("half of a character in JSON")
def _(place):
    return table(place, '{"image": "00.jpg", "caption": "a \\ud83d"}\n', "captions.jsonl")


@case("JSON of 100,000 brackets")
def _(place):
    return table(place, "[" * 100_000 + "\n", "captions.jsonl")


@case("a whole number of 5,000 digits")
def _(place):
    return table(place, '{"image": "00.jpg", "caption": ' + "9" * 5000 + "}\n", "captions.jsonl")


@case("a .json that is no table")
def _(place):
    return table(place, '{"train": ["00.jpg"], "val": ["01.jpg", "02.jpg"]}', "captions.json")


@case("URLs in the column of photos")
def _(place):
    return table(place, "url,caption\nhttps://example.org/00.jpg,a dog\n")


@case("paths of a Windows machine")
def _(place):
    return table(place, "image,caption\nC:\\photos\\00.jpg,a dog\n")


@case("a row without a photo")
def _(place):
    return table(place, "image,caption\n00.jpg,a dog\n,a cat\n")


@case("a folder too small for its split fractions")
def _(place):
    return table(place, "image,caption\n" + "".join(f"{k:02d}.jpg,photo {k}\n" for k in range(4)))


@case("a COCO caption that is a number")
def _(place):
    content = {
        "images": [{"id": "42", "file_name": "00.jpg"}],
        "annotations": [{"id": "1", "image_id": 42, "caption": 7}],
    }
    (photos(place / "photos") / "captions_train2017.json").write_text(json.dumps(content))
    return recipe(place, data={"source": "coco", "root": str(place / "photos")})


@case("a Hub set with whole numbers for photos")
def _(place):
    return hub(place, image=[1, 2], caption=["a dog", "a cat"])


@case("a Hub set with a null photo")
def _(place):
    return hub(place, image=[str(place / "photos" / "00.jpg"), None], caption=["a dog", "a cat"])


@case("a Hub set with one photo in two splits")
def _(place):
    words = hub(
        place,
        image=[str(place / "photos" / f"0{k}.jpg") for k in (0, 1, 0)],
        caption=["a", "b", "c"],
        part=["train", "val", "test"],
    )
    return [*words, "--data.split_column", "part"]


@case("a Hub set in a folder that is not there")
def _(place):
    return recipe(place, data={"source": "hub", "path": str(place / "nowhere")})


@case("indexing a table with a list that was cut")
def _(place):
    model(place)
    (place / "captions.csv").write_text("caption\n\"['a dog', 'two do\"\n")
    return ["index", str(place / "model"), str(place / "captions.csv"), "--out", str(place / "gallery")]


@case("indexing a table with an empty caption")
def _(place):
    model(place)
    (place / "captions.csv").write_text('name,caption\na,a dog\nb,""\n')
    return ["index", str(place / "model"), str(place / "captions.csv"), "--out", str(place / "gallery")]
