"""Parts of weights in processes that are only pretended; real ones: tests/distributed/test_sharding.py."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from clip_itm.training import sharding
from clip_itm.training.sharding import load_weights, over_parts, part_of, whole, whole_weights


@pytest.mark.parametrize(("rows", "count"), [(6, 2), (7, 3), (2, 4), (1, 3)])
def test_parts_are_those_of_torch(monkeypatch, rows, count):
    value, cut = torch.arange(rows * 2.0).view(rows, 2), torch.empty(0).as_subclass(DTensor)
    monkeypatch.setattr(sharding, "num_processes", lambda: count)
    parts = []
    for index in range(count):
        monkeypatch.setattr(sharding, "process_index", lambda index=index: index)
        parts.append(part_of(value, cut))
    chunks = value.chunk(count)
    assert all(torch.equal(part, chunk) for part, chunk in zip(parts, chunks, strict=False))
    assert sum(len(part) for part in parts) == rows
    assert parts[0].untyped_storage().nbytes() == parts[0].nbytes, "the rest of a tensor would stay in memory"
    assert part_of(value, torch.empty(1)) is value


def test_an_optimiser_over_what_is_whole_is_the_optimiser():
    found = []
    for make in (lambda groups: torch.optim.AdamW(groups), lambda groups: over_parts(groups, torch.optim.AdamW)):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = make([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}])
        for _ in range(3):
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            model.zero_grad()
        other = make([{"params": [model.weight], "lr": 0.3}, {"params": [model.bias], "lr": 0.2}])
        other.load_state_dict(optimizer.state_dict())
        found.append((*model.state_dict().values(), other.state_dict()))
    (weight, bias, state), (other_weight, other_bias, other_state) = found
    assert torch.equal(weight, other_weight)
    assert torch.equal(bias, other_bias)
    assert state["param_groups"] == other_state["param_groups"]
    for number, moments in state["state"].items():
        assert all(torch.equal(value, other_state["state"][number][name]) for name, value in moments.items())


def test_a_model_that_is_not_cut_is_itself():
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    with whole(model):
        load_weights(model, whole_weights(other))
    assert torch.equal(model.weight, other.weight)
