"""SAF and SGR against golden numbers, plain loops, and their published checkpoints (docs/papers/crcl.md 6.4-6.10)."""

import argparse

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.backbones.features import FeatureWidths
from clip_itm.similarity import tokens
from clip_itm.similarity.configuration import SafSection, SgrSection
from clip_itm.similarity.saf import Saf, caption_statistics, running_value
from clip_itm.similarity.sgr import Sgr
from clip_itm.similarity.sgraf import attended_regions
from clip_itm.similarity.sgraf_checkpoint import load_sgraf, similarity_state
from clip_itm.similarity.tokens import token_mask

WIDTHS = FeatureWidths(pooled=16, image_tokens=16, text_tokens=16)
KINDS = {"SAF": (Saf, SafSection), "SGR": (Sgr, SgrSection)}


def published(arrays: dict[str, np.ndarray], kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{kind}_param_"
    return {name.removeprefix(prefix): torch.tensor(arrays[name]) for name in arrays if name.startswith(prefix)}


def golden_similarity(arrays: dict[str, np.ndarray], kind: str) -> Saf | Sgr:
    module, section = KINDS[kind]
    similarity = module(section(similarity_dim=8, dropout=0), WIDTHS)
    similarity.load_state_dict(similarity_state(published(arrays, kind)))
    return similarity


def small(kind: str, **options) -> tuple[Saf | Sgr, torch.Tensor, torch.Tensor]:
    """A similarity in float64 with unequal gates, 3 photos of 4 regions and 5 captions of 1 to 6 words."""
    torch.manual_seed(1)
    module, section = KINDS[kind]
    similarity = module(section(regions=4, similarity_dim=8, dropout=0, **options), WIDTHS).double()
    images = F.normalize(torch.randn(3, 4, 16, dtype=torch.float64), dim=-1)
    texts = F.normalize(torch.randn(5, 6, 16, dtype=torch.float64), dim=-1)
    return similarity, images, texts * (torch.arange(6) < torch.tensor([[3], [1], [6], [2], [4]]))[..., None]


def test_golden_attention(golden):
    arrays = golden("crcl_saf_sgr")
    found = attended_regions(torch.tensor(arrays["att_context"]), torch.tensor(arrays["att_query"]))
    own = found[torch.arange(2), torch.arange(2)]
    np.testing.assert_allclose(own.numpy(), arrays["att_out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_evaluation(golden, kind):
    """Scores, and gradients of embeddings and of a weight."""
    arrays = golden("crcl_saf_sgr")
    similarity = golden_similarity(arrays, kind).eval()
    images, texts = (torch.tensor(arrays[name]).requires_grad_() for name in ("img_emb", "cap_emb"))
    scores = similarity(images, texts)
    scores.backward(torch.tensor(arrays[f"{kind}_upstream"]))
    for found, name in (
        (scores, "sims_eval"),
        (images.grad, "grad_img_emb"),
        # a padding row is a constant: nothing flows on from it
        (texts.grad * token_mask(texts)[..., None], "grad_cap_emb"),
        (similarity.local_difference.weight.grad, "grad_sim_tranloc_weight"),
    ):
        expected = arrays[f"{kind}_{name}"]
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=name)
        assert np.abs(expected).max() > 1e-3


def test_golden_ensemble(golden):
    """Two similarities are averaged (docs/papers/crcl.md 8.4)."""
    arrays = golden("crcl_saf_sgr")
    images, texts = torch.tensor(arrays["img_emb"]), torch.tensor(arrays["cap_emb"])
    with torch.no_grad():
        found = sum(golden_similarity(arrays, kind).eval()(images, texts).double() for kind in KINDS) / 2
    np.testing.assert_allclose(found.numpy(), arrays["ensemble_sims"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_training(golden, monkeypatch, kind):
    """Batch statistics, those of the gate by caption, and the running ones; whole and in checkpointed blocks."""
    arrays = golden("crcl_saf_sgr")
    names = [name for name in arrays if name.startswith(f"{kind}_after_")]
    assert len(names) == {"SAF": 6, "SGR": 4}[kind]
    for size in (tokens.BLOCK_BYTES, 1):
        monkeypatch.setattr(tokens, "BLOCK_BYTES", size)
        similarity = golden_similarity(arrays, kind).train()
        scores = similarity(torch.tensor(arrays["img_emb"]), torch.tensor(arrays["cap_emb"]))
        scores.sum().backward()
        expected = arrays[f"{kind}_sims_train_nodrop"]
        np.testing.assert_allclose(scores.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected - arrays[f"{kind}_sims_eval"]).max() > 1e-3, "training would not differ"
        found = similarity.state_dict()
        running = {name.removeprefix(f"{kind}_after_"): torch.tensor(arrays[name]) for name in names}
        for name, value in similarity_state(running).items():
            np.testing.assert_allclose(found[name].numpy(), value.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
    if kind == "SAF":
        before = int(arrays["SAF_param_SAF_module.bn.num_batches_tracked"])
        assert int(similarity.gate_norm.num_batches_tracked) == before + 5


def test_statistics_of_captions():
    """Against a batch norm of one channel that sees one caption after the other."""
    torch.manual_seed(0)
    values, lengths = torch.randn(4, 5, 6, dtype=torch.float64), [3, 6, 1, 2, 4]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    norm = torch.nn.BatchNorm1d(1).double()
    mean, variance, unbiased = caption_statistics(values, mask)
    for caption, length in enumerate(lengths):
        own = values[:, caption, :length]
        torch.testing.assert_close(mean[caption], own.mean())
        torch.testing.assert_close(variance[caption], own.var(unbiased=False))
        norm(own[:, None])
    start = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(running_value(start, mean, 0.1), norm.running_mean)
    torch.testing.assert_close(running_value(start + 1, unbiased, 0.1), norm.running_var)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_depends_on_its_pair_alone(kind):
    """In evaluation; neither on padding nor on the order of words."""
    similarity, images, texts = small(kind)
    similarity.eval()
    scores = similarity(images, texts)
    assert scores.shape == (3, 5)
    assert ((scores > 0) & (scores < 1)).all()
    assert scores.std() > 1e-4
    longer = torch.cat([torch.zeros(5, 2, 16), texts, torch.zeros(5, 3, 16)], dim=1)
    torch.testing.assert_close(similarity(images, longer), scores)
    torch.testing.assert_close(similarity(images[1:2], texts[2:4]), scores[1:2, 2:4])
    torch.testing.assert_close(similarity(images, texts.flip(1)), scores)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_change_no_gradients(monkeypatch, kind):
    found = []
    for size in (tokens.BLOCK_BYTES, 1):
        monkeypatch.setattr(tokens, "BLOCK_BYTES", size)
        similarity, images, texts = small(kind)
        images.requires_grad_(), texts.requires_grad_()
        similarity(images, texts).square().sum().backward()
        found.append([images.grad, texts.grad, *(p.grad for p in similarity.parameters())])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole)
        assert whole.isfinite().all()


def test_other_numbers_of_regions_are_refused():
    similarity, images, texts = small("SAF")
    with pytest.raises(ValueError, match=r"head\.similarity\.regions: 4, but photos have 3 tokens; write regions: 3"):
        similarity(images[:, :3], texts)


@pytest.mark.parametrize("kind", KINDS)
def test_published_checkpoint(golden, tmp_path, kind):
    """The layout of the released programs: three states, and an options object."""
    arrays = golden("crcl_saf_sgr")
    path = tmp_path / "model_best.pth.tar"
    encoders = {"fc.weight": torch.ones(2, 2)}, {"embed.weight": torch.zeros(3, 2)}
    options = argparse.Namespace(module_name=kind, embed_size=16, loss={"margin": 0.2})
    torch.save({"epoch": 3, "model": [*encoders, published(arrays, kind)], "opt": options, "best_rsum": 500.1}, path)
    found = load_sgraf(path)
    assert (found.image.keys(), found.text.keys()) == ({"fc.weight"}, {"embed.weight"})
    module, section = KINDS[kind]
    module(section(similarity_dim=8), WIDTHS).load_state_dict(found.similarity)


class Harmful:
    def __reduce__(self):
        return print, ("code of a checkpoint was run",)


def test_checkpoints_run_no_code(tmp_path, capsys):
    path = tmp_path / "model.pth.tar"
    torch.save({"model": [{}, {}, {}], "opt": Harmful()}, path)
    with pytest.raises(ValueError, match="refused, and nothing in it was executed: it asks for"):
        load_sgraf(path)
    assert "was run" not in capsys.readouterr().out


def test_checkpoints_of_other_models_are_refused(tmp_path):
    path = tmp_path / "model.pth.tar"
    for content, message in (
        ({"model": [{}, {}]}, "list of three state dictionaries"),
        ({"model": [{}, {}, {"a": torch.ones(1)}]}, "no sim_eval_w.weight"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_sgraf(path)
