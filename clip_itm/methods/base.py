"""What every head has in common: embeddings, their similarity, a loss, and what it must remember between steps."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.similarity.base import Similarity
from clip_itm.similarity.build import build_similarity
from clip_itm.similarity.cosine import Cosine


class Head(nn.Module, ABC):
    """Embeddings of images and captions and their `similarity`, a module; a subclass brings the loss.

    `citation`: BibTeX of the method. `training_only`: names of submodules that a saved model does without. What a head
    remembers about the training pairs from step to step (say, a label for each) is not part of the model: it lives in
    plain attributes, and the trainer saves it next to the checkpoint. `epoch`: the current epoch, 0-based.
    """

    citation: str
    config: Any
    training_only: tuple[str, ...] = ()
    epoch: int = 0

    def __init__(self, similarity: Similarity | None = None):
        super().__init__()
        self.similarity: Similarity = similarity or Cosine()

    @classmethod
    def build(
        cls,
        config,
        widths: FeatureWidths,
        initial_logit_scale: float | None = None,
        initial_logit_bias: float | None = None,
    ) -> "Head":
        """See `build_head`. By default, for a head that takes its section and the similarity that the section names."""
        return cls(config, build_similarity(config.similarity, widths))

    @property
    def needs_tokens(self) -> bool:
        """Whether the backbone has to return tokens."""
        return self.similarity.needs_tokens

    def embed_images(self, features: Features) -> Tensor:
        """Embeddings [B, ...] of images, at least float32."""
        return self.similarity.embed_images(features)

    def embed_texts(self, features: Features) -> Tensor:
        """Embeddings [B, ...] of captions, at least float32."""
        return self.similarity.embed_texts(features)

    def image_outputs(self, features: Features) -> Tensor | tuple[Tensor, ...]:
        """What the loss receives: embeddings, or a NamedTuple of tensors [B, ...] that begins with them."""
        return self.embed_images(features)

    def text_outputs(self, features: Features) -> Tensor | tuple[Tensor, ...]:
        """The same for captions."""
        return self.embed_texts(features)

    @property
    def is_plain(self) -> bool:
        """Whether the similarity is the cosine of the backbone's pooled features, so that the towers are enough."""
        own = ("embed_images", "embed_texts")
        return type(self.similarity) is Cosine and all(getattr(type(self), name) is getattr(Head, name) for name in own)

    def scale(self) -> Tensor:
        """The multiplier of similarities under a softmax, 1 / temperature; losses without one take 0.05."""
        return torch.tensor(20.0)

    def bias(self) -> Tensor:
        """What is added to scaled similarities under a sigmoid; 0 unless the loss has a bias."""
        return torch.tensor(0.0)

    @abstractmethod
    def loss(
        self,
        images: Tensor | tuple[Tensor, ...],
        texts: Tensor | tuple[Tensor, ...],
        image_ids: Tensor,
        pair_ids: Tensor,
        pair_weight: Tensor | None = None,
        caption_ids: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (a scalar) of the local pairs against the global batch, and what to log.

        Its mean over processes is the loss of the global batch. `images`, `texts`: outputs [b, ...] (row k is pair k);
        `image_ids`, `pair_ids` int64 [b]; `pair_weight` [b] in [0, 1] if the data set brings weights of its own;
        `caption_ids` int64 [b], equal for equal captions, only for heads whose `same_caption` is not "negative".
        """
