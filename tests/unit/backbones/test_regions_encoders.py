"""Towers over regions and captions against golden numbers of VSE-infinity, CRCL, SCAN and DivE."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.backbones.configuration import RegionsBackbone
from clip_itm.backbones.features import Features
from clip_itm.backbones.published_regions import regions_section, regions_state
from clip_itm.backbones.regions import Regions, build
from clip_itm.methods.build import build_head
from clip_itm.methods.crcl.configuration import CrclHeadConfig
from clip_itm.methods.crcl.labels import LabelStore, phase_of
from clip_itm.similarity.tokens import unit_tokens

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): torch.tensor(arrays[name]) for name in arrays if name.startswith(prefix)}


def first(lengths, width: int) -> torch.Tensor:
    return torch.arange(width) < torch.as_tensor(lengths)[:, None]


def published(image: dict, text: dict, **options) -> Regions:
    """A backbone with published weights."""
    backbone = build(regions_section(image, text, **options), weights=False)
    backbone.load_state_dict(regions_state(image, text))
    return backbone


def embed(backbone: Regions, arrays: dict[str, np.ndarray], step: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of the golden photos and captions."""
    images, ids = torch.tensor(arrays[f"{step}images"]), torch.tensor(arrays[f"{step}captions"])
    regions = Features(None, images, first(arrays[f"{step}image_lengths"], images.shape[1]))
    words = backbone.text_trunk(ids, first(arrays[f"{step}caption_lengths"], ids.shape[1]))
    pooled = backbone.image_neck(regions).pooled, backbone.text_neck(words).pooled
    return tuple(F.normalize(vectors, dim=-1) for vectors in pooled)


def test_vse_infinity(golden):
    arrays = golden("crcl_vse_encoders")
    backbone = published(part(arrays, "img_param_"), part(arrays, "txt_param_"), norm_padding=True)
    trained, _ = embed(backbone, arrays)
    norm = backbone.region_encoder.mlp.norm
    found = {
        "img_emb_train": trained,
        "bn0_running_mean_after": norm.running_mean,
        "bn0_running_var_after": norm.running_var,
    }
    backbone = published(part(arrays, "img_param_"), part(arrays, "txt_param_")).eval()
    images, texts = embed(backbone, arrays)
    found |= {"img_emb_eval": images, "txt_emb_eval": texts, "sims_eval": images @ texts.T}
    for name, value in found.items():
        np.testing.assert_allclose(value.detach(), arrays[name], err_msg=name, **TOLERANCE)
    assert backbone.widths.pooled == images.shape[1]


