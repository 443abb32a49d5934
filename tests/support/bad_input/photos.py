"""Photos that cannot be read, and splits that share them."""

import json
import os

from support.bad_input.cases import case, photos, recipe


def _destroy(folder, *numbers: int):
    for number in numbers:
        (folder / f"{number:02d}.jpg").write_text("<html>404 not found</html>")


@case("photos that cannot be read (all of them told before training)")
def _(place):
    folder = photos(place / "photos")
    _destroy(folder, 1, 6)
    (folder / "03.jpg").write_bytes((folder / "03.jpg").read_bytes()[:-300])
    return recipe(place)


@case("photos that are missing, empty and broken, all of them told at once")
def _(place):
    folder = photos(place / "photos")
    _destroy(folder, 1)
    (folder / "03.jpg").unlink()
    (folder / "06.jpg").write_bytes(b"")
    return recipe(place)


@case("photos that cannot be read, where photos are resized first")
def _(place):
    _destroy(photos(place / "photos"), 1, 6)
    return [*recipe(place), "--data.cache_images", "16"]


@case("a folder and a pipe that are called photos")
def _(place):
    folder = photos(place / "photos")
    for number in (1, 6):
        (folder / f"{number:02d}.jpg").unlink()
    (folder / "01.jpg").mkdir()
    os.mkfifo(folder / "06.jpg")
    return recipe(place)


@case("a split of which skip_broken leaves nothing")
def _(place):
    _destroy(photos(place / "photos"), 2, 6, 10)
    return [*recipe(place), "--data.skip_broken", "true"]


@case("splits that share photos, in `data check`")
def _(place):
    folder = photos(place / "photos")
    (folder / "02.jpg").write_bytes((folder / "00.jpg").read_bytes())
    (folder / "03.jpg").write_bytes((folder / "01.jpg").read_bytes())
    return ["data", "check", *recipe(place)[1:]]


@case("table rows that name no photo (all of them told at once)")
def _(place):
    folder = photos(place / "photos")
    lines = [
        {
            "image": f"{number:02d}.jpg",
            "caption": f"photo {number}",
            "split": ("train", "train", "val", "test")[number % 4],
        }
        for number in range(12)
    ]
    lines[4]["image"], lines[5]["image"] = None, ""
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [*recipe(place), "--data.captions", "captions.jsonl"]
