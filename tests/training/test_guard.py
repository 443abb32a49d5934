"""`training.guard` in runs: what a warning, a lower rate and an early end leave behind, and what a resumed run has."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from clip_itm.data.class_folder import read_class_folder
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.runs.train import train
from clip_itm.training.trainer import PairTrainer
from clip_itm.training.zero_shot import zero_shot_accuracy
from support.killed_runs import assert_same_end, final_state, interrupt_at, recipe_of
from support.tiny import HEADS, tiny_recipe

PLAN = {0: 50.0, 6: 44.0, 12: 43.0, 18: 60.0}  # what the watched metric is at each evaluation
EVENTS = "ignore:planned is"


@pytest.fixture(autouse=True)
def planned(monkeypatch):
    """A metric whose values are known."""
    evaluated = PairTrainer._evaluated

    def with_plan(self, prefix):
        return evaluated(self, prefix) | {f"{prefix}_planned": PLAN.get(self.state.global_step, 50.0)}

    monkeypatch.setattr(PairTrainer, "_evaluated", with_plan)


def guarded(folder: Path, **guard):
    return tiny_recipe(folder, training={"guard": {"metric": "planned", "drop": 5, **guard}})


@pytest.mark.filterwarnings(EVENTS)
def test_a_warning_changes_nothing(tmp_path):
    for name in ("plain", "guarded"):
        (tmp_path / name).mkdir()
    plain, recipe = tiny_recipe(tmp_path / "plain"), guarded(tmp_path / "guarded")
    train(plain)
    with pytest.warns(UserWarning, match="planned is 44.0 at step 6, more than 5 below the 50.0 of step 0: the model"):
        results = train(recipe)
    found, expected = final_state(Path(recipe.output_dir)), final_state(Path(plain.output_dir))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert results["guard"]["acted"] == [{"step": 6, "value": 44.0}, {"step": 12, "value": 43.0}]
    assert results["guard"]["first"] == 50
    assert results["steps"] == 18
    card = (Path(recipe.output_dir) / "best" / "README.md").read_text()
    sentence = "its planned on val was 50.0 before training and 44.0 at step 6, 43.0 at step 12. The guard of the run "
    assert f"{sentence}warned." in card
    assert "forgot" not in (Path(plain.output_dir) / "best" / "README.md").read_text()
    (Path(recipe.output_dir) / "results.json").unlink()  # as if it had been killed behind its last step
    assert train(recipe)["guard"] == json.loads(json.dumps(results["guard"]))


@pytest.mark.filterwarnings(EVENTS)
def test_a_run_that_is_stopped_ends_properly_and_only_once(tmp_path):
    recipe = guarded(tmp_path, action="stop", patience=2)
    results = train(recipe)
    run = Path(recipe.output_dir)
    assert results["steps"] == 12
    assert [entry["step"] for entry in results["val_history"]] == [0, 6, 12]
    assert results["guard"]["acted"] == [{"step": 12, "value": 43.0}]
    assert results["best_step"] in (6, 12)
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-12"}
    assert "The guard of the run ended the run." in (run / "best" / "README.md").read_text()
    before = final_state(run)
    (run / "results.json").unlink()
    again = train(recipe)  # as if it had been killed behind its end
    assert (again["steps"], again["best"], again["last"]) == (12, results["best"], results["last"])
    assert again["guard"] == json.loads(json.dumps(results["guard"]))
    after = final_state(run)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.filterwarnings(EVENTS)
def test_the_rate_is_lower_from_the_next_step_on(tmp_path):
    rates = {}
    lower = {"metric": "planned", "drop": 5, "action": "lower_rate", "rate_factor": 0.25}
    for name, guard in (("plain", None), ("guarded", lower)):
        (tmp_path / name).mkdir()
        recipe = tiny_recipe(tmp_path / name, training={"log_every": 1, "guard": guard})
        train(recipe)
        state = json.loads((Path(recipe.output_dir) / "checkpoint-18" / "trainer_state.json").read_text())
        logged = [entry for entry in state["log_history"] if "learning_rate" in entry]
        rates[name] = {entry["step"]: entry["learning_rate"] for entry in logged}
    assert rates["plain"].keys() == set(range(1, 19))
    for step, rate in rates["plain"].items():
        expected = rate * (1 if step <= 6 else 0.25 if step <= 12 else 0.0625)
        assert rates["guarded"][step] == pytest.approx(expected, rel=1e-12), step


@pytest.mark.slow
@pytest.mark.filterwarnings(EVENTS)
@pytest.mark.parametrize(
    ("method", "reached"),
    # lowered behind steps 6 and 12; before, between and behind that
    [("clip", 4), ("clip", 8), ("clip", 14), ("npc", 8), ("crcl", 14)],
)
def test_a_resumed_run_has_the_same_rates_to_the_bit(tmp_path, method, reached):
    recipes = []
    for name in ("whole", "interrupted"):
        keys = {"ema": 0.9, "guard.metric": "planned", "guard.drop": 5, "guard.action": "lower_rate"}
        words = [f"--training.{key}={value}" for key, value in keys.items()]
        recipes.append(recipe_of(tmp_path / name, method, evaluate_every=6).with_overrides(*words))
    whole, interrupted = recipes
    results = train(whole)
    assert [entry["step"] for entry in results["guard"]["acted"]] == [6, 12]
    interrupt_at(reached, interrupted)
    again = train(interrupted)
    assert_same_end(Path(interrupted.output_dir), Path(whole.output_dir), method)
    assert again["guard"] == results["guard"]


def test_an_unknown_metric_is_told_before_the_first_step(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"guard": {"metric": "recall", "drop": 5}})
    with pytest.raises(
        ValueError, match=r"training\.guard\.metric: recall is no metric of val; expected one of gap, i2t_"
    ):
        train(recipe)
    assert not list(Path(recipe.output_dir).glob("checkpoint-*"))


def class_folder(root: Path) -> Path:
    """Two classes of three photos of one colour."""
    for name in ("red", "dark_blue"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            colour = (200 + number, 0, 0) if name == "red" else (0, 0, 90 + number)
            Image.new("RGB", (32, 32), colour).save(root / name / f"{number}.png")
    return root


def test_a_zero_shot_set_is_measured_at_every_evaluation(tmp_path):
    guard = {"metric": "zero_shot", "drop": 100, "classes": str(class_folder(tmp_path / "classes"))}
    recipe = tiny_recipe(tmp_path, training={"guard": guard, "epochs": 1})
    results = train(recipe)
    run = Path(recipe.output_dir)
    values = [entry["eval_zero_shot"] for entry in results["val_history"]]
    assert len(values) == 2
    assert results["guard"]["first"] == values[0]
    model, processor = (kind.from_pretrained(run / "checkpoint-6") for kind in (ItmModel, ItmProcessor))
    classes = read_class_folder(tmp_path / "classes")
    assert zero_shot_accuracy(model, processor, classes, batch_size=4) == pytest.approx(values[1])
    (run / "results.json").unlink()
    (tmp_path / "classes" / "red" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"training\.guard\.classes: .* is not what it was when this run began"):
        train(recipe)


def test_a_zero_shot_set_needs_a_head_of_vectors_and_a_folder_of_classes(tmp_path):
    guard = {"metric": "zero_shot", "drop": 1, "classes": str(tmp_path / "nowhere")}
    with pytest.raises(ValueError, match="nowhere: expected a folder with a subfolder of photos for each of at least"):
        train(tiny_recipe(tmp_path, training={"guard": guard}))
    guard["classes"] = str(class_folder(tmp_path / "classes"))
    with pytest.raises(
        ValueError, match=r"training\.guard\.classes: the head triplet compares by more than the cosine"
    ):
        train(tiny_recipe(tmp_path, head=HEADS["scan"], training={"guard": guard}))
