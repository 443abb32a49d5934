"""Recall for repeated captions: the photos of equal captions are right for each of them, and the other way round."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip_itm.evaluation.judged_ranking import compute_best_ranks
from clip_itm.evaluation.judgements import JudgedSplit, Positives
from clip_itm.evaluation.protocol import EmbeddedSplit, Protocol
from clip_itm.evaluation.ranking import Ranks


class EqualCaptions(Protocol):
    """The whole split, everything against everything; of all right answers to a query, the best one counts.

    `caption_numbers` int [Nt], the same for captions that are equal. If all captions differ, the ranks are those of the
    protocol `all`.
    """

    name = "all, equal captions right"

    def __init__(self, caption_numbers: Sequence[int] | np.ndarray):
        self.numbers = np.unique(np.asarray(caption_numbers), return_inverse=True)[1]

    def select(self, split: EmbeddedSplit) -> list[JudgedSplit]:
        """The split with its right answers; ValueError unless there is one number for every caption."""
        owner = split.caption_image
        if len(self.numbers) != len(owner):
            raise ValueError(f"there are {len(self.numbers)} numbers of captions for {len(owner)} captions")
        image_to_text, text_to_image = right_answers(owner.numpy(), self.numbers)
        return [JudgedSplit(split.images, split.texts, owner, image_to_text, text_to_image)]

    def rank(self, part: JudgedSplit, similarity, block_size, device) -> Ranks:
        """The rank of the best right answer to every query."""
        return compute_best_ranks(part, similarity, block_size, device)


def right_answers(owner: np.ndarray, numbers: np.ndarray) -> tuple[Positives, Positives]:
    """For images and captions, from the image `owner` int64 [Nt] and the number int64 [Nt], from 0, of every caption.

    Example:
        >>> to_texts, to_images = right_answers(np.array([0, 1, 1]), np.array([0, 0, 1]))
        >>> to_texts.row.tolist(), to_texts.candidate.tolist()  # image 0 has the first caption of image 1, too
        ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])
        >>> to_images.row.tolist(), to_images.candidate.tolist()
        ([0, 0, 1, 1, 2], [0, 1, 0, 1, 1])
    """
    image, number = np.unique(np.stack([owner, numbers]), axis=1)  # each text of each image, once
    query = np.unique(owner)
    captions, texts = np.argsort(numbers, kind="stable"), np.argsort(number, kind="stable")
    row, candidate = _joined(np.searchsorted(query, image), number, captions, numbers)
    order = np.lexsort((candidate, row))
    of_captions = _joined(np.arange(len(owner)), numbers, texts, number)
    return (
        _positives(query, row[order], candidate[order]),
        _positives(np.arange(len(owner)), of_captions[0], image[of_captions[1]]),
    )


def _joined(
    queries: np.ndarray, wanted: np.ndarray, ordered: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Every query [m] with each place whose value is the wanted one [m]; `ordered`: all places, sorted by `values`."""
    counts = np.bincount(values)
    first = np.cumsum(counts) - counts
    many = counts[wanted]
    nth = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    return np.repeat(queries, many), ordered[np.repeat(first[wanted], many) + nth]


def _positives(query: np.ndarray, row: np.ndarray, candidate: np.ndarray) -> Positives:
    parts: list[Tensor] = [
        torch.from_numpy(values) for values in (query, row, candidate, np.bincount(row, minlength=len(query)))
    ]
    return Positives(*parts)
