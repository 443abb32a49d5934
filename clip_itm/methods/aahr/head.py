"""AAHR: ambiguity-aware, high-order relation learning (Chen et al., KBS 2025; docs/papers/aahr.md)."""

import torch
from torch import Tensor

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.methods.aahr.configuration import AahrHeadConfig
from clip_itm.methods.aahr.criterion import AahrCriterion
from clip_itm.methods.aahr.encoder import Encoded, TokenEncoder
from clip_itm.methods.base import Head
from clip_itm.methods.scores import global_scores
from clip_itm.similarity.base import Similarity


class FusedDotProduct(Similarity):
    """Dot product of embeddings that a gate mixes from global and local features; they do not have unit length."""

    needs_tokens = True
    is_dot_product = True

    def __init__(self, config: AahrHeadConfig, widths: FeatureWidths):
        super().__init__()
        self.image_encoder = TokenEncoder(config, widths.image_tokens, widths.pooled, config.image_projection)
        self.text_encoder = TokenEncoder(config, widths.text_tokens, widths.pooled)
        self.text_encoder.projection.linear.reset_parameters()  # Xavier's is for images only, as published

    def embed_images(self, features: Features) -> Tensor:
        return self.image_encoder(features).fused

    def embed_texts(self, features: Features) -> Tensor:
        return self.text_encoder(features).fused

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        return images @ texts.T

    def vectors(self, embeddings: Tensor) -> Tensor:
        return embeddings


class AahrHead(Head):
    """Two-grain embeddings, trained by sampled triplets, shared prototypes, an instance graph and momentum queues.

    `keys` are the embeddings [b, D] of images and captions of this batch under the momentum encoders. Training sets
    them before every batch; if None, there is no queue.
    """

    citation = (
        "@article{chen2025aahr, author={Chen, Junyu and Gao, Yihua and Ge, Mingyuan and Li, Mingyong}, "
        "title={Ambiguity-Aware and High-Order Relation Learning for Multi-Grained Image-Text Matching}, "
        "journal={Knowledge-Based Systems}, volume={316}, pages={113355}, year={2025}}"
    )
    training_only = ("criterion",)

    @classmethod
    def build(cls, config, widths, initial_logit_scale=None, initial_logit_bias=None) -> "AahrHead":
        return cls(config, widths)

    def __init__(self, config: AahrHeadConfig, widths: FeatureWidths):
        super().__init__(FusedDotProduct(config, widths))
        self.config = config
        self.criterion = AahrCriterion(config)
        self.keys: tuple[Tensor, Tensor] | None = None

    def image_outputs(self, features: Features) -> Encoded:
        return self.similarity.image_encoder(features, self.config.token_dropout)

    def text_outputs(self, features: Features) -> Encoded:
        return self.similarity.text_encoder(features)

    def loss(self, images, texts, image_ids, pair_ids, pair_weight=None, caption_ids=None):
        """See `Head.loss`. In evaluation mode only the triplets count."""
        scores = global_scores(self.similarity, images.fused, texts.fused)
        losses = self.criterion(images, texts, scores, image_ids, self.keys, caption_ids)
        if self.training and torch.is_grad_enabled():
            self.criterion.end_step(self.keys, image_ids, caption_ids)
        # with edge: mean the regulariser has no gradient; it describes the relevance, and is only logged
        trained = [values for name, values in losses.items() if name != "regulariser" or self.config.edge == "mlp"]
        total = sum(trained)
        if pair_weight is not None:
            total = pair_weight * total
        return total.mean(), {name: values.detach().mean() for name, values in losses.items()}
