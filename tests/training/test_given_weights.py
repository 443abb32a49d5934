"""Probabilities of pairs that were found elsewhere: NPC's clean set and CRCL's first labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_itm.cli import main
from clip_itm.methods.crcl.trainer import first_labels
from clip_itm.methods.npc.bank import MemoryBank, nearest_pairs
from clip_itm.runs.resume import finished
from clip_itm.runs.train import train
from clip_itm.training.clean_probability import CleanProbability
from support.killed_runs import interrupt_at
from support.trainers import crcl_recipe, npc_recipe, pieces, weigh

VALUES = np.random.default_rng(3).permutation(np.linspace(0, 1, 200)).astype(np.float32)
RHO = 0.5
HEADS = {
    "npc": {"kind": "npc", "rho": RHO, "weights": "given.npz"},
    "crcl": {"kind": "crcl", "initial_labels": "crossfit", "weights": "given.npz"},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*(12 photos|labels are below|starts from random)")


def given(recipe, values: np.ndarray = VALUES, sha256: str | None = None) -> CleanProbability:
    """Weights of the pairs of a recipe, in the file that it names."""
    noise = pieces(recipe.with_overrides("--head", "{kind: clip}"))[0].noise
    found = CleanProbability(values, values, "by hand", sha256 or noise.sha256)
    found.save(recipe.head.weights)
    return found


def recipe_of(folder: Path, kind: str, **sections):
    make = {"npc": npc_recipe, "crcl": crcl_recipe}[kind]
    head = {**HEADS[kind], "weights": str(folder / "given.npz")}
    return make(folder, head=head, **sections)


def test_the_clean_set_of_a_bank_are_pairs_of_a_weight_above_rho(tmp_path):
    recipe = recipe_of(tmp_path, "npc", training={"max_steps": 2})
    found = given(recipe)
    data, _, encoder, _ = pieces(recipe)
    embeddings = encoder.encode(data.train)
    results = train(recipe)
    run = Path(recipe.output_dir)
    bank = MemoryBank.load(run / "bank.npz")
    clean = np.flatnonzero(VALUES > RHO)
    np.testing.assert_array_equal(bank.clean, clean)
    keys = embeddings.images[torch.from_numpy(data.train.pairs.image[clean])]
    np.testing.assert_array_equal(bank.image_entry, nearest_pairs(embeddings.images, keys, clean))
    assert set(bank.caption_entry[clean]) <= set(clean)
    assert results["provenance"]["method"] == {"weights": found.sha256}
    is_clean = data.noise.is_clean(data.train.pairs)
    logged = results["method_history"][0]
    assert logged["bank_clean"] == len(clean)
    assert logged["bank_purity"] == pytest.approx(is_clean[clean].mean())
    right, wrong = VALUES[is_clean], VALUES[~is_clean]
    assert logged["bank_auc"] == pytest.approx((right[:, None] > wrong).mean())
    kept = CleanProbability.load(run / "clean_probability.npz")
    np.testing.assert_array_equal(kept.values, VALUES)
    assert "weights" in kept.method


def test_labels_begin_as_weights_times_those_of_the_data(tmp_path):
    recipe = recipe_of(tmp_path, "crcl", training={"max_steps": 2})
    found = given(recipe)
    data, _, encoder, trainer = pieces(recipe)
    trainer.begin_epoch(0)
    np.testing.assert_array_equal(trainer.head.labels.labels, VALUES)
    own = np.random.default_rng(0).random(200).astype(np.float32)
    data.splits["train"] = weigh(data.train, own)
    labels = first_labels(recipe.head, recipe.training, data, encoder, found)
    np.testing.assert_array_equal(labels, VALUES * own)
    results = train(recipe)
    assert results["provenance"]["method"] == {"weights": found.sha256}


@pytest.mark.parametrize("kind", HEADS)
def test_weights_of_other_pairs_are_refused_before_a_model_is_built(tmp_path, kind, capsys):
    recipe = recipe_of(tmp_path, kind)
    (tmp_path / "my.yaml").write_text(recipe.to_yaml())
    for values, sha256 in ((VALUES, "0" * 64), (VALUES[:150], None)):
        given(recipe, values, sha256)
        assert main(["train", str(tmp_path / "my.yaml")]) == 2
        told = capsys.readouterr().err
        assert f"head.weights: {tmp_path}/given.npz belongs to other training pairs ({len(values)} with noise" in told
    (tmp_path / "given.npz").unlink()
    assert main(["train", str(tmp_path / "my.yaml")]) == 2
    assert "given.npz: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_a_run_with_weights_goes_on_to_the_bit_and_only_with_the_same(tmp_path, kind):
    runs = []
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        recipe = recipe_of(tmp_path / name, kind, training={"max_steps": 8, "save_every": 2})
        given(recipe)
        runs.append(Path(recipe.output_dir))
        if name == "cut":
            interrupt_at(3, recipe)
            given(recipe, VALUES[::-1].copy())
            with pytest.raises(ValueError, match=r"the data have changed since this run began \(weights "):
                train(recipe)
            given(recipe)
        results = train(recipe)
    states = [load_file(run / "checkpoint-8" / "model.safetensors") for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert finished(recipe, runs[1]) == results
    given(recipe, VALUES[::-1].copy())
    with pytest.raises(ValueError, match=r"the data have changed since this run began \(weights "):
        finished(recipe, runs[1])


def test_a_bank_is_built_of_weights_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(tmp_path, "npc")
    found = given(recipe)
    words = ["bank", "build", str(tmp_path / "my.yaml"), "--out", "bank.npz"]
    (tmp_path / "my.yaml").write_text(recipe.to_yaml())
    assert main([*words, "--rho", "0.75"]) == 0, "those that the recipe names"
    bank = MemoryBank.load("bank.npz")
    np.testing.assert_array_equal(bank.clean, np.flatnonzero(VALUES > 0.75))
    assert found.sha256[:12] in bank.model
    told = capsys.readouterr().out
    assert "clean pairs (weight above 0.75)" in told
    assert "AUC of the weight against the injected noise" in told
    Path("bank.npz").unlink()
    other = given(recipe, VALUES[::-1].copy())
    other.save("other.npz")
    given(recipe)
    assert main([*words, "--weights", "other.npz"]) == 0
    np.testing.assert_array_equal(MemoryBank.load("bank.npz").clean, np.flatnonzero(VALUES[::-1] > RHO))
    capsys.readouterr()
    words[-1] = "more.npz"
    given(recipe, sha256="0" * 64)
    assert main(words) == 2
    assert "head.weights: " in capsys.readouterr().err
    assert main([*words, "--weights", "given.npz"]) == 2
    assert "--weights: given.npz belongs to other training pairs" in capsys.readouterr().err
    given(recipe)
    assert main([*words, "--rho", "0.9999999"]) == 0, "one pair has weight 1"
    given(recipe, 0.5 * VALUES)
    words[-1] = "none.npz"
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "the largest weight of 200 training pairs is 0.5000, and head.rho is 0.5; lower head.rho" in told
