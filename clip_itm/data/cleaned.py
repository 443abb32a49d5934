"""A data set without its suspicious training captions, or with weights on them, as a folder that `folder` reads.

Train captions are written as the run saw them, noise applied; val and test are written as they are. Image ids stay,
and every caption keeps its own id, so the hashes of val and test are those of the original.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from clip_itm.data.images import naming_image, open_image
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.files import filling, is_free, write_json


def check_free(folder: Path) -> None:
    """Raise ValueError unless `folder` is empty or does not exist: nobody's files are overwritten."""
    if not is_free(folder):
        raise ValueError(f"{folder} is not an empty folder; choose another place for the cleaned data set")


def require_images(splits: Mapping[str, Split]) -> None:
    """Raise ValueError for precomputed regions."""
    if any(split.regions is not None for split in splits.values()):
        raise ValueError(
            "--clean-to writes a folder of photos and captions, and these data are precomputed regions; choose the "
            "pairs to leave out from audit.parquet"
        )


def write_cleaned(
    folder: Path,
    splits: Mapping[str, Split],
    noise: CaptionNoise,
    keep: np.ndarray,
    weight: np.ndarray | None,
    origin: dict,
    copy_images: bool = False,
    cleaned: str = "train",
) -> dict[str, int]:
    """Write `metadata.jsonl` and `cleaned.json` (`origin` and the counts, which are returned) into an empty folder.

    `keep` bool [N] says which pairs of the split `cleaned` stay, with the captions that `noise` gives them, `weight`
    float32 [N] in [0, 1] how much each counts (None: all 1).
    An image in a file is named by its absolute path or, with `copy_images`, copied to `photos/`; one that is stored as
    bytes is written there. An image that keeps no caption leaves the split. Raises ValueError if nothing is
    left of it, if `folder` is not empty, and for precomputed regions.
    """
    check_free(folder)
    if not keep.any():
        raise ValueError(f"no {'training' if cleaned == 'train' else cleaned} pair is left at this threshold; lower it")
    require_images(splits)
    kept_images = len(np.unique(splits[cleaned].pairs.image[keep]))
    counts = {
        "kept_pairs": int(keep.sum()),
        "dropped_pairs": int((~keep).sum()),
        "kept_images": kept_images,
        "dropped_images": len(splits[cleaned]) - kept_images,
    }
    with filling(folder) as new, (new / "metadata.jsonl").open("w", encoding="utf-8") as table:
        write_json(new / "cleaned.json", origin | counts)
        for name, split in splits.items():
            rows = _cleaned_rows(split, noise, keep, weight) if name == cleaned else _rows(split)
            for row, texts in tqdm(rows, total=len(split), desc=f"writing {name}", leave=False):
                file_name = _file_name(split.rows[row]["image"], new, f"photos/{name}/{row:06d}", copy_images)
                table.write(json.dumps({"file_name": file_name, "split": name, **texts}, ensure_ascii=False) + "\n")
    return counts


def _rows(split: Split) -> Iterator[tuple[int, dict]]:
    """(row, ids, captions and weights) of every image."""
    texts = split.rows.remove_columns(["image"])
    yield from enumerate(texts)


def _cleaned_rows(
    split: Split, noise: CaptionNoise, keep: np.ndarray, weight: np.ndarray | None
) -> Iterator[tuple[int, dict]]:
    """The same for the captions that the images got, without those that are dropped."""
    pairs, captions = split.pairs, noise.apply(split.pairs)
    caption_ids, image_ids = pairs.caption_ids, pairs.image_ids
    starts = np.searchsorted(pairs.image, np.arange(len(split) + 1))
    for row in range(len(split)):
        kept = [k for k in range(starts[row], starts[row + 1]) if keep[k]]
        if kept:
            texts = {
                "image_id": image_ids[row].as_py(),
                "captions": [captions[k].as_py() for k in kept],
                "caption_ids": [caption_ids[int(noise.source[k])].as_py() for k in kept],
            }
            if weight is not None:
                texts["caption_weights"] = [round(float(weight[k]), 6) for k in kept]
            yield row, texts


def _file_name(image: dict, folder: Path, name: str, copy: bool) -> str:
    """The `file_name` of a stored image in the table; `name` is that of a new file below `folder`, without suffix."""
    if image["bytes"] is None and not copy:
        return os.path.abspath(image["path"])
    with naming_image(image):
        suffix = f".{open_image(image).format.lower()}"
    target = folder / (name + suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    if image["bytes"] is None:
        shutil.copyfile(image["path"], target)
    else:
        target.write_bytes(image["bytes"])
    return f"{name}{suffix}"
