"""A data set without its suspicious training captions, or with weights on them, in one of several layouts.

Train captions are written as the run saw them, noise applied; val and test are written as they are. Image ids stay,
and every caption keeps its own id, so the hashes of val and test are those of the original.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from clip_itm.data.cleaned_layouts import LAYOUTS, write_card, write_table
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.files import filling, is_free, write_json
from clip_itm.visible import counted


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
    layout: str = "folder",
    fixed: Mapping[int, str] | None = None,
) -> dict[str, int]:
    """Write a layout and `cleaned.json` (`origin` and the counts, which are returned) into an empty folder.

    `keep` bool [N] says which pairs of the split `cleaned` stay, with the captions that `noise` gives them, `weight`
    float32 [N] in [0, 1] how much each counts (None: all 1). `fixed`: texts that replace the captions of pairs; if
    there are any, rows also have `original_captions`, None where nothing changed. `layout`: one of `LAYOUTS`;
    `copy_images`: see `write_table`. An image that keeps no caption leaves the split. Raises ValueError if nothing is
    left of it, if `folder` is not empty, for precomputed regions, and if a layout has no place for such data.
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
    write = partial(write_table, copy_images=copy_images) if layout == "folder" else LAYOUTS[layout]
    with filling(folder) as new:
        write_json(new / "cleaned.json", origin | counts)
        for name, split in splits.items():
            if layout == "datacomp" and name != cleaned:
                continue
            rows = _cleaned_rows(split, noise, keep, weight, fixed or {}) if name == cleaned else _rows(split)
            write(new, split, tqdm(rows, total=len(split), desc=f"writing {name}", leave=False))
        if layout == "datasets":
            left_out = f"{counted(counts['dropped_pairs'], 'caption')} of {cleaned} left out"
            write_card(new, splits, f"Photos and captions, cleaned by `clip-itm audit`: {left_out} (`cleaned.json`).")
    return counts


def _rows(split: Split) -> Iterator[tuple[int, dict]]:
    """(row, ids, captions and weights) of every image."""
    texts = split.rows.remove_columns(["image"])
    yield from enumerate(texts)


def _cleaned_rows(
    split: Split, noise: CaptionNoise, keep: np.ndarray, weight: np.ndarray | None, fixed: Mapping[int, str]
) -> Iterator[tuple[int, dict]]:
    """Like `_rows`, for the captions that the images got, without those that are dropped."""
    pairs, captions = split.pairs, noise.apply(split.pairs)
    caption_ids, image_ids = pairs.caption_ids, pairs.image_ids
    starts = np.searchsorted(pairs.image, np.arange(len(split) + 1))
    for row in range(len(split)):
        kept = [k for k in range(int(starts[row]), int(starts[row + 1])) if keep[k]]
        if kept:
            texts = {
                "image_id": image_ids[row].as_py(),
                "captions": [fixed.get(k) or captions[k].as_py() for k in kept],
                "caption_ids": [caption_ids[int(noise.source[k])].as_py() for k in kept],
            }
            if weight is not None:
                texts["caption_weights"] = [round(float(weight[k]), 6) for k in kept]
            if fixed:
                texts["original_captions"] = [captions[k].as_py() if k in fixed else None for k in kept]
            yield row, texts
