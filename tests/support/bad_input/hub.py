"""Bad input of `clip-itm push`."""

import json

from support.bad_input.cases import case, recipe


@case("pushing a folder that is no model")
def _(place):
    (place / "model").mkdir()
    return ["push", str(place / "model"), "me/tiny"]


@case("pushing a run that is not finished")
def _(place):
    recipe(place)
    (place / "run" / "best").mkdir(parents=True)
    (place / "run" / "best" / "config.json").write_text("{}")
    return ["push", str(place / "run"), "me/tiny"]


@case("pushing a model of another library")
def _(place):
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return ["push", str(place / "model"), "me/tiny"]


@case("pushing a model without its weights")
def _(place):
    (place / "model").mkdir()
    content = {"model_type": "clip_itm", "auto_map": {"AutoModel": "clip_itm_model.ItmModel"}}
    (place / "model" / "config.json").write_text(json.dumps(content))
    (place / "model" / "clip_itm_model.py").write_text("")
    (place / "model" / "processor_config.json").write_text("{}")
    return ["push", str(place / "model"), "me/tiny"]


@case("pushing to a name that is none")
def _(place):
    (place / "model").mkdir()
    return ["push", str(place / "model"), "me/my/model"]
