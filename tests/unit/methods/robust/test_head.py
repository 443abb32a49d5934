"""The head and its section: which temperature it has and whether it trains, which options a loss reads."""

import math

import pytest
import torch
import torch.nn.functional as F

from clip_itm.backbones.features import FeatureWidths
from clip_itm.methods.build import build_head
from clip_itm.methods.clip.head import ClipHead
from clip_itm.methods.robust.configuration import RobustHeadConfig
from clip_itm.methods.robust.head import RobustHead
from clip_itm.methods.robust.loss import bounded_losses, rince
from clip_itm.methods.robust.method import RobustMethod
from clip_itm.methods.robust.trainer import q_of_share
from clip_itm.methods.scores import local_targets, same_image
from clip_itm.training.configuration import TrainingSection
from support.tiny import tiny_recipe

IDS = torch.tensor([0, 1, 2, 0, 3, 1])
PAIRS = torch.arange(6)
LOSSES = ("gce", "rince", "sce", "tal")


def unit_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    images, texts = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)


@pytest.mark.parametrize("mode", ["negative", "mask", "positive"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_mean_over_pairs_times_their_weights(loss, mode):
    head = RobustHead(RobustHeadConfig(loss=loss, same_image=mode, temperature=0.1))
    images, texts = unit_pairs()
    scores = images @ texts.T
    expected = bounded_losses(
        loss, scores, scores.T, local_targets(scores), same_image(scores, IDS), mode, head.scale(), head.options
    )
    found, _ = head.loss(images, texts, IDS, PAIRS)
    torch.testing.assert_close(found, expected.mean())
    weight = torch.tensor([0, 0, 1, 0, 0, 0.5])
    torch.testing.assert_close(head.loss(images, texts, IDS, PAIRS, weight)[0], (weight * expected).mean())
    assert torch.equal(head.losses_of("infonce", images, texts, IDS), ClipHead.losses(head, images, texts, IDS))


@pytest.mark.parametrize(
    ("loss", "given", "pretrained", "starts_at", "trains"),
    [
        ("gce", None, None, 0.07, True),
        ("gce", None, 0.02, 0.02, True),
        ("sce", 0.05, 0.02, 0.05, True),
        ("rince", None, 0.02, 0.02, False),
        ("rince", None, None, 0.07, False),
        ("tal", None, 0.02, 0.015, False),
        ("tal", None, None, 0.015, False),
        ("tal", 0.05, 0.02, 0.05, False),
    ],
)
def test_where_the_temperature_starts_and_whether_it_trains(loss, given, pretrained, starts_at, trains):
    config = RobustHeadConfig(loss=loss, temperature=given)
    head = build_head(config, FeatureWidths(5, 5, 5), None if pretrained is None else -math.log(pretrained))
    assert 1 / head.scale().item() == pytest.approx(starts_at)
    assert head.logit_scale.requires_grad == trains
    head.loss(*(x.requires_grad_() for x in unit_pairs()), IDS, PAIRS)[0].backward()
    assert (head.logit_scale.grad is not None) == trains


@pytest.mark.parametrize("loss", ["rince", "tal"])
def test_losses_that_keep_the_temperature_fall_with_it_alone(loss):
    """On pairs that are told apart already: the reason why these two do not learn it."""
    images, texts = unit_pairs()[0], unit_pairs()[0]
    found = [
        RobustHead(RobustHeadConfig(loss=loss, temperature=t, **({"tal_margin": 2.0} if loss == "tal" else {})))
        .loss(images, texts, IDS, PAIRS)[0]
        .item()
        for t in (0.2, 0.1, 0.05)
    ]
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "tal", "q": 0.5}, "head.q does nothing with the loss tal; leave it out"),
        ({"loss": "gce", "rince_lambda": 0.5}, "head.rince_lambda does nothing with the loss gce"),
        ({"loss": "rince", "sce_reverse": 0.5}, "head.sce_reverse does nothing with the loss rince"),
        ({"loss": "gce", "sce_cross_entropy": 0.5}, "head.sce_cross_entropy does nothing"),
        ({"loss": "sce", "tal_margin": 0.5}, "head.tal_margin does nothing with the loss sce"),
        ({"loss": "sce", "sce_reverse": 0, "sce_cross_entropy": 0}, "are both 0, which leaves no loss"),
        ({"loss": "rince", "q": "auto"}, "head.q: auto is a rule for gce; write a number for rince"),
        ({"loss": "tal", "q": "auto"}, "head.q does nothing with the loss tal"),
        ({"q_epochs": 0}, "head.q_epochs does nothing with head.q: 0.3"),
        ({"q": "auto", "q_epochs": 5}, "5 epochs with q 0.3 leave none of the 5"),
        ({"loss": "rince", "q": 0.5, "temperature": 0.01}, "0.5 / 0.01 is above 40; lower head.q"),
    ],
)
def test_what_does_nothing_or_cannot_work_is_refused(keys, message):
    assert message in RobustHeadConfig(**keys).conflict(TrainingSection(epochs=5))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"q": 0.5, "temperature": 0.01},
        {"q": "auto"},
        {"q": "auto", "q_epochs": 0},
        {"loss": "rince", "q": 0.4, "temperature": 0.01, "rince_lambda": 1.0},
        {"loss": "sce", "sce_reverse": 0, "sce_cross_entropy": 1},
        {"loss": "tal", "tal_margin": 0},
    ],
)
def test_what_works_is_not_refused(keys):
    assert RobustHeadConfig(**keys).conflict(TrainingSection(epochs=5)) is None


