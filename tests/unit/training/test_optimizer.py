"""AdamW in one pass over weights and moments: what the two-pass one computes, and a run keeps the one it began with."""

from copy import deepcopy

import torch

from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.model import ItmModel
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.optimizer import make_optimizer, parameter_groups
from support.tiny import TINY_CLIP

SECTION = TrainingSection(learning_rate=1e-2, layer_decay=0.5, decay_all=False)
TOY = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "vocab_size": 64}}


def model() -> ItmModel:
    torch.manual_seed(0)
    return ItmModel.from_backbone(OpenClipBackbone(model="toy", model_config_dict={"model_cfg": TOY}))


def steps(towers: ItmModel, optimizer: torch.optim.Optimizer, count: int) -> None:
    for number in range(count):
        for index, parameter in enumerate(towers.parameters()):
            generator = torch.Generator().manual_seed(1000 * number + index)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_fused_adamw_takes_the_steps_of_the_plain_one():
    fused, plain = model(), model()
    optimizer = make_optimizer(fused, SECTION)
    assert optimizer.defaults["fused"]
    steps(fused, optimizer, 4)
    steps(plain, torch.optim.AdamW(parameter_groups(plain, SECTION), betas=SECTION.betas, eps=SECTION.epsilon), 4)
    before = dict(model().named_parameters())
    for (name, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        moved = (other - before[name]).abs().max()
        assert moved > 0, name
        assert (one - other).abs().max() <= 1e-5 * moved, name


def test_a_run_that_began_with_the_plain_one_goes_on_with_it():
    """To the bit: fused arithmetic rounds differently."""
    whole, resumed = model(), model()
    groups = parameter_groups(whole, SECTION)
    plain = torch.optim.AdamW(groups, betas=SECTION.betas, eps=SECTION.epsilon, fused=None)
    steps(whole, plain, 3)
    resumed.load_state_dict(whole.state_dict())
    again = make_optimizer(resumed, SECTION)
    again.load_state_dict(deepcopy(plain.state_dict()))  # else both would share the moments
    steps(whole, plain, 2)
    steps(resumed, again, 2)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))
