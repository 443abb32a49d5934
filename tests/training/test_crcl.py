"""CRCL in whole runs: what becomes of the labels, pieces, first labels, and when it warns."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_itm.data.noise import CaptionNoise
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.methods.crcl import head as crcl_head
from clip_itm.methods.crcl.labels import LabelStore, label_filter
from clip_itm.methods.crcl.trainer import CrclTrainer, first_labels
from clip_itm.runs.build import make_trainer, val_metrics
from clip_itm.runs.setup import load_data, make_encoder, make_model, prepare
from clip_itm.runs.train import train
from clip_itm.training.clean_probability import CleanProbability
from clip_itm.training.schedule import cosine_lambda, warmup_steps
from clip_itm.training.trainer import PairTrainer
from support.trainers import ALPHA, THRESHOLD, brute_force_auc, crcl_recipe, pieces, weigh

PIECES = {"schedules": [1, 2], "frozen_epochs": 1}  # of 2 and 3 epochs
DEAD_LABELS = "ignore:.* of the labels are below"


class Spy:
    """Pairs, labels in the loss and matching probabilities of every step; labels at the end of every epoch."""

    def __init__(self, patch):
        self.steps: list[dict[str, Tensor]] = []
        self.first: Tensor | None = None
        self.after: dict[int, Tensor] = {}
        self.probabilities: dict[int, Tensor] = {}
        write, loss, end_epoch = LabelStore.write, crcl_head.crcl_loss, CrclTrainer.end_epoch

        def spy_write(store, pair_ids, labels, p):
            if self.first is None:
                self.first = store.labels.clone()
            self.steps.append({"pairs": pair_ids, "p": p.clone()})
            write(store, pair_ids, labels, p)

        def spy_loss(rows, columns, labels, *rest):
            self.steps[-1]["used"] = labels.clone()  # the head writes before it computes the loss
            return loss(rows, columns, labels, *rest)

        def spy_end(trainer, epoch):
            self.after[epoch] = trainer.head.labels.labels.clone()
            self.probabilities[epoch] = trainer.head.labels.probabilities.clone()
            end_epoch(trainer, epoch)

        patch.setattr(LabelStore, "write", spy_write)
        patch.setattr(crcl_head, "crcl_loss", spy_loss)
        patch.setattr(CrclTrainer, "end_epoch", spy_end)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = crcl_recipe(tmp_path_factory.mktemp("crcl"), head=PIECES, training={"epochs": 5})
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spy = Spy(patch)
        results = train(recipe)
    return recipe, Path(recipe.output_dir), results, spy


# Labels


def test_labels_follow_the_table_of_the_paper_pair_by_pair(finished):
    """docs/papers/crcl.md 4.2, told once more with floats and loops."""
    recipe, _, _, spy = finished
    data = load_data(recipe)
    sampler = PairBatchSampler(data.train.pairs.image, "random", 32, seed=0)
    labels = [1.0] * 200
    changed = []

    def cut(value):
        return value if value >= THRESHOLD else 0.0

    steps = iter(spy.steps)
    for epoch, what in enumerate(("replace", "refine", "keep", "refine", "refine")):
        sampler.set_epoch(epoch)
        before = list(labels)
        for batch in sampler:
            step = next(steps)
            assert step["pairs"].tolist() == batch
            for pair, p, used in zip(batch, step["p"].tolist(), step["used"].tolist(), strict=True):
                expected = cut(labels[pair] if what != "refine" else ALPHA * labels[pair] + (1 - ALPHA) * p)
                assert used == pytest.approx(expected, abs=1e-6)
                labels[pair] = p if what == "replace" else expected
        np.testing.assert_allclose(spy.after[epoch], labels, atol=1e-6)
        changed.append(sum(a != b for a, b in zip(before, labels, strict=True)))
    assert next(steps, None) is None
    assert changed[0] == 192, "all pairs of the epoch; 8 are in no batch"
    assert min(changed[1], changed[3], changed[4]) > 50
    assert 10 < sum(label == 0 for label in labels) < 190, "the filter acts, and not on all"


def test_the_log_has_the_labels_of_every_epoch(finished):
    recipe, folder, results, spy = finished
    is_clean = CaptionNoise.load(folder / "noise.npz").is_clean(load_data(recipe).train.pairs)
    assert [entry["method_epoch"] for entry in results["method_history"]] == [1, 2, 3, 4, 5]
    assert [entry["piece"] for entry in results["method_history"]] == [0, 0, 1, 1, 1]
    for epoch, entry in enumerate(results["method_history"]):
        labels, p = spy.after[epoch].numpy(), spy.probabilities[epoch].numpy()
        assert entry["step"] == 6 * (epoch + 1)
        assert entry["label_mean"] == pytest.approx(labels.mean(), rel=1e-5)
        assert entry["label_zero"] == pytest.approx((labels == 0).mean())
        shares = [entry[f"label_share_{number}"] for number in range(10)]
        np.testing.assert_allclose(shares, np.histogram(labels, 10, (0, 1))[0] / 200, atol=1e-6)
        assert entry["label_auc"] == pytest.approx(brute_force_auc(labels, is_clean))
        seen = ~np.isnan(p)
        assert entry["probability_auc"] == pytest.approx(brute_force_auc(p[seen], is_clean[seen]))


def test_labels_are_in_checkpoints_and_probabilities_tell_what_is_clean(finished):
    _, folder, results, spy = finished
    stored = load_file(folder / "checkpoint-30" / "labels.safetensors")
    assert torch.equal(stored["labels"], spy.after[4])
    assert torch.equal(stored["probabilities"].nan_to_num(-1), spy.probabilities[4].nan_to_num(-1))
    kept = CleanProbability.load(folder / "clean_probability.npz")
    assert kept.noise_sha256 == results["noise"]["sha256"]
    p, labels = spy.probabilities[4].numpy(), spy.after[4].numpy()
    seen = ~np.isnan(p)
    np.testing.assert_array_equal(kept.ranking, np.where(seen, p, labels))
    np.testing.assert_array_equal(kept.values[~seen], labels[~seen])
    assert (np.diff(kept.values[seen][np.argsort(p[seen])]) >= -1e-6).all(), "never falls as p rises"
    assert not list(folder.glob("best/labels*")), "labels are no part of the model"


def test_only_training_writes_labels(tmp_path):
    _, model, _, trainer = pieces(crcl_recipe(tmp_path))
    trainer.begin_epoch(0)
    batch = trainer._prepare_inputs(trainer.train_dataset.__getitems__([3, 8, 150]))
    model.eval()
    model(**batch)
    model.train()
    with torch.no_grad():
        model(**batch)
    assert trainer.head.labels.probabilities.isnan().all()
    model(**batch)
    assert torch.nonzero(~trainer.head.labels.probabilities.isnan())[:, 0].tolist() == [3, 8, 150]


# Pieces


@pytest.mark.filterwarnings(DEAD_LABELS)
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("warmup", [0.25, 3])
def test_a_piece_begins_anew_and_keeps_the_labels(tmp_path, monkeypatch, accumulation, warmup):
    recipe = crcl_recipe(
        tmp_path,
        head=PIECES,
        training={"epochs": 5, "gradient_accumulation_steps": accumulation, "warmup": warmup, "log_every": 1},
    )
    _, model, _, trainer = pieces(recipe)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    at_start = {}
    step = PairTrainer.training_step

    def spy(self, *args):
        at_start.setdefault(
            (self.head.phase.piece, self.head.phase.epoch_in_piece),
            {
                "weights": {name: value.clone() for name, value in model.state_dict().items()},
                "moments": len(self.optimizer.optimizer.state),
                "best": self.state.best_metric,
                "labels": self.head.labels.labels.clone(),
            },
        )
        return step(self, *args)

    with monkeypatch.context() as patch:
        spied = Spy(patch)
        patch.setattr(PairTrainer, "training_step", spy)
        trainer.train()
    assert list(at_start) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    for (piece, epoch), found in at_start.items():
        equal = all(torch.equal(found["weights"][name], initial[name]) for name in initial)
        assert equal == (found["moments"] == 0) == (found["best"] is None) == (epoch == 0), (piece, epoch)
    assert torch.equal(at_start[1, 0]["labels"], spied.after[1])
    assert not torch.equal(at_start[1, 0]["labels"], at_start[0, 0]["labels"])

    steps_per_epoch = math.ceil(6 / accumulation)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    expected = []
    for epochs in (2, 3):
        length = epochs * steps_per_epoch
        expected += [1e-3 * cosine_lambda(s, warmup_steps(warmup, length), length) for s in range(length)]
    assert rates == pytest.approx(expected)


@pytest.mark.filterwarnings(DEAD_LABELS)
def test_the_best_checkpoint_is_the_best_of_the_last_piece(tmp_path, monkeypatch):
    recipe = crcl_recipe(tmp_path, head=PIECES, training={"epochs": 5})
    rsums = iter([10, 500, 400, 120, 130, 110])  # step 0, then the epochs

    def scripted(*given):
        return val_metrics(*given) | {"rsum": next(rsums)}

    monkeypatch.setattr("clip_itm.runs.build.val_metrics", scripted)
    results = train(recipe)
    assert (results["best_step"], results["best_val_rsum"]) == (24, 130)
    folder = Path(recipe.output_dir)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-24", "checkpoint-30"}
    best = load_file(folder / "best" / "model.safetensors")
    checkpoint = load_file(folder / "checkpoint-24" / "model.safetensors")
    assert all(torch.equal(best[name], checkpoint[name]) for name in checkpoint)


def test_more_steps_than_the_pieces_have_are_told_at_once(tmp_path):
    recipe = crcl_recipe(tmp_path, head=PIECES, training={"epochs": 5, "max_steps": 31})
    with pytest.raises(ValueError, match=r"training.max_steps: 31 steps are more than .* \(5 epochs of 6 steps\)"):
        pieces(recipe)
    pieces(recipe.with_overrides("--training.max_steps", "30"))


@pytest.mark.filterwarnings(DEAD_LABELS)
def test_max_steps_may_draw_out_a_single_piece_or_cut_it_short(tmp_path, monkeypatch):
    for steps, epochs, last in ((8, [0, 1], 2), (14, [0, 1, 2], 3)):
        recipe = crcl_recipe(
            tmp_path, head={"frozen_epochs": 1}, training={"epochs": 2, "max_steps": steps, "save_every": 100}
        )
        trainer = pieces(recipe)[-1]
        with monkeypatch.context() as patch:
            spy = Spy(patch)
            trainer.train()
        assert list(spy.after) == epochs
        entries = [entry["method_epoch"] for entry in trainer.state.log_history if "method_epoch" in entry]
        assert entries[-1] == last, "also where an epoch has just begun"


# First labels


@pytest.mark.parametrize(
    ("same_image", "same_caption"),
    [("mask", "negative"), ("negative", "negative"), ("mask", "mask"), ("negative", "mask")],
)
@pytest.mark.parametrize("softmax_set", [None, 16])
def test_first_labels_are_the_matching_probabilities_of_the_model(
    tmp_path, monkeypatch, same_image, same_caption, softmax_set
):
    head = {"initial_labels": "model", "same_image": same_image, "softmax_set": softmax_set, "temperature": 0.1}
    head["same_caption"] = same_caption
    recipe = crcl_recipe(tmp_path, head=head, training={"seed": 3})
    data, _, encoder, _ = pieces(recipe)
    captions = np.arange(200) * 7 % 40  # the captions of the sample all differ
    monkeypatch.setattr(
        "clip_itm.methods.crcl.trainer.numbers_if_asked",
        lambda section, *_: captions if section.same_caption == "mask" else None,
    )
    found = first_labels(recipe.head, recipe.training, data, encoder)
    embeddings = encoder.encode(data.train)
    photo, source = data.train.pairs.image, data.noise.source
    images, texts = embeddings.images.double().numpy(), embeddings.texts.double().numpy()
    expected, left_out = np.empty(200), 0
    order = np.random.default_rng(3).permutation(200)
    size = softmax_set or 32
    for start in range(0, 200, size):
        batch = order[start : start + size]
        if len(batch) < size:
            batch = order[-size:]  # as many candidates for everybody
        for pair in batch:
            others = [j for j in batch if j == pair or same_image == "negative" or photo[j] != photo[pair]]
            if same_caption == "mask":
                kept = [j for j in others if photo[j] == photo[pair] or captions[j] != captions[pair]]
                others, left_out = kept, left_out + len(others) - len(kept)
            row = [math.exp(images[photo[pair]] @ texts[source[j]] / 0.1) for j in others]
            column = [math.exp(images[photo[j]] @ texts[source[pair]] / 0.1) for j in others]
            own = math.exp(images[photo[pair]] @ texts[source[pair]] / 0.1)
            p = (own / sum(row) + own / sum(column)) / 2
            expected[pair] = p if p >= THRESHOLD else 0
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 0 < (expected == 0).sum() < 200
    assert (left_out > 0) == (same_caption == "mask")


@pytest.mark.filterwarnings(DEAD_LABELS)
def test_training_begins_with_the_first_labels(tmp_path, monkeypatch):
    recipe = crcl_recipe(tmp_path, head={"initial_labels": "model"}, training={"max_steps": 2})
    data, _, encoder, trainer = pieces(recipe)
    spy = Spy(monkeypatch)
    trainer.train()
    expected = first_labels(
        recipe.head,
        recipe.training,
        data,
        make_encoder(recipe, make_model(recipe, data.splits)[0], encoder.processor),
    )
    assert torch.equal(spy.first, expected)
    assert torch.equal(spy.steps[0]["used"], expected[spy.steps[0]["pairs"]])


@pytest.mark.filterwarnings("ignore:split test has 12 photos")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("initial_labels", ["one", "model"])
def test_weights_of_the_data_are_in_the_first_labels(tmp_path, monkeypatch, initial_labels):
    recipe = crcl_recipe(tmp_path, head={"initial_labels": initial_labels}, training={"max_steps": 2, "warmup": 0})
    prepared = prepare(recipe)
    data = prepared.data
    model, processor = make_model(recipe, data.splits)
    encoder = make_encoder(recipe, model, processor)
    expected = first_labels(recipe.head, recipe.training, data, encoder)
    weights = np.random.default_rng(0).random(200).astype(np.float32)
    data.splits["train"] = weigh(data.train, weights)
    np.testing.assert_array_equal(data.train.pairs.weight, weights)
    trainer = make_trainer(recipe, *prepared, encoder, resuming=False)
    spy = Spy(monkeypatch)
    trainer.train()
    expected = weights if expected is None else label_filter(expected * torch.from_numpy(weights), THRESHOLD)
    np.testing.assert_array_equal(spy.first, expected)
    for step in spy.steps:
        own = torch.as_tensor(expected)[step["pairs"]]
        np.testing.assert_array_equal(step["used"], np.where(own < THRESHOLD, 0, own))
    assert len(np.unique(expected)) > 20
