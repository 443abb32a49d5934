"""Which caption each training pair gets: drawn with the published procedure, saved with a hash, and described.

Images never move. Pair k shows image `pairs.image[k]` with original caption `source[k]`, so a noise draw is one array
of integers, and all its properties can be counted.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from clip_itm.data.noise_draws import (
    captions_of_neighbours,
    captions_with_a_noun,
    shuffled_captions,
    shuffled_sets,
)
from clip_itm.data.rows import Pairs
from clip_itm.files import is_stream, reading_arrays, save_arrays

Level = Literal["caption", "image", "neighbour", "noun"]


class Neighbours(NamedTuple):
    """The images nearest to each image, int64 [images, k], and the `model` whose features decide what is near."""

    images: np.ndarray
    model: str


def level_in_words(facts: Mapping[str, Any]) -> str:
    """`caption level`, or `neighbour level, 50 nearest photos by MODEL`, of `CaptionNoise.description`."""
    if "neighbours" not in facts:
        return f"{facts['level']} level"
    return f"{facts['level']} level, {facts['neighbours']} nearest photos by {facts['model']}"


@dataclass(frozen=True, eq=False)
class CaptionNoise:
    """Pair k gets original caption `source[k]`.

    `source` int64 [N] holds indices of captions; `ratio` is the nominal fraction (of captions, or of images) that was
    exchanged, or for imported files the fraction of pairs that got another caption; `level` says how (see `draw`);
    `seed` is None for imported files; `captions_sha256` identifies the captions that `source` refers to
    (`Pairs.captions_sha256`). `details` are facts about a level: `neighbours` (how many) and `model`, or `without_noun`
    (the number of selected pairs that share no noun with another).

    Example:
        >>> import tempfile
        >>> from clip_itm.data.configuration import SampleData
        >>> from clip_itm.data.load import load_splits
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = SampleData(train_images=4, val_images=1, test_images=1, cache_dir=folder)
        ...     pairs = load_splits(data)["train"].pairs
        ...     noise = CaptionNoise.draw(pairs, ratio=0.5, level="caption", seed=99)
        ...     noise.save(f"{folder}/noise.npz")
        ...     CaptionNoise.load(f"{folder}/noise.npz").sha256 == noise.sha256
        True
        >>> int((~noise.is_clean(pairs)).sum()), len(pairs)
        (5, 20)
    """

    source: np.ndarray
    ratio: float
    level: Level
    seed: int | None
    captions_sha256: str
    details: Mapping[str, int | str] = field(default_factory=dict)

    @classmethod
    def clean(cls, pairs: Pairs) -> "CaptionNoise":
        """Every pair keeps its own caption."""
        return cls(np.arange(len(pairs), dtype=np.int64), 0.0, "caption", None, pairs.captions_sha256)

    @classmethod
    def draw(
        cls, pairs: Pairs, ratio: float, level: Level, seed: int, neighbours: Neighbours | None = None
    ) -> "CaptionNoise":
        """Give a fraction `ratio` of the pairs, or of the images, other captions.

        caption: the captions of the selected pairs are shuffled among these. The procedure of the released NPC program;
            CRCL's draws the same numbers and reads them the other way round (which image does the caption go with?).
        image: the caption sets of the selected images are shuffled. Captions of an image stay together and in order;
            sets move only between images with equally many, so that every caption is used exactly once. With equal
            counts this is the published scheme of one image index per image.
        neighbour: each selected pair gets a caption of one of its image's `neighbours`, which this level needs.
        noun: each selected pair gets a caption of another image that shares a noun with its own, if there is one.

        Raises ValueError unless `ratio` is in [0, 1], and at level "neighbour" if there are no other images.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"noise.ratio must lie between 0 and 1, got {ratio}")
        generator, details = np.random.RandomState(seed), {}
        match level:
            case "caption":
                source = shuffled_captions(pairs, ratio, generator)
            case "image":
                source = shuffled_sets(pairs, ratio, generator)
            case "neighbour" if ratio == 0:
                source = np.arange(len(pairs), dtype=np.int64)
            case "neighbour":
                if neighbours is None:
                    raise ValueError("noise.level neighbour is drawn with the nearest photos of each photo")
                source = captions_of_neighbours(pairs, ratio, generator, neighbours.images)
                details = {"neighbours": neighbours.images.shape[1], "model": neighbours.model}
            case "noun":
                source, without = captions_with_a_noun(pairs, ratio, generator)
                details = {"without_noun": without}
            case _:
                raise ValueError(f"noise.level must be 'caption', 'image', 'neighbour' or 'noun', got {level!r}")
        return cls(source, float(ratio), level, seed, pairs.captions_sha256, details)

    @property
    def sha256(self) -> str:
        """Hash of the captions and of their assignment to pairs: runs with equal hashes trained on the same pairs."""
        digest = hashlib.sha256(self.captions_sha256.encode())
        digest.update(self.source.astype("<i8").tobytes())
        return digest.hexdigest()

    def check(self, pairs: Pairs) -> None:
        """Raise ValueError unless this draw was made for the captions of `pairs`."""
        if self.captions_sha256 != pairs.captions_sha256:
            raise ValueError(
                f"this noise was made for other training captions: it names captions {self.captions_sha256}, "
                f"the training split has {pairs.captions_sha256} ({len(self.source)} and {len(pairs)} captions). "
                "Use the data it was made for, or draw it anew with `clip-itm noise make`."
            )

    def apply(self, pairs: Pairs) -> pa.Array:
        """The caption that each pair gets, Arrow strings [N]."""
        self.check(pairs)
        return pairs.captions.take(pa.array(self.source))

    def is_clean(self, pairs: Pairs) -> np.ndarray:
        """bool [N]: whether caption `source[k]` was written for the image of pair k (its captions may swap)."""
        self.check(pairs)
        return pairs.image[self.source] == pairs.image

    def truth(self, pairs: Pairs) -> np.ndarray | None:
        """`is_clean`; None if nothing was shuffled, as nobody then knows which pairs are right."""
        return self.is_clean(pairs) if self.ratio > 0 else None

    def statistics(self, pairs: Pairs) -> dict[str, Any]:
        """Counts and fractions that describe this draw.

        Fractions of pairs: `other_caption` (another caption), `other_text` (another wording), `other_image` (a caption
        of another image: the true noise). `images_by_right_captions[c]` is the fraction of images that keep exactly c
        of their own captions.
        """
        clean = self.is_clean(pairs)
        right = np.bincount(pairs.image[clean], minlength=len(pairs.image_ids))
        per_image = np.bincount(right, minlength=int(np.bincount(pairs.image).max(initial=0)) + 1)
        texts = pairs.captions.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        return {
            **self.description(),
            "pairs": len(pairs),
            "images": len(pairs.image_ids),
            "other_caption": float(np.mean(self.source != np.arange(len(pairs)))),
            "other_text": float(np.mean(texts[self.source] != texts)),
            "other_image": float(np.mean(~clean)),
            "images_by_right_captions": (per_image / len(pairs.image_ids)).tolist(),
        }

    def description(self) -> dict[str, Any]:
        """What is known without the captions: `ratio`, `level`, `seed`, `details`, `sha256`, `captions_sha256`."""
        return {
            "ratio": self.ratio,
            "level": self.level,
            "seed": self.seed,
            **self.details,
            "sha256": self.sha256,
            "captions_sha256": self.captions_sha256,
        }

    def save(self, path: str | Path) -> None:
        """Write an npz without pickle. An existing file stays if it holds the same noise; otherwise ValueError."""
        path = Path(path)
        if path.suffix != ".npz" and not is_stream(path):
            raise ValueError(f"{path}: a noise file is saved as .npz")
        if not path.is_file():
            with suppress(FileExistsError):  # another process has just written it
                return self._write(path)
        there = CaptionNoise.load(path)
        if there.sha256 != self.sha256:
            raise ValueError(
                f"{path} holds other noise (sha256 {there.sha256}, this one is {self.sha256}); "
                "delete it or choose another name"
            )
        return None

    def _write(self, path: Path) -> None:
        save_arrays(
            path,
            exclusive=True,
            source=self.source,
            ratio=self.ratio,
            level=self.level,
            seed=-1 if self.seed is None else self.seed,
            captions_sha256=self.captions_sha256,
            details=json.dumps(self.details),
            sha256=self.sha256,
        )

    @classmethod
    def load(cls, path: str | Path) -> "CaptionNoise":
        """Read what `save` wrote; ValueError if the file is missing, is not a noise file or was changed."""
        with reading_arrays(
            path,
            missing=f"noise file {path} does not exist",
            wrong=f"{path} is no noise file of clip-itm ({{error}}); published .npy and .txt files are read by "
            "`clip-itm noise import`",
        ) as stored:
            noise = cls(
                source=stored["source"].astype(np.int64, casting="safe"),
                ratio=float(stored["ratio"]),
                level=str(stored["level"]),
                seed=None if stored["seed"] < 0 else int(stored["seed"]),
                captions_sha256=str(stored["captions_sha256"]),
                details=json.loads(str(stored.get("details", "{}"))),  # none in files of earlier versions
            )
        if noise.sha256 != str(stored["sha256"]):
            raise ValueError(f"{path} was changed or damaged: it names sha256 {stored['sha256']}, holds {noise.sha256}")
        return noise
