"""`training.ema`: the averaged weights are what is evaluated, chosen and saved, and a resumed run has the same ones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import parse_recipe
from clip_itm.runs.build import val_metrics
from clip_itm.runs.setup import load_data, make_encoder
from clip_itm.runs.train import train
from clip_itm.training.average import UNAVERAGED
from clip_itm.training.trainer import PairTrainer
from support.killed_runs import EPOCHS, STEPS, assert_same_end, final_state, interrupt_at, recipe_of
from support.tiny import tiny_recipe

DECAY = 0.6


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with an average, its results, and the weights behind each of its steps."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("finished"), training={"ema": DECAY})
    walked: list[dict[str, torch.Tensor]] = []

    def end_step(self):
        if not walked:  # where all began
            walked.append({name: value.clone() for name, value in self.average.average.items()})
        walked.append({name: weight.detach().clone() for name, weight in self.average.weights.items()})
        self.average.follow()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairTrainer, "end_step", end_step)
        results = train(recipe)
    return recipe, Path(recipe.output_dir), results, walked


def averages(walked: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Behind each step, weight by weight."""
    found = [walked[0]]
    for step, weights in enumerate(walked[1:], start=1):
        d = min(DECAY, (1 + step) / (10 + step))
        found.append({name: d * found[-1][name] + (1 - d) * value for name, value in weights.items()})
    return found


def test_checkpoints_hold_the_average_and_beside_it_what_trains(finished):
    _, run, results, walked = finished
    expected = averages(walked)
    assert results["steps"] == len(walked) - 1 == 18
    for checkpoint in run.glob("checkpoint-*"):
        step = int(checkpoint.name.split("-")[1])
        model, beside = load_file(checkpoint / "model.safetensors"), load_file(checkpoint / UNAVERAGED)
        assert int(beside.pop("steps")) == step
        assert {name.removeprefix("weights.") for name in beside} == walked[0].keys()
        for name, value in walked[step].items():
            assert torch.equal(beside[f"weights.{name}"], value)
            torch.testing.assert_close(model[name], expected[step][name], rtol=1e-5, atol=1e-7)
        apart = [name for name in walked[0] if not torch.allclose(model[name], walked[step][name], rtol=1e-3)]
        assert len(apart) > len(walked[0]) / 2, "the average would be the weights"


def test_the_average_is_evaluated_chosen_and_published(finished):
    recipe, run, results, _ = finished
    best = ItmModel.from_pretrained(run / "best")
    chosen = load_file(run / f"checkpoint-{results['best_step']}" / "model.safetensors")
    assert all(torch.equal(value, chosen[name]) for name, value in best.state_dict().items() if name in chosen)
    assert not (run / "best" / UNAVERAGED).exists()
    data = load_data(recipe)
    for name, step in (("best", results["best_step"]), ("last", results["steps"])):
        model = ItmModel.from_pretrained(run / f"checkpoint-{step}")
        encoder = make_encoder(recipe, model, ItmProcessor.from_pretrained(run / "best"))
        found = val_metrics(model, encoder.encode(data.val))
        entry = next(entry for entry in results["val_history"] if entry["step"] == step)
        assert found["rsum"] == pytest.approx(entry["eval_rsum"], abs=1e-3), name


def test_a_run_without_it_takes_the_same_steps(finished, tmp_path):
    """What trains does not know of its average: at the last step it has the weights of a plain run."""
    *_, walked = finished
    plain = tiny_recipe(tmp_path)
    train(plain)
    last = load_file(Path(plain.output_dir) / "checkpoint-18" / "model.safetensors")
    assert all(torch.equal(last[name], value) for name, value in walked[-1].items() if name in last)
    assert not list(Path(plain.output_dir).glob(f"checkpoint-*/{UNAVERAGED}"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* of the labels are below")
@pytest.mark.parametrize(
    ("method", "reached"),
    [
        ("clip", STEPS + 2),
        ("npc", STEPS + 2),
        ("crcl", 2 * STEPS),  # the first piece is done
        ("crcl", 2 * STEPS + 2),
        ("aahr", STEPS + 2),
        ("crossfit", STEPS + 2),
    ],
)
def test_a_resumed_run_has_the_same_average_to_the_bit(tmp_path, method, reached):
    recipes = [recipe_of(tmp_path / name, method, evaluate_every=4) for name in ("whole", "interrupted")]
    whole, interrupted = (recipe.with_overrides("--training.ema", "0.9") for recipe in recipes)
    train(whole)
    interrupt_at(reached, interrupted)
    train(interrupted)
    assert_same_end(Path(interrupted.output_dir), Path(whole.output_dir), method)
    state = final_state(Path(whole.output_dir))
    assert any(name.startswith("unaveraged weights.backbone") for name in state)
    # CRCL's second piece begins with an average of nothing
    assert int(state["unaveraged steps"]) == STEPS * {"crcl": 3}.get(method, EPOCHS[method])


def test_a_checkpoint_without_the_weights_that_train_is_told(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"ema": DECAY, "epochs": 1})
    train(recipe)
    run = Path(recipe.output_dir)
    (run / "results.json").unlink()
    (run / "checkpoint-6" / UNAVERAGED).write_bytes(b"no tensors")
    checksums = json.loads((run / "checkpoint-6" / "checksums.json").read_text())
    del checksums["files"][UNAVERAGED]
    (run / "checkpoint-6" / "checksums.json").write_text(json.dumps(checksums))
    with pytest.raises(ValueError, match=UNAVERAGED):
        train(recipe)


def test_it_counts_in_the_hash_of_a_recipe_only_where_it_is_set():
    content = {"data": {"source": "sample"}, "backbone": {"kind": "timm-words"}}
    plain = parse_recipe(content, "test")
    with_ema = parse_recipe(content | {"training": {"ema": 0.999}}, "test")
    assert plain.sha256 != with_ema.sha256
    assert parse_recipe(content | {"training": {"ema": None}}, "test").sha256 == plain.sha256
    for wrong in (0, 1, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"training\.ema"):
            parse_recipe(content | {"training": {"ema": wrong}}, "test")
