"""What only training needs of a head is in no saved model, and counts in no hash."""

import torch
from safetensors.torch import load_file

from clip_itm.backbones.build import build_processor
from clip_itm.methods.aahr.configuration import AahrHeadConfig
from clip_itm.model import ItmModel
from clip_itm.weights import model_sha256
from support.tiny_backbones import CAPTIONS, tiny_config


def test_a_saved_model_does_without_and_can_be_trained_again(tmp_path):
    config = tiny_config("bag", tmp_path)
    head = AahrHeadConfig(embed_dim=16, num_heads=2)
    model = ItmModel.from_backbone(config, head, build_processor(config, CAPTIONS))
    model.save_pretrained(tmp_path / "saved")
    assert not [name for name in load_file(tmp_path / "saved" / "model.safetensors") if "criterion" in name]
    first, second = (ItmModel.from_pretrained(tmp_path / "saved") for _ in range(2))
    assert not torch.equal(first.head.criterion.prototypes, second.head.criterion.prototypes)  # drawn anew
    assert model_sha256(model) == model_sha256(first) == model_sha256(second)
    for name, value in first.state_dict().items():
        if "criterion" in name:
            assert value.isfinite().all(), name
            assert value.abs().max() < 100, name
        else:
            torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0)
    with torch.no_grad():
        first.head.similarity.image_encoder.projection.linear.weight += 1
    assert model_sha256(first) != model_sha256(second)
