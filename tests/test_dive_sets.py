"""Sets of DivE from regions, words and PVSE's attention against golden numbers, and a few whole training steps."""

import numpy as np
import pytest
import torch
from dive_golden import SET, load
from torch import Tensor, nn

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.methods.dive.configuration import DiveHeadConfig
from clip_itm.methods.dive.head import DiveHead
from clip_itm.methods.dive.set_prediction import SetPrediction

EXACT = {"rtol": 1e-8, "atol": 1e-9}
OF_TABLES = {"rtol": 1e-6, "atol": 1e-6}  # sines are float32, and those of another library
GRU = [f"{kind}_{part}_l0{end}" for kind in ("weight", "bias") for part in ("ih", "hh") for end in ("", "_reverse")]
WORDS = {"embed": "embedding.weight"} | {f"gru_{name}": f"gru.{name}" for name in GRU}
REGIONS = {
    f"{name}_{end}": f"{own}.{full}"
    for name, own in (("fc", "fc"), ("mlp1", "first"), ("bn", "norm"), ("mlp2", "second"))
    for end, full in (("w", "weight"), ("b", "bias"))
}


class Regions(nn.Module):
    """Region features [P, R, 2048] to local and pooled features (docs/papers/dive.md 3.1)."""

    def __init__(self, width: int):
        super().__init__()
        self.fc, self.first = nn.Linear(2048, width), nn.Linear(width, width // 2)
        self.norm, self.second = nn.BatchNorm1d(width // 2), nn.Linear(width // 2, width)

    def forward(self, regions: Tensor, mask: Tensor | None = None) -> Features:
        projected = self.fc(regions)
        hidden = self.norm(self.first(projected).flatten(0, 1)).unflatten(0, projected.shape[:2])
        tokens = projected + self.second(hidden.relu())
        counted = tokens if mask is None else tokens.masked_fill(~mask[..., None], -torch.inf)
        return Features(counted.amax(dim=1), tokens, mask)


class Words(nn.Module):
    """Captions [B, T] to word embeddings, averaged GRU states and the last one (docs/papers/dive.md 3.3)."""

    def __init__(self, words: int, token_width: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(words, token_width)
        self.gru = nn.GRU(token_width, width, batch_first=True, bidirectional=True)

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.embedding(ids)
        packed = nn.utils.rnn.pack_padded_sequence(tokens, lengths, batch_first=True, enforce_sorted=False)
        states, last = self.gru(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=ids.shape[1])
        return tokens, states.unflatten(2, (2, -1)).mean(2), last.mean(0)


def sets_of(width: int, token_width: int, positions="none", elements=4, leaky=False, **config) -> SetPrediction:
    config = DiveHeadConfig(module={"dropout": 0, "compat_leaky_mask": leaky}, **config)
    return SetPrediction(config, elements, width, token_width, positions)


def load_regions(arrays: dict, width: int) -> Regions:
    module = Regions(width)
    statistics = {
        "bn_rm": "norm.running_mean",
        "bn_rv": "norm.running_var",
        "bn_count": "norm.num_batches_tracked",
    }
    fresh = {"img_bn_rm": np.zeros(width // 2), "img_bn_rv": np.ones(width // 2), "img_bn_count": np.zeros(())}
    return load(module, fresh | arrays, REGIONS | statistics, "img_")


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
    encoder = load_regions(arrays, 8).eval()
    full, padded = (torch.tensor(arrays[name]).double() for name in ("img_regions_full", "img_regions"))
    mask = torch.arange(6) < torch.tensor(arrays["img_lengths"])[:, None]
    correct, leaky = (load(sets_of(8, 8, leaky=leaky), arrays, SET, "img_") for leaky in (False, True))
    features = encoder(full)
    np.testing.assert_allclose(features.pooled.detach(), arrays["imgfull_eval_global"], **EXACT)
    np.testing.assert_allclose(correct(features).slots.detach(), arrays["imgfull_eval_slots"], **EXACT)
    np.testing.assert_allclose(correct(features).sets.detach(), arrays["imgfull_eval_set"], **EXACT)
    features = encoder(padded, mask)
    np.testing.assert_allclose(features.pooled.detach(), arrays["img_eval_global"], **EXACT)
    np.testing.assert_allclose(correct(features).sets.detach(), arrays["img_eval_correct_set"], **EXACT)
    np.testing.assert_allclose(leaky(features).sets.detach(), arrays["img_eval_leaky_set"], **EXACT)
    assert np.abs(arrays["img_eval_leaky_set"] - arrays["img_eval_correct_set"]).max() > 0.01
    encoder.train()
    np.testing.assert_allclose(correct(encoder(full)).sets.detach(), arrays["imgfull_train_set"], **EXACT)
    encoder(full)  # the released forward projects twice
    np.testing.assert_allclose(encoder.norm.running_mean, arrays["imgfull_train_bn_rm"], **EXACT)
    np.testing.assert_allclose(encoder.norm.running_var, arrays["imgfull_train_bn_rv"], **EXACT)


def test_golden_words(arrays):
    words = load(Words(29, 12, 8), arrays, WORDS, "txt_")
    ids, lengths = torch.tensor(arrays["txt_ids"]), torch.tensor(arrays["txt_lengths"])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    tokens, states, last = words(ids, lengths)
    correct, leaky = (load(sets_of(8, 12, "sine", leaky=leaky), arrays, SET, "txt_") for leaky in (False, True))
    found = correct(Features(last, tokens, mask))
    np.testing.assert_allclose(found.sets.detach(), arrays["txt_correct_set"], **OF_TABLES)
    np.testing.assert_allclose(found.slots.detach(), arrays["txt_correct_slots"], **OF_TABLES)
    found = leaky(Features(last, tokens, mask))
    np.testing.assert_allclose(found.sets.detach(), arrays["txt_leaky_set"], **OF_TABLES)
    contextual = load(sets_of(8, 8, "sine"), arrays, SET, "txtrnn_", fallback="txt_")
    found = contextual(Features(states.masked_fill(~mask[..., None], -torch.inf).amax(1), states, mask))
    np.testing.assert_allclose(found.sets.detach(), arrays["txtrnn_correct_set"], **OF_TABLES)


def test_golden_bert(arrays):
    hidden = torch.tensor(arrays["bert_hidden"]).double()
    mask = torch.arange(hidden.shape[1]) < torch.tensor(arrays["txt_lengths"])[:, None]
    weights = {name: torch.tensor(arrays[f"bert_{name}"]).double() for name in ("fc_w", "fc_b", "fc2_w", "fc2_b")}
    tokens = hidden @ weights["fc_w"].T + weights["fc_b"]
    separate = hidden @ weights["fc2_w"].T + weights["fc2_b"]
    largest, separate = (each.masked_fill(~mask[..., None], -torch.inf).amax(1) for each in (tokens, separate))
    for name, pooled in (("cls", tokens[:, 0]), ("max", largest), ("maxsep", separate)):
        sets = load(sets_of(8, 8), arrays, SET, "bert_")
        found = sets(Features(pooled, tokens, mask)).sets.detach()
        np.testing.assert_allclose(found, arrays[f"bert_{name}_correct_set"], **EXACT, err_msg=name)
    found = load(sets_of(8, 8, leaky=True), arrays, SET, "bert_")(Features(largest, tokens, mask)).sets.detach()
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
        self.regions, self.words = load_regions(arrays, 6), load(Words(21, 8, 6), arrays, WORDS, "txt_")
        self.head = DiveHead(config, FeatureWidths(6, 6, 8))
        load(self.head.similarity.image_sets, arrays, SET, "img_")
        load(self.head.similarity.text_sets, arrays, SET, "txt_")

    def forward(self, regions: Tensor, ids: Tensor):
        """Outputs of photos and of captions, loss, log."""
        tokens, _, last = self.words(ids, torch.full((len(ids),), ids.shape[1]))
        images, texts = self.head.image_outputs(self.regions(regions)), self.head.text_outputs(Features(last, tokens))
        owner = torch.arange(len(ids)) // 5
        pairs = type(images)(*(part[owner] for part in images))
        return images, texts, *self.head.loss(pairs, texts, owner, torch.arange(len(ids)))


def test_golden_train_steps(golden):
    """Six steps of AdamW with the published learning rates, from the loss and its parts to the weights."""
    arrays = golden("dive_train_step")
    model = Whole(arrays)
    regions, ids = torch.tensor(arrays["regions"]).double(), torch.tensor(arrays["ids"])
    image_side = [model.regions, model.head.similarity.image_sets]
    parts = [(image_side, 1e-4), ([model.words], 1e-3), ([model.head.similarity.text_sets], 1e-4)]
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
    np.testing.assert_allclose(model.words.embedding.weight.detach(), arrays["final_txt_embed"], rtol=1e-5, atol=1e-7)


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
        "img_": [(model.regions, REGIONS), (similarity.image_sets, SET)],
        "txt_": [(model.words, WORDS), (similarity.text_sets, SET)],
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
