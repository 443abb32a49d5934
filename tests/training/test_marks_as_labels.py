"""`data.marks`: a pair marked right is never dropped, one marked wrong never counts, whatever a method finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_itm import audit
from clip_itm.data.marks import Mark, append_marks, pair_hash
from clip_itm.methods.npc.bank import MemoryBank
from clip_itm.runs.stored import read_provenance
from clip_itm.runs.train import train
from clip_itm.training.clean_probability import CleanProbability
from support.tiny import tiny_recipe
from support.trainers import pieces

WRONG, RIGHT, FIXED = (3, 50, 120), (7, 8, 90), (15,)
LABEL = np.full(200, np.nan)
LABEL[list(WRONG)] = 0
LABEL[[*RIGHT, *FIXED]] = 1
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*(12 photos|labels are below|starts from random|of the captions look)"),
]


def recipe_of(folder: Path, head: dict, **sections):
    """A recipe with marks of its pairs, as they are shown with noise."""
    plain = tiny_recipe(folder)
    data = pieces(plain)[0]
    pairs, captions = data.train.pairs, data.noise.apply(data.train.pairs)
    marks = []
    for pair in (*WRONG, *RIGHT, *FIXED):
        image_id = pairs.image_ids[int(pairs.image[pair])].as_py()
        kind = "wrong" if pair in WRONG else "right" if pair in RIGHT else "fixed"
        text = "a small house" if kind == "fixed" else None
        marks.append(Mark(pair_hash(image_id, captions[pair].as_py()), kind, text=text))
    append_marks(folder / "marks.jsonl", marks)
    assert tiny_recipe(folder).sha256 == plain.sha256
    return tiny_recipe(folder, head=head, data={"marks": str(folder / "marks.jsonl")}, **sections)


def test_a_plain_run_weighs_them_and_is_not_resumed_with_other_marks(tmp_path):
    recipe = recipe_of(tmp_path, {"kind": "clip"}, training={"max_steps": 2})
    train(recipe)
    run = Path(recipe.output_dir)
    said = read_provenance(run / "provenance.json")["marks"]
    assert {name: said[name] for name in ("wrong", "right", "fixed")} == {"wrong": 3, "right": 3, "fixed": 1}
    data = pieces(recipe)[0]
    np.testing.assert_array_equal(data.train.pairs.weight, np.where(LABEL == 0, 0, 1))
    assert data.noise.apply(data.train.pairs)[15].as_py() == "a small house"
    found = audit(run)
    assert found.split.sha256 == data.train.sha256
    assert found.table.to_pylist()[0]["caption"]
    assert train(recipe)["provenance"]["marks"] == said  # it is finished
    name = pair_hash(data.train.pairs.image_ids[0].as_py(), data.noise.apply(data.train.pairs)[0].as_py())
    append_marks(tmp_path / "marks.jsonl", [Mark(name, "wrong")])
    with pytest.raises(ValueError, match="train"):
        train(recipe)
    with pytest.raises(ValueError, match="--marks"):
        audit(run)


def test_crossfit_keeps_and_drops_what_was_marked(tmp_path):
    head = {"kind": "crossfit", "weights": str(tmp_path / "given.npz")}
    recipe = recipe_of(tmp_path, {"kind": "clip"})
    sha256 = pieces(recipe)[0].noise.sha256
    values = np.random.default_rng(0).permutation(np.linspace(0, 1, 200)).astype(np.float32)
    values[list(RIGHT)], values[list(WRONG)] = 0, 1
    CleanProbability(values, values, "by hand", sha256, (0.4, 0.3, 0.5)).save(tmp_path / "given.npz")
    recipe = tiny_recipe(tmp_path, head=head, data={"marks": str(tmp_path / "marks.jsonl")}, training={"max_steps": 2})
    trainer = pieces(recipe)[3]
    trainer.train()
    belief = trainer.model.head.belief.numpy()
    np.testing.assert_array_equal(belief, np.where(np.isnan(LABEL), values, LABEL).astype(np.float32))
    drawn = {int(k) for epoch in range(3) for batch in _batches(trainer.sampler, epoch) for k in batch}
    assert drawn.isdisjoint(WRONG)


def _batches(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_npc_has_them_in_its_clean_set_and_weighs_them_fully(tmp_path):
    recipe = recipe_of(tmp_path, {"kind": "npc", "rho": 0.5}, training={"epochs": 1})
    train(recipe)
    run = Path(recipe.output_dir)
    clean = set(MemoryBank.load(run / "bank.npz").clean.tolist())
    assert {*RIGHT, *FIXED} <= clean
    assert clean.isdisjoint(WRONG)
    checkpoint = sorted(run.glob("checkpoint-*"))[-1]
    trainer = pieces(recipe)[3]
    trainer.load_method_state(checkpoint)
    assert trainer.right is not None
    seen = []
    before = trainer.training_step

    def watch(*args, **kwargs):
        loss = before(*args, **kwargs)
        seen.append(trainer.seen.clone())
        return loss

    trainer.training_step = watch
    trainer.train()
    weight = torch.stack([step[1] for step in seen])
    right = weight[:, [*RIGHT, *FIXED]]
    assert (right[~right.isnan()] == 1).all()
    assert (weight[~weight.isnan()] < 1).any()


@pytest.mark.parametrize("weights", ["intended", "released"])
def test_osa_weighs_what_is_right_fully(tmp_path, weights):
    head = {"kind": "osa", "weights": weights, "normalise": "mean"}
    recipe = recipe_of(tmp_path, head, training={"max_steps": 1})
    trainer = pieces(recipe)[3]
    trainer.train()
    found = trainer.model.head.weights(torch.arange(200)).cpu().numpy()
    assert (found[[*RIGHT, *FIXED]] == 1).all()
    assert (found < 1).any()


def test_labels_of_crcl_do_not_move(tmp_path):
    head = {"kind": "crcl", "temperature": 0.2, "schedules": [2], "frozen_epochs": 1}
    recipe = recipe_of(tmp_path, head, training={"epochs": 3})
    train(recipe)
    checkpoint = sorted(Path(recipe.output_dir).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[-1]
    labels = next(
        content["labels"].numpy()
        for file in checkpoint.glob("*.safetensors")
        if "labels" in (content := load_file(file))
    )
    np.testing.assert_array_equal(labels[~np.isnan(LABEL)], LABEL[~np.isnan(LABEL)])
    assert (labels[np.isnan(LABEL)] < 1).all()
