"""Sets of DivE from regions, words and PVSE's attention against golden numbers, and a few whole training steps."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clip_itm.backbones.caption_towers import BertTower
from clip_itm.backbones.configuration import RegionsBackbone
from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.backbones.regions import Regions, build
from clip_itm.methods.dive.configuration import DiveHeadConfig
from clip_itm.methods.dive.head import DiveHead
from clip_itm.methods.dive.set_prediction import SetPrediction
from support.dive_golden import SET, load

EXACT = {"rtol": 1e-8, "atol": 1e-9}
OF_TABLES = {"rtol": 1e-6, "atol": 1e-6}  # sines are float32, and those of another library
GRU = [f"{kind}_{part}_l0{end}" for kind in ("weight", "bias") for part in ("ih", "hh") for end in ("", "_reverse")]
WORDS = {"embed": "embedding.weight"} | {f"gru_{name}": f"gru.{name}" for name in GRU}
REGIONS = {
    f"{name}_{end}": f"{own}.{full}"
    for name, own in (("fc", "linear"), ("mlp1", "mlp.hidden"), ("bn", "mlp.norm"), ("mlp2", "mlp.output"))
    for end, full in (("w", "weight"), ("b", "bias"))
}
WORDS_AND_LAST = {"text_tokens": "words", "text_pooling": "last"}


def encoders(width: int, words: int = 1, token_width: int = 1, **text) -> Regions:
    """The encoder of regions with their maximum, and the GRU over words (docs/papers/dive.md 3.1, 3.3)."""
    config = RegionsBackbone(
        image_encoder="residual", pooling="max", embed_dim=width, word_dim=token_width, vocab_size=words, **text
    )
    backbone = build(config, weights=False).double()
    backbone.output_tokens = True
    return backbone


def sets_of(width: int, token_width: int, positions="none", elements=4, leaky=False, **config) -> SetPrediction:
    config = DiveHeadConfig(module={"dropout": 0, "compat_leaky_mask": leaky}, **config)
    return SetPrediction(config, elements, width, token_width, positions)


def load_regions(backbone: Regions, arrays: dict, width: int) -> None:
    statistics = {"bn_rm": "mlp.norm.running_mean", "bn_rv": "mlp.norm.running_var"}
    fresh = {"img_bn_rm": np.zeros(width // 2), "img_bn_rv": np.ones(width // 2)}
    load(backbone.region_encoder, fresh | arrays, REGIONS | statistics, "img_")


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("dive_set_head")


def test_golden_set(arrays):
    features = Features(*(torch.tensor(arrays[f"head_{name}"]).double() for name in ("global", "local")))
    sets = load(sets_of(8, 12), arrays, SET, "head_")
    found = sets(features)
    np.testing.assert_allclose(found.slots.detach(), arrays["head_slots_out"], **EXACT)
    np.testing.assert_allclose(found.sets.detach(), arrays["head_set"], **EXACT)
    np.testing.assert_allclose(sets.join(features.pooled[:, None], found.slots).detach(), arrays["head_sum"], **EXACT)
    plain = {name: own for name, own in SET.items() if not name.startswith("ln_g")}
    found = load(sets_of(8, 12, residual="sum"), arrays, plain, "head_")(features)
    np.testing.assert_allclose(found.sets.detach(), arrays["head_set_nonorm"], **EXACT)


def test_golden_regions(arrays):
    backbone = encoders(8).eval()
    load_regions(backbone, arrays, 8)
    full, padded = (torch.tensor(arrays[name]).double() for name in ("img_regions_full", "img_regions"))
    mask = torch.arange(6) < torch.tensor(arrays["img_lengths"])[:, None]
    correct, leaky = (load(sets_of(8, 8, leaky=leaky), arrays, SET, "img_") for leaky in (False, True))
    features = backbone.image_neck(Features(None, full))
    np.testing.assert_allclose(features.pooled.detach(), arrays["imgfull_eval_global"], **EXACT)
    np.testing.assert_allclose(correct(features).slots.detach(), arrays["imgfull_eval_slots"], **EXACT)
    np.testing.assert_allclose(correct(features).sets.detach(), arrays["imgfull_eval_set"], **EXACT)
    features = backbone.image_neck(Features(None, padded, mask))
    np.testing.assert_allclose(features.pooled.detach(), arrays["img_eval_global"], **EXACT)
    np.testing.assert_allclose(correct(features).sets.detach(), arrays["img_eval_correct_set"], **EXACT)
    # the release encodes the padding, too, where the backbone has zeros
    features = Features(features.pooled, backbone.region_encoder(padded, mask), mask)
    np.testing.assert_allclose(leaky(features).sets.detach(), arrays["img_eval_leaky_set"], **EXACT)
    assert np.abs(arrays["img_eval_leaky_set"] - arrays["img_eval_correct_set"]).max() > 0.01
    backbone.train()
    for _ in range(2):  # the released forward projects twice
        features = backbone.image_neck(Features(None, full))
        np.testing.assert_allclose(correct(features).sets.detach(), arrays["imgfull_train_set"], **EXACT)
    norm = backbone.region_encoder.mlp.norm  # its momentum is a float32
    np.testing.assert_allclose(norm.running_mean, arrays["imgfull_train_bn_rm"], rtol=1e-7)
    np.testing.assert_allclose(norm.running_var, arrays["imgfull_train_bn_rv"], rtol=1e-7)


def test_golden_words(arrays):
    ids, lengths = torch.tensor(arrays["txt_ids"]), torch.tensor(arrays["txt_lengths"])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    last, longest = (encoders(8, 29, 12, **text) for text in (WORDS_AND_LAST, {"text_pooling": "max"}))
    for backbone in (last, longest):
        load(backbone.text_tower, arrays, WORDS, "txt_")
    correct, leaky = (load(sets_of(8, 12, "sine", leaky=leaky), arrays, SET, "txt_") for leaky in (False, True))
    features = last.text_trunk(ids, mask)
    found = correct(features)
    np.testing.assert_allclose(found.sets.detach(), arrays["txt_correct_set"], **OF_TABLES)
    np.testing.assert_allclose(found.slots.detach(), arrays["txt_correct_slots"], **OF_TABLES)
    # the release has the embedding of the padding there, not zeros
    padded = Features(features.pooled, last.text_tower.embedding(ids), mask)
    np.testing.assert_allclose(leaky(padded).sets.detach(), arrays["txt_leaky_set"], **OF_TABLES)
    contextual = load(sets_of(8, 8, "sine"), arrays, SET, "txtrnn_", fallback="txt_")
    found = contextual(longest.text_trunk(ids, mask))
    np.testing.assert_allclose(found.sets.detach(), arrays["txtrnn_correct_set"], **OF_TABLES)


class GivenStates(nn.Module):
    """In place of a BERT: its last hidden states."""

    def __init__(self, hidden: Tensor):
        super().__init__()
        self.config, self.hidden = SimpleNamespace(hidden_size=hidden.shape[-1]), hidden

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.hidden)


def test_golden_bert(arrays):
    hidden = torch.tensor(arrays["bert_hidden"]).double()
    mask = torch.arange(hidden.shape[1]) < torch.tensor(arrays["txt_lengths"])[:, None]

    def features(pooling: str, layer: str = "fc") -> Features:
        config = RegionsBackbone(text_encoder="bert", embed_dim=8, text_pooling=pooling, vocab_size=4)
        names = {f"{layer}_w": "projection.weight", f"{layer}_b": "projection.bias"}
        tower = load(BertTower(config, GivenStates(hidden)), arrays, names, "bert_")
        pooled, tokens = tower(torch.zeros(mask.shape, dtype=torch.int64), mask)
        return Features(pooled, tokens, mask)

    first, largest = features("first"), features("max")
    separate = replace(largest, pooled=features("max", "fc2").pooled)
    for name, made in (("cls", first), ("max", largest), ("maxsep", separate)):
        found = load(sets_of(8, 8), arrays, SET, "bert_")(made).sets.detach()
        np.testing.assert_allclose(found, arrays[f"bert_{name}_correct_set"], **EXACT, err_msg=name)
    # the release projects the padding, too
    everywhere = hidden @ torch.tensor(arrays["bert_fc_w"]).double().T + torch.tensor(arrays["bert_fc_b"]).double()
    leaky = load(sets_of(8, 8, leaky=True), arrays, SET, "bert_")
    found = leaky(replace(largest, tokens=everywhere)).sets.detach()
    np.testing.assert_allclose(found, arrays["bert_max_leaky_set"], **EXACT)


def test_golden_pvse(arrays):
    names = {"w1": "attention.hidden.weight", "w2": "attention.score.weight", "fc_w": "attention.output.weight"}
    names |= {"fc_b": "attention.output.bias", "ln_w": "norm.weight", "ln_b": "norm.bias"}
    config = DiveHeadConfig(module={"kind": "pvse"}, residual="ln_of_sum")
    sets = load(SetPrediction(config, 4, 8, 12, "none"), arrays, names, "pvse_")
    pooled, tokens = (torch.tensor(arrays[f"head_{name}"]).double() for name in ("global", "local"))
    mask = torch.arange(6) < torch.tensor(arrays["img_lengths"])[:, None]
    found = sets(Features(pooled, tokens, mask))
    residual, weights = sets.attention(tokens, mask)
    np.testing.assert_allclose(weights[:, 0].transpose(1, 2).detach(), arrays["pvse_attn"], **EXACT)
    np.testing.assert_allclose(residual.detach(), arrays["pvse_residual"], **EXACT)
    np.testing.assert_allclose(found.slots.detach(), arrays["pvse_residual"], **EXACT)
    np.testing.assert_allclose(found.sets.detach(), arrays["pvse_out"], **EXACT)


class Whole(nn.Module):
    """The published model on regions and words, with the head of this package."""

    def __init__(self, arrays: dict):
        super().__init__()
        config = DiveHeadConfig(image_elements=3, text_elements=3, module={"dropout": 0})
        self.towers = encoders(6, 21, 8, **WORDS_AND_LAST)
        load_regions(self.towers, arrays, 6)
        load(self.towers.text_tower, arrays, WORDS, "txt_")
        self.head = DiveHead(config, FeatureWidths(6, 6, 8))
        load(self.head.similarity.image_sets, arrays, SET, "img_")
        load(self.head.similarity.text_sets, arrays, SET, "txt_")

    def forward(self, regions: Tensor, ids: Tensor):
        """Outputs of photos and of captions, loss, log."""
        images = self.head.image_outputs(self.towers.image_neck(Features(None, regions)))
        texts = self.head.text_outputs(self.towers.text_trunk(ids, torch.ones_like(ids)))
        owner = torch.arange(len(ids)) // 5
        pairs = type(images)(*(part[owner] for part in images))
        return images, texts, *self.head.loss(pairs, texts, owner, torch.arange(len(ids)))


def test_golden_train_steps(golden):
    """Six steps of AdamW with the published learning rates, from the loss and its parts to the weights."""
    arrays = golden("dive_train_step")
    model = Whole(arrays)
    regions, ids = torch.tensor(arrays["regions"]).double(), torch.tensor(arrays["ids"])
    image_side = [model.towers.region_encoder, model.head.similarity.image_sets]
    parts = [(image_side, 1e-4), ([model.towers.text_tower], 1e-3), ([model.head.similarity.text_sets], 1e-4)]
    optimizer = torch.optim.AdamW(
        [{"params": [p for module in modules for p in module.parameters()], "lr": rate} for modules, rate in parts],
        weight_decay=1e-4,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(arrays["cosine_T_max"]))
    for step, expected in enumerate(arrays["loss_trace"]):
        np.testing.assert_allclose(
            [group["lr"] for group in optimizer.param_groups], arrays["lr_trace"][step][[0, 2, 3]], rtol=1e-12
        )
        images, texts, loss, logs = model(regions, ids)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert_first_step(model, images, texts, loss, logs, arrays)
        np.testing.assert_allclose(loss.detach(), expected, rtol=1e-7)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        np.testing.assert_allclose(norm, arrays["grad_norm_trace"][step], rtol=1e-5)
        optimizer.step()
        schedule.step()
    slots = model.head.similarity.image_sets.attention.slots
    np.testing.assert_allclose(slots.detach(), arrays["final_img_slots"], rtol=1e-6)
    embedding = model.towers.text_tower.embedding.weight
    np.testing.assert_allclose(embedding.detach(), arrays["final_txt_embed"], rtol=1e-5, atol=1e-7)


def assert_first_step(model: Whole, images, texts, loss: Tensor, logs: dict[str, Tensor], arrays: dict) -> None:
    np.testing.assert_allclose(images.sets.detach(), arrays["img_set"], **OF_TABLES)
    np.testing.assert_allclose(texts.sets.detach(), arrays["txt_set"], **OF_TABLES)
    np.testing.assert_allclose(images.slots.detach(), arrays["img_slots_out"], **OF_TABLES)
    np.testing.assert_allclose(texts.slots.detach(), arrays["txt_slots_out"], **OF_TABLES)
    np.testing.assert_allclose(loss.detach(), arrays["loss"], rtol=1e-7)
    for name, part in (("image_to_text", "i2t"), ("text_to_image", "t2i"), ("mmd", "mmd"), ("diversity", "div")):
        np.testing.assert_allclose(logs[name], arrays[f"part_{part}"], rtol=1e-6, err_msg=name)
    similarity = model.head.similarity
    places = {
        "img_": [(model.towers.region_encoder, REGIONS), (similarity.image_sets, SET)],
        "txt_": [(model.towers.text_tower, WORDS), (similarity.text_sets, SET)],
    }
    compared = 0
    for prefix, modules in places.items():
        for module, names in modules:
            for name, own in names.items():
                if (key := f"grad_{prefix}{name}") in arrays:
                    gradient = module.get_parameter(own).grad
                    np.testing.assert_allclose(gradient, arrays[key], rtol=1e-5, atol=1e-6, err_msg=key)
                    compared += 1
    assert compared == sum(name.startswith("grad_") for name in arrays) - 1  # the trace of their norm