def test_crcl_trains_vse_infinity(golden):
    """Three steps: loss, label store, gradient norm, AdamW on everything."""
    arrays = golden("crcl_vse_train_steps")
    backbone = published(part(arrays, "init_img_"), part(arrays, "init_txt_"), norm_padding=True)
    config = CrclHeadConfig(
        temperature=float(arrays["tau"]), label_momentum=float(arrays["alpha"]), same_image="negative"
    )
    head = build_head(config, backbone.widths)
    head.labels = LabelStore(len(arrays["s0_store_after"]))
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=float(arrays["lr"]), weight_decay=0.01)
    for step in ("s0_", "s1_", "s2_"):
        images, texts = embed(backbone, arrays, step)
        ids, epoch = torch.tensor(arrays[f"{step}ids"]), int(arrays[f"{step}epoch"])
        assert int(arrays[f"{step}piece"]) == 0
        head.phase = phase_of(epoch, [30], int(arrays["warm_epoch"]))
        loss, _ = head.loss(images, texts, ids, ids)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(backbone.parameters(), float(arrays["grad_clip"]))
        optimizer.step()
        np.testing.assert_allclose(loss.item(), arrays[f"{step}loss"], rtol=1e-4)
        np.testing.assert_allclose(norm, arrays[f"{step}grad_norm"], rtol=1e-4)
        np.testing.assert_allclose(head.labels.labels, arrays[f"{step}store_after"], **TOLERANCE)
    expected = regions_state(part(arrays, "final_img_"), part(arrays, "final_txt_"))
    state = backbone.state_dict()
    assert expected.keys() == state.keys()
    lr = float(arrays["lr"])
    # the norm behind this bias subtracts it: its gradient is rounding, of which AdamW makes steps in any direction
    atol = {"region_encoder.mlp.hidden.bias": 3 * 2 * lr}
    # two of the three running means saw the bias of such steps, the older one by 0.9 less
    atol["region_encoder.mlp.norm.running_mean"] = 0.1 * (0.9 * 2 * lr + 4 * lr)
    for name, value in expected.items():
        tolerance = atol.get(name, 0.05 * 3 * lr)
        np.testing.assert_allclose(state[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("direction", ["", "uni_"])
def test_scan(golden, direction):
    """Region projection and GRU, in both directions or one; unit vectors as the heads that read tokens make them."""
    arrays = golden("scan_encoders")
    text = {}
    for name, value in part(arrays, f"{direction}txt_").items():
        owner, _, leaf = name.partition("_")
        text[f"{owner}.{leaf}"] = value
    image = {"fc.weight": torch.tensor(arrays["fc_weight"]), "fc.bias": torch.tensor(arrays["fc_bias"])}
    backbone = published(image, text).eval()
    backbone.output_tokens = True
    assert backbone.config.bidirectional == (direction == "")
    features = backbone.image_neck(Features(None, torch.tensor(arrays["features"])))
    np.testing.assert_allclose(unit_tokens(features.tokens, features.mask).detach(), arrays["image_out"], **TOLERANCE)
    ids = torch.tensor(arrays["ids"])
    words = backbone.text_trunk(ids, first(arrays["lengths"], ids.shape[1]))
    expected = arrays[f"{direction}text_out"]
    np.testing.assert_allclose(unit_tokens(words.tokens, words.mask).detach(), expected, **TOLERANCE)


def test_sgraf(golden):
    arrays = golden("crcl_saf_sgr")
    backbone = published(part(arrays, "img_param_"), part(arrays, "txt_param_")).eval()
    backbone.output_tokens = True
    regions = backbone.image_neck(Features(None, torch.tensor(arrays["regions"])))
    ids = torch.tensor(arrays["captions"])
    words = backbone.text_trunk(ids, first(arrays["caption_lengths"], ids.shape[1]))
    np.testing.assert_allclose(unit_tokens(regions.tokens, regions.mask).detach(), arrays["img_emb"], **TOLERANCE)
    np.testing.assert_allclose(unit_tokens(words.tokens, words.mask).detach(), arrays["cap_emb"], **TOLERANCE)


def test_region_encoder_of_dive(golden):
    """Global feature with and without padding; running statistics move once (the release moves them twice, Q9)."""
    arrays = golden("dive_set_head")
    width = arrays["img_fc_w"].shape[0]
    config = RegionsBackbone(image_encoder="residual", embed_dim=width, pooling="max", vocab_size=4)
    backbone = build(config, weights=False).double()
    names = {"linear": "fc", "mlp.hidden": "mlp1", "mlp.output": "mlp2", "mlp.norm": "bn"}
    leaves = {"weight": "w", "bias": "b", "running_mean": "rm", "running_var": "rv"}
    owners = {name: name.rpartition(".") for name in backbone.region_encoder.state_dict()}
    backbone.region_encoder.load_state_dict(
        {
            name: torch.tensor(arrays[f"img_{names[owner]}_{leaves[leaf]}"]).double()
            for name, (owner, _, leaf) in owners.items()
        }
    )
    full = torch.tensor(arrays["img_regions_full"]).double()
    padded = torch.tensor(arrays["img_regions"]).double()
    backbone.eval()
    lengths = first(arrays["img_lengths"], padded.shape[1])
    found = {
        "imgfull_eval_global": backbone.image_neck(Features(None, full)).pooled,
        "img_eval_global": backbone.image_neck(Features(None, padded, lengths)).pooled,
    }
    for name, value in found.items():
        np.testing.assert_allclose(value.detach(), arrays[name], atol=1e-6, err_msg=name)
    backbone.train().image_neck(Features(None, full))
    norm = backbone.region_encoder.mlp.norm
    for name, value in (("rm", norm.running_mean), ("rv", norm.running_var)):
        before = arrays[f"img_bn_{name}"]
        batch = (value.numpy() - 0.9 * before) / 0.1
        np.testing.assert_allclose(0.81 * before + 0.19 * batch, arrays[f"imgfull_train_bn_{name}"], atol=1e-6)


def test_gru_of_dive(golden):
    """Raw words as tokens with the final states as vector; or states with their maximum."""
    arrays = golden("dive_set_head")
    ids = torch.tensor(arrays["txt_ids"])
    lengths = torch.tensor(arrays["txt_lengths"])
    vocab_size, word_dim = arrays["txt_embed"].shape
    width = arrays["txt_gru_weight_hh_l0"].shape[1]
    sizes = {"vocab_size": vocab_size, "word_dim": word_dim, "embed_dim": width}
    state = {f"gru.{name.removeprefix('gru_')}": value for name, value in part(arrays, "txt_").items() if "gru" in name}
    state |= {"embedding.weight": torch.tensor(arrays["txt_embed"])}
    towers = {}
    for name, options in (("last", {"text_tokens": "words", "text_pooling": "last"}), ("max", {"text_pooling": "max"})):
        backbone = build(RegionsBackbone(**sizes, **options), weights=False).eval()
        backbone.text_tower.load_state_dict(state)
        backbone.output_tokens = True
        towers[name] = backbone.text_trunk(ids, first(lengths, ids.shape[1]))
        twin = torch.nn.GRU(word_dim, width, batch_first=True, bidirectional=True)
        twin.load_state_dict(backbone.text_tower.gru.state_dict())
    words = torch.tensor(arrays["txt_embed"])[ids]
    for row, length in enumerate(lengths.tolist()):  # every caption alone, without padding
        states, final = twin(words[row : row + 1, :length])
        states = states.unflatten(2, (2, width)).mean(dim=2)[0]
        torch.testing.assert_close(towers["last"].pooled[row], final.mean(dim=0)[0])
        torch.testing.assert_close(towers["last"].tokens[row, :length], words[row, :length])
        torch.testing.assert_close(towers["max"].pooled[row], states.amax(dim=0))
        torch.testing.assert_close(towers["max"].tokens[row, :length], states)
        assert (towers["max"].tokens[row, length:] == 0).all()
        assert (towers["last"].tokens[row, length:] == 0).all()
