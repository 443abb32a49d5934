"""The head of AAHR: gates, modes, weights, presets."""

import pytest
import torch
from torch import Tensor

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.methods.aahr.configuration import AahrHeadConfig
from clip_itm.methods.aahr.criterion import gates_of
from clip_itm.methods.aahr.head import AahrHead
from clip_itm.training.configuration import TrainingSection
from support.aahr_golden import normal, small_config, unit

IDS = torch.tensor([0, 1, 0, 2, 3, 1])


def test_gates_scale_with_the_batch():
    published = AahrHeadConfig()
    assert gates_of(published, 128, 1132) == (2201, 8000)
    assert gates_of(published, 1024, 141) == (276, 1000)
    assert gates_of(AahrHeadConfig(prototypes_after=1.5, graph_after=0), 1024, 10) == (15, 0)


def head_and_features(**config) -> tuple[AahrHead, Features, Features]:
    torch.manual_seed(0)
    head = AahrHead(small_config(**config), FeatureWidths(12, 20, 14)).double()
    sides = []
    for width, seed in ((20, 1), (14, 2)):
        mask = torch.arange(5) < torch.tensor([5, 3, 2, 5, 1, 4])[:, None]
        sides.append(Features(normal(6, 12, seed=seed), normal(6, 5, width, seed=seed + 5), mask))
    return head, *sides


def step(head: AahrHead, images: Features, texts: Features) -> dict[str, Tensor]:
    head.zero_grad()
    loss, logs = head.loss(head.image_outputs(images), head.text_outputs(texts), IDS, torch.arange(6))
    loss.backward()
    return logs


def test_terms_begin_at_their_gates_and_not_before():
    head, images, texts = head_and_features(queue_length=12)
    criterion = head.criterion
    criterion.gates = type(criterion.gates)(prototypes=1, graph=3)
    head.keys = unit(6, 32, seed=3), unit(6, 32, seed=4)
    seen = []
    for number in range(4):
        logs = step(head, images, texts)
        seen.append(set(logs))
        for name, parameter in criterion.named_parameters():
            begins = 1 if name == "prototypes" else 3
            assert (parameter.grad is not None) == (number >= begins), f"{name} in step {number}"
        lengths = criterion.prototypes.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert seen == [
        {"triplet"},
        {"triplet", "prototypes"},
        {"triplet", "prototypes", "queue"},
        {"triplet", "prototypes", "queue", "graph", "regulariser"},
    ]
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert criterion.step == 4
    assert criterion.queue.ids.tolist() == [*IDS.tolist(), *IDS.tolist()]


def test_evaluation_mode_remembers_nothing():
    head, images, texts = head_and_features()
    head.keys = unit(6, 32, seed=3), unit(6, 32, seed=4)
    before = head.criterion.prototypes.clone()
    logs = step(head.eval(), images, texts)
    assert set(logs) == {"triplet"}
    assert head.criterion.step == head.criterion.queue.count == 0
    assert torch.equal(head.criterion.prototypes, before)


def test_weights_of_pairs_weigh_the_losses():
    head, images, texts = head_and_features()
    outputs = head.image_outputs(images), head.text_outputs(texts)
    losses = []
    for weight in (None, torch.ones(6), torch.zeros(6), torch.full((6,), 0.25)):
        torch.manual_seed(1)
        losses.append(head.loss(*outputs, IDS, torch.arange(6), weight)[0])
    assert losses[2] == 0
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[3], losses[0] / 4)


def test_a_head_begins_with_embeddings_that_are_compared_by_dot_product():
    head, images, texts = head_and_features()
    head.eval()
    embedded = head.embed_images(images), head.embed_texts(texts)
    torch.testing.assert_close(embedded[0], head.image_outputs(images)[0])
    torch.testing.assert_close(head.similarity(*embedded), embedded[0] @ embedded[1].T)
    assert head.needs_tokens
    assert head.similarity.is_dot_product
    assert not head.is_plain


def test_embeddings_are_float32_under_autocast():
    head, images, texts = head_and_features()
    head.float()
    images, texts = (Features(side.pooled.float(), side.tokens.float(), side.mask) for side in (images, texts))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head.image_outputs(images), head.text_outputs(texts)
    assert all(side.fused.dtype == torch.float32 for side in outputs)
    loss, logs = head.loss(*outputs, IDS, torch.arange(6))
    assert loss.dtype == torch.float32
    assert all(value.isfinite() for value in logs.values())


# Configuration


def test_presets():
    default, released = AahrHeadConfig(), AahrHeadConfig(preset="aahr_release")
    assert (default.mask_padding, default.mask_same_image, default.momentum_mode, default.clamp_distance) == (
        True,
        True,
        "eval",
        True,
    )
    assert (released.mask_padding, released.mask_same_image, released.momentum_mode, released.clamp_distance) == (
        False,
        False,
        "train",
        False,
    )
    assert AahrHeadConfig(preset="aahr_release", mask_padding=True).mask_padding
    assert AahrHeadConfig(**released.model_dump()) == released


@pytest.mark.parametrize(
    ("head", "training", "message"),
    [
        ({"embed_dim": 100}, {}, "head.num_heads: 16 heads do not divide head.embed_dim 100"),
        ({"queue_length": 100}, {"batch_size": 128}, "head.queue_length: 100 keys do not hold one batch of 128 pairs"),
        ({"graph_after": 5}, {"epochs": 5}, r"head.graph_after: 5 epochs are all that the run has"),
    ],
)
def test_conflicts(head, training, message):
    assert message in AahrHeadConfig(**head).conflict(TrainingSection(**training))
    assert AahrHeadConfig().conflict(TrainingSection()) is None
