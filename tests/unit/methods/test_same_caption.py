"""Equal captions of different images, in every loss: against loops over rows and columns, and in the limits.

The loops decide for each row and column by the texts; the heads get numbers, masks and a whole batch.
"""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from clip_itm.backbones.features import FeatureWidths
from clip_itm.data.equal_captions import number_captions
from clip_itm.methods.build import build_head
from clip_itm.methods.configuration import HeadConfig
from clip_itm.methods.dive.set_prediction import SetOutput

IMAGES = [0, 1, 2, 0, 3, 4, 1, 5]
# on images 0, 2 and 3; on 1 and 4; twice on image 0 (rows 0 and 3), where `same_image` rules
CAPTIONS = ["Red mug", "a cup", "red  mug.", "RED MUG", "red mug", "A cup", "green pot", "blue pan"]
WORDS = "rcrrrcgb"  # what is equal, as a reader sees it
IDS, CAPTION_IDS, PAIRS = torch.tensor(IMAGES), torch.from_numpy(number_captions(CAPTIONS)), torch.arange(8)
TAU, Q = 0.2, 0.4
MODES = ("negative", "mask", "positive")
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def relation(row: int, column: int, of_images: str, of_captions: str) -> str:
    """own, negative, mask or positive."""
    if row == column:
        return "own"
    if IMAGES[row] == IMAGES[column]:
        return of_images
    return of_captions if WORDS[row] == WORDS[column] else "negative"


def sides(scores: Tensor, row: int, modes: tuple[str, str]) -> tuple[list[Tensor], list[Tensor]]:
    """Scores of one row that are right, the own one first, and that are wrong."""
    columns = [row, *(j for j in range(len(scores)) if j != row)]
    known = [(relation(row, j, *modes), scores[row, j]) for j in columns]
    right = [value for name, value in known if name in ("own", "positive")]
    return right, [value for name, value in known if name == "negative"]


def total(values: list[Tensor]) -> Tensor:
    return sum((value / TAU).exp() for value in values)


def infonce(right, wrong):
    return -(total(right) / (total(right) + total(wrong))).log()


def gce(right, wrong):
    return (1 - (total(right) / (total(right) + total(wrong))) ** Q) / Q


def rince(right, wrong):
    return (-(total(right) ** Q) + (0.025 * (total(right) + total(wrong))) ** Q) / Q


def sce(right, wrong):
    p = total(right) / (total(right) + total(wrong))
    return 4 * (1 - p) - 0.1 * p.log()


def tal(right, wrong):
    return (0.5 + TAU * (total(wrong).log() - total(right).log())).relu() if wrong else torch.zeros(())


def crcl(right, wrong):
    (own,) = right
    every = [(value / TAU).exp() / (total(right) + total(wrong)) for value in wrong]
    return infonce([own], wrong) + 5 * sum(p.tan() for p in every)


def sigmoid(right, wrong):
    return sum(-F.logsigmoid(x / TAU - 2) for x in right) + sum(-F.logsigmoid(2 - x / TAU) for x in wrong)


def hinge(right, wrong):
    return (0.2 + max(wrong, key=float) - right[0]).relu() if wrong else 0 * right[0]


def all_hinges(right, wrong):
    return sum((0.2 + value - right[0]).relu() for value in wrong)


def polyloss(right, wrong):
    own, hardest = right[0], max(wrong, key=float)  # the first of equal ones, as the heads take it
    if own >= 1 - 1e-5 or hardest + 0.2 <= own:
        return torch.zeros((), dtype=own.dtype)
    return (0.2 * own**2 - 0.7 * own + 0.5).relu() + (0.9 * hardest**2 - 0.4 * hardest + 0.03).relu()


# section, loss of one row, factor on the mean over rows of both directions added
AT = {"temperature": TAU}
CASES = {
    "clip": ({"kind": "clip", **AT}, infonce, 0.5),
    "npc": ({"kind": "npc", **AT}, infonce, 0.5),
    "gce": ({"kind": "robust", "q": Q, **AT}, gce, 0.5),
    "rince": ({"kind": "robust", "loss": "rince", "q": Q, **AT}, rince, 0.5),
    "sce": ({"kind": "robust", "loss": "sce", **AT}, sce, 0.5),
    "tal": ({"kind": "robust", "loss": "tal", "tal_margin": 0.5, **AT}, tal, 0.5),
    "osa": ({"kind": "osa", "loss": "gce", "q": Q, **AT}, gce, 0.5),
    "crossfit": ({"kind": "crossfit", **AT}, infonce, 0.5),
    "siglip": ({"kind": "siglip", "bias": -2.0, **AT}, sigmoid, 0.5),
    "crcl": ({"kind": "crcl", **AT}, crcl, 1),
    "triplet": ({"kind": "triplet", "reduction": "mean"}, hinge, 1),
    "triplet all": ({"kind": "triplet", "reduction": "mean", "negatives": "all"}, all_hinges, 1),
    "polyloss": ({"kind": "polyloss"}, polyloss, 1),
    "polyloss warming up": ({"kind": "polyloss", "warmup_epochs": 1, "warmup_temperature": TAU}, infonce, 0.5),
}
MASKING = ("crcl", "triplet", "triplet all", "polyloss", "polyloss warming up")
EVERY = [
    (name, *modes)
    for name in CASES
    for modes in product(MODES, MODES)
    if name not in MASKING or "positive" not in modes
]


