"""NPC's weights, loss and steps against golden arrays (docs/papers/npc.md 2.3 to 2.6, 3), and their properties."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clip_itm.backbones.features import Features
from clip_itm.methods.clip.head import contrastive_losses
from clip_itm.methods.npc.configuration import NpcHeadConfig
from clip_itm.methods.npc.head import NpcHead
from clip_itm.methods.npc.step import NpcStep
from clip_itm.methods.npc.weights import confidence_weight, improvement_ratio
from clip_itm.training.schedule import cosine_lambda, plateau_lambda
from support.paths import GOLDEN


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


class TwoLinear(nn.Module):
    """The golden files' model: x @ W^T on both sides, and a learned temperature."""

    def __init__(self, config: NpcHeadConfig, w_img: Tensor, w_txt: Tensor, logit_scale: Tensor, dropout: float = 0.0):
        super().__init__()
        self.w_img, self.w_txt = nn.Parameter(w_img.clone()), nn.Parameter(w_txt.clone())
        self.head = NpcHead(config).double()
        self.head.logit_scale = nn.Parameter(logit_scale.clone())
        self.dropout = nn.Dropout(dropout)
        self.encoded = 0  # rows that went through the photo tower

    def encode_images(self, image_features: Tensor) -> Tensor:
        self.encoded += len(image_features)
        return self.head.embed_images(Features(self.dropout(image_features) @ self.w_img.T))

    def encode_texts(self, text_features: Tensor) -> Tensor:
        return self.head.embed_texts(Features(self.dropout(text_features) @ self.w_txt.T))

    def named(self) -> dict[str, Tensor]:
        return {"w_img": self.w_img, "w_txt": self.w_txt, "logit_scale": self.head.logit_scale}


