"""Bad recipes, photos, captions and noise."""

import contextlib
import io
import json

import numpy as np

from clip_itm.cli import main
from support.bad_input.cases import case, photos, recipe
from support.tiny import TINY_CLIP


@case("a recipe that is not there")
def _(place):
    return ["train", str(place / "recipe.yaml")]


@case("a recipe that is not YAML")
def _(place):
    (place / "recipe.yaml").write_text("training: {epochs: 3")
    return ["train", str(place / "recipe.yaml")]


@case("an unknown recipe key")
def _(place):
    return recipe(place, training={"batchsize": 64})


@case("an unknown section")
def _(place):
    return recipe(place, trainig={"epochs": 1})


@case("a wrong type")
def _(place):
    return recipe(place, training={"batch_size": "large"})


@case("a ratio outside 0..1")
def _(place):
    return [*recipe(place), "--noise.ratio", "40"]


@case("an override without a value")
def _(place):
    return [*recipe(place), "--noise.ratio"]


@case("a data source that does not exist")
def _(place):
    return recipe(place, data={"source": "imagenet"})


@case("a folder that is not there")
def _(place):
    return recipe(place, data={"source": "folder", "root": str(place / "nowhere")})


@case("missing photos (all of them told at once)")
def _(place):
    photos(place / "photos")
    for number in (0, 3, 6):
        (place / "photos" / f"{number:02d}.jpg").unlink()
    return recipe(place)


@case("a photo of zero bytes")
def _(place):
    (photos(place / "photos") / "04.jpg").write_bytes(b"")
    return recipe(place)


@case("a truncated JPEG, in training")
def _(place):
    file = photos(place / "photos") / "00.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    return [*recipe(place), "--training.batch_size", "12"]


@case("a truncated JPEG, in `data check`")
def _(place):
    file = photos(place / "photos") / "00.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    return ["data", "check", *recipe(place)[1:]]


@case("a text file that is called a photo")
def _(place):
    (photos(place / "photos") / "00.jpg").write_text("<html>404 not found</html>")
    return [*recipe(place), "--training.batch_size", "12"]


@case("an empty caption")
def _(place):
    file = photos(place / "photos") / "captions.csv"
    file.write_text(file.read_text().replace("photo 4 seen the 1. time", "  "))
    return recipe(place)


@case("an empty caption file")
def _(place):
    (photos(place / "photos") / "captions.csv").write_text("")
    return recipe(place)


@case("captions that are not UTF-8")
def _(place):
    file = photos(place / "photos") / "captions.csv"
    file.write_bytes(file.read_text().replace("photo 4 seen the 1.", "caf\u00e9").encode("latin-1"))
    return recipe(place)


@case("no column of that name")
def _(place):
    photos(place / "photos")
    return recipe(place, data={"source": "folder", "root": str(place / "photos"), "image_column": "url"})


@case("a wrong number of ids (scan_split)")
def _(place):
    splits = photos(place / "photos") / "annotations" / "scan_split"
    splits.mkdir(parents=True)
    for name in ("train", "dev", "test"):
        (splits / f"{name}_ids.txt").write_text("1\n2\n3\n")
        (splits / f"{name}_caps.txt").write_text("one\ntwo\nthree\nfour\nfive\nsix\nseven\n")
    return recipe(place, data={"source": "coco", "root": str(place / "photos"), "layout": "scan_split"})


@case("the same photo in train and test")
def _(place):
    file = photos(place / "photos") / "captions.csv"
    file.write_text(file.read_text() + "00.jpg,seen once more,test\n")
    return recipe(place)


@case("no val split")
def _(place):
    file = photos(place / "photos") / "captions.csv"
    file.write_text(file.read_text().replace(",val", ",train"))
    return recipe(place)


@case("noise of another hash than the recipe expects")
def _(place):
    return [*recipe(place), "--noise.ratio", "0.4", "--noise.sha256", "ab" * 32]


@case("a noise file made for other captions")
def _(place):
    words = recipe(place)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["noise", "make", words[1], "--out", str(place / "noise.npz"), "--noise.ratio", "0.4"]) == 0
    file = place / "photos" / "captions.csv"
    file.write_text(file.read_text().replace("photo 4", "picture 4"))
    return [*words, "--noise.file", str(place / "noise.npz")]


@case("a noisy caption file with a line that is no training caption")
def _(place):
    words = recipe(place)
    captions = [f"photo {n} seen the {k}. time" for n in range(12) if n % 4 < 2 for k in range(2)]
    (place / "0.4_noise_train_caps.txt").write_text("\n".join(["a stranger", *captions[1:]]) + "\n")
    return [*words, "--noise.file", str(place / "0.4_noise_train_caps.txt")]


@case("a pickled noise index")
def _(place):
    np.save(place / "noise.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return [*recipe(place), "--noise.file", str(place / "noise.npy")]


@case("an unknown architecture")
def _(place):
    return recipe(place, backbone={"kind": "open_clip", "model": "ViT-B-23"})


@case("an unknown pretrained tag")
def _(place):
    return recipe(place, backbone={"kind": "open_clip", "model": "ViT-B-32", "pretrained": "open-ai"})


@case("a Hub model that cannot be reached")
def _(place):
    return recipe(place, backbone={"kind": "transformers", "model": "openai/clip-vit-base-patch32"})


@case("a weights file that is not there")
def _(place):
    section = {"kind": "timm-words", "image_model": "resnet18", "image_weights": str(place / "weights.safetensors")}
    return recipe(place, backbone=section)


@case("more blocks frozen than there are")
def _(place):
    (place / "tiny.json").write_text(json.dumps(TINY_CLIP))
    section = {"kind": "open_clip", "model": str(place / "tiny.json"), "freeze_image_blocks": 12}
    return recipe(place, backbone=section)


@case("a batch larger than the training split")
def _(place):
    return [*recipe(place), "--training.batch_size", "256"]


@case("a `unique` batch larger than the number of photos")
def _(place):
    return [*recipe(place), "--training.batch_size", "8", "--training.batches", "unique"]


@case("a protocol for another number of photos")
def _(place):
    return [*recipe(place), "--evaluation.protocols", "[coco-5k]"]


@case("an output folder that holds another run")
def _(place):
    words = recipe(place)
    (place / "run").mkdir()
    other = (place / "recipe.yaml").read_text().replace("max_steps: 1", "max_steps: 2")
    (place / "run" / "recipe.yaml").write_text(other)
    return words


@case("evaluating a folder that holds no model")
def _(place):
    (place / "empty").mkdir()
    return ["evaluate", str(place / "empty")]