def unit_pairs() -> tuple[Tensor, Tensor]:
    """Captions as other captions of their image, near it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 5, generator=generator, dtype=torch.float64)[IDS]
    texts = images + torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return tuple(F.normalize(x, dim=1).requires_grad_() for x in (images, texts))


def head_of(name: str, of_images: str, of_captions: str):
    section = {**CASES[name][0], "same_image": of_images, "same_caption": of_captions}
    return build_head(TypeAdapter(HeadConfig).validate_python(section), FeatureWidths(5, 5, 5)).double()


def found(head, **captions) -> list[Tensor]:
    """Loss and gradients of images and of captions."""
    images, texts = unit_pairs()
    loss, _ = head.loss(images, texts, IDS, PAIRS, **captions)
    return [loss.detach(), *torch.autograd.grad(loss, (images, texts))]


@pytest.mark.parametrize(("name", "of_images", "of_captions"), EVERY)
def test_every_loss_and_its_gradients_are_those_of_loops(name, of_images, of_captions):
    _, of_row, factor = CASES[name]
    images, texts = unit_pairs()
    scores, expected = images @ texts.T, 0
    for matrix, row in product((scores, scores.T), range(8)):
        expected = expected + factor * of_row(*sides(matrix, row, (of_images, of_captions))) / 8
    expected = [expected.detach(), *torch.autograd.grad(expected, (images, texts))]
    # temperatures and biases are parameters of float32
    for one, other in zip(found(head_of(name, of_images, of_captions), caption_ids=CAPTION_IDS), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "of_images", "of_captions"), EVERY)
def test_without_equal_captions_of_other_images_all_modes_are_the_same_to_the_bit(name, of_images, of_captions):
    """Also where an image has one caption twice, which is for `same_image` to say."""
    expected = found(head_of(name, of_images, "negative"))
    for captions in (torch.arange(8), torch.where(IDS == 0, 0, torch.arange(8))):
        for one, other in zip(
            found(head_of(name, of_images, of_captions), caption_ids=captions), expected, strict=True
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_modes_differ_and_the_default_needs_no_captions(name):
    losses = {mode: found(head_of(name, "mask", mode), caption_ids=CAPTION_IDS)[0] for mode in ("negative", "mask")}
    if name not in MASKING:
        losses["positive"] = found(head_of(name, "mask", "positive"), caption_ids=CAPTION_IDS)[0]
    assert len({round(float(loss), 6) for loss in losses.values()}) == len(losses)
    assert losses["negative"] == found(head_of(name, "mask", "negative"))[0]
    with pytest.raises(ValueError, match=r"head\.same_caption: mask needs to know which captions are equal"):
        found(head_of(name, "mask", "mask"))


@pytest.mark.parametrize("kind", ["crcl", "triplet", "polyloss", "dive", "aahr"])
def test_what_has_no_shared_positives_refuses_them(kind):
    TypeAdapter(HeadConfig).validate_python({"kind": kind, "same_caption": "mask"})
    with pytest.raises(ValueError, match="same_caption"):
        TypeAdapter(HeadConfig).validate_python({"kind": kind, "same_caption": "positive"})


def test_the_order_of_pairs_and_the_numbers_of_captions_do_not_matter():
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    images, texts = unit_pairs()
    for name, mode in (("clip", "mask"), ("gce", "positive"), ("siglip", "positive"), ("triplet", "mask")):
        head = head_of(name, "mask", mode)
        loss, _ = head.loss(images, texts, IDS, PAIRS, caption_ids=CAPTION_IDS)
        turned, _ = head.loss(images[order], texts[order], IDS[order], PAIRS, caption_ids=90 - CAPTION_IDS[order])
        torch.testing.assert_close(turned, loss, **EXACT)


def test_one_caption_on_all_images_leaves_nothing_to_learn_and_no_nan():
    nothing = torch.zeros(8, dtype=torch.int64)
    for name in CASES:
        loss, *gradients = found(head_of(name, "mask", "mask"), caption_ids=nothing)
        assert all(gradient.isfinite().all() for gradient in (loss, *gradients)), name
        if name in ("clip", "gce", "tal", "triplet", "polyloss warming up"):
            assert abs(float(loss)) < 1e-12, name
    for name in ("clip", "gce", "tal", "siglip", "sce", "rince"):
        loss, *gradients = found(head_of(name, "positive", "positive"), caption_ids=nothing)
        assert all(gradient.isfinite().all() for gradient in (loss, *gradients)), name


@pytest.mark.parametrize("kind", ["triplet", "infonce"])
@pytest.mark.parametrize("of_captions", ["negative", "mask"])
def test_dive_against_loops(kind, of_captions):
    section = {"kind": "dive", "image_elements": 2, "text_elements": 2, "same_caption": of_captions}
    section |= {
        "loss": {"kind": kind, **(AT if kind == "infonce" else {})},
        "module": {"kind": "slots", "head_dim": 4, "text_positions": "none"},
    }
    head = build_head(TypeAdapter(HeadConfig).validate_python(section), FeatureWidths(5, 5, 5)).double()
    images, texts = (torch.stack([x, x.roll(1, dims=1)], dim=1) for x in unit_pairs())
    both = head.pair_losses(images, texts, IDS, CAPTION_IDS)
    scores = head.similarity(images, texts)
    of_row, factor = (hinge, 1) if kind == "triplet" else (infonce, 0.5)
    for matrix, losses in zip((scores, scores.T), both, strict=True):
        expected = [factor * of_row(*sides(matrix, row, ("mask", of_captions))) for row in range(8)]
        torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-5, atol=1e-6)
    outputs = [SetOutput(sets, sets, torch.zeros(8)) for sets in (images, texts)]
    loss, logs = head.loss(*outputs, IDS, PAIRS, caption_ids=CAPTION_IDS)
    torch.testing.assert_close(logs["image_to_text"], both[0].mean().detach())
    assert loss.isfinite()
