"""The gradient cache: the gradients are those without it, and no tower ever sees more rows than a chunk has."""

from collections import defaultdict

import pytest
import torch

from clip_itm.backbones.configuration import OpenClipBackbone, RegionsBackbone
from clip_itm.configuration import ItmConfig
from clip_itm.model import ItmModel
from clip_itm.training.gradient_cache import IMAGE_INPUTS, Chunks, encoding_in_chunks, in_chunks
from support.tiny_backbones import CAPTIONS, KINDS, PHOTOS, TRANSFORMERS, dropout_free, tiny_backbone

ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 100, "width": 16, "heads": 2, "layers": 2},
}
DIVE = {"kind": "dive", "module": {"heads": 2, "head_dim": 8, "iterations": 2, "dropout": 0.0}}


def make_model(head: dict | None = None, **options) -> ItmModel:
    torch.manual_seed(0)
    tokens = {"special_token_ids": (0, 99), "hidden_word_id": 98}
    section = OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": ARCHITECTURE}, **tokens, **options)
    config = ItmConfig(backbone=section.model_dump(mode="json"), head=head or {"kind": "clip"})
    return ItmModel(config).double().train()


def make_inputs() -> dict[str, torch.Tensor]:
    """Five photos, seven captions of other lengths."""
    generator = torch.Generator().manual_seed(1)
    captions = torch.randint(1, 98, (7, 6), generator=generator)
    lengths = torch.tensor([6, 3, 5, 4, 6, 2, 3])[:, None]
    captions = captions.masked_fill(torch.arange(6) >= lengths, 0).masked_fill(torch.arange(6) == lengths - 1, 99)
    image_index = torch.tensor([0, 1, 2, 2, 3, 4, 0])
    return {
        "pixel_values": torch.randn(5, 3, 32, 32, generator=generator, dtype=torch.float64),
        "input_ids": captions,
        "attention_mask": (captions > 0).long(),
        "image_index": image_index,
        "image_ids": image_index,
        "pair_ids": torch.arange(7),
    }


