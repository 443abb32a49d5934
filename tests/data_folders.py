"""Small data folders for the tests of the sources."""

from pathlib import Path

from PIL import Image


def photo(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
    return path


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def photos_of(split) -> list[str]:
    return [image["path"] for image in split.rows["image"]]


def captions_by_photo(split) -> dict[str, list[str]]:
    return dict(zip(split.rows["image_id"], split.rows["captions"], strict=True))
