"""What every head has in common: embeddings, their similarity, a loss, and what it remembers between steps."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.similarity.base import Similarity
from clip_itm.similarity.build import build_similarity
from clip_itm.similarity.cosine import Cosine


class Head(nn.Module, ABC):
    """Embeds images and captions, and compares them with the module `similarity`; subclasses add the loss.

    `citation`: BibTeX of the method. `training_only`: names of submodules that are left out of a saved model. What a
    head remembers about the training pairs from step to step (say, a label for each) is not part of the model: it lives
    in plain attributes, and the trainer saves it next to the weights. `epoch`: the current epoch, 0-based.
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
        """See `build_head`. This default is for heads made from their section and the similarity that it names."""
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
        """What the loss receives: embeddings, or a NamedTuple of tensors [B, ...] whose first field is embeddings."""
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
        """The multiplier of similarities under a softmax, 1 / temperature; losses without a temperature use 0.05."""
        return torch.tensor(20.0)

    def bias(self) -> Tensor:
        """The bias that is added to scaled similarities under a sigmoid; 0 unless the loss has one."""
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
        `image_ids`, `pair_ids` int64 [b]; `pair_weight` [b] in [0, 1] if the data set has weights of its own;
        `caption_ids` int64 [b], equal for equal captions, only for heads whose `same_caption` is not "negative".
        """
