"""The plain head against golden numbers, and the three ways to treat another caption of the same photo."""

import math

import numpy as np
import pytest
import torch

from clip_itm.backbones.features import Features
from clip_itm.methods.clip.configuration import ClipHeadConfig
from clip_itm.methods.clip.head import ClipHead, contrastive_losses
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.schedule import cosine_lambda, plateau_lambda, warmup_steps

TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


def plain_head(logit_scale: float) -> ClipHead:
    head = ClipHead(ClipHeadConfig(same_image="negative"), logit_scale).double()
    with torch.no_grad():
        head.logit_scale.copy_(torch.tensor(logit_scale, dtype=torch.float64))
    return head


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("weighted", [False, True])
def test_npc_contrastive_golden(golden, case, weighted):
    arrays = {name[2:]: torch.tensor(value) for name, value in golden("npc_contrastive").items() if name[0] == case}
    head = plain_head(float(arrays["logit_scale"]))
    images, texts = (arrays[name].clone().requires_grad_() for name in ("img", "txt"))
    losses = contrastive_losses(head.embed_images(Features(images)), head.embed_texts(Features(texts)), head.scale())
    np.testing.assert_allclose(losses.detach(), arrays["per_sample"], **TOLERANCE)
    loss = (losses * arrays["w"]).mean() if weighted else losses.mean()
    loss.backward()
    name, gradient = ("loss_per_sample_weighted", "gw") if weighted else ("loss_mean", "g")
    np.testing.assert_allclose(loss.detach(), arrays[name], **TOLERANCE)
    np.testing.assert_allclose(images.grad, arrays[f"{gradient}_img"], **TOLERANCE)
    np.testing.assert_allclose(texts.grad, arrays[f"{gradient}_txt"], **TOLERANCE)
    np.testing.assert_allclose(head.logit_scale.grad, arrays[f"{gradient}_scale"], **TOLERANCE)


def test_npc_clip_baseline_golden(golden):
    """Whole plain fine-tune of two linear encoders: our loss, schedule and optimiser settings step by step."""
    arrays = golden("npc_clip_baseline")
    lr, beta1, beta2, epsilon, decay, warmup = arrays["hyper"]
    weights = {name: torch.tensor(arrays[f"init_w_{name}"], requires_grad=True) for name in ("img", "txt")}
    head = plain_head(float(arrays["init_logit_scale"]))
    section = TrainingSection(betas=(beta1, beta2), epsilon=epsilon, weight_decay=decay, learning_rate=lr)
    optimizer = torch.optim.AdamW(
        [*weights.values(), head.logit_scale],
        lr=section.learning_rate,
        betas=section.betas,
        eps=section.epsilon,
        weight_decay=section.weight_decay,
    )
    batches, epochs = int(arrays["batches_per_epoch"]), int(arrays["epochs"])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_lambda(step, int(warmup), batches * epochs)
    )
    for step in range(batches * epochs):
        np.testing.assert_allclose(schedule.get_last_lr()[0], arrays["intended_lr_per_step"][step], rtol=1e-12)
        batch = {name: torch.tensor(arrays[f"b{step % batches}_batch_{name}"]) for name in ("img", "txt")}
        optimizer.zero_grad()
        embedded = [head.embed_images(Features(batch[name] @ weights[name].T)) for name in ("img", "txt")]
        loss, _ = head.loss(*embedded, image_ids=torch.arange(6), pair_ids=torch.arange(6))
        loss.backward()
        optimizer.step()
        schedule.step()
        for name, value in (("w_img", weights["img"]), ("w_txt", weights["txt"]), ("logit_scale", head.logit_scale)):
            np.testing.assert_allclose(
                value.detach(), arrays[f"intended_params_{name}"][step], rtol=1e-6, atol=1e-9, err_msg=f"{name} {step}"
            )


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_schedule_golden(golden, case):
    arrays = golden("npc_lr_schedule")
    base, warmup, total = arrays[f"{case}_hyper"]
    ours = [base * cosine_lambda(step, int(warmup), int(total)) for step in range(len(arrays[f"{case}_lr"]))]
    np.testing.assert_allclose(ours, arrays[f"{case}_lr"], rtol=1e-9, atol=1e-18)


def test_schedule_of_published_runs_golden(golden):
    arrays = golden("npc_lr_schedule")
    samples, _, epochs, warmup, base = arrays["run_hyper"]
    batches = arrays["intended_lr"].shape[1]
    steps = range(int(epochs) * batches)
    intended = [base * cosine_lambda(step, int(warmup), len(steps)) for step in steps]
    released = [base * plateau_lambda(step, int(warmup), batches, int(samples), int(epochs)) for step in steps]
    np.testing.assert_allclose(intended, arrays["intended_lr"].ravel(), rtol=1e-9)
    np.testing.assert_allclose(released, arrays["released_lr"].ravel(), rtol=1e-9)


