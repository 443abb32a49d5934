"""Bad input of region data, token heads and judged protocols."""

import pickle

import numpy as np

from support.bad_input.cases import case, recipe
from support.region_data import WIDTH, write_regions

BACKBONE = {"kind": "regions", "region_dim": WIDTH, "embed_dim": 16, "word_dim": 8, "min_word_count": 1}


def on_regions(place, head: dict | None = None, data: dict | None = None, **backbone) -> list[str]:
    if not (place / "regions").exists():
        write_regions(place / "regions")
    data = {"source": "regions", "root": str(place / "regions"), **(data or {})}
    return recipe(place, data=data, backbone={**BACKBONE, **backbone}, head=head or {"kind": "clip"})


@case("a folder without region features")
def _(place):
    (place / "regions").mkdir()
    return on_regions(place)


@case("a row too few in a region file")
def _(place):
    write_regions(place / "regions")
    array = np.load(place / "regions" / "train_ims.npy")
    np.save(place / "regions" / "train_ims.npy", array[:-1])
    return on_regions(place)


@case("a truncated region file")
def _(place):
    write_regions(place / "regions")
    file = place / "regions" / "train_ims.npy"
    file.write_bytes(file.read_bytes()[:-100])
    return on_regions(place)


@case("a region file of another type")
def _(place):
    write_regions(place / "regions", dtype=np.int32)
    return on_regions(place)


@case("captions that do not divide among the photos")
def _(place):
    return on_regions(place, data={"captions_per_image": 3})


@case("region captions in TSV without a tab")
def _(place):
    write_regions(place / "regions", captions_per_image=1, tsv=True)
    (place / "regions" / "dev_caps.tsv").write_text("a dog\n" * 12)
    return on_regions(place, data={"captions_per_image": 1})


@case("a pickled vocabulary that would run a program")
def _(place):
    (place / "vocabulary.pkl").write_bytes(pickle.dumps(print))
    words = {name: value for name, value in BACKBONE.items() if name != "min_word_count"}
    write_regions(place / "regions")
    data = {"source": "regions", "root": str(place / "regions")}
    return recipe(place, data=data, backbone={**words, "vocabulary": str(place / "vocabulary.pkl")})


@case("photos for a backbone that reads regions")
def _(place):
    return recipe(place, backbone=BACKBONE)


@case("vectors of another model that are not there")
def _(place):
    return on_regions(place, data={"global_vectors": True}, global_dim=8)


@case("an option of regions that would do nothing")
def _(place):
    return on_regions(place, image_encoder="linear", norm_padding=True)


@case("another number of regions than the similarity expects (SGR)")
def _(place):
    return on_regions(place, head={"kind": "triplet", "similarity": {"kind": "sgr", "regions": 49}})


@case("tokens of two widths without a layer between (SCAN)")
def _(place):
    return recipe(place, head={"kind": "triplet", "similarity": {"kind": "scan"}})


@case("an option of another aggregation (SCAN)")
def _(place):
    return on_regions(place, head={"kind": "triplet", "similarity": {"kind": "scan", "lse_scale": 5.0}})


@case("heads that do not divide the width (AAHR)")
def _(place):
    return recipe(place, head={"kind": "aahr", "embed_dim": 100, "num_heads": 16})


@case("a queue shorter than a batch (AAHR)")
def _(place):
    return recipe(place, head={"kind": "aahr", "embed_dim": 32, "num_heads": 2, "queue_length": 2})


@case("a warm-up as long as the run (PolyLoss)")
def _(place):
    return [*recipe(place), "--head.kind", "polyloss", "--head.warmup_epochs", "5"]


@case("a factor on the rate of nothing")
def _(place):
    return [*recipe(place), "--training.lr_multipliers", "{backbone.image: 0.1}"]


@case("ECCV Caption on photos that are not COCO's")
def _(place):
    return [*recipe(place), "--evaluation.protocols", "[eccv]"]
