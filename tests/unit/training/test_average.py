"""The moving average of weights: against a loop over numbers, and as the thing that stands in for them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from clip_itm.training.average import UNAVERAGED, WeightAverage


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    layers[2].bias.requires_grad_(False)
    return layers


def walk(trained: nn.Module, average: WeightAverage, steps: int, seed: int = 1) -> None:
    """Random steps of everything that trains; running statistics move, too."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for weight in average.weights.values():
                weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        trained(torch.randn(8, 3, generator=generator, dtype=torch.float64))
        average.follow()


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.9])
def test_it_is_the_recursion_with_its_warmup(decay):
    trained = model()
    average = WeightAverage(trained, decay)
    expected, numbers = trained[0].bias.detach().numpy().copy(), []
    for step in range(1, 60):
        walk(trained, average, 1, seed=step)
        d = min(decay, (1 + step) / (10 + step))
        numbers.append(d)
        expected = d * expected + (1 - d) * trained[0].bias.detach().numpy()
        np.testing.assert_allclose(average.average["0.bias"].numpy(), expected, rtol=1e-12)
    assert numbers[0] == min(decay, 2 / 11)
    assert numbers[-1] == min(decay, 60 / 69)


def test_what_it_began_with_is_forgotten_in_a_short_run():
    """With a decay of 0.999 alone, 100 steps would leave nine tenths of the weights of the beginning."""
    trained = model()
    with torch.no_grad():
        trained[0].bias.fill_(1e6)
    average = WeightAverage(trained, 0.999)
    with torch.no_grad():
        trained[0].bias.zero_()
    for _ in range(100):
        average.follow()
    assert 0 < average.average["0.bias"].max() < 1  # 1e6 times the product of (1 + t) / (10 + t)


def test_within_it_the_model_is_the_average_and_behind_it_what_it_was():
    trained = model()
    average = WeightAverage(trained, 0.9)
    walk(trained, average, 5)
    before = copy.deepcopy(trained.state_dict())
    kept = {name: value.clone() for name, value in average.average.items()}

    def fail_within() -> None:
        with average.in_place():
            inside.update(copy.deepcopy(trained.state_dict()))
            raise RuntimeError("stop")

    inside: dict[str, torch.Tensor] = {}
    with pytest.raises(RuntimeError, match="stop"):
        fail_within()
    assert all(torch.equal(inside[name], kept[name]) for name in kept)
    assert not any(torch.equal(inside[name], before[name]) for name in kept)
    rest = before.keys() - kept.keys()
    assert {"1.running_mean", "1.running_var", "2.bias"} <= rest
    assert all(torch.equal(inside[name], before[name]) for name in rest)  # statistics, and what is frozen
    after = trained.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(torch.equal(average.average[name], kept[name]) for name in kept)


def test_parameters_stay_the_objects_that_an_optimiser_knows():
    trained = model()
    average = WeightAverage(trained, 0.9)
    known = [(parameter, parameter.data_ptr()) for parameter in trained.parameters()]
    walk(trained, average, 2)
    with average.in_place():
        pass
    average.exchange()
    assert [(parameter, parameter.data_ptr()) for parameter in trained.parameters()] == known


def test_saved_and_loaded_it_goes_on_to_the_bit(tmp_path):
    """As a checkpoint has it: the model's file with the average, and this one with what trains."""
    whole = model()
    average = WeightAverage(whole, 0.99)
    walk(whole, average, 7)
    average.save(tmp_path, average.state_dict())
    with average.in_place():
        saved = copy.deepcopy(whole.state_dict())
    walk(whole, average, 7, seed=2)

    again = model()
    other = WeightAverage(again, 0.99)
    again.load_state_dict(saved)
    other.load(tmp_path)
    walk(again, other, 7, seed=2)
    assert other.steps == average.steps == 14
    assert all(torch.equal(again.state_dict()[name], value) for name, value in whole.state_dict().items())
    assert all(torch.equal(other.average[name], value) for name, value in average.average.items())
    assert (tmp_path / UNAVERAGED).is_file()


def test_begun_again_it_knows_nothing_of_before():
    trained = model()
    average = WeightAverage(trained, 0.99)
    walk(trained, average, 9)
    average.restart()
    fresh = WeightAverage(trained, 0.99)
    for one in (average, fresh):
        assert one.steps == 0
    start = copy.deepcopy(trained.state_dict())
    walk(trained, average, 3, seed=5)
    trained.load_state_dict(start)
    walk(trained, fresh, 3, seed=5)
    assert all(torch.equal(average.average[name], value) for name, value in fresh.average.items())