def inputs(arrays: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A batch in which no photo and no caption occurs twice."""
    count = len(arrays[f"{prefix}batch_img"])
    return {
        "image_features": arrays[f"{prefix}batch_img"],
        "text_features": arrays[f"{prefix}batch_txt"],
        "image_index": torch.arange(count),
        "image_ids": torch.arange(count),
        "memory_image_features": torch.cat([arrays[f"{prefix}memi_img"], arrays[f"{prefix}memt_img"]]),
        "memory_text_features": torch.cat([arrays[f"{prefix}memi_txt"], arrays[f"{prefix}memt_txt"]]),
        "memory_image_index": count + torch.arange(2 * count),
        "memory_caption": count + torch.arange(2 * count),
        "memory_image_ids": count + torch.arange(2 * count),
    }


def close(found: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=rtol, atol=atol)


def make_step(arrays: dict[str, Tensor], optimizer, dropout: float = 0.0, **config) -> tuple[TwoLinear, NpcStep]:
    model = TwoLinear(
        NpcHeadConfig(**config), arrays["init_w_img"], arrays["init_w_txt"], arrays["init_logit_scale"], dropout
    )
    return model, NpcStep(model, optimizer(model.parameters()), model.head.config)


def finish(step: NpcStep, max_norm: float) -> Tensor:
    """Clip and take the real step, as the trainer does; gives the norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(step.parameters, max_norm)
    step.optimizer.step()
    step.optimizer.zero_grad()
    return norm


def test_weights_equal_the_golden_ones_including_the_edge_rows():
    arrays = golden("npc_weights")
    ratio = improvement_ratio((arrays["before_i"], arrays["before_t"]), (arrays["after_i"], arrays["after_t"]))
    torch.testing.assert_close(confidence_weight(ratio), arrays["weight"], rtol=1e-12, atol=0)
    known = ~arrays["ratio"].isnan()  # 0 / 0: not worse, an infinite ratio here
    torch.testing.assert_close(ratio[known], arrays["ratio"][known], rtol=1e-12, atol=0)
    assert ratio[~known].isinf().all()


@pytest.mark.parametrize("weight_fn", ["tanh", "ratio"])
def test_continuous_weights_have_no_jump_and_end_at_1(weight_fn):
    ratio = torch.tensor([0.0, 0.5, 1 - 1e-9, 1.0, 2.0, torch.inf], dtype=torch.float64)
    weight = confidence_weight(ratio, weight_fn)
    assert weight[0] == 0
    assert weight[1] < 0.9
    torch.testing.assert_close(weight[2:], torch.ones(4, dtype=torch.float64), rtol=1e-8, atol=0)


def test_total_loss_and_all_gradients_equal_the_golden_ones():
    arrays = golden("npc_total_loss")
    names = [f"{batch}_{side}" for batch in ("batch", "memi", "memt") for side in ("img", "txt")]
    for mode in ("intended", "released"):
        raw = {name: arrays[name].clone().requires_grad_() for name in (*names, "logit_scale")}
        config = NpcHeadConfig(mode=mode)
        model = TwoLinear(config, torch.eye(6).double(), torch.eye(6).double(), arrays["logit_scale"])
        step = NpcStep(model, torch.optim.SGD(model.parameters(), lr=0.1), config)
        unit = {name: nn.functional.normalize(raw[name], dim=-1) for name in names}
        losses, memory_image, memory_caption = (
            contrastive_losses(unit[f"{batch}_img"], unit[f"{batch}_txt"], raw["logit_scale"].exp())
            for batch in ("batch", "memi", "memt")
        )
        if not config.trains_memory:
            memory_image, memory_caption = memory_image.detach(), memory_caption.detach()
        close(losses, arrays["batch_per_sample"], 1e-9, 1e-11)
        close(memory_image, arrays["mem_loss_i"], 1e-9, 1e-11)
        close(memory_caption, arrays["mem_loss_t"], 1e-9, 1e-11)
        total = step._total(losses, arrays["weight"], (memory_image, memory_caption))
        close(total, arrays[f"total_{mode}"], 1e-9, 1e-11)
        total.backward()
        for name in names:
            gradient = raw[name].grad if raw[name].grad is not None else torch.zeros_like(raw[name])
            close(gradient, arrays[f"grad_{mode}_{name}"], 1e-9, 1e-11)
        close(raw["logit_scale"].grad, arrays[f"grad_{mode}_scale"], 1e-9, 1e-11)


@pytest.mark.parametrize("dropout", [0.0, 1e-30], ids=["shared forward", "separate passes"])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("released", {"mode": "released"}),
        ("intended", {}),
        ("intended_nomemgrad", {"memory_grad": False}),
    ],
)
def test_one_sgd_step_equals_the_golden_one(name, config, dropout):
    arrays = golden("npc_step_sgd")
    lr = arrays["lr"].item()
    model, step = make_step(
        arrays, lambda values: torch.optim.SGD(values, lr=lr), dropout, trial_moments="none", **config
    )
    step.shares_forward = dropout == 0
    outcome = step(inputs(arrays))
    expected = {key.removeprefix(f"{name}_"): value for key, value in arrays.items() if key.startswith(f"{name}_")}
    if "ratio" in expected:
        close(outcome.ratio, expected["ratio"], 1e-8, 1e-11)
    close(outcome.weight, expected["weight"], 1e-8, 1e-11)
    for parameter in model.named():
        trial = step.trial["head.logit_scale" if parameter == "logit_scale" else parameter]
        virtual = arrays[f"{'released' if name == 'released' else 'intended'}_virtual_params_{parameter}"]
        close(trial, virtual, 1e-8, 1e-11)
    norm = finish(step, 10.0)
    close(norm, expected["grad_norm"], 1e-8, 1e-11)
    for parameter, value in model.named().items():
        close(value, expected[f"params_after_{parameter}"], 1e-8, 1e-11)


