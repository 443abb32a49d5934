"""What a kind of backbone says of itself, and that nothing else in the package says it for one."""

import re
from pathlib import Path

import pytest

from clip_itm import offline
from clip_itm.hub.export import TARGETS
from clip_itm.keys import section_types
from clip_itm.recipe import Recipe, parse_recipe

PACKAGE = Path(offline.__file__).parent
KINDS = {"bert-vit", "timm-words"}  # names that mean nothing else


def section(kind: str, **keys):
    data = {"source": "regions", "root": "x"} if kind == "regions" else {"source": "sample"}
    return parse_recipe({"data": data, "backbone": {"kind": kind, **keys}}, "test").backbone


def test_no_other_room_knows_a_kind():
    old_processors = {PACKAGE / "processing.py"}  # which did not say whose pixels they give
    for path in {*PACKAGE.rglob("*.py")} - {*(PACKAGE / "backbones").glob("*.py")} - old_processors:
        text = path.read_text(encoding="utf-8")
        assert not re.search("|".join(f'"{kind}"' for kind in KINDS), text), path
        assert not re.search(r"(backbone|towers)(\.config)?\.kind *(==|!=|in\b)", text), path
        assert not re.search(r"match .*(backbone|towers)[\w.]*\.kind", text), path


@pytest.mark.parametrize("kind", section_types(Recipe.model_fields["backbone"].annotation))
def test_a_kind_names_targets_and_a_library_that_there_are(kind):
    assert set(kind.exports_to) <= set(TARGETS)
    assert kind.library in ("open_clip", "transformers", None)
    assert kind.reads_regions == (kind.__name__ == "RegionsBackbone")


@pytest.mark.parametrize(
    ("kind", "keys", "expected"),
    [
        ("open_clip", {}, []),
        ("open_clip", {"pretrained": "openai"}, [("pretrained", "openai", "*")]),
        ("open_clip", {"pretrained": "no-tag-of-theirs"}, []),
        ("open_clip", {"model": "hf-hub:some/clip"}, [("model", "some/clip", "some/clip")]),
        ("open_clip", {"model": "local-dir:some/clip"}, []),
        ("transformers", {"model": "openai/clip", "from_scratch": True}, [("model", "openai/clip", "openai/clip")]),
        ("timm-words", {}, [("image_model", "mobilenetv2_100", "timm/mobilenetv2_100*")]),
        (
            "timm-words",
            {"image_pretrained": False, "text_encoder": "bert"},
            [("text_model", *2 * ["bert-base-uncased"])],
        ),
        ("regions", {}, []),
    ],
)
def test_what_has_to_be_had_from_the_hub(kind, keys, expected):
    assert [part[:3] for part in section(kind, **keys).hub_parts()] == expected


def test_both_models_of_bert_vit_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    keys = {"kind": "bert-vit", "vision_model": "org/vit", "text_model": "bert"}
    recipe = parse_recipe({"data": {"source": "sample"}, "backbone": keys}, "test")
    with pytest.raises(
        ValueError, match=r"^backbone.vision_model: org/vit: it was not downloaded before.*save_pretrained"
    ):
        offline.require_recipe(recipe)
    (tmp_path / "models--org--vit").mkdir()
    with pytest.raises(ValueError, match=r"^backbone.text_model: bert: "):
        offline.require_recipe(recipe)
    (tmp_path / "bert").mkdir()  # a folder of that name is taken first
    offline.require_recipe(recipe)


def test_weights_under_a_tag_of_open_clip_are_found_in_any_repository(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    keys = {"kind": "open_clip", "pretrained": "openai"}
    recipe = parse_recipe({"data": {"source": "sample"}, "backbone": keys}, "test")
    with pytest.raises(ValueError, match=r"^backbone.pretrained: openai: .*give a weights file as backbone.pretrained"):
        offline.require_recipe(recipe)
    snapshot = tmp_path / "models--timm--vit" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").touch()
    offline.require_recipe(recipe)