def step(model: ItmModel, inputs: dict, chunk: int | None, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The loss and all gradients, of which there are some."""
    model.zero_grad()
    with encoding_in_chunks(model, None if chunk is None else Chunks(chunk)):
        loss = model(**inputs).loss
    (scale * loss).backward()
    assert model.chunks is None
    found = {"loss": loss.detach()}
    found |= {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    assert sum(value.abs().max() > 1e-8 for value in found.values()) > len(found) // 2
    return found


def assert_equal(found: dict, expected: dict, tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        size = max(value.abs().max(), torch.tensor(1e-4))
        assert (found[name] - value).abs().max() <= tolerance * size, name


@pytest.fixture
def rows_seen(monkeypatch):
    """The rows of every call of a trunk, in order, by its name."""
    seen = defaultdict(list)

    def watch(model: ItmModel) -> dict[str, list[int]]:
        for name in ("image_trunk", "text_trunk"):
            trunk = getattr(model.backbone, name)

            def counting(rows, *args, name=name, trunk=trunk):
                seen[name].append(len(rows))
                return trunk(rows, *args)

            monkeypatch.setattr(model.backbone, name, counting)
        return seen

    return watch


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 6])
def test_chunks_of_every_size_give_the_same_gradients_and_run_twice(chunk, rows_seen):
    model, inputs = make_model(), make_inputs()
    expected = step(model, inputs, None)
    seen = rows_seen(model)
    assert_equal(step(model, inputs, chunk), expected)
    for name, count in (("image_trunk", 5), ("text_trunk", 7)):
        sizes = [min(chunk, count - start) for start in range(0, count, chunk)]
        again = sizes[::-1] if len(sizes) > 1 else []
        assert seen[name] == sizes + again, "every chunk once, then backwards for its gradient; a photo once"


def test_a_chunk_that_holds_the_batch_is_the_plain_step_to_the_bit(rows_seen):
    model, inputs = make_model(), make_inputs()
    expected = step(model, inputs, None)
    seen, found = rows_seen(model), step(model, inputs, 7)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert seen == {"image_trunk": [5], "text_trunk": [7]}


def test_without_gradients_every_chunk_runs_once(rows_seen):
    model, inputs = make_model().eval(), make_inputs()
    seen = rows_seen(model)
    with torch.no_grad():
        found = in_chunks(model.encode_images, {name: inputs.get(name) for name in IMAGE_INPUTS}, Chunks(3))
    assert seen == {"image_trunk": [3, 2]}
    torch.testing.assert_close(found, model.encode_images(inputs["pixel_values"]))


def kept_chunks(encode, inputs: dict, size: int):
    """Outputs of chunks, each with its graph."""
    count = len(next(iter(inputs.values())))
    parts = [encode(**{k: rows[i : i + size] for k, rows in inputs.items()}) for i in range(0, count, size)]
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    return type(parts[0])(*(torch.cat(part) for part in zip(*parts, strict=True)))


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("head", [{"kind": "clip"}, {**DIVE, "module": {**DIVE["module"], "dropout": 0.3}}])
def test_dropout_is_the_same_in_both_passes(head, recomputes):
    """As where every chunk keeps its graph; random numbers go on where they would without a second pass."""
    model, inputs = make_model(head, image_dropout=0.3, text_dropout=0.3, word_dropout=0.4), make_inputs()
    model.backbone.set_activation_checkpointing(recomputes)
    torch.manual_seed(5)
    found, state = step(model, inputs, 2), torch.get_rng_state()
    model.zero_grad()
    photos = inputs["pixel_values"]
    torch.manual_seed(5)
    head, words = model.head, {name: inputs[name] for name in ("input_ids", "attention_mask")}
    images = kept_chunks(lambda pixels: head.image_outputs(model.features_of_images(pixels)), {"pixels": photos}, 2)
    texts = kept_chunks(lambda **words: head.text_outputs(model.features_of_captions(**words)), words, 2)
    shown = inputs["image_index"]
    images = images[shown] if isinstance(images, torch.Tensor) else type(images)(*(part[shown] for part in images))
    loss, _ = model.head.loss(images, texts, inputs["image_ids"], inputs["pair_ids"])
    loss.backward()
    expected = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert_equal(found, {"loss": loss.detach()} | expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert (step(model, inputs, 2)["loss"] - loss).abs() > 1e-4, "other random numbers give another loss"


def test_a_scaled_loss_and_added_gradients():
    """What a GradScaler and accumulation over separate batches ask for."""
    model, inputs = make_model(), make_inputs()
    plain, scaled = step(model, inputs, 2), step(model, inputs, 2, scale=1024.0)
    assert all(torch.equal(scaled[name], 1024 * plain[name]) for name in plain if name != "loss")
    with encoding_in_chunks(model, Chunks(3)):
        (1024.0 * model(**inputs).loss).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2048 * plain[name], rtol=1e-9, atol=1e-9)


def test_mixed_precision_is_that_of_the_plain_step():
    model, inputs = make_model().float(), make_inputs()
    inputs["pixel_values"] = inputs["pixel_values"].float()
    found = {}
    for chunk in (None, 2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found[chunk] = step(model, inputs, chunk)
    assert {value.dtype for value in found[2].values()} == {torch.float32}
    assert torch.equal(found[2]["loss"], found[None]["loss"]), "a row has the same bits in a chunk"
    assert_equal(found[2], found[None], tolerance=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"freeze_image": True},
        {"freeze_text": True},
        {"freeze_image_blocks": 1},
        {"lora": {"rank": 2, "dropout": 0.0}},
        {"freeze_image": True, "lora": {"rank": 2, "dropout": 0.0}},
    ],
    ids=str,
)
def test_frozen_parts_and_adapters(options, rows_seen):
    pytest.importorskip("peft")
    model, inputs = make_model(**options), make_inputs()
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    expected = step(model, inputs, None)
    seen = rows_seen(model)
    assert_equal(step(model, inputs, 2), expected)
    assert seen["image_trunk"] == ([2, 2, 1] if options.get("freeze_image") else [2, 2, 1, 1, 2, 2])


def test_kept_features_of_a_frozen_tower():
    model, inputs = make_model(DIVE, freeze_image=True), make_inputs()
    with torch.no_grad():
        kept = model.backbone.image_trunk(inputs["pixel_values"])
    expected = step(model, inputs, None)
    del inputs["pixel_values"]
    inputs |= {"image_features": kept.pooled, "image_tokens": kept.tokens}
    assert_equal(step(model, inputs, None), expected)
    assert_equal(step(model, inputs, 2), expected)


@pytest.mark.parametrize("kind", ["aahr", "triplet"])
def test_regions_with_masks(kind):
    torch.manual_seed(0)
    words = {"word_dim": 8, "vocab_size": 100, "special_token_ids": (0, 99)}
    section = RegionsBackbone(region_dim=6, embed_dim=8, image_encoder="linear", **words)
    head = {"kind": "aahr", "embed_dim": 8, "num_heads": 2, "prototypes": 3, "queue_length": 16, "pooling_heads": 2}
    head |= {"dropout": 0.0, "graph_dropout": 0.0, "token_dropout": 0.0, "queue_weight": 0.0}
    head = head if kind == "aahr" else {"kind": "triplet", "similarity": {"kind": "scan", "token_dim": 4}}
    model = ItmModel(ItmConfig(backbone=section.model_dump(mode="json"), head=head)).double().train()
    inputs, generator = make_inputs(), torch.Generator().manual_seed(2)
    del inputs["pixel_values"]
    inputs["image_tokens"] = torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    inputs["image_mask"] = torch.arange(4) < torch.tensor([4, 1, 3, 2, 4])[:, None]
    torch.manual_seed(3)
    expected = step(model, inputs, None)
    for chunk in (1, 2, 3):
        torch.manual_seed(3)
        assert_equal(step(model, inputs, chunk), expected)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind in TRANSFORMERS or kind in ("gru", "transformer", "bag")]
)
def test_every_kind_of_tower_with_tokens(kind, tmp_path):
    backbone, processor = tiny_backbone(kind, tmp_path)
    config = ItmConfig(backbone=backbone.config.model_dump(mode="json"), head=DIVE)
    model = ItmModel(config, backbone=backbone).double().train()
    dropout_free(model)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    inputs = dict(processor(images=PHOTOS, text=CAPTIONS, return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    inputs |= {"image_ids": torch.arange(4), "pair_ids": torch.arange(4)}
    expected = step(model, inputs, None)
    tolerance = 1e-6 if kind == "siglip2" else 1e-9  # transformers resizes its positions in float32 on a CPU
    for chunk in (1, 3):
        assert_equal(step(model, inputs, chunk), expected, tolerance)


def test_pixels_are_made_chunk_by_chunk(rows_seen):
    """Bytes are a quarter of what the towers read, and the whole batch of them lies on the device."""
    model, inputs, made = make_model(), make_inputs(), []
    inputs["pixel_values"] = (40 * inputs["pixel_values"] + 128).clip(0, 255).to(torch.uint8)

    def normalize(pixels):
        made.append(len(pixels))
        return pixels.double() / 50 - 2

    with encoding_in_chunks(model, Chunks(2, normalize)):
        loss = model(**inputs).loss
    loss.backward()
    assert made == [2, 2, 1, 1, 2, 2]
    inputs["pixel_values"] = normalize(inputs["pixel_values"])
    torch.testing.assert_close(model(**inputs).loss, loss)
    with encoding_in_chunks(model, Chunks(9, normalize)):
        assert model(**inputs | {"pixel_values": inputs["pixel_values"]}).loss.isfinite()
    assert made[-1] == 5


def test_two_gradients_of_one_graph():
    """As NPC asks for them."""
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(5, 3, dtype=torch.float64)
    outputs = in_chunks(lambda rows: (rows @ weight).tanh(), {"rows": rows, "other": None}, Chunks(2))
    plain = (rows @ weight).tanh()
    for loss in (lambda x: x.sum(), lambda x: x.square().mean()):
        found, expected = (torch.autograd.grad(loss(x), weight, retain_graph=True)[0] for x in (outputs, plain))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
