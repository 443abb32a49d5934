"""Token ids of all captions of a split, computed once: tokenizing in every epoch costs a small model half its step."""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm.auto import tqdm

BLOCK = 10_000  # captions tokenized at once


class CaptionTokens:
    """The token ids of Arrow strings `captions` [N], int32 in one array.

    `batch(indices)` gives what `processor(text=[captions[n] for n in indices])` gives.
    """

    def __init__(self, captions: pa.Array, processor, progress: bool = False):
        self.processor = processor
        ids, lengths = [], []
        starts = range(0, len(captions), BLOCK)
        for start in tqdm(starts, desc="tokenizing captions", leave=False, disable=not progress or len(starts) == 1):
            rows = processor.tokenize(captions[start : start + BLOCK].to_pylist())
            lengths += map(len, rows)
            ids.append(np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]))
        self.ids = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
        self.begins = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` int64 [B, T] of the captions `indices` int64 [B]."""
        rows = [self.ids[self.begins[index] : self.begins[index + 1]].tolist() for index in indices]
        return {name: torch.tensor(values) for name, values in self.processor.pad(rows).items()}
