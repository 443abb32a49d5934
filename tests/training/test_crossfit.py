"""Folds within a run: clean data are a plain run, an interrupted one goes on to the bit, nobody judges what it saw."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from clip_itm.files import read_arrays
from clip_itm.methods.crossfit import trainer as crossfit
from clip_itm.methods.crossfit.folds import fold_of_images
from clip_itm.runs.train import train
from clip_itm.training.callbacks import FinishCallback
from clip_itm.training.clean_probability import CleanProbability
from clip_itm.training.folder import other_files
from support.killed_runs import assert_same_end, recipe_of
from support.tiny import tiny_recipe

PROBABLE = np.linspace(0, 1, 200, dtype=np.float32)


def run_of(folder: Path, head: dict, **sections) -> tuple[Path, dict]:
    folder.mkdir(exist_ok=True)
    recipe = tiny_recipe(folder, head={"kind": "crossfit", **head}, **sections)
    return Path(recipe.output_dir), train(recipe)


def weights_of(run: Path) -> dict:
    return load_file(run / "best" / "model.safetensors")


def assert_plain(run: Path, results: dict, plain: Path) -> None:
    expected = json.loads((plain / "results.json").read_text())
    for key in ("zero_shot", "last", "best", "best_step", "best_val_rsum", "steps", "val_history"):
        assert results[key] == expected[key], key
    weights = weights_of(plain)
    assert all((value == weights[name]).all() for name, value in weights_of(run).items())


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    recipe = tiny_recipe(folder, training={"epochs": 2}, backbone={"image_dropout": 0.2, "word_dropout": 0.2})
    train(recipe)
    return Path(recipe.output_dir)


SAME = {"training": {"epochs": 2}, "backbone": {"image_dropout": 0.2, "word_dropout": 0.2}}


@pytest.mark.parametrize("head", [{"folds": 2}, {"folds": 3, "fold_epochs": 1}, {"folds": 0}], ids=str)
def test_where_nothing_is_found_it_is_the_plain_run_to_the_bit(tmp_path, plain, monkeypatch, head):
    """Folds draw from all generators, change the model and its buffers, and leave no trace."""

    def nothing(judged, *rest):
        ones = np.ones(200, dtype=np.float32)
        return CleanProbability(ones, ones, "by hand", rest[-1].data.noise.sha256, share=(0.0, 0.0, 0.01))

    monkeypatch.setattr(crossfit.CrossfitTrainer, "_estimate", lambda self, judged: nothing(judged, self))
    run, results = run_of(tmp_path, head, **SAME)
    assert_plain(run, results, plain)
    assert results["wrong_share"]["share"] == 0
    assert [entry["wrong_share"] for entry in results["method_history"]] == [0]


def test_a_judge_that_knows_nothing_condemns_nobody(tmp_path, plain, capfd):
    """Three steps on drawn scenes teach nothing: pairs look like mismatches, which is no reason to doubt them."""
    run, results = run_of(tmp_path, {"fold_epochs": 1}, **SAME)
    assert results["wrong_share"]["high"] >= 0.95
    assert_plain(run, results, plain)
    assert "look unrelated to their photos" in capfd.readouterr().err


def test_a_judge_that_cannot_tell_drops_nothing_and_the_loss_is_bounded(tmp_path, monkeypatch, capfd):
    """Up to the upper end of the interval may be wrong: infonce on all of them would be the worst answer."""

    def weak(trainer, judged):
        ones, sha256 = np.ones(200, dtype=np.float32), trainer.data.noise.sha256
        return CleanProbability(ones, ones, "by hand", sha256, share=(0.0, 0.0, 0.4), is_weak=True)

    monkeypatch.setattr(crossfit.CrossfitTrainer, "_estimate", weak)
    run, results = run_of(tmp_path, {}, **SAME)
    told = capfd.readouterr().err
    unknown = "how many of the captions are wrong is not known (0 to 40.0 %)"
    assert f"{unknown}: the models that judge know too little" in told
    assert "training with gce on 200 of 200 pairs, of which 40.0 %, by weight, may be wrong" in told
    assert (results["wrong_share"]["share"], results["wrong_share"]["high"]) == (None, 0.4)
    assert [entry["wrong_share_high"] for entry in results["method_history"]] == [0.4]
    assert "how many of the training captions are wrong is not known" in (run / "best" / "README.md").read_text()
    assert CleanProbability.load(run / "clean_probability.npz").is_weak


def test_weights_decide_what_is_trained_on(tmp_path, plain):
    """Pairs of no greater weight than `smallest_weight` are in no batch, and as many steps are taken."""
    run, _ = run_of(tmp_path / "truth", {"estimate": "truth"}, **SAME)
    noise = read_arrays(run / "noise.npz")[0]
    file = tmp_path / "clean_probability.npz"
    CleanProbability(PROBABLE, PROBABLE, "by hand", str(noise["sha256"])).save(file)
    seen = []
    original = crossfit.CrossfitTrainer.training_step

    def step(self, model, inputs, *rest):
        assert "pair_weight" not in inputs, "that is the weight that the data give"
        seen.append((inputs["pair_ids"].numpy(), self.model.head.belief[inputs["pair_ids"]].numpy()))
        return original(self, model, inputs, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossfit.CrossfitTrainer, "training_step", step)
        _, results = run_of(tmp_path / "file", {"weights": str(file), "smallest_weight": 0.5}, **SAME)
    pairs, weights = (np.concatenate(part) for part in zip(*seen, strict=True))
    assert results["steps"] == len(seen) == 12
    assert (PROBABLE[pairs] > 0.5).all()
    np.testing.assert_array_equal(weights, PROBABLE[pairs])
    # three whole batches of the 100 pairs are a pass, and no pair is twice in one
    assert [len(set(part.tolist())) for part in pairs.reshape(4, 96)] == [96] * 4
    assert "weights" in results["provenance"]["method"]


def test_weights_of_other_pairs_are_refused(tmp_path):
    file = tmp_path / "clean_probability.npz"
    CleanProbability(PROBABLE, PROBABLE, "by hand", "0" * 64).save(file)
    with pytest.raises(ValueError, match=r"head\.weights: .*clean_probability\.npz belongs to other training pairs"):
        run_of(tmp_path / "run", {"weights": str(file)})


def test_too_few_believed_pairs_are_told(tmp_path, monkeypatch):
    def doubting(self, judged):
        values = np.where(np.arange(200) < 20, 1, 0).astype(np.float32)
        return CleanProbability(values, values, "by hand", "", share=(0.9, 0.89, 0.91))

    monkeypatch.setattr(crossfit.CrossfitTrainer, "_estimate", doubting)
    with pytest.raises(ValueError, match="20 of 200 captions are believed to be right, which do not fill a batch"):
        run_of(tmp_path, {"folds": 0})


def test_folds_that_are_too_small_are_told(tmp_path):
    with pytest.raises(
        ValueError, match=r"head\.folds: 2: .* 100 pairs of 20 photos, which do not fill a batch of 150"
    ):
        run_of(tmp_path, {}, training={"batch_size": 150})


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_no_model_judges_an_image_that_it_was_trained_on(tmp_path, monkeypatch, folds):
    trained, judged, trainers = [], [], []
    make, judge = crossfit.CrossfitTrainer._trainer_of, crossfit.judge_pairs

    def watch(self, fold, sampler, folder):
        trained.append(np.unique(sampler.pair_image[np.concatenate([sampler.draw(epoch) for epoch in range(9)])]))
        trainer = make(self, fold, sampler, folder)
        trainers.append(weakref.ref(trainer))
        return trainer

    def judge_watched(data, encoder, pairs, *rest):
        assert [trainer() for trainer in trainers] == [None] * len(trainers), "moments of its optimiser would stay"
        judged.append(np.unique(data.train.pairs.image[pairs]))
        assert set(np.flatnonzero(np.isin(data.train.pairs.image, judged[-1]))) == set(pairs)
        return judge(data, encoder, pairs, *rest)

    monkeypatch.setattr(crossfit.CrossfitTrainer, "_trainer_of", watch)
    monkeypatch.setattr(crossfit, "judge_pairs", judge_watched)
    run_of(tmp_path, {"folds": folds, "fold_epochs": 1}, training={"epochs": 1})
    assert len(trained) == len(judged) == folds
    np.testing.assert_array_equal(np.sort(np.concatenate(judged)), np.arange(40))
    for seen, asked in zip(trained, judged, strict=True):
        np.testing.assert_array_equal(np.union1d(seen, asked), np.arange(40))
        assert not set(seen) & set(asked)


@pytest.mark.parametrize(("count", "folds"), [(1, 1), (2, 2), (7, 2), (100, 3), (5, 5)])
def test_folds_are_a_seeded_partition_of_equal_parts(count, folds):
    fold = fold_of_images(count, folds, seed=4)
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(fold, fold_of_images(count, folds, seed=4))
    if count == 100:
        assert (fold != fold_of_images(count, folds, seed=5)).any()


# Interrupted


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, int]:
    """An uninterrupted run, and how many steps all its trainers take."""
    recipe, steps = recipe_of(tmp_path_factory.mktemp("whole") / "it", "crossfit", evaluate_every=4), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinishCallback, "on_step_begin", lambda *args, **kwargs: steps.append(1))
        train(recipe)
    return Path(recipe.output_dir), len(steps)


def interrupted(recipe, patch, owner, name: str, call: int) -> None:
    """The run, until `name` of `owner` is called for the `call`-th time."""
    calls, original = [], getattr(owner, name, lambda *args, **kwargs: None)

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with patch.context() as context:
        context.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        *[(FinishCallback, "on_step_begin", step) for step in (1, 2, 3, 4, 6, 7, 9, 12, 13, 14, 17, 24)],
        *[(crossfit, "judge_pairs", fold) for fold in (1, 2)],
        *[(crossfit.CrossfitTrainer, "_keep_scores", fold) for fold in (1, 2)],
        *[(crossfit, "delete", call) for call in (1, 2, 3)],
        (crossfit, "from_mixture", 1),
        (CleanProbability, "save", 1),
        (crossfit.CrossfitTrainer, "_use", 1),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, whole, owner, name, call):
    """In a fold, between folds, while it judges, while it writes down what it found, and afterwards."""
    assert whole[1] == 24  # 2 folds of 6 steps, then 12
    recipe = recipe_of(tmp_path / "it", "crossfit", evaluate_every=4)
    interrupted(recipe, monkeypatch, owner, name, call)
    train(recipe)
    assert_same_end(Path(recipe.output_dir), whole[0], "crossfit")
    assert other_files(Path(recipe.output_dir)) == []


def test_work_of_folds_is_work(tmp_path, monkeypatch):
    """Another recipe does not replace it unasked, and a new beginning does."""
    recipe = recipe_of(tmp_path / "it", "crossfit", evaluate_every=4)
    interrupted(recipe, monkeypatch, FinishCallback, "on_step_begin", 8)
    other = recipe.with_overrides("--training.seed", "5")
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        train(other)
    train(other, overwrite=True)
    run = Path(recipe.output_dir)
    assert other_files(run) == []
    assert sorted(path.name for path in (run / "prepared").iterdir()) == ["pair_weights.npz"]


def test_damaged_scores_of_a_fold_are_told(tmp_path, monkeypatch):
    recipe = recipe_of(tmp_path / "it", "crossfit", evaluate_every=4)
    interrupted(recipe, monkeypatch, FinishCallback, "on_step_begin", 8)
    file = Path(recipe.output_dir) / "prepared" / "fold-0" / "scores.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"scores\.npz"):
        train(recipe)
