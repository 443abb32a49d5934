"""NPC in whole runs: warm-up, bank, options, and what a run leaves behind."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_itm.cli import main
from clip_itm.data.noise import CaptionNoise
from clip_itm.methods.npc.bank import MemoryBank, build_bank
from clip_itm.methods.npc.step import NpcStep
from clip_itm.methods.npc.trainer import NpcTrainer, make_bank
from clip_itm.model import ItmModel
from clip_itm.runs.setup import load_data, make_encoder
from clip_itm.runs.train import train
from clip_itm.training.clean_probability import CleanProbability
from support.tiny import tiny_recipe
from support.trainers import RHO, brute_force_auc, npc_recipe, pieces

# A whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The recipe, its folder, its results, and what the trainer had seen of the pairs at the end of every epoch."""
    recipe = npc_recipe(tmp_path_factory.mktemp("npc"), head={"warmup_epochs": 1})
    seen, end_epoch = {}, NpcTrainer.end_epoch

    def spy(self, epoch):
        seen[epoch] = self.seen.clone()
        end_epoch(self, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NpcTrainer, "end_epoch", spy)
        results = train(recipe)
    return recipe, Path(recipe.output_dir), results, seen


def test_the_bank_lies_in_the_run_and_in_every_checkpoint_after_the_warm_up(finished):
    recipe, folder, _, _ = finished
    data = load_data(recipe)
    bank = MemoryBank.load(folder / "bank.npz")
    bank.check(data.noise, data.train.pairs)
    assert (bank.rho, bank.model) == (RHO, "seed 0 after 1 epoch")
    checkpoints = list(folder.glob("checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        has_bank = (checkpoint / "bank.npz").exists()
        assert has_bank == (checkpoint / "npc_state.safetensors").exists() == (checkpoint.name != "checkpoint-6")
        assert not has_bank or MemoryBank.load(checkpoint / "bank.npz").sha256 == bank.sha256


def test_the_log_tells_what_the_bank_and_the_weights_know_of_wrong_pairs(finished):
    recipe, folder, results, seen = finished
    is_clean = CaptionNoise.load(folder / "noise.npz").is_clean(load_data(recipe).train.pairs)
    bank = MemoryBank.load(folder / "bank.npz")
    of_bank, *of_epochs = results["method_history"]
    assert (of_bank["step"], of_bank["bank_clean"]) == (6, len(bank.clean))
    assert of_bank["bank_below_clean_mean_rejected"] == bank.below_clean_mean_rejected
    assert of_bank["bank_purity"] == pytest.approx(is_clean[bank.clean].mean())
    assert of_bank["bank_auc"] == pytest.approx(brute_force_auc(-bank.losses, is_clean))
    assert [entry["method_epoch"] for entry in of_epochs] == [2, 3]
    assert seen[0].isnan().all()
    for entry in of_epochs:
        ratio, weight = seen[entry["method_epoch"] - 1].numpy()
        known = ~np.isnan(ratio)
        assert known.sum() == 6 * 32, "every pair of an epoch once"
        ratio, weight, clean = ratio[known], weight[known], is_clean[known]
        np.testing.assert_allclose(weight, np.where(ratio < 1, np.tanh(ratio), 1), rtol=1e-5)
        assert 0 < entry["weight_below_1"] < 1
        assert entry["weight_below_1"] == pytest.approx((weight < 1).mean())
        assert entry["mean_weight"] == pytest.approx(weight.mean(), rel=1e-6)
        assert entry["mean_weight_clean"] == pytest.approx(weight[clean].mean(), rel=1e-6)
        assert entry["mean_weight_wrong"] == pytest.approx(weight[~clean].mean(), rel=1e-6)
        assert entry["ratio_auc"] == pytest.approx(brute_force_auc(ratio, clean))
        assert entry["ratio_distance"] == pytest.approx(np.median(np.abs(ratio - 1)), rel=1e-5)
    state = json.loads((folder / "checkpoint-18" / "trainer_state.json").read_text())
    losses = [entry for entry in state["log_history"] if "loss" in entry]
    for entry in losses:
        # the logged loss has the memory in it; the one of the batch is logged beside it
        assert ("batch_loss" in entry) == (entry["step"] > 6)
        assert entry["loss"] > entry.get("batch_loss", 0) > 0 or entry["step"] <= 6


def test_clean_probability_of_the_bank_is_kept(finished):
    _, folder, results, _ = finished
    bank, kept = MemoryBank.load(folder / "bank.npz"), CleanProbability.load(folder / "clean_probability.npz")
    assert kept.noise_sha256 == results["noise"]["sha256"]
    order = kept.order()
    assert (np.diff(bank.losses[order]) <= 0).all(), "most suspicious first: the largest loss"
    assert (np.diff(kept.values[order]) >= 0).all()
    above_mean = bank.losses > bank.mixture.means[0]
    np.testing.assert_allclose(kept.values[above_mean], bank.posterior[above_mean], rtol=1e-5)


def test_the_warm_up_is_the_plain_run_and_the_bank_is_of_the_model_behind_it(tmp_path):
    runs = {}
    for kind, head in (("clip", {}), ("npc", {"warmup_epochs": 1, "rho": RHO})):
        folder = tmp_path / kind
        folder.mkdir()
        recipe = tiny_recipe(folder, head={"kind": kind, **head}, training={"max_steps": 8})
        train(recipe)
        runs[kind] = Path(recipe.output_dir)
    plain, warmed_up = (load_file(run / "checkpoint-6" / "model.safetensors") for run in runs.values())
    assert all(torch.equal(plain[name], warmed_up[name]) for name in plain)
    plain, trained = (load_file(run / "checkpoint-8" / "model.safetensors") for run in runs.values())
    assert not any(torch.equal(plain[name], trained[name]) for name in plain if "weight" in name)

    data = load_data(recipe)
    model = ItmModel.from_pretrained(runs["npc"] / "checkpoint-6")
    embeddings = make_encoder(recipe, model, pieces(recipe)[2].processor).encode(data.train)
    scale = float(model.head.scale().detach())
    expected = build_bank(
        embeddings.images,
        embeddings.texts,
        data.train.pairs.image,
        data.noise.source,
        scale,
        RHO,
        "",
        data.noise.sha256,
        seed=recipe.training.seed,
    )
    assert MemoryBank.load(runs["npc"] / "bank.npz").sha256 == expected.sha256


# A bank that is given


@pytest.fixture
def given_bank(tmp_path):
    """A recipe, and the file of a bank that belongs to its pairs."""
    recipe = npc_recipe(tmp_path)
    data, _, encoder, _ = pieces(recipe)
    make_bank(recipe.head, recipe.training.seed, data, encoder).save(tmp_path / "given.npz")
    return recipe, tmp_path / "given.npz"


def test_a_given_bank_is_used_from_the_first_step(given_bank):
    recipe, file = given_bank
    built = MemoryBank.load(file)
    replace(built, image_entry=built.image_entry[::-1].copy()).save(file)  # the run would never build this one
    results = train(recipe.with_overrides("--head.bank", str(file), "--training.max_steps", "2"))
    assert [entry["step"] for entry in results["method_history"]] == [0, 2]
    assert [entry.get("method_epoch") for entry in results["method_history"]] == [None, 1]
    assert MemoryBank.load(Path(recipe.output_dir) / "bank.npz").sha256 == MemoryBank.load(file).sha256 != built.sha256


def test_an_imported_bank_has_no_probabilities_to_tell(given_bank):
    recipe, file = given_bank
    bank = MemoryBank.load(file)
    MemoryBank(bank.image_entry, bank.caption_entry, None, "published files", bank.noise_sha256).save(file)
    results = train(recipe.with_overrides("--head.bank", str(file), "--training.max_steps", "2"))
    assert [entry["method_epoch"] for entry in results["method_history"]] == [1]
    folder = Path(recipe.output_dir)
    assert not (folder / "clean_probability.npz").exists()
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
    assert all(set(entry) > {"step", "epoch"} for entry in state["log_history"]), "no empty lines in the log"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (("--noise.seed", "5"), "built for other noise"),
        (("--data.train_images", "44"), "built for other noise"),
        (("--head.bank", "nowhere.npz"), r"memory bank nowhere\.npz does not exist"),
    ],
)
def test_the_bank_of_other_pairs_is_refused_before_a_model_is_built(
    given_bank, monkeypatch, capsys, override, expected
):
    recipe, file = given_bank
    path = file.parent / "recipe.yaml"
    path.write_text(recipe.to_yaml())

    def no_model(*_):
        raise AssertionError("a model was built")

    monkeypatch.setattr("clip_itm.runs.train.make_model", no_model)
    assert main(["train", str(path), "--head.bank", str(file), *override]) == 2
    message = capsys.readouterr().err
    with pytest.raises(ValueError, match=expected):
        raise ValueError(message)
    assert not (Path(recipe.output_dir) / "recipe.yaml").exists()


