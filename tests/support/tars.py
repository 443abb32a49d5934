"""Tars of tiny photos for tests."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def photo_bytes(number: int, form: str = "JPEG", side: int = 24) -> bytes:
    """A photo like no other."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def write_tar(
    path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT
) -> Path:
    """A tar of files by name, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(first: int, count: int, **facts) -> dict[str, bytes]:
    """Photos with a caption and, as img2dataset writes them, facts about each."""
    found = {}
    for number in range(first, first + count):
        key = f"{number:09d}"
        found[f"{key}.jpg"] = photo_bytes(number)
        found[f"{key}.json"] = json.dumps({"key": key, "caption": f"photo {number}", **facts}).encode()
        found[f"{key}.txt"] = f"photo {number}".encode()
    return found


def write_shards(folder: Path, tars: int = 3, each: int = 20) -> Path:
    """`00000.tar` and so on below a folder."""
    for number in range(tars):
        write_tar(folder / f"{number:05d}.tar", samples(number * each, each))
    return folder
