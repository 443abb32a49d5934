"""The whole loss of AAHR: triplets, prototypes, graph, queues (docs/papers/aahr.md 9).

    L = T(f_i, f_t) + L_graph + 0.2 L_prototypes + 10 L_regulariser + L_queue

Each term is 0 until its gate opens: prototypes after 2200 steps and the graph after 8000 (of the published batch size;
or after the epochs that the recipe sets), the queue when it is full. A term whose gate is closed has no gradient.

As published, T is a sum of hinges over a batch, and the others are means. Here T is a mean over pairs, too, times
`reference_batch`: at that batch size it is the published sum, at any other the terms keep their proportions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_itm.distributed import gather_with_gradient
from clip_itm.methods.aahr.configuration import AahrHeadConfig
from clip_itm.methods.aahr.encoder import Encoded
from clip_itm.methods.aahr.graph import InstanceGraph
from clip_itm.methods.aahr.prototypes import project_to_unit_length, prototype_losses
from clip_itm.methods.aahr.queue import KeyQueue, info_nce
from clip_itm.methods.aahr.relation import (
    NORM_WORDS,
    EdgeMlp,
    Relation,
    connections,
    fragment_scores,
    gather_columns,
    gather_fragments,
    instance_relevance,
    mean_scores,
    regulariser,
)
from clip_itm.methods.aahr.triplet import sampled_triplet_losses
from clip_itm.methods.scores import local_targets, same_caption, same_image


class Gates(NamedTuple):
    """Steps of the criterion (batches, 0-based) at which a term begins."""

    prototypes: int
    graph: int


def gates_of(config: AahrHeadConfig, batch_size: int, batches_per_epoch: int) -> Gates:
    """The published steps, scaled to batches of `batch_size` pairs, or the epochs of the recipe in steps."""
    scale = config.reference_batch / batch_size
    prototypes, graph = round(2200 * scale) + 1, round(8000 * scale)
    if config.prototypes_after is not None:
        prototypes = round(config.prototypes_after * batches_per_epoch)
    if config.graph_after is not None:
        graph = round(config.graph_after * batches_per_epoch)
    return Gates(prototypes, graph)


class AahrCriterion(nn.Module):
    """Losses of the local pairs; only training needs it.

    `step` counts batches, `gates` says when terms begin, `queue` holds the keys of earlier batches; they are not part
    of the module's state. Every process computes the whole graph, with its own dropout, and uses the rows of its own
    pairs.
    """

    def __init__(self, config: AahrHeadConfig):
        super().__init__()
        self.config = config
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, config.embed_dim))
        self.graph = InstanceGraph(
            config.embed_dim, config.num_heads, config.dropout, config.graph_dropout, config.graph_bias
        )
        self.image_edge, self.text_edge = (EdgeMlp(), EdgeMlp()) if config.edge == "mlp" else (None, None)
        self.queue = KeyQueue(config.queue_length, config.embed_dim)
        self.gates = gates_of(config, config.reference_batch, 0)
        self.step = 0

    def forward(
        self,
        images: Encoded,
        texts: Encoded,
        scores: tuple[Tensor, Tensor],
        image_ids: Tensor,
        keys: tuple | None,
        caption_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses [b] of each term whose gate is open; in evaluation mode only those of the triplets.

        `scores`: see `global_scores`; `image_ids` int64 [b]; `keys`: embeddings [b, D] of images and of captions under
        the momentum encoders, None without a queue; `caption_ids` int64 [b] where `same_caption` masks.
        """
        config = self.config
        positive = same_image(scores[0], image_ids)
        equal = same_caption(scores[0], image_ids, caption_ids, config.same_caption)
        losses = {"triplet": config.reference_batch * self.triplet(*scores, positive, equal)}
        if not self.training:
            return losses
        project_to_unit_length(self.prototypes)
        if self.step >= self.gates.prototypes:
            found = prototype_losses(
                images.fused,
                texts.fused,
                self.prototypes,
                config.prototype_temperature,
                config.sinkhorn_epsilon,
                config.sinkhorn_iterations,
            )
            losses["prototypes"] = config.prototype_weight * found
        if self.step >= self.gates.graph:
            graph, divergence = self.graph_losses(images, texts, positive, equal)
            losses["graph"] = config.reference_batch * graph
            losses["regulariser"] = config.regulariser_weight * divergence
        if keys is not None and self.queue.is_full:
            losses["queue"] = config.queue_weight * self.queue_losses(images, texts, keys, image_ids, caption_ids)
        return losses

    def end_step(self, keys: tuple | None, image_ids: Tensor, caption_ids: Tensor | None = None) -> None:
        """Call this after the loss of a batch: it counts the step and puts the keys into the queue."""
        self.step += 1
        if keys is not None:
            self.queue.write(*keys, image_ids, caption_ids)

    def triplet(self, rows: Tensor, columns: Tensor, positive: Tensor, equal: Tensor | None = None) -> Tensor:
        """Triplet losses [b] of the local pairs, both directions; see `sampled_triplet_losses`."""
        config = self.config
        return sampled_triplet_losses(
            rows, columns, positive, config.margin, config.distance_cutoff, config.clamp_distance, equal
        )

    def relate(self, images: Encoded, texts: Encoded, v: Tensor, t: Tensor) -> tuple[Relation, Relation]:
        """Relevance and connections of the global batch; `v`, `t` [B, D] are its local embeddings of unit length."""
        words, word_mask = gather_fragments(texts.fragments, texts.mask)
        region_mask, normed = images.mask, word_mask
        if not self.config.mask_padding:
            region_mask = torch.ones_like(region_mask)
            normed = word_mask | (torch.arange(word_mask.shape[1], device=words.device) < NORM_WORDS)
        scores = fragment_scores(images.fragments.to(v), region_mask, words.to(v), word_mask, normed)
        image_text = mean_scores(scores.regions, region_mask[:, None])
        text_image = mean_scores(scores.words, word_mask[None])
        if self.image_edge is not None:
            image_text = image_text + self.image_edge(scores.regions, region_mask[:, None])
            text_image = text_image + self.text_edge(scores.words, word_mask[None])
        image_text, text_image = gather_with_gradient(image_text), gather_columns(text_image)
        relation = Relation(instance_relevance(v), image_text, text_image, instance_relevance(t))
        itself = torch.eye(len(v), dtype=torch.bool, device=v.device)
        nearest = [
            connections(scores.detach(), self.config.neighbours) for scores in (v @ v.T, *relation[1:3], t @ t.T)
        ]
        return relation, Relation(nearest[0] | itself, *nearest[1:3], nearest[3] | itself)

    def graph_losses(
        self, images: Encoded, texts: Encoded, positive: Tensor, equal: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """L_graph and L_regulariser of the local pairs, [b] each (docs/papers/aahr.md 7.5, 7.6)."""
        v, t = (gather_with_gradient(F.normalize(side.local.to(side.fused.dtype), dim=1)) for side in (images, texts))
        relation, connected = self.relate(images, texts, v, t)
        enhanced_v, enhanced_t = self.graph(v, t, relation, connected)
        own, total = local_targets(images.fused), 0
        for left, right in ((v, enhanced_t), (enhanced_v, t), (enhanced_v, enhanced_t)):
            total = total + self.triplet(left[own] @ right.T, right[own] @ left.T, positive, equal)
        return total, regulariser(relation, v, t)[own]

    def queue_losses(
        self,
        images: Encoded,
        texts: Encoded,
        keys: tuple[Tensor, Tensor],
        image_ids: Tensor,
        caption_ids: Tensor | None = None,
    ) -> Tensor:
        """L_queue [b]: captions are the keys of images, and vice versa."""
        queue, config = self.queue, self.config
        queue.move_to(keys[0])
        of_image = image_ids[:, None] == queue.ids
        mask = of_image if config.mask_same_image else None
        if config.same_caption == "mask":
            equal = (caption_ids[:, None] == queue.caption_ids) & ~of_image
            mask = equal if mask is None else mask | equal
        queries = [side.fused if config.queue_query == "fused" else side.local for side in (images, texts)]
        queries = [rows.to(keys[0]) for rows in queries]
        found = info_nce(queries[0], keys[1], queue.texts, config.queue_temperature, mask)
        return found + info_nce(queries[1], keys[0], queue.images, config.queue_temperature, mask)
