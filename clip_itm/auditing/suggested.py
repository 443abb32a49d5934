"""What would be right for some pairs of an audit: the answers of `suggestions.py` with texts and ids, for people."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from clip_itm.auditing.suggestions import CERTAIN, fits_of, suggest_captions, suggest_photos
from clip_itm.data.equal_captions import number_captions

ANSWERS = 3  # captions, and photos, for a pair


class Answer(NamedTuple):
    """A caption or a photo that is suggested.

    `index`: a pair that has the caption, or the number of the photo in its split. `text`: the caption, or the id of the
    photo. `p`: the share of searches without a right answer whose best stands out as far.
    """

    index: int
    text: str
    p: float

    @property
    def is_proposed(self) -> bool:
        """Whether it fits so well that chance rarely does as well; otherwise it is only the best there is."""
        return self.p <= CERTAIN


class Suggested(NamedTuple):
    """Best first, at most `ANSWERS` each: captions of the data for the photo of a pair, photos for its caption."""

    captions: list[Answer]
    photos: list[Answer]

    @property
    def proposed(self) -> Answer | None:
        """The caption that is proposed first."""
        return self.captions[0] if self.captions and self.captions[0].is_proposed else None


def suggested(
    pairs: np.ndarray,
    images: Tensor,
    texts: Tensor,
    image: np.ndarray,
    captions: Sequence[str],
    image_ids: Sequence[str],
    trusted: np.ndarray,
    has_content: np.ndarray,
) -> dict[int, Suggested]:
    """What is suggested for each of `pairs` int64 [S], by the number of the pair.

    images, texts: unit vectors [P, D] and [N, D] on the CPU. image: int64 [N], the photo of each pair. captions: [N].
    image_ids: [P]. trusted: bool [N], pairs that are probably right. has_content: bool [N], pairs whose captions may be
    suggested, and for which a photo can be found.
    """
    if not len(pairs):
        return {}
    fits = fits_of(images, texts, image, number_captions(captions), trusted)
    of_captions = suggest_captions(fits, pairs, ANSWERS, has_content)
    of_photos = suggest_photos(fits, pairs, ANSWERS)
    of_photos.index[~has_content[pairs]] = -1
    found = {}
    for place, pair in enumerate(pairs.tolist()):
        both = (
            [
                Answer(k, named[k], p)
                for k, p in zip(side.index[place].tolist(), side.p[place].tolist(), strict=True)
                if k >= 0
            ]
            for side, named in ((of_captions, captions), (of_photos, image_ids))
        )
        found[pair] = Suggested(*both)
    return found
