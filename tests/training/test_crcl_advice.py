"""What CRCL says when its labels go wrong, and that its options do something."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch

from clip_itm.runs.setup import load_data
from clip_itm.runs.train import train
from clip_itm.training.encode import Embeddings
from support.trainers import crcl_recipe, pieces

ALPHA, THRESHOLD = 0.6, 0.025  # 1 / 32 candidates is what an untrained model gives
PIECES = {"schedules": [1, 2], "frozen_epochs": 1}  # of 2 and 3 epochs
DEAD_LABELS = "ignore:.* of the labels are below"


def test_dead_labels_are_told_with_what_to_change(tmp_path):
    """After every epoch that has changed labels; the frozen epoch of the second piece, the third, has not."""
    recipe = crcl_recipe(
        tmp_path,
        head={
            "temperature": 1.0,
            "label_momentum": 0.8,
            "label_threshold": 0.05,
            "frozen_epochs": 1,
            "schedules": [1, 1],
        },
        training={"epochs": 4},
    )
    with pytest.warns(UserWarning, match="of the labels are below head.label_threshold 0.05") as caught:
        pieces(recipe)[-1].train()
    told = [str(warning.message) for warning in caught if "of the labels" in str(warning.message)]
    assert [message.partition("after epoch ")[2][0] for message in told] == ["1", "2", "4"]
    assert "Lower head.temperature" in told[0]


def with_gap(gap: float, count: int = 24) -> Embeddings:
    """A caption per photo, whose cosine is `gap` above that of all the others: p is what the formula expects."""
    basis = torch.linalg.qr(torch.randn(count + 1, count + 1, generator=torch.Generator().manual_seed(0)))[0]
    images = math.sqrt(gap) * basis[:count] + math.sqrt(1 - gap) * basis[count]
    return Embeddings(images, images.clone(), torch.arange(count))


def test_a_temperature_that_would_cut_all_labels_is_told_before_training(tmp_path):
    recipe = crcl_recipe(tmp_path, head={"temperature": 0.05, "label_threshold": 0.1}, training={"batch_size": 64})
    trainer = pieces(recipe)[-1]
    trainer.encode_val = lambda: with_gap(0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the embeddings of")
        warnings.filterwarnings("error", "head.temperature")
        trainer.evaluate()  # from scratch nothing is known of the scores yet
        trainer.model.backbone.initial_logit_scale = math.log(100)
        trainer.encode_val = lambda: with_gap(0.3)
        trainer.evaluate()  # p of 0.86
        trainer.encode_val = lambda: with_gap(0.1)
        with pytest.warns(UserWarning, match=r"head.temperature 0.05 is too high") as caught:
            trainer.evaluate()
        (message,) = (str(one.message) for one in caught if "head.temperature" in str(one.message))
        gap, p, advice = (
            float(message.partition(text)[2].split()[0].rstrip(",;")) for text in ("cosine of ", "near ", "to 0. Use ")
        )
        assert gap == pytest.approx(0.1 * 23 / 24, abs=1e-3), "the mean of all pairs contains the own one"
        assert p == pytest.approx(1 / (1 + 63 * math.exp(-gap / 0.05)), abs=1e-3)
        assert 1 / (1 + 63 * math.exp(-gap / advice)) == pytest.approx(0.5, abs=0.02)
        trainer.config = trainer.config.model_copy(update={"temperature": advice})
        trainer.evaluate()
        trainer.config = trainer.config.model_copy(update={"temperature": 0.05})
        trainer.state.global_step = 1
        trainer.evaluate()


def test_the_advice_on_the_temperature_holds_for_a_high_threshold_and_two_candidates(tmp_path):
    head = {"temperature": 0.5, "label_threshold": 0.6, "softmax_set": 2}
    trainer = pieces(crcl_recipe(tmp_path, head=head))[-1]
    trainer.model.backbone.initial_logit_scale = math.log(100)
    trainer.encode_val = lambda: with_gap(0.1)
    with pytest.warns(UserWarning, match=r"Use 0\.236,"):
        trainer.evaluate()
    assert 1 / (1 + math.exp(-0.1 * 23 / 24 / 0.236)) == pytest.approx(0.6, abs=1e-3)


def test_labels_that_are_not_finite_are_an_error(tmp_path):
    recipe = crcl_recipe(tmp_path, head={"frozen_epochs": 1}, training={"log_every": 1})
    _, _, encoder, trainer = pieces(recipe)
    embeddings = encoder.encode(load_data(recipe).val)
    trainer.encode_val = lambda: embeddings
    end_epoch = trainer.end_epoch

    def lose_the_labels(epoch):
        trainer.head.labels.labels.fill_(math.nan)
        end_epoch(epoch)

    trainer.end_epoch = lose_the_labels
    with pytest.raises(ValueError, match=r"200 labels are not finite after epoch 1: .* lower training.learning_rate"):
        trainer.train()
    assert not list(Path(recipe.output_dir).glob("checkpoint-*")), "labels that are lost are in no checkpoint"


def test_without_noise_nothing_is_said_of_wrong_pairs(tmp_path):
    recipe = crcl_recipe(tmp_path, noise={"ratio": 0.0}, training={"max_steps": 2, "warmup": 0})
    results = train(recipe)
    (entry,) = results["method_history"]
    assert entry["method_epoch"] == 1
    assert not any("auc" in name for name in entry)
    assert json.loads((Path(recipe.output_dir) / "results.json").read_text())["method_history"] == [entry]


@pytest.mark.filterwarnings(DEAD_LABELS)
@pytest.mark.parametrize(
    "option",
    [{"store_filtered": False}, {"softmax_set": 16}, {"same_image": "negative"}, {"complementary_weight": 0}],
    ids=str,
)
def test_options_change_the_training(tmp_path, option):
    ends = []
    for changes in ({}, option):
        head = {"frozen_epochs": 0, "label_momentum": 0.5, "label_threshold": 0.3, **changes}
        trainer = pieces(crcl_recipe(tmp_path, head=head, training={"max_steps": 14}))[-1]
        trainer.train()
        weights = [value.detach().flatten() for value in trainer.model.parameters()]
        ends.append(torch.cat([*weights, trainer.head.labels.labels]))
    assert ends[1].isfinite().all()
    assert not torch.equal(*ends)
