"""SigLIP 2 of variable resolution (NaFlex): photos of any shape as padded patches, the same whoever is beside them."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, Siglip2Model

from clip_itm import load_model
from clip_itm.backbones.build import build_processor
from clip_itm.configuration import ItmConfig
from clip_itm.model import ItmModel
from support.tiny_backbones import CAPTIONS, tiny_backbone, tiny_config

SHAPES = [(40, 40), (90, 30), (30, 90), (200, 9), (1, 1), (640, 427)]  # width, height
PHOTOS = [
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for k, (width, height) in enumerate(SHAPES)
]
SCAN = {"kind": "scan", "max_words": 9}
EXACT = {"rtol": 0, "atol": 1e-6}


@pytest.fixture
def towers(tmp_path):
    backbone, processor = tiny_backbone("siglip2", tmp_path)
    return backbone.eval(), processor


@torch.no_grad()
def test_the_forward_pass_of_transformers(towers, tmp_path):
    backbone, processor = towers
    model = Siglip2Model.from_pretrained(tmp_path / "siglip2").eval()
    photos = AutoImageProcessor.from_pretrained(tmp_path / "siglip2")(PHOTOS, return_tensors="pt")
    captions = processor(text=CAPTIONS)["input_ids"]  # of full length, without a mask, as it was trained
    expected = model(input_ids=captions, **photos)
    images = backbone.image_trunk(**processor(images=PHOTOS)).pooled
    texts = backbone.text_trunk(**processor(text=CAPTIONS)).pooled
    torch.testing.assert_close(images, expected.vision_model_output.pooler_output, **EXACT)
    torch.testing.assert_close(texts, expected.text_model_output.pooler_output, **EXACT)
    assert backbone.initial_logit_scale == pytest.approx(model.logit_scale.item())
    assert backbone.initial_logit_bias == pytest.approx(model.logit_bias.item())


def test_photos_keep_their_shape_within_the_budget(towers, tmp_path):
    shapes = towers[1](images=PHOTOS)["spatial_shapes"]
    assert shapes.prod(dim=1).max() <= 12
    assert shapes.tolist() == [[3, 3], [2, 6], [6, 2], [1, 12], [3, 3], [3, 4]]  # rows, columns
    wide = build_processor(tiny_config("siglip2", tmp_path, max_num_patches=48), CAPTIONS)
    inputs = wide(images=PHOTOS)
    assert inputs["pixel_values"].shape == (6, 48, 8 * 8 * 3)
    assert inputs["spatial_shapes"].prod(dim=1).max() <= 48
    assert torch.equal(inputs["pixel_attention_mask"].sum(dim=1), inputs["spatial_shapes"].prod(dim=1))


def test_a_budget_of_patches_is_one_of_variable_resolution(tmp_path):
    with pytest.raises(ValueError, match=r"backbone.max_num_patches: .*clip reads photos of one size.*leave it out"):
        build_processor(tiny_config("clip", tmp_path, max_num_patches=48), CAPTIONS)


@torch.no_grad()
def test_a_photo_is_the_same_in_any_batch(towers):
    backbone, processor = towers
    together = backbone.image_trunk(**processor(images=PHOTOS)).pooled
    for number, photo in enumerate(PHOTOS):
        torch.testing.assert_close(backbone.image_trunk(**processor(images=[photo])).pooled[0], together[number])
    backwards = backbone.image_trunk(**processor(images=PHOTOS[::-1])).pooled
    torch.testing.assert_close(backwards.flip(0), together, **EXACT)


@torch.no_grad()
def test_what_is_behind_the_mask_counts_for_nothing(towers):
    backbone, processor = towers
    inputs = processor(images=PHOTOS)
    backbone.output_tokens = True
    clean = backbone.image_trunk(**inputs)
    padding = inputs["pixel_attention_mask"] == 0
    assert padding.any()
    inputs["pixel_values"][padding] = 100.0
    dirty = backbone.image_trunk(**inputs)
    assert torch.equal(clean.mask, ~padding)
    torch.testing.assert_close(dirty.pooled, clean.pooled, **EXACT)
    torch.testing.assert_close(dirty.tokens[clean.mask], clean.tokens[clean.mask], **EXACT)
    assert not torch.allclose(dirty.tokens[padding], clean.tokens[padding], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    "head", [{"kind": "clip"}, {"kind": "triplet", "similarity": {"kind": "scan", "max_words": 9}}]
)
def test_a_saved_model_encodes_as_before(towers, head, tmp_path):
    backbone, processor = towers
    model = ItmModel(ItmConfig(backbone=backbone.config.model_dump(mode="json"), head=head), backbone=backbone)
    model.processor = processor
    before = model.eval().encode(PHOTOS, batch_size=4)
    direct = model.encode_images(**processor(images=PHOTOS))
    torch.testing.assert_close(torch.from_numpy(before), direct)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model").eval()
    assert np.array_equal(loaded.encode(PHOTOS, batch_size=4), before)
    np.testing.assert_allclose(loaded.encode(PHOTOS, batch_size=1), before, rtol=1e-4, atol=1e-5)
    alone = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=False)
    torch.testing.assert_close(alone.eval().encode_images(**processor(images=PHOTOS)), direct)
