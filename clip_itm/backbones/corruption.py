"""Words of training captions that are masked, replaced or deleted.

As in docs/papers/crcl.md 7.4, docs/papers/dive.md 7.4 and docs/papers/aahr.md 3: a word is changed with probability p
(0.2). Half of the changed words become the mask token, a tenth a random token of the whole vocabulary, and the others
are deleted. One uniform draw u per word decides: masked below 0.5 p, replaced below 0.6 p, deleted below p. All pieces
of a word (BERT) share one draw; they are replaced one by one.
"""

import torch
from torch import Tensor

MASKED, REPLACED = 0.5, 0.6  # upper ends of the fractions


def corrupt_words(
    input_ids: Tensor,
    attention_mask: Tensor,
    touchable: Tensor,
    draws: Tensor,
    random_ids: Tensor,
    mask_id: int,
    probability: float,
    continues: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T'] of the captions [B, T] after corruption, padded at the end to the longest of them, T'.

    `touchable` bool [B, T]: the tokens that may change; `draws` uniform [B, T], `random_ids` int64 [B, T];
    `continues` bool [B, T]: tokens that continue the word of the previous one. No caption loses all touchable tokens:
    if all would be deleted, the word with the largest draw stays as it is.
    """
    if continues is not None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        draws = draws.gather(1, torch.where(continues, 0, positions).cummax(dim=1).values)  # that of the first piece
    touched = touchable & (draws < probability)
    deleted = touched & (draws >= REPLACED * probability)
    largest = draws.masked_fill(~touchable, -1).amax(dim=1, keepdim=True)
    spared = (touchable == deleted).all(dim=1, keepdim=True) & (draws == largest)
    touched, deleted = touched & ~spared, deleted & ~spared
    ids = torch.where(touched & (draws < REPLACED * probability), random_ids, input_ids)
    ids = ids.masked_fill(touched & (draws < MASKED * probability), mask_id)
    kept = attention_mask.bool() & ~deleted
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, int(kept.sum(dim=1).max()))]
    return ids.gather(1, order), kept.gather(1, order)