@pytest.mark.parametrize("shares_forward", [True, False])
@pytest.mark.parametrize("mode", ["released", "intended"])
def test_adamw_steps_equal_the_golden_ones_with_both_optimisers_moments(mode, shares_forward):
    arrays = golden("npc_step_adamw")
    lr, beta1, beta2, eps, decay, warmup, total, max_norm = arrays["hyper"].tolist()
    model, step = make_step(
        arrays,
        lambda values: torch.optim.AdamW(values, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay),
        mode=mode,
    )
    step.shares_forward = shares_forward
    clipped = 0
    for number in range(4):
        step.optimizer.param_groups[0]["lr"] = lr * cosine_lambda(number, int(warmup), int(total))
        expected = {
            key.removeprefix(f"{mode}_step{number}_"): value
            for key, value in arrays.items()
            if key.startswith(f"{mode}_step{number}_")
        }
        outcome = step(inputs(arrays, f"step{number}_"))
        close(outcome.weight, expected["weight"], 1e-6, 1e-9)
        if "loss_total" in expected:
            close(outcome.loss, expected["loss_total"], 1e-6, 1e-9)
        for parameter in model.named():
            trial = step.trial["head.logit_scale" if parameter == "logit_scale" else parameter]
            close(trial, expected[f"virtual_params_{parameter}"], 1e-6, 1e-9)
        norm = finish(step, max_norm)
        clipped += bool(norm > max_norm)
        close(norm, expected["grad_norm"], 1e-6, 1e-9)
        for parameter, value in model.named().items():
            close(value, expected[f"params_after_{parameter}"], 1e-6, 1e-9)
    assert clipped, "clipping must have acted in some step"
    for parameter, value in model.named().items():
        trial = step.trial["head.logit_scale" if parameter == "logit_scale" else parameter]
        for moment in ("exp_avg", "exp_avg_sq"):
            found = step.trial_optimizer.state[trial][moment]
            close(found, arrays[f"{mode}_virtual_{moment}_{parameter}"], 1e-6, 1e-9)
            close(step.optimizer.state[value][moment], arrays[f"{mode}_base_{moment}_{parameter}"], 1e-6, 1e-9)


def test_the_released_program_run_over_epochs():
    arrays = golden("npc_main_run")
    lr, beta1, beta2, eps, decay, warmup = arrays["hyper"].tolist()
    per_epoch, epochs, samples = (int(arrays[name]) for name in ("batches_per_epoch", "epochs", "n_samples"))
    model, step = make_step(
        arrays,
        lambda values: torch.optim.AdamW(values, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay),
        mode="released",
    )
    for number in range(per_epoch * epochs):
        rate = lr * plateau_lambda(number, int(warmup), per_epoch, samples, epochs)
        assert rate == pytest.approx(arrays["lr_per_step"][number].item(), rel=1e-9)
        step.optimizer.param_groups[0]["lr"] = rate
        step(inputs(arrays, f"b{number % per_epoch}_"))
        for parameter in model.named():
            trial = step.trial["head.logit_scale" if parameter == "logit_scale" else parameter]
            close(trial, arrays[f"virtual_params_{parameter}"][number], 1e-6, 1e-9)
        finish(step, 10.0)
        for parameter, value in model.named().items():
            close(value, arrays[f"params_{parameter}"][number], 1e-6, 1e-9)


def test_memory_loss_trains_the_model_and_weights_are_constants():
    """Both must be true at once: a gradient through the memory entries, none through the trial step."""
    arrays = golden("npc_step_sgd")

    def gradient(**config) -> Tensor:
        model, step = make_step(arrays, lambda values: torch.optim.SGD(values, lr=0.05), **config)
        step(inputs(arrays))
        return model.w_img.grad

    full, constant = gradient(), gradient(memory_grad=False)
    assert not torch.allclose(full, constant)
    model, step = make_step(arrays, lambda values: torch.optim.SGD(values, lr=0.05), memory_coef=0.0)
    outcome = step(inputs(arrays))
    losses = contrastive_losses(
        model.encode_images(arrays["batch_img"]), model.encode_texts(arrays["batch_txt"]), model.head.scale()
    )
    expected = torch.autograd.grad((outcome.weight * losses).mean(), model.w_img)[0]
    close(model.w_img.grad, expected, 1e-10, 1e-12)


