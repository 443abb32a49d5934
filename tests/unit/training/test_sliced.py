"""Moments in slices: every number of a tensor is stepped by one process, and steps are those of the whole."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from clip_itm.training import sliced

SHAPES = [(), (1,), (2,), (3, 5), (7,), (16, 2)]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_slices_are_not_empty_and_make_up_the_tensor(monkeypatch, processes):
    monkeypatch.setattr(sliced, "num_processes", lambda: processes)
    for shape in SHAPES:
        tensor = torch.randn(shape)
        parts = []
        for process in range(processes):
            monkeypatch.setattr(sliced, "process_index", lambda process=process: process)
            parts.append(sliced.cut(tensor, tensor))
        if not shape or tensor.numel() < processes:
            assert all(part is tensor for part in parts)
        else:
            assert all(len(part) for part in parts)
            assert torch.equal(torch.cat(parts).view(shape), tensor)


def test_steps_and_states_are_those_of_the_whole():
    """In one process; tests/distributed/test_sharding.py has two."""
    draw = torch.Generator().manual_seed(0)
    whole = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    own = [nn.Parameter(parameter.detach().clone()) for parameter in whole]

    def make(groups):
        return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3)

    plain = make([{"params": whole[:2], "lr": 0.05}, {"params": whole[2:]}])
    optimizer = sliced.over_slices([{"params": own[:2], "lr": 0.05}, {"params": own[2:]}], make)
    assert sliced.is_sliced(optimizer)
    assert not sliced.is_sliced(plain)
    for step in range(4):
        if step == 2:  # as a trainer moves weights, and as a checkpoint is read
            for parameter in own:
                parameter.data = parameter.data.clone()
            optimizer.load_state_dict(deepcopy(plain.state_dict()))
        for parameter, other in zip(whole, own, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=draw)
            other.grad = parameter.grad.clone()
        plain.step()
        optimizer.step()
        assert all(torch.allclose(parameter, other) for parameter, other in zip(whole, own, strict=True))
    for number, moments in plain.state_dict()["state"].items():
        kept = optimizer.state_dict()["state"][number]
        assert kept.keys() == moments.keys()
        assert all(kept[name].shape == value.shape for name, value in moments.items())
        assert all(torch.allclose(kept[name], value) for name, value in moments.items())
