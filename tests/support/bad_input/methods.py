"""Bad input of NPC, CRCL, crossfit, banks, audits and imported checkpoints."""

from pathlib import Path

import numpy as np
import torch

from clip_itm.methods.npc.bank import MemoryBank
from clip_itm.training.clean_probability import CleanProbability
from support.bad_input.cases import case, photos, recipe


@case("an unknown method")
def _(place):
    return [*recipe(place), "--head.kind", "ncp"]


@case("a key of another method")
def _(place):
    return [*recipe(place), "--head.kind", "crcl", "--head.rho", "0.9"]


@case("a warm-up as long as the run (NPC)")
def _(place):
    return [*recipe(place), "--head.kind", "npc", "--head.warmup_epochs", "5"]


@case("pieces that do not add up to the epochs (CRCL)")
def _(place):
    return [*recipe(place), "--head.kind", "crcl", "--head.schedules", "[2, 4]"]


@case("frozen epochs that leave none (CRCL)")
def _(place):
    return [*recipe(place), "--head.kind", "crcl", "--head.frozen_epochs", "5"]


@case("a softmax set that does not divide the batch (CRCL)")
def _(place):
    return [*recipe(place), "--head.kind", "crcl", "--head.softmax_set", "3"]


@case("a memory bank that is not there")
def _(place):
    return [*recipe(place), "--head.kind", "npc", "--head.bank", str(place / "bank.npz")]


@case("the memory bank of other pairs")
def _(place):
    words = recipe(place)
    entries = np.zeros(12, dtype=np.int64)
    MemoryBank(entries[:6], entries, 0.9, "some model", "0" * 64).save(place / "bank.npz")
    return [*words, "--head.kind", "npc", "--head.bank", str(place / "bank.npz")]


@case("a file that is no memory bank")
def _(place):
    words = recipe(place)
    (place / "bank.npz").write_text("bank")
    return [*words, "--head.kind", "npc", "--head.bank", str(place / "bank.npz")]


@case("no pair that is surely clean (NPC)")
def _(place):
    return [*recipe(place), "--head.kind", "npc", "--head.rho", "0.9999999"]


@case("a label threshold that no label can pass (CRCL)")
def _(place):
    return [*recipe(place), "--head.kind", "crcl", "--head.label_threshold", "1"]


@case("a memory bank and weights of pairs (NPC)")
def _(place):
    return [*recipe(place), "--head.kind", "npc", "--head.bank", "bank.npz", "--head.weights", "weights.npz"]


@case("first labels without their file (CRCL)")
def _(place):
    return [*recipe(place), "--head.kind", "crcl", "--head.initial_labels", "crossfit"]


@case("weights that no label begins with (CRCL)")
def _(place):
    return [*recipe(place), "--head.kind", "crcl", "--head.weights", "weights.npz"]


def weights(place: Path) -> str:
    file = place / "weights.npz"
    values = np.ones(12, dtype=np.float32)
    CleanProbability(values, values, "by hand", "0" * 64).save(file)
    return str(file)


@case("weights of other pairs (crossfit)")
def _(place):
    return [*recipe(place), "--head.kind", "crossfit", "--head.weights", weights(place)]


@case("weights that are not there (crossfit)")
def _(place):
    return [*recipe(place), "--head.kind", "crossfit", "--head.weights", str(place / "weights.npz")]


@case("a file that holds no weights (crossfit)")
def _(place):
    words = recipe(place)
    (place / "weights.npz").write_text("weights")
    return [*words, "--head.kind", "crossfit", "--head.weights", str(place / "weights.npz")]


@case("one fold (crossfit)")
def _(place):
    return [*recipe(place), "--head.kind", "crossfit", "--head.folds", "1"]


@case("folds of a single photo (crossfit)")
def _(place):
    return [*recipe(place), "--head.kind", "crossfit", "--head.folds", "4"]


@case("folds that do not fill a batch (crossfit)")
def _(place):
    return [*recipe(place), "--head.kind", "crossfit", "--training.batch_size", "8"]


@case("a key of folds where none are trained (crossfit)")
def _(place):
    return [*recipe(place), "--head.kind", "crossfit", "--head.folds", "0", "--head.fold_epochs", "2"]


@case("a key of folds beside weights from a file (crossfit)")
def _(place):
    return [*recipe(place), "--head.kind", "crossfit", "--head.weights", weights(place), "--head.siblings", "false"]


@case("a key of made mismatches where two Gaussians judge (crossfit)")
def _(place):
    return [*recipe(place), "--head.kind", "crossfit", "--head.estimate", "mixture", "--head.candidates", "100"]


@case("a key of the loss that nothing chooses (crossfit)")
def _(place):
    return [*recipe(place), "--head.kind", "crossfit", "--head.loss", "mix", "--head.largest_residual", "0.2"]


@case("no pair that is believed (crossfit)")
def _(place):
    words = [*recipe(place), "--noise.ratio", "1", "--noise.level", "image"]
    return [*words, "--head.kind", "crossfit", "--head.estimate", "truth"]


@case("an audit of a run that is not finished")
def _(place):
    words = recipe(place)
    (place / "run").mkdir()
    (place / "run" / "recipe.yaml").write_text((place / "recipe.yaml").read_text())
    return ["audit", "--run", str(place / "run"), *words[2:]]


@case("an audit of a folder that is no run")
def _(place):
    (place / "empty").mkdir()
    return ["audit", "--run", str(place / "empty")]


@case("an audit of data that no model judges")
def _(place):
    return ["audit", str(place / "photos")]


@case("an audit of data that are not there")
def _(place):
    return ["audit", str(place / "nowhere"), "--model", "ViT-B-32:openai"]


@case("an audit by a model that is not there")
def _(place):
    (place / "photos").mkdir(exist_ok=True)
    return ["audit", str(place / "photos"), "--model", str(place / "nowhere")]


@case("importing a file that is no checkpoint")
def _(place):
    (place / "epoch4.pt").write_text("weights")
    return ["import", str(place / "epoch4.pt"), "--out", str(place / "model")]


@case("importing a checkpoint without a CLIP in it")
def _(place):
    torch.save({"state_dict": {"layer.weight": torch.zeros(2, 2)}}, place / "epoch4.pt")
    return ["import", str(place / "epoch4.pt"), "--out", str(place / "model")]


@case("importing into a folder that is not empty")
def _(place):
    torch.save({"state_dict": {}}, place / "epoch4.pt")
    photos(place / "model")
    return ["import", str(place / "epoch4.pt"), "--out", str(place / "model")]


@case("published bank files that are not there")
def _(place):
    recipe(place)
    (place / "banks").mkdir()
    return [
        "bank",
        "import",
        str(place / "banks"),
        "--recipe",
        str(place / "recipe.yaml"),
        "--out",
        str(place / "b.npz"),
    ]
