"""How images and captions of a batch relate: relevance and connections (docs/papers/aahr.md 7.1, 7.2, 7.6).

Within a modality, from the local embeddings x of unit length:     R_ab = exp(-|x_a - x_b| / sigma)
Across, from fragments (unit regions r, unit words w):             s_wr = LeakyReLU_0.1(w . r)

    R_ci = mean_w max_r s_wr / |s_:r|      what image i says to caption c
    R_ic = mean_r max_w s_wr / |s_w:|      what caption c says to image i

Rows receive from columns. Fragments carry no gradient, so neither does relevance across modalities, unless an MLP of
the best fragment scores is added to it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_itm.distributed import gather_constant, gather_with_gradient

BLOCK = 2**22  # fragment scores in memory at a time
NORM_WORDS = 10  # the released program normalises over at least this many words, padding included


class Relation(NamedTuple):
    """Four matrices [B, B] over the images and captions of a batch; rows receive from columns."""

    image_image: Tensor
    image_text: Tensor
    text_image: Tensor
    text_text: Tensor

    def joint(self) -> Tensor:
        """[2B, 2B], images before captions."""
        top = torch.cat([self.image_image, self.image_text], dim=1)
        return torch.cat([top, torch.cat([self.text_image, self.text_text], dim=1)])


class FragmentScores(NamedTuple):
    """Best scores of the fragments of b images and B captions, 0 for fragments that do not count."""

    words: Tensor  # [b, B, L]: max_r s_wr / |s_:r|
    regions: Tensor  # [b, B, R]: max_w s_wr / |s_w:|


def distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances [Nl, Nr] of unit vectors [Nl, D] and [Nr, D]; 0 without gradient if below rounding error."""
    squared = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1) - 2 * left @ right.T
    apart = squared > _rounding(squared)
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


def _rounding(values: Tensor) -> float:
    """A bound on the rounding error of products of unit vectors."""
    return 64 * torch.finfo(values.dtype).eps


def instance_relevance(vectors: Tensor, sigma: float = 1.0) -> Tensor:
    """Relevance [B, B] within a modality, of unit vectors [B, D]; exactly 1 on the diagonal (7.1)."""
    own = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    return (-distances(vectors, vectors).masked_fill(own, 0) / sigma).exp()


def fragment_scores(
    regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor, normed: Tensor
) -> FragmentScores:
    """Best scores of regions [b, R, D] and words [B, L, D], in blocks of captions.

    `region_mask` bool [b, R]; `word_mask`, `normed` bool [B, L]: words that count, and words that |s_:r| runs over.
    """
    regions, words = F.normalize(regions, dim=-1), F.normalize(words, dim=-1)
    block = max(1, BLOCK // (len(regions) * regions.shape[1] * words.shape[1]))
    parts = [
        _block_scores(regions, region_mask, *captions)
        for captions in zip(words.split(block), word_mask.split(block), normed.split(block), strict=True)
    ]
    return FragmentScores(*(torch.cat(scores, dim=1) for scores in zip(*parts, strict=True)))


def _block_scores(regions, region_mask, words, word_mask, normed):
    scores = F.leaky_relu(torch.einsum("ird,cwd->icwr", regions, words), 0.1)
    region, word = region_mask[:, None, None, :], word_mask[None, :, :, None]
    squares = scores.square()  # `norm` over such short or strided axes is several times slower on a CPU
    over_words = (squares * normed[None, :, :, None]).sum(dim=2, keepdim=True).sqrt().clamp(min=1e-8)
    over_regions = (squares * region).sum(dim=3, keepdim=True).sqrt().clamp(min=1e-8)
    best_region = (scores / over_words).masked_fill(~region, -torch.inf).amax(dim=3)
    best_word = (scores / over_regions).masked_fill(~word, -torch.inf).amax(dim=2)
    return best_region.masked_fill(~word[..., 0], 0), best_word.masked_fill(~region[:, :, 0], 0)


def mean_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Mean over the fragments that count: [b, B, N] and bool, broadcastable to it, to [b, B]."""
    return scores.sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


class EdgeMlp(nn.Module):
    """A number from the ten best fragment scores in descending order; short captions are padded with 0."""

    def __init__(self, best: int = 10):
        super().__init__()
        self.best = best
        self.layers = nn.Sequential(nn.Linear(best, best), nn.ReLU(), nn.Linear(best, 1))

    def forward(self, scores: Tensor, mask: Tensor) -> Tensor:
        """[b, B, N] and bool, broadcastable to it, to [b, B]."""
        best = scores.masked_fill(~mask, -torch.inf).topk(min(self.best, scores.shape[-1]), dim=-1).values
        best = best.masked_fill(best == -torch.inf, 0)
        return self.layers(F.pad(best, (0, self.best - best.shape[-1])))[..., 0]


def connections(scores: Tensor, neighbours: float) -> Tensor:
    """Bool [N, M]: the floor(neighbours * M) largest of each row, at least one, and whatever ties with them (7.2).

    Pairs of one image tie, although their scores may have been rounded differently.
    """
    count = max(1, int(neighbours * scores.shape[1]))
    return scores >= scores.topk(count, dim=1).values[:, -1:] - _rounding(scores)


def regulariser(relation: Relation, images: Tensor, texts: Tensor) -> Tensor:
    """KL divergence [B], row by row, of relevance across modalities from nearness of the embeddings [B, D] (7.6)."""
    near = (-distances(images.detach(), texts.detach())).exp()
    return _divergence(relation.image_text, near) + _divergence(relation.text_image, near.T)


def _divergence(found: Tensor, expected: Tensor) -> Tensor:
    found = found.log_softmax(dim=1)
    return (found.exp() * (found - expected.log_softmax(dim=1))).sum(dim=1)


def gather_fragments(fragments: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Fragments [b, L, D] and their mask of all processes, padded to the longest anywhere."""
    length = int(gather_constant(torch.tensor([fragments.shape[1]], device=fragments.device)).max())
    missing = length - fragments.shape[1]
    return gather_constant(F.pad(fragments, (0, 0, 0, missing))), gather_constant(F.pad(mask, (0, missing)))


def gather_columns(rows: Tensor) -> Tensor:
    """[b, B] of every process, one row per image, to all columns [B, B], one column per image."""
    return gather_with_gradient(rows).T
