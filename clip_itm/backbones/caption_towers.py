"""Caption towers of the literature on region features: a GRU over words, and BERT.

    gru    word embeddings (dropout), one GRU layer in both directions, averaged: SCAN, VSE-infinity, SGRAF, DivE
    bert   the last hidden states of a BERT, projected to D: GPO, DivE, AAHR

A tower takes ids [B, T] and a mask bool [B, T] of the tokens that count, and gives pooled [B, D] and tokens [B, T, C].
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoConfig, AutoModel

from clip_itm.backbones.blocks import Block, longest_list, partition
from clip_itm.backbones.huggingface import as_dict, set_checkpointing
from clip_itm.backbones.pooling import make_pooling
from clip_itm.backbones.word_sections import CaptionTowerSection
from clip_itm.loading import loading


class WordGru(nn.Module):
    """One GRU layer of width D per direction, directions averaged. Tokens are its states, or the word embeddings.

    Words that do not count enter as zeros.
    """

    def __init__(self, config: CaptionTowerSection):
        super().__init__()
        self.reads_words = config.text_tokens == "words"
        self.token_width = config.word_dim if self.reads_words else config.embed_dim
        self.embedding = nn.Embedding(config.vocab_size, config.word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.word_dropout = nn.Dropout(config.embedding_dropout)
        self.gru = nn.GRU(config.word_dim, config.embed_dim, batch_first=True, bidirectional=config.bidirectional)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.pooling = None if config.text_pooling == "last" else make_pooling(config.text_pooling, config.embed_dim)

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, T] and the mask of words that count, bool [B, T]: pooled [B, D] and tokens [B, T, C]."""
        words = self.word_dropout(self.embedding(input_ids)) * mask[..., None]
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        lengths = (mask * positions).amax(dim=1).clamp(min=1).cpu()
        states, last = self.gru(pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False))
        last = last.mean(dim=0)  # over the directions
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=mask.shape[1])
        states = self.dropout(states.unflatten(2, (-1, last.shape[1])).mean(dim=2)) * mask[..., None]
        pooled = self.dropout(last) if self.pooling is None else self.pooling(states, mask)
        return pooled, words if self.reads_words else states

    def blocks(self) -> list[Block]:
        """The embedding, and the GRU with its pooling."""
        return [[self.embedding], [self.gru, *([] if self.pooling is None else [self.pooling])]]

    def set_checkpointing(self, enabled: bool) -> None:
        """Does nothing: a GRU keeps hardly any activations."""


class BertTower(nn.Module):
    """`bert`, followed by a linear layer to D (`text_projection: true`) or by none.

    With none and text_pooling mean, pooled is what sentence-transformers' mean pooling gives: the mean of the last
    hidden states over the attention mask, start and end tokens included.
    """

    def __init__(self, config: CaptionTowerSection, bert: nn.Module):
        super().__init__()
        bert.pooler = None  # would get no gradient
        self.bert = bert
        hidden = bert.config.hidden_size
        linear, has_mlp = config.text_projection is True, config.text_projection == "mlp"
        self.token_width = config.embed_dim if linear else hidden
        self.projection = nn.Linear(hidden, config.embed_dim) if linear else nn.Identity()
        self.dropout = nn.Dropout(0.0 if has_mlp else config.hidden_dropout)  # the MLP has its own
        self.pooling = None if config.text_pooling == "first" else make_pooling(config.text_pooling, self.token_width)

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, T] and the mask of tokens that count, bool [B, T]: pooled [B, D] and tokens [B, T, C]."""
        hidden = self.bert(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        tokens = self.dropout(self.projection(hidden)) * mask[..., None]
        return tokens[:, 0] if self.pooling is None else self.pooling(tokens, mask), tokens

    def blocks(self) -> list[Block]:
        """The blocks of BERT; projection and pooling belong to the last one."""
        *lower, top = partition(self.bert, longest_list(self.bert))
        return [*lower, [*top, self.projection, *([] if self.pooling is None else [self.pooling])]]

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute BERT's activations in the backward pass."""
        set_checkpointing(self.bert, enabled)


def build_bert(config: CaptionTowerSection, weights: bool) -> tuple[CaptionTowerSection, BertTower]:
    """The section completed with BERT's architecture, and the tower with the weights of `text_model` or random ones.

    Raises ValueError if the tokenizer has more tokens than the model has embeddings.
    """
    if config.text_model_config is not None and not weights:
        bert = AutoModel.from_config(AutoConfig.for_model(**config.text_model_config))
    else:
        with loading(config.text_model):
            if weights:
                bert = AutoModel.from_pretrained(config.text_model, dtype=torch.float32)
            else:
                bert = AutoModel.from_config(AutoConfig.from_pretrained(config.text_model))
    if config.vocab_size > bert.config.vocab_size:
        raise ValueError(
            f"{config.text_model}: its tokenizer has {config.vocab_size} tokens and the model has embeddings for "
            f"{bert.config.vocab_size}; add the missing ones (often [MASK]), or use another model"
        )
    config = config.model_copy(update={"text_model_config": as_dict(bert.config)})
    return config, BertTower(config, bert)
