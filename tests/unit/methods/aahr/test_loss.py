"""The losses of AAHR against golden numbers: triplets, prototypes, relations, graph, queue."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.methods.aahr import criterion as criterion_module
from clip_itm.methods.aahr.criterion import AahrCriterion
from clip_itm.methods.aahr.encoder import Encoded
from clip_itm.methods.aahr.graph import attention_bias
from clip_itm.methods.aahr.prototypes import project_to_unit_length, prototype_losses, sinkhorn
from clip_itm.methods.aahr.queue import info_nce
from clip_itm.methods.aahr.relation import regulariser
from clip_itm.methods.aahr.triplet import Triplets, negative_weights, triplet_losses
from support.aahr_golden import small_config, tensors, transformer_state

CUTOFF = {"f30k": 1.7, "coco": 1.9}


def assert_close(found: Tensor, expected: Tensor) -> None:
    """The tolerance of the golden arrays, which are float32."""
    expected = expected.numpy()
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-4 * (1 + np.abs(expected).max()))


def forced(positive: Tensor, negatives: Tensor) -> Triplets:
    anchors, positives = positive.nonzero(as_tuple=True)
    return Triplets(anchors, positives, negatives)


@pytest.mark.parametrize("data", ["f30k", "coco"])
def test_golden_triplet(golden, data):
    arrays = tensors(golden(f"aahr_triplet_{data}"))
    images, texts = arrays["img"].requires_grad_(), arrays["txt"].requires_grad_()
    ids = arrays["image_ids"]
    positive, scores = ids[:, None] == ids, images @ texts.T
    anchors = positive.nonzero(as_tuple=True)[0]
    total = 0
    for direction, matrix in (("i2t", scores), ("t2i", scores.T)):
        weights = negative_weights(matrix, positive, CUTOFF[data])
        assert not weights.requires_grad
        assert_close(weights[anchors], arrays[f"{direction}_prob"])
        total = total + triplet_losses(matrix, forced(positive, arrays[f"{direction}_negative"]), 0.2).sum()
    total.backward()
    assert_close(total, arrays["loss"])
    assert_close(images.grad, arrays["grad_img"])
    assert_close(texts.grad, arrays["grad_txt"])


def test_golden_prototypes(golden):
    arrays = tensors(golden("aahr_prototype"))
    images, texts = arrays["img"].requires_grad_(), arrays["txt"].requires_grad_()
    prototypes = torch.nn.Parameter(arrays["prototypes_raw"].clone())
    project_to_unit_length(prototypes)
    assert_close(prototypes, arrays["prototypes_normalised"])
    for side, vectors in (("q_img", images), ("q_txt", texts)):
        assert_close(sinkhorn(vectors @ prototypes.T, 0.1, 3), arrays[side])
    loss = prototype_losses(images, texts, prototypes, 0.1, 0.1, 3).mean()
    loss.backward()
    assert_close(loss, arrays["loss"])
    assert_close(images.grad, arrays["grad_img"])
    assert_close(texts.grad, arrays["grad_txt"])
    assert_close(prototypes.grad, arrays["grad_prototypes"])


def test_golden_queue(golden):
    arrays = tensors(golden("aahr_moco"))
    images, texts = arrays["img_query"].requires_grad_(), arrays["txt_query"].requires_grad_()
    loss = info_nce(images, arrays["txt_key"], arrays["txt_queue"].T, 0.07).mean()
    loss = loss + info_nce(texts, arrays["img_key"], arrays["img_queue"].T, 0.07).mean()
    loss.backward()
    assert_close(loss, arrays["loss"])
    assert_close(images.grad, arrays["grad_img_query"])
    assert_close(texts.grad, arrays["grad_txt_query"])


def sides(arrays: dict[str, Tensor], fused: tuple[str, str]) -> tuple[Encoded, Encoded]:
    """What the encoders would have given. All regions count."""
    regions, words = arrays["regions"], arrays["words"]
    word_mask = torch.arange(words.shape[1]) < arrays["word_lengths"][:, None]
    region_mask = torch.ones(regions.shape[:2], dtype=torch.bool)
    return (
        Encoded(arrays[fused[0]], arrays["local_img"], regions, region_mask),
        Encoded(arrays[fused[1]], arrays["local_txt"], words, word_mask),
    )


def test_golden_relation(golden):
    """As released: the norm over words runs over ten words at least."""
    arrays = tensors(golden("aahr_relation"))
    images, texts = sides(arrays, ("local_img", "local_txt"))
    released = AahrCriterion(small_config(preset="aahr_release"))
    relation, connected = released.relate(images, texts, images.local, texts.local)
    names = {"image_image": "i2i", "text_text": "t2t", "image_text": "i2t", "text_image": "t2i"}
    for own, published in names.items():
        assert_close(getattr(relation, own), arrays[f"relation_{published}"])
        np.testing.assert_array_equal(getattr(connected, own), arrays[f"connect_{published}"].numpy())
    assert_close(regulariser(relation, images.local, texts.local).mean(), arrays["reg_loss"])
    masked, _ = AahrCriterion(small_config()).relate(images, texts, images.local, texts.local)
    long = arrays["word_lengths"] >= 10
    torch.testing.assert_close(masked.text_image[long], relation.text_image[long])
    assert (masked.text_image[~long] - relation.text_image[~long]).abs().max() > 1e-3


def graph_state(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {f"transformer.{name}": value for name, value in transformer_state(arrays, "gnn_layers_0_").items()}
    for own, published in (("image", "img"), ("text", "txt"), ("joint", "joint")):
        state |= {f"{own}.{part}": arrays[f"gcn_{published}_gc1_{part}"] for part in ("weight", "bias")}
    return state


def test_golden_graph(golden):
    """Every stage of the graph, from golden embeddings."""
    arrays = tensors(golden("aahr_graph"))
    images, texts = sides(arrays, ("fused_img", "fused_txt"))
    criterion = AahrCriterion(small_config(preset="aahr_release")).double()
    criterion.graph.load_state_dict(graph_state(arrays))
    v, t = F.normalize(images.local, dim=1), F.normalize(texts.local, dim=1)
    relation, connected = criterion.relate(images, texts, v, t)
    assert_close(relation.joint(), arrays["relation"])
    np.testing.assert_array_equal(connected.joint(), arrays["connect"].numpy())
    bias = attention_bias(relation.joint(), connected.joint(), 1.0)
    joined = arrays["connect"]
    assert_close(bias[joined], arrays["attn_bias"][joined])
    assert (bias[~joined] == -torch.inf).all()
    graph = criterion.graph
    within = torch.cat([graph.image(v, relation.image_image), graph.text(t, relation.text_text)])
    assert_close(within, arrays["gcn_intra"])
    assert_close(graph.joint(within, relation.joint()), arrays["gcn_cross"])
    assert_close(graph.convolve(v, t, relation), arrays["gnn_in"])
    enhanced_images, enhanced_texts = graph(v, t, relation, connected)
    assert_close(enhanced_images, arrays["img_enh"])
    assert_close(enhanced_texts, arrays["cap_enh"])


def test_golden_total(golden, monkeypatch):
    """All terms of a step with the recorded negatives, and the gradients of their sum."""
    arrays = tensors(golden("aahr_graph"))
    leaves = [arrays[name].requires_grad_() for name in ("local_img", "local_txt", "fused_img", "fused_txt")]
    images, texts = sides(arrays, ("fused_img", "fused_txt"))
    criterion = AahrCriterion(small_config(preset="aahr_release")).double()
    criterion.graph.load_state_dict(graph_state(arrays))
    criterion.prototypes.data.copy_(arrays["prototypes_raw"])
    recorded, found = [0], []

    def with_recorded_negatives(rows, columns, positive, margin, cutoff, clamp, equal):
        assert equal is None
        total = 0
        for direction, scores in (("i2t", rows), ("t2i", columns)):
            negatives = arrays[f"neg_{recorded[0]}_{direction}"]
            total = total + triplet_losses(scores, forced(positive, negatives), margin)
        recorded[0] += 1
        found.append(total.sum())
        return total

    monkeypatch.setattr(criterion_module, "sampled_triplet_losses", with_recorded_negatives)
    scores = images.fused @ texts.fused.T
    losses = criterion(images, texts, (scores, scores.T), arrays["image_ids"], None)
    assert recorded == [4]
    for value, name in zip(found, ("base_loss", "g1", "g2", "g3"), strict=True):
        assert_close(value, arrays[name])
    assert_close(losses["prototypes"].mean() / 0.2, arrays["proto_loss"])
    assert_close(losses["regulariser"].mean() / 10, arrays["reg"])
    assert not losses["regulariser"].requires_grad
    total = sum(losses.values()).mean()
    assert_close(total, arrays["total"])
    total.backward()
    for leaf, name in zip(leaves, ("local_img", "local_txt", "fused_img", "fused_txt"), strict=True):
        assert_close(leaf.grad, arrays[f"grad_{name}"])
