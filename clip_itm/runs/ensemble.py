"""Several models as one: the mean of their scores, as SGRAF averages SAF and SGR (docs/papers/crcl.md 8.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_itm.data.equal_captions import numbers_of
from clip_itm.data.rows import Split
from clip_itm.evaluation.protocol import Result
from clip_itm.evaluation.protocols import evaluate_retrieval
from clip_itm.evaluation.ranking import Scorer
from clip_itm.training.encode import Embeddings, scoring
from clip_itm.training.encoder import Encoder


def encode_ensemble(split: Split, encoders: Sequence[Encoder]) -> tuple[Embeddings, Scorer]:
    """Embeddings of a split and the similarity that goes with them.

    For several models the embeddings are the indices [N, 1] of images and captions, with which the similarity looks up
    those of every model: scores are still computed a block at a time.
    """
    members = [(encoder.encode(split), scoring(encoder.model)) for encoder in encoders]
    if len(members) == 1:
        return members[0]

    def score(images: Tensor, texts: Tensor) -> Tensor:
        image_index, caption_index = images[:, 0].long(), texts[:, 0].long()
        total = sum(own(member.images[image_index], member.texts[caption_index]) for member, own in members)
        return total / len(members)

    first = members[0][0]
    indices = [torch.arange(len(side), dtype=torch.float64)[:, None] for side in (first.images, first.texts)]
    return Embeddings(*indices, first.caption_image), score


def evaluate_encoders(
    split: Split, encoders: Sequence[Encoder], protocols: Sequence[str], bootstrap: int, same_caption: bool = False
) -> dict[str, Result]:
    """Results by protocol under the encoders' current weights; several are an ensemble.

    `same_caption`: the right images of a caption are those of all equal captions.
    """
    embeddings, similarity = encode_ensemble(split, encoders)
    return evaluate_retrieval(
        embeddings.images,
        embeddings.texts,
        embeddings.caption_image,
        protocols=protocols,
        similarity=similarity,
        bootstrap=bootstrap,
        image_ids=split.pairs.image_ids.to_pylist(),
        caption_ids=split.pairs.caption_ids.to_pylist(),
        caption_numbers=numbers_of(split.pairs) if same_caption else None,
    )
