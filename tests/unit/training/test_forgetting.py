"""When the guard acts, and what it does: every sequence of values against a count of one's own."""

import warnings
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from clip_itm.recipe import parse_recipe
from clip_itm.training.configuration import GuardSection
from clip_itm.training.forgetting import ForgettingGuard

FIRST, DROP = 50.0, 5.0
VALUES = (60.0, 45.0, 44.9, 20.0)  # 45 lies 5 below, not more than 5


def optimizer() -> torch.optim.Optimizer:
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    return torch.optim.AdamW([{"params": [first], "lr": 1.0}, {"params": [second], "lr": 0.5}])


def evaluate(guard: ForgettingGuard, step: int, value: float, moves: torch.optim.Optimizer) -> tuple[bool, list[str]]:
    """Whether training is to stop, and what was warned of."""
    state = SimpleNamespace(global_step=step, is_world_process_zero=True)
    control, rates = SimpleNamespace(should_training_stop=False), SimpleNamespace(_last_lr=None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        guard.on_evaluate(None, state, control, {"eval_rsum": value, "eval_gap": 0.1, "epoch": 1.0}, moves, rates)
    return control.should_training_stop, [str(warning.message) for warning in told]


def acts_at(values: tuple[float, ...], patience: int) -> list[int]:
    """Where the run of values below the line has a length that `patience` divides."""
    found, length = [], 0
    for place, value in enumerate(values):
        length = length + 1 if value < FIRST - DROP else 0
        if length and length % patience == 0:
            found.append(place)
    return found


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("action", ["warn", "lower_rate", "stop"])
def test_it_acts_behind_enough_low_evaluations_in_a_row(action, patience):
    for values in product(VALUES, repeat=4):
        section = GuardSection(drop=DROP, patience=patience, action=action)
        guard, moves = ForgettingGuard(section), optimizer()
        assert evaluate(guard, 0, FIRST, moves) == (False, [])
        expected = acts_at(values, patience)
        for place, value in enumerate(values):
            stops, told = evaluate(guard, place + 1, value, moves)
            assert bool(told) == (place in expected)
            assert stops == (action == "stop" and place in expected)
            if told:
                assert f"rsum is {value:.1f} at step {place + 1}, more than 5 below the 50.0 of step 0" in told[0]
        assert guard.report()["acted"] == [{"step": place + 1, "value": values[place]} for place in expected]
        assert guard.has_stopped == (action == "stop" and bool(expected))
        factor = 0.1 ** len(expected) if action == "lower_rate" else 1.0
        assert guard.rate == pytest.approx(factor)
        assert [group["lr"] for group in moves.param_groups] == pytest.approx([factor, 0.5 * factor])


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_restored_it_goes_on_as_if_nothing_had_been(cut):
    values = (20.0, 20.0, 60.0, 20.0, 20.0, 20.0)
    section = GuardSection(drop=DROP, patience=2, action="lower_rate", rate_factor=0.3)
    whole, first, second = (ForgettingGuard(section) for _ in range(3))
    for guard, places in ((whole, range(7)), (first, range(cut))):
        for step in places:
            evaluate(guard, step, (FIRST, *values)[step], optimizer())
    second.restore(first.state())
    for step in range(cut, 7):
        evaluate(second, step, (FIRST, *values)[step], optimizer())
    assert second.state() == whole.state()
    assert len(whole.acted) == 2


def test_another_zero_shot_set_is_refused():
    section = GuardSection(metric="zero_shot", drop=1, classes="photos")
    other = ForgettingGuard(section, "b")
    with pytest.raises(ValueError, match=r"training\.guard\.classes: photos is not what it was when this run began"):
        other.restore(ForgettingGuard(section, "a").state())


def test_a_metric_that_there_is_not_is_told_with_those_that_there_are():
    guard = ForgettingGuard(GuardSection(metric="rsums", drop=1))
    with pytest.raises(
        ValueError, match=r"training\.guard\.metric: rsums is no metric of val; expected one of gap, rsum"
    ):
        evaluate(guard, 0, 1.0, optimizer())


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ({}, "training.guard.drop: this key is required"),
        ({"drop": -1}, "training.guard.drop"),
        ({"drop": 1, "rate_factor": 0.5}, "rate_factor: action warn leaves the learning rate as it is; leave it out"),
        ({"drop": 1, "action": "lower_rate", "rate_factor": 1}, "training.guard.rate_factor"),
        ({"drop": 1, "metric": "zero_shot"}, "classes are the photos that metric zero_shot is measured on: set both"),
        ({"drop": 1, "classes": "x"}, "classes are the photos that metric zero_shot is measured on: set both"),
        ({"drop": 1, "action": "halt"}, "training.guard.action"),
    ],
)
def test_options_that_would_do_nothing(guard, message):
    content = {"data": {"source": "sample"}, "backbone": {"kind": "timm-words"}, "training": {"guard": guard}}
    with pytest.raises(ValueError, match=message):
        parse_recipe(content, "test")


def test_regions_have_no_photos_of_classes():
    guard = {"metric": "zero_shot", "drop": 1, "classes": "x"}
    content = {
        "data": {"source": "regions", "root": "x"},
        "backbone": {"kind": "regions"},
        "training": {"guard": guard},
    }
    with pytest.raises(ValueError, match=r"training\.guard\.classes: a model that reads regions sees no photos"):
        parse_recipe(content, "test")


def test_it_counts_in_the_hash_of_a_recipe_only_where_it_is_set():
    content = {"data": {"source": "sample"}, "backbone": {"kind": "timm-words"}}
    plain = parse_recipe(content, "test").sha256
    assert parse_recipe(content | {"training": {"guard": None}}, "test").sha256 == plain
    assert parse_recipe(content | {"training": {"guard": {"drop": 1}}}, "test").sha256 != plain