def test_an_empty_clean_set_says_what_to_lower_and_keeps_the_checkpoints(tmp_path, capsys):
    recipe = npc_recipe(tmp_path, head={"warmup_epochs": 1, "rho": 0.9999999999})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert main(["train", str(path)]) == 2
    assert "no pair is certain enough to be clean" in (message := capsys.readouterr().err)
    assert "lower head.rho" in message
    folder = Path(recipe.output_dir)
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert ItmModel.from_pretrained(folder / "checkpoint-6")
    assert not (folder / "bank.npz").exists()
    assert not (folder / "results.json").exists()


# Options


OPTIONS = {
    "published": {},
    "released": {"mode": "released"},
    "memory does not train": {"memory_grad": False},
    "no memory loss": {"memory_coef": 0},
    "weight one": {"weight_fn": "one"},
    "weight tanh": {"weight_fn": "tanh"},
    "weight ratio": {"weight_fn": "ratio"},
    "base moments": {"trial_moments": "base"},
    "no moments": {"trial_moments": "none", "trial_grad_scale": 100},
    "same photo positive": {"same_image": "positive"},
}


@pytest.mark.slow
def test_every_option_trains_and_changes_the_training(given_bank):
    recipe, file = given_bank
    ends = {}
    for name, head in OPTIONS.items():
        words = [word for key, value in head.items() for word in (f"--head.{key}", str(value))]
        changed = recipe.with_overrides("--head.bank", str(file), "--training.max_steps", "3", *words)
        shutil.rmtree(recipe.output_dir, ignore_errors=True)
        _, model, _, trainer = pieces(changed)
        trainer.train()
        ends[name] = torch.cat([value.detach().flatten() for value in model.parameters()])
        assert ends[name].isfinite().all()
    # memory_grad false and memory_coef 0 differ in the logged loss alone
    assert torch.equal(ends.pop("no memory loss"), ends["memory does not train"])
    names = list(ends)
    same = [(a, b) for i, a in enumerate(names) for b in names[:i] if torch.equal(ends[a], ends[b])]
    assert same == []


