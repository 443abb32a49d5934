"""Precomputed regions instead of images, and captions as words: the towers of SCAN, VSE-infinity, SGRAF, DivE and AAHR.

There is no image trunk: the data contain regions [P, R, C], and everything that trains on them is in the neck.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from clip_itm.backbones.base import Backbone
from clip_itm.backbones.blocks import Block
from clip_itm.backbones.caption_towers import BertTower, WordGru, build_bert
from clip_itm.backbones.configuration import RegionsBackbone
from clip_itm.backbones.corruption import corrupt_words
from clip_itm.backbones.features import Features
from clip_itm.backbones.huggingface import load_tokenizer
from clip_itm.backbones.pooling import make_pooling
from clip_itm.backbones.region_encoders import RegionEncoder, erase_regions, keep_regions
from clip_itm.backbones.vocabulary import caption_tokenizer, count_words, read_vocabulary
from clip_itm.processing import ItmProcessor


class Regions(Backbone):
    """Region encoder and pooling, and a caption tower (`WordGru` or `BertTower`).

    With `global_dim` the pooled features are vectors of another model, which the data contain. In training, regions are
    dropped (masked) or erased (overwritten), and words are corrupted, with torch's global generator.
    """

    def __init__(self, config: RegionsBackbone, text_tower: WordGru | BertTower):
        super().__init__(config)
        plain = config.image_encoder == "none"
        image_width = config.region_dim if plain else config.embed_dim
        self.embed_dim = config.global_dim or config.embed_dim
        self.token_widths = image_width, text_tower.token_width
        self.region_encoder = (
            None
            if plain
            else RegionEncoder(config.image_encoder, config.region_dim, config.embed_dim, config.norm_padding)
        )
        self.region_dropout = nn.Dropout(config.region_dropout)
        self.image_pooling = None if config.global_dim else make_pooling(config.pooling, image_width)
        self.text_tower = text_tower
        # word pieces that continue the previous one; saved in checkpoints, because ids alone do not show it
        in_pieces = config.text_encoder == "bert" and config.word_corruption
        self.register_buffer("continues_word", torch.zeros(config.vocab_size, dtype=torch.bool) if in_pieces else None)

    def image_trunk(self, pixel_values: Tensor) -> Features:
        """Always raises ValueError: there are no images."""
        raise ValueError(
            "this model reads precomputed regions, no photos: give it image_tokens [P, R, C] (data.source: regions)"
        )

    def image_neck(self, features: Features) -> Features:
        """Regions [P, R, C] to pooled [P, D] and, if asked for, tokens; ValueError for features that do not fit."""
        if features.tokens is None:
            raise ValueError("backbone regions needs regions (image_tokens [P, R, C]): use data.source: regions")
        if (features.pooled is None) == bool(self.config.global_dim):
            raise ValueError(
                "backbone.global_dim is the width of vectors that data.global_vectors: true brings along: set both, or "
                "neither"
            )
        regions, mask = self._thin_out(features.tokens, features.mask)
        encoded = regions if self.region_encoder is None else self.region_encoder(regions, mask)
        tokens = self.region_dropout(encoded)
        pooled = features.pooled
        if self.image_pooling is not None:  # with a dropout mask of its own (docs/papers/dive.md 3.1)
            pooled = self.image_pooling(self.region_dropout(encoded), mask)
        tokens = self._finish(tokens, mask)
        return super().image_neck(Features(pooled, tokens, mask))

    def _thin_out(self, regions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What training leaves of the regions [P, R, C]."""
        if mask is None:
            mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
        if self.training and self.config.region_drop:
            mask = keep_regions(mask, torch.rand(mask.shape, device=mask.device), self.config.region_drop)
        if self.training and self.config.region_erase:
            regions = erase_regions(regions, torch.rand(mask.shape, device=mask.device), self.config.region_erase)
        return regions, mask

    def text_trunk(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Captions [B, T] to pooled [B, D], and word tokens if asked for; corrupts words in training."""
        mask = attention_mask.bool()
        if self.training and self.config.word_corruption:
            input_ids, mask = self._corrupt(input_ids, mask)
        pooled, tokens = self.text_tower(input_ids, mask)
        return Features(pooled, self._finish(tokens, mask), mask)

    def text_neck(self, features: Features) -> Features:
        return super().text_neck(features if self.output_tokens else replace(features, tokens=None, mask=None))

    def _corrupt(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        return corrupt_words(
            input_ids,
            mask,
            mask if config.corrupt_ends else self.words(input_ids, mask),
            torch.rand(input_ids.shape, device=input_ids.device),
            torch.randint_like(input_ids, config.vocab_size),
            config.mask_token_id,
            config.word_corruption,
            None if self.continues_word is None else self.continues_word[input_ids],
        )

    def _finish(self, tokens: Tensor, mask: Tensor) -> Tensor | None:
        """Zeros at padding; None if no head reads tokens."""
        return tokens.masked_fill(~mask[..., None], 0) if self.output_tokens else None

    def image_blocks(self) -> list[Block]:
        return [[], []]

    def text_blocks(self) -> list[Block]:
        return self.text_tower.blocks()

    def set_activation_checkpointing(self, enabled: bool) -> None:
        self.text_tower.set_checkpointing(enabled)


def build(config: RegionsBackbone, weights: bool) -> Regions:
    """See `build_backbone`."""
    if config.text_encoder == "gru":
        return Regions(config, WordGru(config))
    config, tower = build_bert(config, weights)
    backbone = Regions(config, tower)
    if weights and backbone.continues_word is not None:
        words = load_tokenizer(config.text_model).get_vocab()
        backbone.continues_word[[index for word, index in words.items() if word.startswith("##")]] = True
    return backbone


def processor(config: RegionsBackbone, captions: list[str] | None) -> ItmProcessor:
    """See `build_processor`. Its image processor is only there for the interface of transformers."""
    if config.text_encoder == "bert":
        tokenizer = load_tokenizer(config.text_model)
    elif config.vocabulary is not None:
        tokenizer = caption_tokenizer(read_vocabulary(config.vocabulary), config.max_words)
    elif captions is not None:
        tokenizer = caption_tokenizer(count_words(captions, config.min_word_count), config.max_words)
    else:
        raise ValueError(
            "regions takes its vocabulary from backbone.vocabulary or the training captions: make the processor with "
            "build_processor(config, captions) and pass it to build_backbone, or load both from a checkpoint"
        )
    return ItmProcessor(CLIPImageProcessor(), tokenizer, max_length=config.max_words)
