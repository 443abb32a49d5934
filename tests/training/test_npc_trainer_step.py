"""A step of NPC's trainer on a real model against its formulas, pair by pair."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_itm.methods.npc.step import NpcStep
from clip_itm.methods.npc.trainer import make_bank
from clip_itm.runs.setup import load_data
from support.trainers import npc_recipe, pieces


class Checked(Exception):
    """Leaves training behind the first step."""


def memory_batch(trainer, entries: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Photos, words, mask and photo numbers of pairs, each read on its own as if there were no memory."""
    plain = copy.copy(trainer.train_dataset)
    plain.memory = None
    batch = plain.__getitems__(entries.tolist())
    return batch["pixel_values"][batch["image_index"]], batch["input_ids"], batch["attention_mask"], batch["image_ids"]


def one_by_one_losses(images: Tensor, texts: Tensor, image_ids: Tensor, scale: Tensor) -> Tensor:
    """l of docs/papers/npc.md 2.2 by loops; another caption of the photo is left out of the sums."""
    losses = []
    for k in range(len(images)):
        others = [j for j in range(len(images)) if j == k or image_ids[j] != image_ids[k]]
        rows = scale * torch.stack([images[k] @ texts[j] for j in others])
        columns = scale * torch.stack([images[j] @ texts[k] for j in others])
        own = scale * (images[k] @ texts[k])
        losses.append((rows.exp().sum().log() - own + columns.exp().sum().log() - own) / 2)
    return torch.stack(losses)


def losses_of(model, batch) -> Tensor:
    pixels, words, mask, image_ids = batch
    images, texts = model.encode_images(pixels.double()), model.encode_texts(words, mask)
    return one_by_one_losses(images, texts, image_ids, model.head.scale())


@pytest.mark.parametrize(
    ("dropout", "weighted"),
    [
        pytest.param(0.0, False, id="shared passes"),
        pytest.param(0.3, False, id="separate passes"),
        pytest.param(0.0, True, id="data with weights"),
    ],
)
def test_a_step_of_the_trainer_against_its_formulas(tmp_path, monkeypatch, dropout, weighted):
    """Trial step, weights and gradient of the second step; entries are read and encoded one by one here."""
    recipe = npc_recipe(
        tmp_path,
        backbone={"text_dropout": dropout},
        training={"batch_size": 16, "precision": "fp32", "warmup": 0, "gradient_accumulation_steps": 1},
    )
    _, model, encoder, trainer = pieces(recipe)
    bank = make_bank(recipe.head, recipe.training.seed, load_data(recipe), encoder)
    embeddings = trainer.encode_val()
    trainer.encode_val, trainer.build_bank = lambda: embeddings, lambda: bank
    if weighted:
        trainer.train_dataset.pair_weight = np.random.default_rng(0).random(200).astype(np.float32)
    model.double()
    trainer.train_dataset.pixels = trainer.train_dataset.kept = None  # floats, of which the collator makes doubles
    trainer.data_collator = lambda batch: {
        name: value.double() if value.is_floating_point() else value for name, value in batch.items()
    }
    call, number = NpcStep.__call__, 0

    def spy(self, inputs, share):
        nonlocal number
        number += 1
        if number == 1:
            return call(self, inputs, share)
        rng = torch.random.get_rng_state()
        before = copy.deepcopy(model)
        moments = [
            {k: v.clone() for k, v in self.trial_optimizer.state[value].items()} for value in self.trial.values()
        ]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        outcome = call(self, inputs, share)
        gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
        assert self.shares_forward == (dropout == 0)
        check_step(trainer, before, moments, rates, self.trial, inputs, outcome, gradients, rng)
        raise Checked

    monkeypatch.setattr(NpcStep, "__call__", spy)
    with pytest.raises(Checked):
        trainer.train()


