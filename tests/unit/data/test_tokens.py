"""Captions tokenized once give the batches that tokenizing them anew gives."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import CLIPImageProcessor

from clip_itm.backbones.openclip_source import openai_tokenizer
from clip_itm.data import tokens
from clip_itm.data.tokens import CaptionTokens
from clip_itm.processing import ItmProcessor

CAPTIONS = ["a dog", "", "two cats on a red mat!", "a " * 100, "A  Dog", "ein Häuschen", "x"]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("block", [3, 100])
def test_batches_equal_those_of_the_processor(monkeypatch, fixed, block):
    monkeypatch.setattr(tokens, "BLOCK", block)
    processor = ItmProcessor(
        CLIPImageProcessor(), openai_tokenizer(), "lower", 20, pad_token_id=0, pad_to_max_length=fixed
    )
    made = CaptionTokens(pa.array(CAPTIONS), processor)
    for numbers in ([0], [6, 1, 3, 3], [5, 2]):
        batch = made.batch(np.array(numbers))
        expected = processor(text=[CAPTIONS[number] for number in numbers], return_tensors="pt")
        assert batch.keys() == expected.keys()
        for name, tensor in batch.items():
            assert tensor.dtype == torch.int64
            assert torch.equal(tensor, expected[name])
