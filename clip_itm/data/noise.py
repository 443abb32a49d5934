"""Which caption each training pair gets: drawn with the published procedure, saved with a hash, and described.

Images never move. Pair k shows image `pairs.image[k]` with original caption `source[k]`, so a noise draw is one array
of integers, and all its properties can be counted.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from clip_itm.data.rows import Pairs
from clip_itm.files import is_stream, reading_arrays, save_arrays

Level = Literal["caption", "image"]


@dataclass(frozen=True, eq=False)
class CaptionNoise:
    """Pair k gets original caption `source[k]`.

    `source` int64 [N] holds indices of captions; `ratio` is the nominal fraction (of captions, or of images) that was
    shuffled, for imported files the fraction of pairs that got another caption; `level` says whether captions moved
    individually or all captions of an image together; `seed` is None for imported files; `captions_sha256` identifies
    the captions that `source` refers to (`Pairs.captions_sha256`).

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

    @classmethod
    def clean(cls, pairs: Pairs) -> "CaptionNoise":
        """Every pair keeps its own caption."""
        return cls(np.arange(len(pairs), dtype=np.int64), 0.0, "caption", None, pairs.captions_sha256)

    @classmethod
    def draw(cls, pairs: Pairs, ratio: float, level: Level, seed: int) -> "CaptionNoise":
        """Shuffle a fraction `ratio` of the captions, or of the images' caption sets, among themselves.

        Level "caption" is the procedure of the released NPC program; CRCL's draws the same numbers and reads them the
        other way round (which image does the caption go with?). At level "image" the captions of an image stay
        together and in order; sets move only between images with equally many captions, so that every caption is used
        exactly once. With equal counts this is the published scheme of one image index per image.

        Raises ValueError unless `ratio` is in [0, 1].
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"noise.ratio must lie between 0 and 1, got {ratio}")
        if level == "caption":
            source = np.arange(len(pairs), dtype=np.int64)
            slots, moved = shuffled_selection(len(pairs), ratio, seed)
            source[slots] = moved
        elif level == "image":
            source = _move_caption_sets(pairs, *shuffled_selection(len(pairs.image_ids), ratio, seed))
        else:
            raise ValueError(f"noise.level must be 'caption' or 'image', got {level!r}")
        return cls(source, float(ratio), level, seed, pairs.captions_sha256)

    @property
    def sha256(self) -> str:
        """Hash of the captions and of which pair gets which: runs with equal hashes trained on the same pairs."""
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
        """`is_clean`; None if nothing was shuffled, so that nobody knows which pairs are right."""
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
        """What is known without the captions: `ratio`, `level`, `seed`, `sha256`, `captions_sha256`."""
        return {
            "ratio": self.ratio,
            "level": self.level,
            "seed": self.seed,
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
            )
        if noise.sha256 != str(stored["sha256"]):
            raise ValueError(f"{path} was changed or damaged: it names sha256 {stored['sha256']}, holds {noise.sha256}")
        return noise


def shuffled_selection(count: int, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The published draw: some of `count` positions, and the same in another order (both int64 [int(ratio * count)]).

    Uses NumPy's legacy generator to reproduce the published files: seed 99 gives those of NPC.
    """
    generator = np.random.RandomState(seed)
    order = np.arange(count, dtype=np.int64)
    generator.shuffle(order)
    slots = order[: int(ratio * count)]
    moved = slots.copy()
    generator.shuffle(moved)
    return slots, moved


def _move_caption_sets(pairs: Pairs, slots: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """`source` for captions of image `slots[j]` that go to image `moved[j]`, where both have equally many captions.

    With unequal counts, `slots` and `moved` are matched within every count: the j-th of one to the j-th of the other.
    """
    counts = np.bincount(pairs.image, minlength=len(pairs.image_ids))
    starts = np.cumsum(counts) - counts
    origin = np.arange(len(counts), dtype=np.int64)
    for count in np.unique(counts[slots]):
        origin[moved[counts[moved] == count]] = slots[counts[slots] == count]
    position_in_image = np.arange(len(pairs), dtype=np.int64) - starts[pairs.image]
    return starts[origin[pairs.image]] + position_in_image
