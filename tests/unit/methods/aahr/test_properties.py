"""What the losses of AAHR must do beyond golden numbers: plain twins, permutations, empty rows, the queue."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.methods.aahr import relation as relation_module
from clip_itm.methods.aahr.criterion import AahrCriterion
from clip_itm.methods.aahr.encoder import Encoded
from clip_itm.methods.aahr.prototypes import sinkhorn
from clip_itm.methods.aahr.queue import KeyQueue, info_nce
from clip_itm.methods.aahr.relation import connections, distances, fragment_scores, instance_relevance, mean_scores
from clip_itm.methods.aahr.triplet import draw_triplets, negative_weights, sampled_triplet_losses, triplet_losses
from support.aahr_golden import normal, small_config, unit

IDS = torch.tensor([0, 1, 0, 2, 3, 1])


def encoded(rows: int, places: int, lengths: list[int], seed: int) -> Encoded:
    mask = torch.arange(places) < torch.tensor(lengths)[:, None]
    fused, local = normal(rows, 32, seed=seed) / 6, normal(rows, 32, seed=seed + 1)
    return Encoded(fused.requires_grad_(), local.requires_grad_(), normal(rows, places, 32, seed=seed + 2), mask)


def batch() -> tuple[Encoded, Encoded]:
    return encoded(6, 5, [5, 3, 5, 2, 1, 4], 0), encoded(6, 7, [7, 2, 4, 5, 1, 3], 10)


def losses_of(criterion: AahrCriterion, images: Encoded, texts: Encoded, keys=None) -> dict[str, Tensor]:
    scores = images.fused @ texts.fused.T
    return criterion(images, texts, (scores, scores.T), IDS, keys)


# Triplets


def test_weights_follow_the_formula():
    scores = torch.tensor([[0.9, 0.5, 0.45, 0.2, -0.3, -0.5, 1.3]], dtype=torch.float64)
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[0, 3] = True
    weights = negative_weights(scores, positive, 1.7)[0]
    expected = []
    for score in scores[0].tolist():
        d = max(math.sqrt(max(2 - 2 * score, 0)), 0.5)
        expected.append(math.exp(-510 * math.log(d) - 254.5 * math.log(1 - d * d / 4) - 360) if d < 1.7 else 0)
    expected[3] = 0
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64) / sum(expected))
    assert weights[5] == 0, "beyond the cutoff"
    assert weights[6] == weights[0] == weights.max(), "all scores above 0.875 are alike"
    assert negative_weights(scores, positive, 1.7, clamp=False)[0, 6] == 0


def test_rows_without_negatives_give_nothing():
    """And the others do: neither a failure nor a whole direction at 0."""
    scores = torch.full((4, 4), -0.9, dtype=torch.float64)
    scores[2, 0] = 0.3
    positive = torch.eye(4, dtype=torch.bool)
    weights = negative_weights(scores, positive, 1.7)
    assert (weights.sum(dim=1) > 0).tolist() == [False, False, True, False]
    triplets = draw_triplets(weights, positive)
    assert [place.tolist() for place in triplets] == [[2], [2], [0]]
    assert triplet_losses(scores, triplets, 0.2).tolist() == [0, 0, pytest.approx(0.2 + 0.3 + 0.9), 0]
    alone = torch.ones(3, 3, dtype=torch.bool)
    assert sampled_triplet_losses(scores[:3, :3], scores[:3, :3], alone, 0.2, 1.7).tolist() == [0, 0, 0]


def test_negatives_are_drawn_by_weight():
    """Every (anchor, positive) gets one, never a pair of the same photo, as often as its weight says."""
    torch.manual_seed(0)
    scores = torch.tensor([[0.9, 0.9, 0.30, 0.31, 0.30, 0.29]]).expand(20_000, 6)
    positive = torch.tensor([True, True, False, False, False, False]).expand(20_000, 6)
    weights = negative_weights(scores, positive, 1.7)
    triplets = draw_triplets(weights, positive)
    assert len(triplets.anchors) == 40_000
    share = torch.bincount(triplets.negatives, minlength=6) / 40_000
    torch.testing.assert_close(share, weights[0], atol=0.01, rtol=0)
    assert share[3] > 2 * share[5] > 0


def test_margin_is_honoured():
    torch.manual_seed(0)
    scores, positive = normal(6, 6) / 5, IDS[:, None] == IDS
    triplets = draw_triplets(negative_weights(scores, positive, 1.9), positive)
    wide = triplet_losses(scores, triplets, 10.0)
    torch.testing.assert_close(wide - triplet_losses(scores, triplets, 9.0), positive.sum(dim=1).double())


def test_equal_captions_of_other_images_are_neither_drawn_nor_matches():
    torch.manual_seed(0)
    scores, positive = normal(6, 6) / 5, IDS[:, None] == IDS
    captions = torch.tensor([0, 1, 2, 0, 1, 3])  # rows 0 and 3; 1 and 4
    equal = (captions[:, None] == captions) & ~positive
    assert equal.nonzero().tolist() == [[0, 3], [1, 4], [3, 0], [4, 1]]
    margin, draws = 10.0, 300  # every hinge is open: a draw shows which negative it was
    total = sum(sampled_triplet_losses(scores, scores.T, positive, margin, 1.9, equal=equal) for _ in range(draws))
    expected = torch.zeros(6, dtype=torch.float64)
    for matrix in (scores, scores.T):
        weights = negative_weights(matrix, positive | equal, 1.9)
        assert (weights[equal] == 0).all()
        assert (weights.sum(dim=1) > 0).all()
        mean = (weights * matrix).sum(dim=1)
        for row, column in positive.nonzero().tolist():
            expected[row] += margin + mean[row] - matrix[row, column]
    torch.testing.assert_close(total / draws, expected, rtol=0, atol=0.15)


def test_a_queue_masks_keys_of_equal_captions_and_remembers_their_numbers():
    criterion = AahrCriterion(small_config(queue_length=6, same_caption="mask")).double()
    images, texts = batch()
    keys, captions = (unit(6, 32, seed=3), unit(6, 32, seed=4)), torch.tensor([0, 1, 2, 0, 1, 3])
    others = torch.tensor([1, 7, 8, 9, 0, 3])  # of the keys, whose images are 3, 0, 10, 11, 12, 13
    criterion.queue.write(unit(6, 32, seed=5), unit(6, 32, seed=6), torch.tensor([3, 0, 10, 11, 12, 13]), others)
    found = criterion.queue_losses(images, texts, keys, IDS, captions)
    expected = torch.zeros(6, dtype=torch.float64)
    for k, (query, own, gallery) in itertools.product(
        range(6), ((images.local, keys[1], criterion.queue.texts), (texts.local, keys[0], criterion.queue.images))
    ):
        ids = criterion.queue.ids.tolist()
        left = [j for j in range(6) if IDS[k] != ids[j] and captions[k] != others[j]]
        rows = torch.stack([own[k], *(gallery[j] for j in left)])
        logits = F.normalize(query[k], dim=0) @ rows.T / 0.07
        expected[k] += logits.logsumexp(dim=0) - logits[0]
    torch.testing.assert_close(found, expected)
    other = KeyQueue(6, 32)
    other.load_state_dict(criterion.queue.state_dict())
    assert torch.equal(other.caption_ids, others)
    plain = KeyQueue(6, 32)
    plain.write(unit(6, 32), unit(6, 32), IDS)
    assert "caption_ids" not in plain.state_dict(), "checkpoints of runs without the key are as they were"


# Prototypes


def test_sinkhorn_balances():
    assignments = sinkhorn(3 * normal(24, 5), 0.5, 500)
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(24, dtype=torch.float64))
    torch.testing.assert_close(assignments.sum(dim=0), torch.full((5,), 24 / 5, dtype=torch.float64))
    few = sinkhorn(normal(6, 12), 0.1, 3)
    torch.testing.assert_close(few.sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_sinkhorn_is_finite_where_exponentials_are_not():
    assignments = sinkhorn(15 + unit(8, 4).float(), 0.1, 3)
    assert assignments.isfinite().all()
    torch.testing.assert_close(assignments, sinkhorn(unit(8, 4).float(), 0.1, 3), rtol=1e-3, atol=1e-5)


# Relations


def test_relevance_of_equal_vectors():
    """Distance 0 off the diagonal, too (two captions of one photo): relevance 1, finite gradients, none at 0."""
    vectors = unit(4, 8)
    vectors = torch.cat([vectors, vectors[:1]]).requires_grad_()
    relevance = instance_relevance(vectors, sigma=0.5)
    assert (relevance.diagonal() == 1).all()
    assert relevance[0, 4] == 1
    expected = (-torch.cdist(vectors, vectors) / 0.5).exp()
    torch.testing.assert_close(relevance, expected, atol=1e-7, rtol=0)
    relevance.sum().backward()
    assert vectors.grad.isfinite().all()
    torch.testing.assert_close(vectors.grad[0], vectors.grad[4])
    assert (distances(vectors.float(), vectors.float()).diagonal() < 1e-3).all()


def test_fragment_scores_equal_a_loop(monkeypatch):
    """In blocks of two captions, with regions and words that do not count."""
    regions, words = normal(3, 4, 6), normal(5, 7, 6, seed=1)
    region_mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]]).bool()
    word_mask = torch.arange(7) < torch.tensor([7, 1, 3, 4, 6])[:, None]
    monkeypatch.setattr(relation_module, "BLOCK", 2 * 3 * 4 * 7)
    found = fragment_scores(regions, region_mask, words, word_mask, word_mask)
    means = mean_scores(found.words, word_mask[None]), mean_scores(found.regions, region_mask[:, None])
    for photo, caption in itertools.product(range(3), range(5)):
        r = F.normalize(regions[photo, region_mask[photo]], dim=1)
        w = F.normalize(words[caption, word_mask[caption]], dim=1)
        scores = F.leaky_relu(w @ r.T, 0.1)
        by_words = (scores / scores.norm(dim=0)).amax(dim=1)
        by_regions = (scores / scores.norm(dim=1, keepdim=True)).amax(dim=0)
        torch.testing.assert_close(found.words[photo, caption, word_mask[caption]], by_words)
        torch.testing.assert_close(means[0][photo, caption], by_words.mean())
        torch.testing.assert_close(means[1][photo, caption], by_regions.mean())


def test_connections_take_ties():
    scores = torch.tensor([[3.0, 2, 2, 1, 0], [5, 5, 5, 5, 5], [0, 1, 2, 3, 4]])
    assert connections(scores, 0.5).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert connections(scores, 0.01).any(dim=1).all(), "no row is empty"


@pytest.mark.parametrize("edge", ["mean", "mlp"])
def test_relations_permute_with_the_batch(edge):
    torch.manual_seed(0)
    criterion = AahrCriterion(small_config(edge=edge)).double()
    images, texts = batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    whole = relate(criterion, images, texts)
    shuffled = relate(criterion, *(Encoded(*(part[order] for part in side)) for side in (images, texts)))
    for expected, found in zip(whole, shuffled, strict=True):
        for own, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, own[order][:, order])


def relate(criterion: AahrCriterion, images: Encoded, texts: Encoded):
    return criterion.relate(images, texts, F.normalize(images.local, dim=1), F.normalize(texts.local, dim=1))


def test_only_the_edge_mlp_trains_by_the_regulariser():
    for edge in ("mean", "mlp"):
        torch.manual_seed(0)
        criterion = AahrCriterion(small_config(edge=edge)).double()
        regulariser = losses_of(criterion, *batch())["regulariser"].sum()
        assert regulariser.requires_grad == (edge == "mlp")
    regulariser.backward()
    trained = {name for name, value in criterion.named_parameters() if value.grad is not None}
    assert trained == {name for name, _ in criterion.named_parameters() if "edge" in name}


# The queue


def test_queue_wraps_and_keeps_the_latest():
    queue = KeyQueue(5, 2)
    keys = torch.arange(1.0, 15).reshape(7, 2)
    for step in range(3):
        rows = slice(2 * step, 2 * step + 2)
        queue.write(keys[rows], -keys[rows], torch.arange(7)[rows])
        assert queue.is_full == (step == 2)
    assert queue.ids.tolist() == [5, 1, 2, 3, 4]
    torch.testing.assert_close(queue.images, F.normalize(keys[queue.ids], dim=1))
    torch.testing.assert_close(queue.texts, -queue.images)
    other = KeyQueue(5, 2)
    other.load_state_dict(queue.state_dict())
    for one in (queue, other):
        one.write(keys[6:], keys[6:], torch.tensor([6]))
    assert other.ids.tolist() == queue.ids.tolist() == [5, 6, 2, 3, 4]
    with pytest.raises(ValueError, match=r"shape \[5, 2\].*head.queue_length"):
        KeyQueue(6, 2).load_state_dict(queue.state_dict())


def test_masked_keys_equal_deleted_ones():
    queries, keys, queue = normal(3, 4), normal(3, 4, seed=1), normal(8, 4, seed=2)
    mask = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) < 0.4
    found = info_nce(queries, keys, queue, 0.2, mask)
    for row in range(3):
        alone = info_nce(queries[row : row + 1], keys[row : row + 1], queue[~mask[row]], 0.2)
        torch.testing.assert_close(found[row : row + 1], alone)
    none = torch.zeros_like(mask)
    torch.testing.assert_close(info_nce(queries, keys, queue, 0.2, none), info_nce(queries, keys, queue, 0.2))


def test_keys_of_the_own_photo_are_no_negatives():
    """With ids that are all new to the queue the mask changes nothing."""
    images, texts = batch()
    keys = unit(6, 32, seed=3), unit(6, 32, seed=4)
    found = {}
    for name, ids in (("new", IDS + 10), ("same", IDS)):
        for masked in (True, False):
            criterion = AahrCriterion(small_config(queue_length=6, mask_same_image=masked)).double()
            criterion.queue.write(unit(6, 32, seed=5), unit(6, 32, seed=6), ids)
            found[name, masked] = losses_of(criterion, images, texts, keys)["queue"]
    torch.testing.assert_close(found["new", True], found["new", False])
    torch.testing.assert_close(found["new", False], found["same", False])
    assert (found["same", True] < found["same", False]).all()
