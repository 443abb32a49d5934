"""A copy of a region data set in half the space: features in float16, everything else unchanged."""

import shutil
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from clip_itm.data.arrays import new_array
from clip_itm.data.formats.annotation_files import existing_root
from clip_itm.data.region_features import mapped
from clip_itm.files import replacing
from clip_itm.visible import visible

ROWS_AT_ONCE = 512


def store_in_half_precision(root: str | Path, out: str | Path) -> list[Path]:
    """Write the files of `root` to `out`, `*_ims.npy` [n, R, C] as float16; existing files stay.

    Returns the files written. Raises ValueError if there are no features, `out` is `root`, or a value does not fit into
    float16.
    """
    root, out = existing_root(root), Path(out)
    features = sorted(root.glob("*_ims.npy"))
    if not features:
        raise ValueError(f"{root}: found no *_ims.npy; expected a folder in the layout of data.source: regions")
    if out.resolve() == root.resolve():
        raise ValueError(f"{out}: the copy needs a folder of its own")
    written = []
    for file in sorted(path for path in root.iterdir() if path.is_file()):
        if (out / file.name).exists():
            continue
        if file in features:
            _write_half(file, out / file.name)
        else:
            with replacing(out / file.name) as temporary:
                shutil.copy(file, temporary)
        written.append(out / file.name)
    return written


def _write_half(file: Path, target: Path) -> None:
    array = mapped(file)
    copy = new_array(target, np.float16, array.shape, remedy="choose another folder with --out, or make room")
    with copy as half, tqdm(total=len(array), desc=visible(file.name), unit=" photos") as progress:
        for start in range(0, len(array), ROWS_AT_ONCE):
            block = array[start : start + ROWS_AT_ONCE]
            with np.errstate(over="ignore"):
                half[start : start + len(block)] = block
            lost = np.isfinite(block) & ~np.isfinite(half[start : start + len(block)])
            if lost.any():
                row = start + int(lost.reshape(len(block), -1).any(axis=1).argmax())
                raise ValueError(f"{file}, row {row}: a value beyond 65,504 does not fit into float16; keep float32")
            progress.update(len(block))
