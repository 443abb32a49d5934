"""Bad input of exports and interpolations."""

from clip_itm.configuration import ItmConfig
from clip_itm.model import ItmModel
from support.bad_input.cases import case, recipe
from support.bad_input.retrieval import model
from support.tiny_backbones import tiny_backbone


def words_model(place) -> None:
    backbone, processor = tiny_backbone("bag", place)
    config = ItmConfig(backbone=backbone.config.model_dump(mode="json"), head={"kind": "clip"})
    ItmModel(config, backbone=backbone).save_pretrained(place / "model")
    processor.save_pretrained(place / "model")


@case("exporting a folder that holds no model")
def _(place):
    (place / "model").mkdir()
    return ["export", str(place / "model"), "--to", "open_clip", "--out", str(place / "exported")]


@case("exporting into a folder that is not empty")
def _(place):
    model(place)
    return ["export", str(place / "model"), "--to", "open_clip", "--out", str(place / "model")]


@case("exporting words of its own to open_clip")
def _(place):
    words_model(place)
    return ["export", str(place / "model"), "--to", "open_clip", "--out", str(place / "exported")]


@case("interpolating with a run that is not finished")
def _(place):
    recipe(place)
    (place / "run").mkdir()
    (place / "recipe.yaml").rename(place / "run" / "recipe.yaml")
    return ["interpolate", "--tuned", str(place / "run"), "--out", str(place / "line")]
