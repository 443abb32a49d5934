"""The loss of weighted pairs: what is believed and what the data say of a pair multiply, under every loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.methods.crossfit.configuration import CrossfitHeadConfig
from clip_itm.methods.crossfit.head import CrossfitHead
from clip_itm.similarity.cosine import Cosine

B, N = 7, 20
GENERATOR = np.random.default_rng(0)
PAIRS = torch.from_numpy(GENERATOR.permutation(N)[:B])
BELIEF, OWN = (torch.from_numpy(GENERATOR.random(size)) for size in (N, B))
IMAGES, TEXTS = (F.normalize(torch.from_numpy(GENERATOR.normal(size=(B, 5))), dim=1) for _ in range(2))


def head_of(loss: str) -> CrossfitHead:
    head = CrossfitHead(CrossfitHeadConfig(same_image="negative", q=0.4), similarity=Cosine()).double()
    head.current_loss = loss
    return head


def losses_of(name: str, scale: float) -> np.ndarray:
    """Pair by pair, from the formulas."""
    scores = scale * (IMAGES @ TEXTS.T).numpy()
    found = np.zeros(B)
    for matrix in (scores, scores.T):
        for k in range(B):
            p = np.exp(matrix[k, k]) / np.exp(matrix[k]).sum()
            found[k] += {"infonce": -np.log(p), "gce": (1 - p**0.4) / 0.4}[name] / 2
    return found


@pytest.mark.parametrize("loss", ["infonce", "gce", "mix"])
@pytest.mark.parametrize("believed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_pair_counts_by_what_is_believed_times_what_the_data_say(loss, believed, weighted):
    head = head_of(loss)
    head.belief = BELIEF if believed else None
    scale = float(head.scale().detach())
    w = BELIEF[PAIRS].numpy() if believed else np.ones(B)
    plain, bounded = (losses_of(name, scale) for name in ("infonce", "gce"))
    each = {"infonce": w * plain, "gce": w * bounded, "mix": w * plain + (1 - w) * bounded}[loss]
    expected = (each * (OWN.numpy() if weighted else 1)).mean()
    found, _ = head.loss(IMAGES, TEXTS, torch.arange(B), PAIRS, OWN if weighted else None)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)
