"""What all backbones have in common: the interface, dropout on features, hidden words, frozen parts."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from clip_itm.backbones.blocks import Block
from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.backbones.section import BackboneSection


class Backbone(nn.Module, ABC):
    """Two towers. A kind of backbone implements the two trunks, the two lists of blocks and activation checkpointing.

    `config`: its section, resolved, so that `build_backbone(config, weights=False)` rebuilds the architecture offline.
    `embed_dim`: width D of the pooled features after the necks; `token_widths`: C of the image tokens and of the
    caption tokens. `initial_logit_scale` (natural log of the multiplier) and `initial_logit_bias`: those of the
    pretrained towers, None from scratch. `output_tokens`: whether the trunks return tokens (if not, they cost nothing).
    `pads_images`: whether image tokens have a mask.

    A trunk makes what a frozen tower gives and what can be cached on disk. A neck is what trains after it; on tokens it
    applies only dropout.
    """

    embed_dim: int
    token_widths: tuple[int, int]
    initial_logit_scale: float | None = None
    initial_logit_bias: float | None = None
    output_tokens: bool = False
    pads_images: bool = False

    def __init__(self, config: BackboneSection):
        super().__init__()
        self.config: Any = config
        self.image_dropout = nn.Dropout(config.image_dropout)
        self.text_dropout = nn.Dropout(config.text_dropout)
        self._frozen: list[nn.Module] = []

    @property
    def widths(self) -> FeatureWidths:
        return FeatureWidths(self.embed_dim, *self.token_widths)

    @abstractmethod
    def image_trunk(self, pixel_values: Tensor) -> Features:
        """Images [P, 3, H, W] to pooled [P, C] and, where asked for, patch tokens [P, T, C'] without class token.

        A tower of variable resolution takes the rest of what `image_inputs` gives, too.
        """

    @abstractmethod
    def text_trunk(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Captions [B, T] to pooled [B, C] and, where asked for, word tokens [B, T, C'] with a mask of the words."""

    def image_neck(self, features: Features) -> Features:
        return features.apply(self.image_dropout)

    def text_neck(self, features: Features) -> Features:
        return features.apply(self.text_dropout)

    @abstractmethod
    def image_blocks(self) -> list[Block]:
        """Modules and parameters of the image trunk from input to output.

        [stem], [block 0], ..., [final norm, projection]; every parameter of the trunk is in exactly one block.
        """

    @abstractmethod
    def text_blocks(self) -> list[Block]:
        """The same for the text trunk."""

    @abstractmethod
    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them.

        Raises `ValueError` for a tower that cannot.
        """

    def words(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Bool [B, T]: True at words, False at padding and at start and end tokens."""
        special = torch.tensor(self.config.special_token_ids, dtype=input_ids.dtype, device=input_ids.device)
        return attention_mask.bool() & ~torch.isin(input_ids, special)

    def drop_words(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """In training, `input_ids` with a share `word_dropout` of the words replaced; the same tensor otherwise.

        Start and end tokens stay (CLIP pools at the end token), and so does at least one word of every caption.
        """
        if not self.hides_words:
            return input_ids
        hidden = draw_hidden(self.words(input_ids, attention_mask), self.config.word_dropout)
        return input_ids.masked_fill(hidden, self.config.hidden_word_id)

    @property
    def hides_words(self) -> bool:
        return self.training and self.config.word_dropout > 0

    def hold_still(self, module: nn.Module) -> None:
        """Freeze a module: no gradients, and always in evaluation mode (batch-norm statistics, dropout)."""
        module.requires_grad_(False).eval()
        self._frozen.append(module)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def draw_hidden(words: Tensor, probability: float) -> Tensor:
    """Which of the words (bool [B, T]) to hide: each with `probability`, never all of a row. Bool [B, T]."""
    draw = torch.rand(words.shape, device=words.device).masked_fill(~words, -1)
    # the word with the largest draw stays: it would be hidden only together with all others
    return (words & (draw < probability)).scatter(1, draw.argmax(dim=1, keepdim=True), False)
