"""Similarity graph reasoning (Diao et al., AAAI 2021; docs/papers/crcl.md 6.7).

E = softmax(Q(z) K(z)^T)        z <- ReLU(W(E z))        a few rounds over the nodes of an image and a caption
S = sigmoid(w z_0 + b)
"""

import torch
from torch import Tensor, nn

from clip_itm.backbones.features import FeatureWidths
from clip_itm.similarity.configuration import SgrSection
from clip_itm.similarity.sgraf import GraphSimilarity
from clip_itm.similarity.tokens import linear


class GraphStep(nn.Module):
    """One round of reasoning: every node becomes a mixture of all nodes of its pair."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.output = linear(width, width), linear(width, width), linear(width, width)

    def forward(self, receivers: Tensor, nodes: Tensor, mask: Tensor) -> Tensor:
        """New vectors [..., M, K] of `receivers`, from all `nodes` [..., N, K] that `mask` [..., N] counts."""
        edges = self.query(receivers) @ self.key(nodes).transpose(-1, -2)
        edges = edges.masked_fill(~mask[..., None, :], -torch.inf).softmax(dim=-1)
        return self.output(edges @ nodes).relu()


class Sgr(GraphSimilarity):
    """Similarity graph reasoning: the similarity vectors of a pair exchange messages, node 0 gives the score."""

    config: SgrSection

    def __init__(self, config: SgrSection, widths: FeatureWidths):
        super().__init__(config, widths)
        self.steps = nn.ModuleList(GraphStep(config.similarity_dim) for _ in range(config.graph_steps))

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores [Ni, Nt] in (0, 1)."""
        return torch.cat([scores for (scores,) in self.blocks(images, texts)], dim=1)

    def reason(self, nodes: Tensor, mask: Tensor) -> tuple[Tensor]:
        """Scores [Ni, Nt] of nodes [Ni, Nt, 1 + W, K]."""
        for step in self.steps[:-1]:
            nodes = step(nodes, nodes, mask)
        # only node 0 is read in the end
        node = self.steps[-1](nodes[:, :, :1], nodes, mask)[:, :, 0]
        return (self.score(node)[..., 0].sigmoid(),)
