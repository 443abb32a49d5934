"""The instance graph of AAHR, in training only (docs/papers/aahr.md 7.3, 7.4).

G(x; M, W, b) = LeakyReLU_0.2(M (dropout(x) W) + b)                       M is not normalised
x1 = [G(v; R_ii), G(t; R_tt)],  x2 = G(x1; R),  x3 = x2 / |x2| + [v; t]   R [2B, 2B], images before captions
v', t' = rows of a transformer layer over x3 with bias w_m * R where nodes are connected, of unit length
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_itm.methods.aahr.relation import Relation


class GraphConvolution(nn.Module):
    """G above: nodes mix by relevance, then a linear map and LeakyReLU (docs/papers/aahr.md 7.3)."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, nodes: Tensor, relevance: Tensor) -> Tensor:
        """Nodes [N, D] and what each row receives from each column, [N, N], to [N, D]."""
        return F.leaky_relu(relevance @ (self.dropout(nodes) @ self.weight) + self.bias, 0.2)


def attention_bias(relevance: Tensor, connected: Tensor, weight: float) -> Tensor:
    """What is added to attention logits [N, N]: weighted relevance, -inf between nodes that are not connected."""
    return torch.where(connected, weight * relevance, -torch.inf)


class InstanceGraph(nn.Module):
    """Images and captions of a batch as 2B nodes that exchange information."""

    def __init__(self, width: int, num_heads: int, dropout: float, graph_dropout: float, bias_weight: float):
        super().__init__()
        self.bias_weight = bias_weight
        self.image = GraphConvolution(width, graph_dropout)
        self.text = GraphConvolution(width, graph_dropout)
        self.joint = GraphConvolution(width, graph_dropout)
        self.transformer = nn.TransformerEncoderLayer(width, num_heads, width, dropout, batch_first=True)

    def convolve(self, images: Tensor, texts: Tensor, relation: Relation) -> Tensor:
        """x3 [2B, D] from unit vectors [B, D] of both."""
        within = torch.cat([self.image(images, relation.image_image), self.text(texts, relation.text_text)])
        across = self.joint(within, relation.joint())
        return F.normalize(across, dim=1) + torch.cat([images, texts])

    def forward(self, images: Tensor, texts: Tensor, relation: Relation, connected: Relation) -> tuple[Tensor, Tensor]:
        """v', t' [B, D] from unit vectors [B, D], relevance and connections."""
        nodes = self.convolve(images, texts, relation)
        bias = attention_bias(relation.joint(), connected.joint(), self.bias_weight)
        nodes = F.normalize(self.transformer(nodes[None], src_mask=bias)[0], dim=1)
        return nodes[: len(images)], nodes[len(images) :]