def test_warmup_is_a_share_or_a_number():
    assert (warmup_steps(0.1, 200), warmup_steps(500, 200), warmup_steps(0, 200)) == (20, 500, 0)


def batch(seed: int, size: int = 8, photos: int = 3, width: int = 5):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(photos, width, generator=generator, dtype=torch.float64)
    image_ids = torch.arange(size) % photos
    texts = torch.randn(size, width, generator=generator, dtype=torch.float64)
    unit = torch.nn.functional.normalize
    return unit(images)[image_ids], unit(texts), image_ids


def brute_force(images, texts, scale, image_ids, mode):
    """The definition, one pair and one candidate at a time."""
    losses = []
    for k in range(len(images)):
        total = 0.0
        for query, candidates in ((images[k], texts), (texts[k], images)):
            scores = [scale * float(query @ other) for other in candidates]
            same = [int(i) == int(image_ids[k]) for i in image_ids]
            if mode == "positive":
                partition = math.log(sum(math.exp(score) for score in scores))
                own = sum(math.exp(score) for score, mine in zip(scores, same, strict=True) if mine)
                total += partition - math.log(own)
                continue
            allowed = [score for j, score in enumerate(scores) if mode == "negative" or j == k or not same[j]]
            total += math.log(sum(math.exp(score) for score in allowed)) - scores[k]
        losses.append(total / 2)
    return losses


@pytest.mark.parametrize("mode", ["negative", "mask", "positive"])
def test_same_photo_modes_against_brute_force(mode):
    images, texts, image_ids = batch(seed=1)
    ours = contrastive_losses(images, texts, 7.0, image_ids, mode)
    np.testing.assert_allclose(ours, brute_force(images, texts, 7.0, image_ids, mode), rtol=1e-12)


def test_modes_agree_where_no_photo_repeats_and_differ_where_one_does():
    images, texts, image_ids = batch(seed=2, size=6, photos=6)
    plain = contrastive_losses(images, texts, 7.0, image_ids, "negative")
    for mode in ("mask", "positive"):
        torch.testing.assert_close(contrastive_losses(images, texts, 7.0, image_ids, mode), plain)
    images, texts, image_ids = batch(seed=2)
    different = [
        contrastive_losses(images, texts, 7.0, image_ids, mode).mean() for mode in ("negative", "mask", "positive")
    ]
    assert len({round(float(value), 6) for value in different}) == 3


def test_published_mode_already_shares_the_target_among_captions():
    """With k captions of every photo, one target per row is the loss of shared targets over distinct photos, plus ln
    k.
    """
    images, texts, image_ids = batch(seed=3, size=9, photos=3)
    ours = contrastive_losses(images, texts, 7.0, image_ids, "negative").mean()
    distinct = 7.0 * images[:3] @ texts.T
    targets = (torch.arange(3)[:, None] == image_ids[None]).double()
    image_to_text = -(distinct.log_softmax(1) * targets / targets.sum(1, keepdim=True)).sum(1).mean()
    text_to_image = torch.nn.functional.cross_entropy(distinct.T, image_ids)
    torch.testing.assert_close(ours, (image_to_text + text_to_image + math.log(3)) / 2)


def test_positive_mode_counts_a_photo_once():
    images, texts, image_ids = batch(seed=3, size=9, photos=3)
    ours = contrastive_losses(images, texts, 7.0, image_ids, "positive").mean()
    distinct = 7.0 * images[:3] @ texts.T
    own = (torch.arange(3)[:, None] == image_ids[None]).double()
    image_to_text = -(distinct.softmax(1) * own).sum(1).log().mean()
    text_to_image = torch.nn.functional.cross_entropy(distinct.T, image_ids)
    torch.testing.assert_close(ours, (image_to_text + text_to_image) / 2)


def test_temperature_and_cap():
    assert ClipHead(ClipHeadConfig(), 4.6).logit_scale.item() == pytest.approx(4.6)
    assert ClipHead(ClipHeadConfig(temperature=0.05), 4.6).scale().item() == pytest.approx(20)
    assert ClipHead(ClipHeadConfig()).scale().item() == pytest.approx(1 / 0.07)
    assert ClipHead(ClipHeadConfig(max_logit_scale=100), 5.0).scale().item() == pytest.approx(100)
    assert ClipHead(ClipHeadConfig(), 5.0).scale().item() == pytest.approx(math.exp(5))


def test_low_precision_towers_are_compared_in_float32():
    head = ClipHead(ClipHeadConfig())
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    embedded = head.embed_images(Features(vectors.bfloat16()))
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(4))
