"""Words of the training captions as a vocabulary, and small text towers over them that train from scratch."""

from collections import Counter

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from clip_itm.backbones.configuration import TimmWordsBackbone
from clip_itm.backbones.pooling import masked_mean

PAD, UNK = "[PAD]", "[UNK]"


def word_tokenizer(captions: list[str], min_count: int, max_words: int) -> PreTrainedTokenizerFast:
    """Lower-case words and punctuation marks that occur at least `min_count` times in `captions`.

    Ids: 0 [PAD], 1 [UNK], then by descending frequency, equally frequent words in code-point order. Captions are cut to
    `max_words`. Raises `ValueError` if no word is frequent enough.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words = frequent_words(captions, normalizer, splitter, min_count)
    vocabulary = {word: index for index, word in enumerate([PAD, UNK, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNK, pad_token=PAD, model_max_length=max_words, padding_side="right"
    )


def frequent_words(captions: list[str], normalizer, splitter, min_count: int) -> list[str]:
    """Words that occur at least `min_count` times, by descending frequency, equal ones in code-point order.

    Raises `ValueError` if there are none.
    """
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    kept = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    if not kept:
        raise ValueError(
            f"no word occurs {min_count} times in the {len(captions)} training captions: lower backbone.min_word_count"
        )
    return [word for _, word in kept]


def text_mlp(width: int, config: TimmWordsBackbone) -> nn.Sequential:
    """Linear width - text_hidden, ReLU, dropout, linear text_hidden - embed_dim."""
    return nn.Sequential(
        nn.Linear(width, config.text_hidden),
        nn.ReLU(),
        nn.Dropout(config.hidden_dropout),
        nn.Linear(config.text_hidden, config.embed_dim),
    )


class BagTower(nn.Module):
    """Sum of word embeddings / sqrt(number of words), through an MLP word_dim - text_hidden - embed_dim.

    Tokens are the word embeddings, which know nothing about their neighbours.
    """

    def __init__(self, config: TimmWordsBackbone):
        super().__init__()
        self.token_width = config.word_dim
        self.embedding = nn.Embedding(config.vocab_size, config.word_dim)
        self.mlp = text_mlp(config.word_dim, config)

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, T] and the mask of words that count, bool [B, T]: pooled [B, D] and tokens [B, T, word_dim]."""
        tokens = self.embedding(input_ids)
        total = (tokens * mask[..., None]).sum(dim=1)
        length = mask.sum(dim=1, keepdim=True).clamp(min=1).sqrt().to(total.dtype)
        return self.mlp(total / length), tokens

    def blocks(self) -> list[list[nn.Module]]:
        return [[self.embedding], [self.mlp]]


class GruTower(nn.Module):
    """A bi-directional GRU; the mean of its states over words, projected. Words that do not count enter as zeros."""

    def __init__(self, config: TimmWordsBackbone):
        super().__init__()
        self.token_width = 2 * config.text_hidden
        self.embedding = nn.Embedding(config.vocab_size, config.word_dim)
        self.gru = nn.GRU(
            config.word_dim,
            config.text_hidden,
            config.text_layers,
            batch_first=True,
            bidirectional=True,
            dropout=config.hidden_dropout if config.text_layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.projection = nn.Linear(2 * config.text_hidden, config.embed_dim)

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, T] and the mask of words that count, bool [B, T]: pooled [B, D] and tokens [B, T, 2 text_hidden]."""
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        lengths = (mask * positions).amax(dim=1).clamp(min=1).cpu()
        embedded = self.embedding(input_ids) * mask[..., None]
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        tokens, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=mask.shape[1])
        return self.projection(self.dropout(masked_mean(tokens, mask))), tokens

    def blocks(self) -> list[list[nn.Module]]:
        return [[self.embedding], [self.gru], [self.dropout, self.projection]]


class TransformerTower(nn.Module):
    """A small pre-norm transformer without causal mask; the mean over words, projected."""

    def __init__(self, config: TimmWordsBackbone):
        super().__init__()
        self.token_width = config.word_dim
        self.embedding = nn.Embedding(config.vocab_size, config.word_dim)
        self.position = nn.Parameter(0.01 * torch.randn(config.max_words, config.word_dim))
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.word_dim,
                config.text_heads,
                config.text_hidden,
                config.hidden_dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(config.word_dim)
        self.projection = nn.Linear(config.word_dim, config.embed_dim)

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, T] and the mask of words that count, bool [B, T]: pooled [B, D] and tokens [B, T, word_dim]."""
        tokens = self.embedding(input_ids) + self.position[: input_ids.shape[1]]
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=~mask)
        tokens = self.norm(tokens)
        return self.projection(masked_mean(tokens, mask)), tokens

    def blocks(self) -> list[list[nn.Module | nn.Parameter]]:
        return [[self.embedding, self.position], *([layer] for layer in self.layers), [self.norm, self.projection]]