@pytest.mark.parametrize("shares_forward", [True, False])
def test_equal_rows_are_encoded_once_and_change_nothing(shares_forward):
    """A batch whose entries are largely its own pairs, as rows and spelled out: the same step at a lower price."""
    generator = torch.Generator().manual_seed(0)
    photos, captions = torch.randn(6, 6, generator=generator).double(), torch.randn(8, 5, generator=generator).double()
    photo = torch.tensor([0, 1, 1, 2])  # two captions of photo 1
    memory_photo = torch.tensor([0, 1, 1, 3, 0, 5, 1, 4])
    memory_caption = torch.tensor([0, 1, 1, 6, 0, 7, 2, 5])
    arrays = {
        "init_w_img": torch.randn(4, 6, generator=generator).double(),
        "init_w_txt": torch.randn(4, 5, generator=generator).double(),
        "init_logit_scale": torch.tensor(2.0).double(),
    }
    short = {
        "image_features": photos[:3],
        "text_features": captions[:4],
        "image_index": photo,
        "image_ids": photo,
        "memory_image_features": photos[3:],
        "memory_text_features": captions[4:],
        "memory_image_index": memory_photo,
        "memory_caption": memory_caption,
        "memory_image_ids": memory_photo,
    }
    long = {
        **short,
        "image_features": photos[photo],
        "image_index": torch.arange(4),
        "memory_image_features": photos[memory_photo],
        "memory_text_features": captions[memory_caption],
        "memory_image_index": 4 + torch.arange(8),
        "memory_caption": 4 + torch.arange(8),
    }
    results, encoded = [], []
    for batch in (short, long):
        model, step = make_step(arrays, lambda values: torch.optim.AdamW(values, lr=0.05), same_image="mask")
        step.shares_forward = shares_forward
        outcome = step(batch)
        results.append((outcome.loss, outcome.weight, *(value.grad for value in step.parameters)))
        encoded.append(model.encoded)
    for one, other in zip(*results, strict=True):
        close(one, other, 1e-10, 1e-12)
    assert encoded[0] < 0.7 * encoded[1]


@pytest.mark.parametrize("shares_forward", [True, False])
@pytest.mark.parametrize("mode", ["negative", "mask", "positive"])
def test_equal_captions_of_other_images_in_the_batch_and_among_its_entries(mode, shares_forward):
    """In the losses of both memories, before the trial step and behind it, and in what trains."""
    arrays = golden("npc_step_sgd")
    batch = inputs(arrays)
    count = len(batch["image_ids"])
    batch["caption_ids"] = torch.arange(count) // 2
    batch["memory_caption_ids"] = torch.arange(2 * count) % count // 2  # the same numbers in both memories
    model, step = make_step(arrays, lambda values: torch.optim.SGD(values, lr=0.05), same_caption=mode)
    step.shares_forward = shares_forward
    outcome = step(batch)

    def losses(w_img, w_txt, prefix, captions):
        images, texts = arrays[f"{prefix}_img"] @ w_img.T, arrays[f"{prefix}_txt"] @ w_txt.T
        images, texts = (nn.functional.normalize(rows, dim=-1) for rows in (images, texts))
        more = {"caption_ids": captions, "caption_mode": mode}
        return contrastive_losses(images, texts, model.head.scale(), torch.arange(count), "mask", **more)

    captions = torch.arange(count) // 2
    own = losses(model.w_img, model.w_txt, "batch", captions)
    memory = [losses(model.w_img, model.w_txt, name, captions) for name in ("memi", "memt")]
    close(outcome.losses, own.detach(), 1e-9, 1e-11)
    gradients = torch.autograd.grad(own.mean(), (model.w_img, model.w_txt, model.head.logit_scale), retain_graph=True)
    trial = [value.detach() - 0.05 * gradient for value, gradient in zip(step.parameters[:2], gradients, strict=False)]
    for name, value in zip(("w_img", "w_txt"), trial, strict=True):
        close(step.trial[name], value, 1e-9, 1e-11)
    close(outcome.loss, ((outcome.weight * own).mean() + sum(memory).mean()).detach(), 1e-9, 1e-11)
    plain = make_step(arrays, lambda values: torch.optim.SGD(values, lr=0.05))[1](inputs(arrays))
    assert (mode == "negative") == bool(torch.equal(plain.losses, outcome.losses))


