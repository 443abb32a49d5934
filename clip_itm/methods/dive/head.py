"""DivE: a set of diverse embeddings per image and per caption (Kim et al., CVPR 2023; docs/papers/dive.md)."""

from torch import Tensor

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.methods.base import Head
from clip_itm.methods.clip.head import contrastive_cross_entropy, first_logit_scale
from clip_itm.methods.dive.configuration import DiveHeadConfig
from clip_itm.methods.dive.losses import circular_variance, discrepancy, diversity, orthogonality, triplet_losses
from clip_itm.methods.dive.set_prediction import SetOutput, SetPrediction
from clip_itm.methods.dive.set_similarity import SetSimilarity
from clip_itm.methods.scores import global_scores, local_targets, same_caption, same_image


class DiveHead(Head):
    """Embeddings are sets [B, K, D]: slots that competed for the tokens, each added to the pooled feature.

    The loss is a triplet (or contrastive) loss on set similarities, plus terms that bring the modalities together and
    keep slots apart. `image_variance` and `text_variance` in the log show whether sets collapse; recall does not.
    """

    citation = (
        "@inproceedings{kim2023dive, author={Kim, Dongwon and Kim, Namyup and Kwak, Suha}, title={Improving "
        "Cross-Modal Retrieval with Set of Diverse Embeddings}, booktitle={CVPR}, year={2023}}"
    )

    @classmethod
    def build(cls, config, widths, initial_logit_scale=None, initial_logit_bias=None) -> "DiveHead":
        return cls(config, widths, initial_logit_scale)

    def __init__(self, config: DiveHeadConfig, widths: FeatureWidths, initial_logit_scale: float | None = None):
        module, width = config.module, widths.pooled
        positions = (module.image_positions, module.text_positions) if module.kind == "slots" else ("none", "none")
        super().__init__(
            SetSimilarity(
                config.similarity,
                SetPrediction(config, config.image_elements, width, widths.image_tokens, positions[0]),
                SetPrediction(config, config.text_elements, width, widths.text_tokens, positions[1]),
            )
        )
        self.config = config
        if config.loss.kind == "infonce":
            self.logit_scale = first_logit_scale(config.loss.temperature, initial_logit_scale, 0.07)

    def scale(self) -> Tensor:
        return self.logit_scale.exp() if self.config.loss.kind == "infonce" else super().scale()

    def image_outputs(self, features: Features) -> SetOutput:
        return self.similarity.image_sets(features)

    def text_outputs(self, features: Features) -> SetOutput:
        return self.similarity.text_sets(features)

    def pair_losses(
        self, images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Losses [b] of the local pairs on their sets [b, K, D]: image to caption, caption to image."""
        rows, columns = global_scores(self.similarity, images, texts)
        targets = local_targets(rows)
        siblings = same_image(rows, image_ids)
        if (equal := same_caption(rows, image_ids, caption_ids, self.config.same_caption)) is not None:
            siblings = siblings | equal
        loss = self.config.loss
        if loss.kind == "infonce":
            return tuple(
                contrastive_cross_entropy(self.scale() * scores, targets, siblings, "mask") / 2
                for scores in (rows, columns)
            )
        negatives = "all" if self.epoch < loss.warmup_epochs else loss.negatives
        return tuple(triplet_losses(scores, targets, siblings, loss.margin, negatives) for scores in (rows, columns))

    def loss(self, images: SetOutput, texts: SetOutput, image_ids, pair_ids, pair_weight=None, caption_ids=None):
        """See `Head.loss`; `pair_weight` scales the loss of a pair, not the other terms."""
        config = self.config
        losses = self.pair_losses(images.sets, texts.sets, image_ids, caption_ids)
        if pair_weight is not None:
            losses = [pair_weight * each for each in losses]
        image_to_text, text_to_image = (each.mean() for each in losses)
        total = image_to_text + text_to_image
        logs = {"image_to_text": image_to_text, "text_to_image": text_to_image}
        if config.mmd_weight:
            logs["mmd"] = discrepancy(images.sets, texts.sets, squared=config.mmd_squared)
            total = total + config.mmd_weight * logs["mmd"]
        for name, weight, penalty in (
            ("diversity", config.diversity_weight, diversity),
            ("orthogonality", config.orthogonality_weight, orthogonality),
        ):
            if weight:
                logs[name] = penalty(images.slots) + penalty(texts.slots)
                total = total + weight * logs[name]
        logs |= {
            "image_variance": circular_variance(images.sets),
            "text_variance": circular_variance(texts.sets),
            "image_attention_entropy": images.entropy.mean(),
            "text_attention_entropy": texts.entropy.mean(),
        }
        return total, {name: value.detach() for name, value in logs.items()}
