"""A step never asks the device for a value, so that a GPU always has work queued.

Here there is no GPU to wait for; what would wait is known by torch's own tags of operations.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clip_itm.methods.npc.trainer import NpcTrainer
from clip_itm.runs.train import train
from clip_itm.training.guarded import GuardedTrainer
from clip_itm.training.trainer import PairTrainer
from support.tiny import HEADS, tiny_recipe

METHODS = {
    "clip": {"kind": "clip", "same_caption": "mask"},
    "npc": {"kind": "npc", "warmup_epochs": 0, "rho": 0.5},
    "crcl": {"kind": "crcl"},
    "crossfit": {"kind": "crossfit", "folds": 2},
    **HEADS,
}
FEW_EPOCHS = {"schedules": None, "frozen_epochs": 1}
# Attention leaves out the positions that are padding in all captions, AAHR its triplets without a negative, NPC photos
# and captions that it has already: less work, for a look at the mask.
LOOKS = {"scan", "saf", "sgr", "aahr", "npc"}


class Watch(TorchDispatchMode):
    """The names of operations whose result, or its shape, depends on values."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
            reads = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if reads:
            self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


def watched(function, watch: Watch, calls: list[str]):
    def wrapped(*args, **kwargs):
        calls.append(function.__qualname__)
        if calls.count(function.__qualname__) == 1:  # the first time things are set up
            return function(*args, **kwargs)
        with watch:
            return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_no_step_waits_for_a_value(tmp_path, monkeypatch, method):
    watch, calls = Watch(), []
    monkeypatch.setattr(GuardedTrainer, "_looks_at_every_step", False)
    parts = [(PairTrainer, "training_step"), (PairTrainer, "_get_grad_norm"), (torch.optim.AdamW, "step")]
    if method == "npc":
        parts[0] = (NpcTrainer, "training_step")
    for owner, name in parts:
        monkeypatch.setattr(owner, name, watched(getattr(owner, name), watch, calls))
    training = {"epochs": 2, "max_steps": 3, "max_grad_norm": 1.0, "log_every": 100}
    head = METHODS[method] | (FEW_EPOCHS if METHODS[method]["kind"] == "crcl" else {})
    train(tiny_recipe(tmp_path, head=head, training=training))
    assert len(calls) >= 9
    assert bool(watch.seen) == (method in LOOKS), watch.seen


def test_the_watch_sees_what_would_wait():
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    for waits in (
        lambda: values[0].item(),
        lambda: bool(mask[0]),
        lambda: values[mask],
        lambda: mask.nonzero(),
        lambda: values.unique(),
    ):
        watch = Watch()
        with watch:
            waits()
        assert watch.seen
    watch = Watch()
    with watch:
        assert values[torch.tensor([0, 1])].add(values.masked_fill(mask, 0)[:2]).shape == (2,)
    assert not watch.seen


@pytest.mark.filterwarnings("ignore")
def test_divergence_is_found_where_the_device_is_read_and_told_with_its_step(tmp_path, monkeypatch):
    """As on a GPU: before anything is logged, evaluated or saved."""
    monkeypatch.setattr(GuardedTrainer, "_looks_at_every_step", False)
    norm, steps = PairTrainer._get_grad_norm, []

    def spoiled(self, *args, **kwargs):
        steps.append(self.state.global_step + 1)
        if steps[-1] == 2:
            next(self.model.parameters()).grad.fill_(torch.inf)
        return norm(self, *args, **kwargs)

    monkeypatch.setattr(PairTrainer, "_get_grad_norm", spoiled)
    with pytest.raises(ValueError, match=r"norm of its gradient inf at step 2: training stops before such weights"):
        train(tiny_recipe(tmp_path, training={"epochs": 1, "log_every": 5}))
    assert steps == [1, 2, 3, 4, 5]
