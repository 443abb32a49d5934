"""Images that another pair's caption fits as well, because they have an equal one: neither rivals nor mismatches."""

import numpy as np
import torch
from torch import Tensor

TRIES = 100  # random places


class EqualCaptions:
    """`image`, `caption` int64 [n] of each pair, 0 to P - 1 and equal for equal captions."""

    def __init__(self, image: np.ndarray, caption: np.ndarray):
        self.image, self.images = np.asarray(image), int(np.max(image)) + 1
        self.caption = np.unique(caption, return_inverse=True)[1]
        self.known = np.unique(self.caption * self.images + self.image)  # every caption with each of its images, once
        self.first = np.searchsorted(self.known, np.arange(self.caption.max() + 2) * self.images)

    def fits(self, pairs: np.ndarray, others: np.ndarray) -> np.ndarray:
        """bool [m]: whether the captions of the pairs `others` [m] are among those of the images of `pairs` [m]."""
        return np.isin(self.caption[others] * self.images + self.image[pairs], self.known)

    def keep_apart(self, mismatch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The permutation `mismatch` [n], changed where an image would get a caption that fits it.

        A place k of which the caption of pair `mismatch[k]` fits the image is exchanged with one of 100 random places,
        if one of them will do. Raises ValueError if all captions are equal.
        """
        count = len(mismatch)
        if not self.caption.max():
            raise ValueError(f"all {count} captions are equal: no mismatch can be made of them (head.same_caption)")
        for pair in np.flatnonzero(self.fits(np.arange(count), mismatch)):
            tried = rng.integers(count, size=TRIES)
            here, there = np.full(TRIES, pair), np.full(TRIES, mismatch[pair])
            good = np.flatnonzero(~(self.fits(here, mismatch[tried]) | self.fits(tried, there)))
            if len(good):
                other = tried[good[0]]
                mismatch[[pair, other]] = mismatch[[other, pair]]
        return mismatch

    def other_images(self, pairs: np.ndarray) -> tuple[Tensor, Tensor]:
        """Every other image that has the caption of a pair of `pairs` [b], and the place of that pair: int64 [m] each.

        Example:
            >>> equal = EqualCaptions(np.array([0, 1, 2, 3]), np.array([7, 8, 7, 7]))
            >>> equal.other_images(np.array([0, 1]))
            (tensor([2, 3]), tensor([0, 0]))
        """
        start, end = self.first[self.caption[pairs]], self.first[self.caption[pairs] + 1]
        counts = end - start
        place = np.repeat(np.arange(len(pairs)), counts)
        index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + start[place]
        images = self.known[index] % self.images
        other = images != self.image[pairs][place]
        return torch.from_numpy(images[other]), torch.from_numpy(place[other])
