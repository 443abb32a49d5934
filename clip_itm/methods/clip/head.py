"""The plain contrastive head: CLIP's loss (Radford et al. 2021, section 2.3).

    S = exp(logit_scale) * A B^T                         A [B, D] images, B [B, D] captions, rows of unit length
    l[k] = (CE(S[k, :], k) + CE(S[:, k], k)) / 2         one value per pair
    loss = mean_k l[k]

If two pairs in a batch have the same image, each caption is a "negative" of its own image. `same_image` says how it
is treated:

    negative   as published: one target per row. Summed over the k captions of an image this is the cross-entropy
               against a target shared equally among them; a mode for shared targets would change nothing.
    mask       the other captions of the image are neither right nor wrong; they leave the denominator.
    positive   -log of the probability of all captions of the image together (multiple-instance NCE, Miech et al.
               2020, eq. 1): one of them has to be right, not all; an image counts once among the candidates.

`same_caption` says the same about other images that have an equal caption, which are otherwise its negatives.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_itm.methods.base import Head
from clip_itm.methods.scores import both_directions, without_equal_captions
from clip_itm.methods.section import ContrastiveSection
from clip_itm.similarity.base import Similarity
from clip_itm.similarity.build import build_similarity
from clip_itm.similarity.cosine import Cosine


def contrastive_cross_entropy(
    logits: Tensor, targets: Tensor, same_image: Tensor | None = None, mode: str = "negative"
) -> Tensor:
    """Cross-entropy of every row, in one direction.

    `logits` [b, B], `targets` int64 [b] (column of the row's own pair), `same_image` bool [b, B] (True where the column
    is a pair of the row's image, its own included; not needed for "negative"). Returns [b].
    """
    if mode == "negative" or same_image is None:
        return F.cross_entropy(logits, targets, reduction="none")
    if mode == "positive":
        return logits.logsumexp(dim=1) - logits.masked_fill(~same_image, -torch.inf).logsumexp(dim=1)
    siblings = same_image.scatter(1, targets[:, None], False)
    return F.cross_entropy(logits.masked_fill(siblings, -torch.inf), targets, reduction="none")


def contrastive_losses(
    images: Tensor,
    captions: Tensor,
    scale: Tensor | float,
    image_ids: Tensor | None = None,
    mode: str = "negative",
    similarity: Similarity | None = None,
    caption_ids: Tensor | None = None,
    caption_mode: str = "negative",
) -> Tensor:
    """Per-pair loss l of the local pairs against the global batch (docs/papers/npc.md 2.2).

    `images`, `captions` [b, ...] embeddings, row k is pair k, by default unit vectors [b, D] compared by cosine;
    `scale` multiplies similarities; `image_ids` int64 [b] names the image of each pair (needed unless `mode` is
    "negative"); `caption_ids` int64 [b] its caption, with `caption_mode` for equal ones of other images. Returns [b];
    its mean is the loss.

    Example:
        >>> contrastive_losses(torch.eye(2), torch.eye(2), scale=1.0)
        tensor([0.3133, 0.3133])
    """

    def losses(scores: Tensor, targets: Tensor, siblings: Tensor, equal: Tensor | None) -> Tensor:
        logits = without_equal_captions(scale * scores, targets, equal, caption_mode)
        return contrastive_cross_entropy(logits, targets, siblings, mode)

    return both_directions(losses, similarity or Cosine(), images, captions, image_ids, caption_ids, caption_mode)


def first_logit_scale(temperature: float | None, pretrained: float | None, from_scratch: float) -> nn.Parameter:
    """log(1 / temperature) at the start: of `temperature`, else the `pretrained` log, else of `from_scratch`."""
    if temperature is not None:
        pretrained = -math.log(temperature)
    elif pretrained is None:
        pretrained = -math.log(from_scratch)
    return nn.Parameter(torch.tensor(float(pretrained)))


class ClipHead(Head):
    """A similarity (by default cosine) with a learned temperature, trained by the symmetric contrastive loss.

    `logit_scale` is the natural log of the multiplier of cosines, as in every CLIP checkpoint. It starts at
    `config.temperature`, else at the pretrained value, else at ln(1 / 0.07).
    """

    citation = (
        "@inproceedings{radford2021clip, author={Radford, Alec and Kim, Jong Wook and Hallacy, Chris and others}, "
        "title={Learning Transferable Visual Models From Natural Language Supervision}, booktitle={ICML}, year={2021}}"
    )

    @classmethod
    def build(cls, config, widths, initial_logit_scale=None, initial_logit_bias=None) -> "ClipHead":
        return cls(config, initial_logit_scale, build_similarity(config.similarity, widths))

    def __init__(
        self,
        config: ContrastiveSection,
        initial_logit_scale: float | None = None,
        similarity: Similarity | None = None,
    ):
        super().__init__(similarity)
        self.config = config
        self.logit_scale = first_logit_scale(config.temperature, initial_logit_scale, 0.07)

    def scale(self) -> Tensor:
        """The multiplier of cosines, capped if the recipe caps it."""
        scale = self.logit_scale.exp()
        return scale if self.config.max_logit_scale is None else scale.clamp(max=self.config.max_logit_scale)

    def losses(self, images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor | None = None) -> Tensor:
        """Per-pair loss [b] of the local pairs against the global batch."""
        of_images, of_captions = self.config.same_image, self.config.same_caption
        return contrastive_losses(
            images, texts, self.scale(), image_ids, of_images, self.similarity, caption_ids, of_captions
        )

    def loss(self, images, texts, image_ids, pair_ids, pair_weight=None, caption_ids=None):
        losses = self.losses(images, texts, image_ids, caption_ids)
        if pair_weight is not None:
            losses = pair_weight * losses
        return losses.mean(), {"logit_scale": self.logit_scale.detach().exp()}
