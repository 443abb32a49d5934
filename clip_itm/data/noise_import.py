"""Published noise files, read as `CaptionNoise`.

There are two kinds: `.npy` arrays of image indices (CRCL, NCR and relatives: which image does caption i go with?)
and text files of the training captions in noisy order (NPC: which caption does pair k get?). Indices and lines follow
the training split in file order.
"""

from collections import defaultdict, deque
from pathlib import Path

import numpy as np

from clip_itm.data.formats.annotation_files import read_lines
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Pairs
from clip_itm.visible import counted


def import_noise(path: str | Path, pairs: Pairs) -> CaptionNoise:
    """Read a published `.npy` index or a `.txt` file of noisy captions, by its suffix.

    `pairs` are those of the training split. Raises ValueError for any other file and if it does not fit the pairs.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".txt"):
        raise ValueError(
            f"noise file {path}: expected .npz (saved here), .npy (photo numbers) or .txt (noisy captions)"
        )
    if not path.is_file():
        raise ValueError(f"noise file {path} does not exist")
    if path.suffix == ".npy":
        return from_image_index(_read_index(path), pairs, str(path))
    return from_captions(read_lines(path), pairs, str(path))


def from_image_index(index: np.ndarray, pairs: Pairs, name: str = "index") -> CaptionNoise:
    """Image indices, one per caption (int [N]) or one per image (all its captions move), turned into captions per pair.

    The index keeps captions and moves images; here images stay. Captions that keep their image keep their slot, the
    others fill the free slots of the image they go with, both in increasing order: the set of (image, caption) pairs
    is the same. `name` is the file for messages. Raises ValueError if an image is used more or less often than it has
    captions.
    """
    num_images = len(pairs.image_ids)
    if index.ndim != 1 or index.dtype.kind not in "iu" or len(index) not in (len(pairs), num_images):
        raise ValueError(
            f"{name}: expected {len(pairs)} whole numbers (a photo per caption) or {num_images} (a photo per photo), "
            f"found an array of shape {index.shape} and type {index.dtype}"
        )
    outside = np.flatnonzero((index < 0) | (index >= num_images))
    if len(outside):
        raise ValueError(
            f"{name}: entry {outside[0]} is {index[outside[0]]}, but photos are numbered 0 to {num_images - 1}"
        )
    owner = index.astype(np.int64) if len(index) == len(pairs) else index.astype(np.int64)[pairs.image]
    slots = np.bincount(pairs.image, minlength=num_images)
    used = np.bincount(owner, minlength=num_images)
    wrong = np.flatnonzero(slots != used)
    if len(wrong):
        raise ValueError(
            f"{name}: photo {wrong[0]} is used for {counted(used[wrong[0]], 'caption')} but has {slots[wrong[0]]} "
            f"({len(wrong)} such photos): this index does not shuffle the captions of this training split"
        )
    stays = owner == pairs.image
    source = np.arange(len(pairs), dtype=np.int64)
    free = np.flatnonzero(~stays)
    source[free] = free[np.argsort(owner[free], kind="stable")]
    first_of_image = np.cumsum(slots) - slots
    level = "image" if np.array_equal(owner, owner[first_of_image[pairs.image]]) else "caption"
    return _imported(source, level, pairs)


def from_captions(lines: list[str], pairs: Pairs, name: str = "captions") -> CaptionNoise:
    """Noisy captions, one per pair, matched back to the original ones.

    If several originals have the same wording, a line at its original index keeps it and the others take the unused
    ones in order (a wording used more often than it occurs falls back on its first). Raises ValueError, naming file and
    line, for a wording that does not occur.
    """
    if len(lines) != len(pairs):
        written_twice = " (the program that wrote it appends: it was run twice)" if len(lines) == 2 * len(pairs) else ""
        raise ValueError(f"{name}: {len(lines)} lines, but the training split has {len(pairs)} captions{written_twice}")
    originals = [caption.strip() for caption in pairs.captions.to_pylist()]
    lines = [line.strip() for line in lines]
    source = np.full(len(pairs), -1, dtype=np.int64)
    unused: dict[str, deque[int]] = defaultdict(deque)
    for pair, (line, original) in enumerate(zip(lines, originals, strict=True)):
        if line == original:
            source[pair] = pair
        else:
            unused[original].append(pair)
    first = {original: pair for pair, original in reversed(list(enumerate(originals)))}
    for pair in np.flatnonzero(source < 0):
        line = lines[pair]
        if line not in first:
            raise ValueError(f"{name}, line {pair + 1}: {line!r} is no caption of the training split")
        source[pair] = unused[line].popleft() if unused[line] else first[line]
    return _imported(source, "caption", pairs)


def _imported(source: np.ndarray, level: str, pairs: Pairs) -> CaptionNoise:
    ratio = float(np.mean(source != np.arange(len(source))))
    return CaptionNoise(source, ratio, level, None, pairs.captions_sha256)


def _read_index(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        try:
            np.lib.format.read_magic(file)
        except ValueError:
            raise ValueError(f"{path} is no .npy file") from None
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise ValueError(f"{path} is a damaged .npy file: {error}") from error
        raise ValueError(
            f"{path} holds pickled Python objects, which are never loaded because they can run code; "
            "save it as a plain integer array: np.save(FILE, array.astype('int64'), allow_pickle=False)"
        ) from None