def test_it_finds_out_whether_a_forward_pass_can_be_shared():
    arrays = golden("npc_step_sgd")
    for dropout, shares in ((0.0, True), (0.5, False)):
        model, step = make_step(arrays, lambda values: torch.optim.SGD(values, lr=0.05), dropout)
        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        assert step._modes_agree(_batch(arrays)) == shares
        assert torch.equal(torch.random.get_rng_state(), before), "looking must not move the generator"
        assert model.training


def _batch(arrays):
    from clip_itm.methods.npc.step import Batch

    return Batch(inputs(arrays))


def test_weight_one_takes_no_trial_step():
    arrays = golden("npc_step_sgd")
    model, step = make_step(arrays, lambda values: torch.optim.SGD(values, lr=0.05), weight_fn="one")
    outcome = step(inputs(arrays))
    assert outcome.weight.tolist() == [1.0] * 8
    assert model.encoded == 3 * 8
    assert step.state_dict() == {}


def test_base_moments_make_the_trial_the_step_that_the_real_optimiser_would_take():
    arrays = golden("npc_step_adamw")
    model, step = make_step(arrays, lambda values: torch.optim.AdamW(values, lr=0.05), trial_moments="base")
    step(inputs(arrays, "step0_"))
    step.optimizer.step()
    step.optimizer.zero_grad()
    twin = TwoLinear(NpcHeadConfig(), model.w_img.detach(), model.w_txt.detach(), model.head.logit_scale.detach())
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.05)
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        optimizer.state[other] = {name: value.clone() for name, value in step.optimizer.state[own].items()}
    moments = step.optimizer.state[model.w_img]["exp_avg"].clone()
    step(inputs(arrays, "step1_"))
    batch = inputs(arrays, "step1_")
    contrastive_losses(
        twin.encode_images(batch["image_features"]), twin.encode_texts(batch["text_features"]), twin.head.scale()
    ).mean().backward()
    optimizer.step()
    close(step.trial["w_img"], twin.w_img.detach(), 1e-10, 1e-12)
    assert torch.equal(step.optimizer.state[model.w_img]["exp_avg"], moments), "read only"


def test_state_goes_on_to_the_bit():
    arrays = golden("npc_step_adamw")

    def run(save_after: int | None) -> dict[str, Tensor]:
        model, step = make_step(arrays, lambda values: torch.optim.AdamW(values, lr=0.05))
        for number in range(4):
            step(inputs(arrays, f"step{number}_"))
            finish(step, 10.0)
            if number == save_after:
                state = {name: value.clone() for name, value in step.state_dict().items()}
                step = NpcStep(model, step.optimizer, model.head.config)
                step.load_state_dict(state)
        return model.named()

    whole, resumed = run(None), run(1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_model_without_gradient_through_the_trial_keeps_its_weights_still():
    """The trial parameters are other tensors: the model moves only when the real optimiser steps."""
    arrays = golden("npc_step_adamw")
    model, step = make_step(arrays, lambda values: torch.optim.AdamW(values, lr=0.05))
    before = model.w_img.detach().clone()
    step(inputs(arrays, "step0_"))
    assert torch.equal(model.w_img.detach(), before)
    assert not torch.equal(step.trial["w_img"], before)


def test_config_defaults_follow_the_mode():
    intended, released = NpcHeadConfig(), NpcHeadConfig(mode="released")
    assert (intended.trains_memory, intended.trial_scale) == (True, 1.0)
    assert (released.trains_memory, released.trial_scale) == (False, 4.0)
    assert NpcHeadConfig(mode="released", memory_grad=True, trial_grad_scale=1).trial_scale == 1
