"""What open_clip's next major version drops is not needed: OpenAI's loader, TorchScript, masks of one length."""

import re

import open_clip
import pytest
import torch

from clip_itm.backbones.openai_checkpoint import openclip_name
from support.paths import ROOT
from support.tiny_backbones import batch_of, tiny_backbone

DROPPED = r"load_openai_model|list_openai_models|trace_model|torch\.jit|text_global_pool|tower\.attn_mask"


def test_nothing_of_it_is_named():
    for file in (ROOT / "clip_itm").rglob("*.py"):
        assert not re.findall(DROPPED, file.read_text(encoding="utf-8")), file


@torch.no_grad()
@pytest.mark.parametrize("kind", ["open_clip", "open_clip-siglip"])
def test_the_towers_work_without_it(kind, tmp_path, monkeypatch):
    backbone, processor = tiny_backbone(kind, tmp_path)
    ids, mask = batch_of(processor)[1:]
    tower = backbone.eval().text_tower
    full = torch.nn.functional.pad(ids, (0, backbone.text_tower.context_length - ids.shape[1]))
    expected = backbone.model.encode_text(full)
    for name in ("load_openai_model", "list_openai_models", "trace_model"):
        monkeypatch.delattr(open_clip, name)
    for name in ("attn_mask", "text_pool_type", "text_eos_id", "pool_type", "eos_id", "context_length"):
        if hasattr(tower, name):
            delattr(tower, name)
    torch.testing.assert_close(backbone.text_trunk(ids, mask).pooled, expected)
    again, _ = tiny_backbone(kind, tmp_path)
    again.eval().load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again.text_trunk(ids, mask).pooled, expected)


def test_names_of_released_models_are_found_without_it(monkeypatch):
    monkeypatch.delattr(open_clip, "list_openai_models")
    assert openclip_name(open_clip.get_model_config("ViT-B-32-quickgelu")) == "ViT-B-32-quickgelu"
