"""The head of DivE on a tiny CLIP: the gate, padding, single elements, losses by epoch, precision, settings."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.configuration import ItmConfig
from clip_itm.evaluation.ranking import compute_ranks
from clip_itm.methods.dive.configuration import DiveHeadConfig
from clip_itm.methods.dive.head import DiveHead
from clip_itm.model import ItmModel
from clip_itm.training.configuration import TrainingSection
from support.tiny import TINY_CLIP

MODULE = {"heads": 2, "head_dim": 8}
WIDTHS = FeatureWidths(8, 6, 10)
PAIRS = 6


def head_of(**config) -> DiveHead:
    torch.manual_seed(0)
    return DiveHead(DiveHeadConfig(**{"module": MODULE, **config}), WIDTHS, initial_logit_scale=1.0)


def model_of(**head) -> ItmModel:
    torch.manual_seed(0)
    backbone = {"kind": "open_clip", "model": "tiny", "model_config_dict": {"model_cfg": TINY_CLIP}}
    return ItmModel(ItmConfig(backbone=backbone, head=head)).eval()


def features(seed: int = 0, dtype=torch.float32) -> tuple[Features, Features]:
    """Of photos, and of captions with padding."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(2, PAIRS, 8, generator=generator, dtype=dtype)
    images, texts = (torch.randn(PAIRS, n, width, generator=generator, dtype=dtype) for n, width in ((4, 6), (5, 10)))
    return Features(pooled[0], images), Features(pooled[1], texts, torch.arange(5) < torch.arange(1, 7)[:, None])


def loss_of(head: DiveHead, inputs: tuple[Features, Features], image_ids=None, weight=None):
    ids = torch.arange(PAIRS)
    outputs = head.image_outputs(inputs[0]), head.text_outputs(inputs[1])
    return head.loss(*outputs, ids if image_ids is None else image_ids, ids, weight)


def inputs_of(photos: int, captions: int) -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(photos, 3, 32, 32, generator=generator)
    ids = torch.randint(1, 400, (captions, 9), generator=generator)
    lengths = torch.randint(3, 10, (captions,), generator=generator)
    ids = ids.masked_fill(torch.arange(9) >= lengths[:, None], 0)
    ids[:, 0] = 49406
    ids[torch.arange(captions), lengths - 1] = 49407
    mask = (torch.arange(9) < lengths[:, None]).long()
    return {"pixel_values": pixels}, {"input_ids": ids, "attention_mask": mask}


def test_gate_zero_is_zero_shot():
    """Every element is the towers' embedding, and all ranks are those of the plain head."""
    plain = model_of(kind="clip")
    gated = model_of(kind="dive", module=MODULE, residual="gated", gate_init=0.0)
    gated.backbone.load_state_dict(plain.backbone.state_dict())
    photos, captions = inputs_of(20, 60)
    owner = torch.arange(60) // 3
    with torch.no_grad():
        vectors, sets = ((model.encode_images(**photos), model.encode_texts(**captions)) for model in (plain, gated))
        for vector, elements in zip(vectors, sets, strict=True):
            torch.testing.assert_close(elements, vector[:, None].expand(-1, 4, -1), rtol=0, atol=1e-6)
        scores = gated.head.similarity(*sets)
        torch.testing.assert_close(scores, plain.head.similarity(*vectors) + np.log(4) / 16, rtol=0, atol=1e-6)
        expected = compute_ranks(*vectors, owner)
        found = compute_ranks(*sets, owner, gated.head.similarity)
    np.testing.assert_array_equal(found.image_to_text, expected.image_to_text)
    np.testing.assert_array_equal(found.text_to_image, expected.text_to_image)
    assert not gated.head.is_plain


def test_gate_learns_from_zero():
    head = head_of(residual="gated", gate_init=0.0)
    loss_of(head, features())[0].backward()
    for sets in (head.similarity.image_sets, head.similarity.text_sets):
        assert sets.gate.grad.abs() > 1e-5


def test_a_model_is_saved_and_loaded(tmp_path):
    model = model_of(kind="dive", module=MODULE, residual="gated", loss={"kind": "infonce"})
    model.save_pretrained(tmp_path)
    loaded = ItmModel.from_pretrained(tmp_path).eval()
    assert loaded.head.config == model.head.config
    photos, captions = inputs_of(3, 5)
    with torch.no_grad():
        for encode, inputs in (("encode_images", photos), ("encode_texts", captions)):
            embeddings = getattr(model, encode)(**inputs)
            assert embeddings.shape == (len(next(iter(inputs.values()))), 4, 16)
            torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(embeddings.shape[:2]))
            torch.testing.assert_close(getattr(loaded, encode)(**inputs), embeddings, rtol=0, atol=0)


