"""Small data folders for the tests of the sources."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from clip_itm.data.rows import Pairs


def photo(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
    return path


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def image_ids_of(split) -> list[str]:
    return [image["path"] for image in split.rows["image"]]


def captions_by_photo(split) -> dict[str, list[str]]:
    return dict(zip(split.rows["image_id"], split.rows["captions"], strict=True))


def make_pairs(counts, captions=None) -> Pairs:
    image = np.repeat(np.arange(len(counts)), counts)
    captions = [f"photo {p}, caption {k}" for k, p in enumerate(image)] if captions is None else list(captions)
    return Pairs(
        image=image,
        captions=pa.array(captions, pa.string()),
        caption_ids=pa.array([str(k) for k in range(len(image))], pa.string()),
        image_ids=pa.array([str(p) for p in range(len(counts))], pa.string()),
    )


def golden_folder(root: Path, arrays: dict, name: str) -> None:
    """Train files with one id a photo, dev files with one id a caption, as published."""
    ids, captions = arrays[f"{name}_ids_lines"].tolist(), arrays[f"{name}_caps_lines"].tolist()
    folder = root / "annotations" / "scan_split"
    write(folder / "train_ids.txt", ids)
    write(folder / "train_caps.txt", captions)
    write(folder / "dev_ids.txt", [i for i in ids for _ in range(arrays[f"{name}_num_anns"])])
    write(folder / "dev_caps.txt", captions)
    if name == "f30k":
        write(folder / "image_name.txt", arrays["f30k_image_name_lines"].tolist())
    for path in arrays[f"{name}_dev_paths"].tolist():
        photo(root / path)
