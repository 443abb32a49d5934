"""Text towers for captions longer than the pretrained ones: positions are stretched as in Long-CLIP."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clip_itm import load_model
from clip_itm.backbones.build import build_backbone, build_processor
from clip_itm.backbones.openclip import _make_model
from clip_itm.backbones.positions import stretched
from clip_itm.configuration import ItmConfig
from clip_itm.model import ItmModel
from clip_itm.recipe import parse_recipe
from support.tiny_backbones import CAPTIONS, tiny_config

LONG = " ".join(["a red bike and two dogs"] * 8)  # 48 words and two ends
SHORT = [*CAPTIONS, "one two three four five six seven eight nine ten one two three four five six seven eight"]


def as_released(before: Tensor) -> Tensor:
    """The loop of Long-CLIP's program (model/longclip.py: load_from_clip), four positions for each behind the 20th."""
    length, kept = len(before), 20
    after = torch.zeros(4 * length - 3 * kept, before.shape[1])
    after[:kept] = before[:kept]
    for i in range(kept, length - 1):
        for part in range(4):
            after[kept + 4 * (i - kept) + part] = (4 - part) / 4 * before[i] + part / 4 * before[i + 1]
    for part in range(4):
        after[4 * length - 3 * kept - 4 + part] = before[-1] + part * (before[-1] - before[-2]) / 4
    return after


def test_248_positions_of_77_are_those_of_the_paper():
    positions = torch.randn(77, 8, generator=torch.Generator().manual_seed(0))
    after = stretched(positions, 248)
    assert torch.equal(after[:20], positions[:20])
    torch.testing.assert_close(after, as_released(positions), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [78, 100, 131, 512])
def test_any_length_keeps_the_first_positions_and_the_course_of_the_others(length):
    positions = torch.randn(77, 3, generator=torch.Generator().manual_seed(0))
    positions[:, 0] = torch.arange(77.0)
    after = stretched(positions, length)
    assert after.shape == (length, 3)
    assert torch.equal(after[:20], positions[:20])
    assert (after[1:, 0] > after[:-1, 0]).all()
    assert 76 <= after[-1, 0] < 77


@pytest.mark.parametrize(
    ("own", "length", "answer"),
    [(77, 77, "77 is no more than the 77 tokens"), (77, 40, "40 is no more"), (21, 40, "has 21 positions, too few")],
)
def test_lengths_that_cannot_be(own, length, answer):
    with pytest.raises(ValueError, match=f"backbone.context_length: .*{answer}.*leave it out"):
        stretched(torch.zeros(own, 2), length)


def pretrained(kind: str, folder, **options):
    """A section whose towers have weights; of open_clip in a file."""
    config = tiny_config(kind, folder, **options)
    if kind == "open_clip":
        plain = build_backbone(tiny_config(kind, folder), weights=False)
        state = copy.deepcopy(_make_model(plain.config.model_config_dict, False).state_dict())
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors")
        config = config.model_copy(update={"pretrained": str(folder / "weights.safetensors")})
    return config


@torch.no_grad()
@pytest.mark.parametrize("kind", ["open_clip", "clip"])
def test_longer_captions(kind, tmp_path):
    config = pretrained(kind, tmp_path)
    processor = build_processor(config, None)
    before = build_backbone(config, processor=processor).eval()
    longer = config.model_copy(update={"context_length": 60})
    wide = build_processor(longer, None)
    with pytest.warns(
        UserWarning, match="captions of up to 60 tokens instead of 24 .backbone.context_length.*Long-CLIP"
    ):
        after = build_backbone(longer, processor=wide).eval()
    assert (processor.max_length, wide.max_length, wide.tokenizer.model_max_length) == (24, 60, 60)
    assert [len(ids) for ids in processor.tokenize([LONG])] == [24]
    assert [len(ids) for ids in wide.tokenize([LONG])] == [50]
    assert after.initial_logit_scale == before.initial_logit_scale
    for text in SHORT:  # 20 tokens at most, at the positions that are kept
        batch = wide(text=[text])
        assert batch["input_ids"].shape[1] <= 20
        expected = before.text_trunk(**processor(text=[text])).pooled
        torch.testing.assert_close(after.text_trunk(**batch).pooled, expected, rtol=0, atol=1e-6)
    one, other = (after.text_trunk(**wide(text=[LONG + end])).pooled for end in (" snow", " sun"))
    assert not torch.allclose(one, other, atol=1e-5), "words behind the 24th token count"
    model = ItmModel(ItmConfig(backbone=after.config.model_dump(mode="json"), head={"kind": "clip"}), backbone=after)
    model.processor = wide
    model.save_pretrained(tmp_path / "model")
    wide.save_pretrained(tmp_path / "model")
    if kind == "open_clip":
        (tmp_path / "weights.safetensors").unlink()  # nothing but the saved model is needed
    loaded = load_model(tmp_path / "model")
    assert loaded.processor.max_length == 60
    assert np.array_equal(loaded.encode([LONG, *SHORT]), model.encode([LONG, *SHORT]))


def test_random_weights_have_the_length_at_once(tmp_path, recwarn):
    after = build_backbone(tiny_config("open_clip", tmp_path, context_length=60))
    assert after.model.positional_embedding.shape[0] == 60
    clip = build_backbone(tiny_config("clip", tmp_path, context_length=60, from_scratch=True))
    assert clip.model.text_model.embeddings.position_embedding.num_embeddings == 60
    assert not [warning for warning in recwarn if "context_length" in str(warning.message)]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("open_clip-siglip", "reads every caption at one length.*ViT-B-32-quickgelu"),
        ("open_clip-bert", "whose positions are its own.*ViT-B-32-quickgelu"),
        ("siglip", "reads every caption at one length.*openai/clip-vit-base-patch32"),
        ("siglip2", "reads every caption at one length.*openai/clip-vit-base-patch32"),
    ],
)
def test_towers_without_such_positions(kind, answer, tmp_path):
    config = tiny_config(kind, tmp_path, context_length=60)
    for build in (build_processor, lambda section, _: build_backbone(section)):
        with pytest.raises(ValueError, match=f"backbone.context_length: .*{answer}"):
            build(config, None)


def test_a_recipe_without_the_new_keys_has_the_hash_it_had():
    content = {
        "output_dir": "run",
        "data": {"source": "sample"},
        "backbone": {"kind": "open_clip", "model": "ViT-B-32"},
    }
    plain = parse_recipe(content, "test")
    content["backbone"] |= {"context_length": 248}
    longer = parse_recipe(content, "test")
    assert plain.sha256 != longer.sha256
    assert "context_length" in longer.to_yaml()