def test_captions_of_a_batch_do_not_touch_each_other():
    model = model_of(kind="dive", module=MODULE)
    _, captions = inputs_of(1, 8)
    with torch.no_grad():
        together = model.encode_texts(**captions)
        for row in range(8):
            length = int(captions["attention_mask"][row].sum())
            alone = model.encode_texts(**{name: value[row : row + 1, :length] for name, value in captions.items()})
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [{}, {"module": {"kind": "pvse"}, "residual": "ln_of_sum"}, {"residual": "none"}])
def test_single_elements(config):
    """K = 1: similarity is the cosine, diversity 0."""
    head = head_of(image_elements=1, text_elements=1, **config)
    inputs = features()
    images, texts = head.embed_images(inputs[0]), head.embed_texts(inputs[1])
    torch.testing.assert_close(head.similarity(images, texts), images[:, 0] @ texts[:, 0].T, rtol=0, atol=1e-6)
    loss, logs = loss_of(head, inputs)
    loss.backward()
    assert logs["diversity"] == 0
    torch.testing.assert_close(logs["image_variance"], torch.tensor(0.0), rtol=0, atol=1e-6)
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_warmup_takes_all_negatives():
    inputs = features()
    losses = {}
    for name, negatives, epoch in (("warm", "hardest", 1), ("hard", "hardest", 2), ("all", "all", 2)):
        head = head_of(module=MODULE | {"dropout": 0}, loss={"negatives": negatives, "warmup_epochs": 2})
        head.epoch = epoch
        losses[name] = loss_of(head, inputs)[0].item()
    assert losses["warm"] == losses["all"] < losses["hard"]


def test_contrastive_loss_ignores_the_offset():
    """SC minus (ln K + ln L) / (2 alpha) is the same softmax: collapsed sets cost what the plain head's vectors do."""
    inputs = features()
    losses = []
    for elements in (1, 4):
        head = head_of(
            image_elements=elements,
            text_elements=elements,
            residual="gated",
            gate_init=0.0,
            loss={"kind": "infonce"},
            mmd_weight=0,
            diversity_weight=0,
        )
        torch.testing.assert_close(head.scale(), torch.tensor(1.0).exp())
        losses.append(loss_of(head, inputs)[0])
    torch.testing.assert_close(*losses)


def test_weights_of_pairs():
    head = head_of(module=MODULE | {"dropout": 0}, mmd_weight=0, diversity_weight=0)
    inputs, weight = features(), torch.tensor([1, 0, 0.5, 1, 0, 1])
    outputs = head.image_outputs(inputs[0]), head.text_outputs(inputs[1])
    both = head.pair_losses(outputs[0].sets, outputs[1].sets, torch.arange(PAIRS))
    loss, _ = loss_of(head, inputs, weight=weight)
    torch.testing.assert_close(loss, (weight * (both[0] + both[1])).mean())


def test_other_captions_of_the_photo_are_no_negatives():
    """All pairs of one photo: no triplet is left, only the terms on sets."""
    loss, logs = loss_of(head_of(), features(), image_ids=torch.zeros(PAIRS, dtype=torch.int64))
    assert logs["image_to_text"] == logs["text_to_image"] == 0
    assert loss > 0


def test_sets_and_losses_are_float32_under_autocast():
    head = head_of(module=MODULE | {"dropout": 0}, residual="gated")
    inputs = features()
    expected, _ = loss_of(head, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images, texts = head.image_outputs(inputs[0]), head.text_outputs(inputs[1])
    assert all(part.dtype == torch.float32 for part in (*images, *texts))
    ids = torch.arange(PAIRS)
    torch.testing.assert_close(head.loss(images, texts, ids, ids)[0], expected, rtol=0.05, atol=0.01)


def test_log_tells_collapsed_sets():
    head = head_of(residual="gated", gate_init=0.0)
    _, logs = loss_of(head, features())
    torch.testing.assert_close(logs["image_variance"], torch.tensor(0.0), rtol=0, atol=1e-6)
    _, logs = loss_of(head_of(), features())
    assert logs["image_variance"] > 0.05
    assert 0 < logs["image_attention_entropy"] <= np.log(4) + 1e-5
    assert not any(value.requires_grad for value in logs.values())


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"module": {"kind": "pvse", "iterations": 3}}, "iterations"),
        ({"similarity": {"kind": "chamfer", "alpha": 8}}, "alpha"),
        ({"loss": {"kind": "infonce", "margin": 0.1}}, "margin"),
        ({"image_elements": 0}, "image_elements"),
    ],
)
def test_settings_without_effect_are_refused(config, key):
    with pytest.raises(ValidationError, match=key):
        DiveHeadConfig(**config)


def test_a_warmup_as_long_as_the_run_is_refused():
    config = DiveHeadConfig(loss={"warmup_epochs": 3})
    assert "head.loss.warmup_epochs: 3" in config.conflict(TrainingSection(epochs=3))
    assert config.conflict(TrainingSection(epochs=4)) is None