def test_without_weight_and_memory_it_is_the_plain_run(given_bank):
    recipe, file = given_bank
    ends = []
    for words in (
        ("--head.bank", str(file), "--head.weight_fn", "one", "--head.memory_coef", "0"),
        ("--head", "{kind: clip}"),
    ):
        _, model, _, trainer = pieces(recipe.with_overrides(*words, "--training.max_steps", "3"))
        trainer.train()
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backbone", [{}, {"image_dropout": 0.2}], ids=["shared passes", "separate passes"])
def test_mixed_precision_reaches_every_pass_of_the_towers(tmp_path, backbone):
    recipe = npc_recipe(tmp_path, backbone=backbone, training={"precision": "bf16", "max_steps": 2})
    _, model, _, trainer = pieces(recipe)
    autocast = []

    def spied(encode):
        def spy(*args, **kwargs):
            autocast.append(torch.is_autocast_enabled("cpu"))
            return encode(*args, **kwargs)

        return spy

    model.encode_images, model.encode_texts = spied(model.encode_images), spied(model.encode_texts)
    gradients = []
    call = NpcStep.__call__

    def step(self, *args):
        outcome = call(self, *args)
        gradients.extend(float(value.grad.abs().sum()) for value in self.parameters)
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NpcStep, "__call__", step)
        trainer.train()
    assert len(autocast) > 10
    assert all(autocast)
    assert min(gradients) > 0, "no weight was left out"