def check_step(trainer, model, moments, rates, trial, inputs, outcome, gradients, rng) -> None:
    pairs, dataset = inputs["pair_ids"].numpy(), trainer.train_dataset
    image_entry, caption_entry = dataset.memory
    batches = {
        "pairs": memory_batch(trainer, pairs),
        "photos'": memory_batch(trainer, image_entry[dataset.pair_image[pairs]]),
        "captions'": memory_batch(trainer, caption_entry[pairs]),
    }
    assert not np.isin(caption_entry[pairs], pairs).all()

    given = inputs.get("pair_weight", torch.ones(len(pairs)).double())
    model.eval()  # as published, the trial and the memory are computed in inference mode
    twin = copy.deepcopy(model)
    (given * losses_of(twin, batches["pairs"])).mean().backward()
    section = trainer.section
    (rate,) = set(rates)
    optimizer = torch.optim.AdamW(
        twin.parameters(), lr=rate, betas=section.betas, eps=section.epsilon, weight_decay=section.weight_decay
    )
    for parameter, state in zip(twin.parameters(), moments, strict=True):
        optimizer.state[parameter] = state
    optimizer.step()
    for name, value in twin.named_parameters():
        torch.testing.assert_close(trial[name], value.detach(), rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        ratio = sum(
            losses_of(model, batches[name]) / losses_of(twin, batches[name]) for name in ("photos'", "captions'")
        )
    ratio = ratio / 2
    torch.testing.assert_close(outcome.ratio, ratio, rtol=1e-8, atol=0)
    weight = torch.where(ratio < 1, ratio.tanh(), 1)
    torch.testing.assert_close(outcome.weight, weight, rtol=1e-8, atol=0)
    assert 0 < (weight < 1).sum() < len(weight)

    model.train()
    total, losses = total_loss(model, inputs, batches, weight * given, rng)
    torch.testing.assert_close(outcome.losses, (given * losses).detach(), rtol=1e-9, atol=0)
    if model.config.backbone["text_dropout"] == 0:
        torch.testing.assert_close(outcome.loss, total.detach(), rtol=1e-9, atol=0)
    total.backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, rtol=1e-7, atol=1e-11, msg=name)


def total_loss(model, inputs, batches, weight, rng) -> tuple[Tensor, Tensor]:
    if model.config.backbone["text_dropout"] == 0:
        losses = losses_of(model, batches["pairs"])
        memory = losses_of(model, batches["photos'"]) + losses_of(model, batches["captions'"])
        return (weight * losses).mean() + memory.mean(), losses
    # a photo or caption has one mask of dropout, wherever it occurs: encode them in the order of the step
    torch.random.set_rng_state(rng)
    images = [model.encode_images(inputs["pixel_values"])]
    texts = [model.encode_texts(inputs["input_ids"], inputs["attention_mask"])]
    images.append(model.encode_images(inputs["memory_pixel_values"]))
    texts.append(model.encode_texts(inputs["memory_input_ids"], inputs["memory_attention_mask"]))
    assert len(texts[1])
    assert len(images[1])
    scale, photo_ids = model.head.scale(), inputs["memory_image_ids"]
    losses = one_by_one_losses(images[0][inputs["image_index"]], texts[0], inputs["image_ids"], scale)
    images, texts = torch.cat(images)[inputs["memory_image_index"]], torch.cat(texts)[inputs["memory_caption"]]
    count = len(losses)
    memory = sum(
        one_by_one_losses(images[half], texts[half], photo_ids[half], scale)
        for half in (slice(count), slice(count, None))
    )
    return (weight * losses).mean() + memory.mean(), losses


@pytest.mark.parametrize("backbone", [{}, {"word_dropout": 0.2}], ids=["shared passes", "separate passes"])
def test_accumulated_gradients_are_the_mean_of_those_of_the_batches(tmp_path, monkeypatch, backbone):
    """Six batches of an epoch at four a step: the second step has two of them."""
    recipe = npc_recipe(
        tmp_path,
        backbone=backbone,
        head={"warmup_epochs": 1},
        training={"epochs": 2, "gradient_accumulation_steps": 4, "log_every": 1},
    )
    _, model, _, trainer = pieces(recipe)
    call, alone, shares, losses = NpcStep.__call__, [], [], []

    def spy(self, inputs, share):
        """The gradient of this batch by itself, from an equal state, before the real call."""
        state, rng = self.state_dict(), torch.random.get_rng_state()
        other = NpcStep(model, self.optimizer, self.config)
        other.load_state_dict(state)
        kept = [value.grad for value in self.parameters]
        for value in self.parameters:
            value.grad = None
        call(other, inputs)
        alone.append([value.grad for value in self.parameters])
        for value, gradient in zip(self.parameters, kept, strict=True):
            value.grad = gradient
        torch.random.set_rng_state(rng)
        shares.append(share)
        outcome = call(self, inputs, share)
        losses.append(outcome.loss)
        return outcome

    compared = []

    def compare(*_, **__):
        if alone:
            for number, value in enumerate(trainer.step.parameters):
                mean = sum(gradients[number] for gradients in alone) / len(alone)
                torch.testing.assert_close(value.grad, mean, rtol=1e-5, atol=1e-8)
            compared.append(len(alone))
            alone.clear()

    monkeypatch.setattr(NpcStep, "__call__", spy)
    monkeypatch.setattr("clip_itm.training.callbacks.FinishCallback.on_pre_optimizer_step", compare)
    trainer.train()
    assert compared == [4, 2]
    assert shares == [1 / 4] * 4 + [1 / 2] * 2
    logged = [entry["loss"] for entry in trainer.state.log_history if "batch_loss" in entry]
    expected = [torch.stack(part).mean().item() for part in (losses[:4], losses[4:])]
    assert logged == pytest.approx(expected, rel=1e-5)