def test_a_pretrained_temperature_under_which_rince_overflows_is_refused():
    config = RobustHeadConfig(loss="rince", q=0.5)
    RobustHead(config, math.log(80))
    with pytest.raises(ValueError, match=r"0\.5 / 0\.01 is above 40; lower head\.q"):
        RobustHead(config, math.log(100))


@pytest.mark.parametrize(("word", "expected"), [("auto", "auto"), ("0.5", 0.5)])
def test_q_on_the_command_line(word, expected, tmp_path):
    recipe = tiny_recipe(tmp_path, head={"kind": "robust"}).with_overrides("--head.q", word)
    assert recipe.head.q == expected
    with pytest.raises(ValueError, match=r"head\.q"):
        recipe.with_overrides("--head.q", "some")


def test_q_rises_with_the_share_of_wrong_captions_within_bounds():
    shares = [share / 100 for share in range(101)]
    found = [q_of_share(share) for share in shares]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0.05, 0.7)
    assert q_of_share(0.4) == pytest.approx(0.3)
    assert all(q == pytest.approx(min(max(0.75 * share, 0.05), 0.7)) for q, share in zip(found, shares, strict=True))


def test_it_warns_of_rince_that_pushes_more_than_it_pulls():
    """With equal scores s of B candidates, rince is e^(q s) ((lambda B)^q - 1) / q: above 1 it falls with s."""
    for keys, batch_size, warns in (
        ({"loss": "rince"}, 256, True),
        ({"loss": "rince"}, 32, False),
        ({"loss": "rince", "rince_lambda": 0.0039}, 256, False),
        ({}, 256, False),
    ):
        section, size = RobustHeadConfig(**keys), torch.tensor([0.0, 1.0])
        assert (section.caution(TrainingSection(batch_size=batch_size)) is not None) == warns
        if section.loss == "rince":
            logits = size[:, None].expand(2, batch_size)
            candidates = torch.zeros(2, batch_size, dtype=torch.bool)
            small, large = rince(logits, torch.zeros(2, dtype=torch.int64), candidates, 0.3, section.rince_lambda)
            assert (large > small) == warns


def test_it_warns_where_an_untrained_model_would_count_wrong_captions():
    for keys, random_part, warns in (
        ({"q": "auto", "q_epochs": 0}, "the text tower", True),
        ({"q": "auto", "q_epochs": 0}, None, False),
        ({"q": "auto"}, "the text tower", False),
        ({}, "the text tower", False),
    ):
        assert (RobustMethod(RobustHeadConfig(**keys)).caution(random_part) is not None) == warns
