"""Right answers beyond an image's own captions, as people judged them for the COCO test split of Karpathy.

ECCV Caption (Chun et al. 2022) and CxC (Parekh et al. 2021) name the right captions of images and the right images of
captions by their COCO ids. The lists come from the package `eccv_caption`, whose files are read and whose code is
never imported.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_itm.reading import read_json

CAPTIONS_EACH = 5


class Positives(NamedTuple):
    """Right answers of Q queries of one direction, int64; queries and candidates are indices into the gallery.

    `query` [Q] ascending; answer `candidate[n]` [M] is right for `query[row[n]]`, `row` [M] ascending; `total` [Q]
    counts the right answers of each query, including those outside the gallery.
    """

    query: Tensor
    row: Tensor
    candidate: Tensor
    total: Tensor


class JudgedSplit(NamedTuple):
    """Images [5000, ...] and captions [25000, ...] with their right answers; `caption_image` int64 [25000]."""

    images: Tensor
    texts: Tensor
    caption_image: Tensor
    image_to_text: Positives
    text_to_image: Positives


def judged_split(
    images: Tensor,
    texts: Tensor,
    caption_image: Tensor,
    image_ids: Sequence[str] | None,
    caption_ids: Sequence[str] | None,
    name: str,
) -> JudgedSplit:
    """The images and captions that compete under the protocol `name` (eccv or cxc), in the order of the split.

    `images` [Ni, ...] and `texts` [Nt, ...] are embeddings, `caption_image` is int64 [Nt]. Images are found by their
    COCO id, and so are captions if all their ids are numbers; otherwise the n-th caption of an image stands for the
    n-th of its COCO ids in ascending order, which is the order of all published files. Captions of an image beyond its
    five are left out. Raises ValueError for any other split, and if the package is not installed.
    """
    folder = package_data(name)
    if image_ids is None or caption_ids is None:
        raise ValueError(
            f"protocol {name} needs the COCO numbers of photos and captions: pass image_ids and caption_ids"
        )
    image_index, own = match_images(image_ids, *coco_test_ids(folder), name)
    rows, captions = match_captions(caption_ids, caption_image.numpy(), own, name)
    kept = torch.from_numpy(rows)
    return JudgedSplit(
        images,
        texts[kept.to(texts.device)],
        caption_image[kept],
        positives(read_lists(folder / f"{name}_image_to_caption.json"), image_index, captions),
        positives(read_lists(folder / f"{name}_caption_to_image.json"), captions, image_index),
    )


def package_data(name: str) -> Path:
    """The folder of lists in the installed package `eccv_caption`; ValueError if it is not installed."""
    found = find_spec("eccv_caption")
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"protocol {name} needs the lists of the package eccv_caption: pip install 'clip-itm[eccv]'")
    return Path(found.submodule_search_locations[0]) / "data"


def coco_test_ids(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """COCO ids of the images [5000] and of their captions [5000, 5], both in Karpathy's order."""
    captions = np.load(folder / "coco_test_ids.npy", allow_pickle=False).reshape(-1, CAPTIONS_EACH)
    image_of = read_lists(folder / "original_caption_to_image.json")
    return np.array([image_of[first][0] for first in captions[:, 0].tolist()]), captions


def read_lists(path: Path) -> dict[int, list[int]]:
    """The right answers of every query, all by their COCO ids."""
    return {int(query): right for query, right in read_json(path, "judgements of a data set").items()}


def match_images(
    image_ids: Sequence[str], test_images: np.ndarray, test_captions: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """COCO ids of the images of a split [5000], and those of their captions [5000, 5].

    Raises ValueError unless the split has exactly the images `test_images` [5000].
    """
    place = find(coco_numbers(image_ids), test_images)
    if len(np.unique(place)) != len(place) or len(place) != len(test_images) or (place < 0).any():
        strange = next((image_ids[k] for k in np.flatnonzero(place < 0).tolist()), None)
        raise ValueError(
            f"protocol {name} is defined for the {len(test_images):,} photos of Karpathy's COCO test split, each once "
            f"and named by its COCO number; of the {len(place):,} photos of this split {(place >= 0).sum():,} are among"
            f" them" + (f" ({strange!r} is not)" if strange else "") + "; use that split, or the protocol 'all'"
        )
    return test_images[place], test_captions[place]


def match_captions(
    caption_ids: Sequence[str], owner: np.ndarray, own: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and COCO ids [25000] of the captions that count: those whose id is among the five of their image.

    `owner` [Nt] is the image of each caption, `own` [5000, 5] the COCO ids of the captions of each image. Raises
    ValueError unless every one of these is found once.
    """
    numbers = coco_numbers(caption_ids)
    if (numbers < 0).any():
        by_image = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=len(own))
        nth = np.empty_like(owner)
        nth[by_image] = np.arange(len(owner)) - (counts.cumsum() - counts)[owner[by_image]]
        numbers = np.where(nth < CAPTIONS_EACH, own[owner, np.minimum(nth, CAPTIONS_EACH - 1)], -1)
    kept = np.flatnonzero((own[owner] == numbers[:, None]).any(axis=1))
    found = len(np.unique(numbers[kept]))
    if found != own.size or len(kept) != own.size:
        raise ValueError(
            f"protocol {name} needs the {own.size:,} captions of Karpathy's COCO test split (the first "
            f"{CAPTIONS_EACH} of each photo), each once and named by its COCO number, or in the published order under "
            f"ids that are no numbers; {found:,} of them are among the {len(owner):,} captions of this split"
        )
    return kept, numbers[kept]


def coco_numbers(ids: Sequence[str]) -> np.ndarray:
    """The ids as numbers, with or without leading zeros; -1 for one that is not a number (COCO's have 12 digits)."""
    return np.array([int(name) if name.isdecimal() and len(name) <= 12 else -1 for name in ids], np.int64)


def positives(lists: dict[int, list[int]], queries: np.ndarray, candidates: np.ndarray) -> Positives:
    """The right answers in `lists` (id of a query: ids of its answers) as indices into `queries` and `candidates`."""
    query = find(np.array(list(lists)), queries)
    answers = list(lists.values())
    order = np.argsort(query)
    total = np.array([len(answers[k]) for k in order])
    candidate = find(np.concatenate([answers[k] for k in order]), candidates)
    row = np.repeat(np.arange(len(order)), total)[candidate >= 0]
    return Positives(*map(torch.from_numpy, (query[order], row, candidate[candidate >= 0], total)))


def find(numbers: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Index of each of `numbers` in `among` (distinct), -1 for those that are not there."""
    order = np.argsort(among)
    place = order[np.minimum(np.searchsorted(among, numbers, sorter=order), len(among) - 1)]
    return np.where(among[place] == numbers, place, -1)
