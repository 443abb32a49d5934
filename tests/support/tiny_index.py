"""Small indexes whose scores are exact, and what is in their folders."""

import hashlib
import json
from pathlib import Path

import torch

from clip_itm.retrieval import storage
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Item

VECTORS = torch.randint(-4, 5, (60, 8), generator=torch.Generator().manual_seed(0)) / 4
QUERIES = torch.randint(-4, 5, (5, 8), generator=torch.Generator().manual_seed(1)) / 4


def items(*numbers: int) -> list[Item]:
    """Some with a thumbnail, some with a path, some with a caption."""
    return [
        Item(
            f"i{k}",
            path=f"photos/{k}.jpg" if k % 3 else None,
            caption=f"a caption, é {k}" if k % 4 == 0 else None,
            thumbnail=bytes([k]) * k if k % 3 == 0 and k else None,
        )
        for k in numbers
    ]


def make_index(folder: Path | None = None, count: int = 20, **options) -> LocalIndex:
    made = LocalIndex("image", "model", **options)
    made.add(items(*range(count)), VECTORS[:count])
    if folder is not None:
        made.save(folder)
    return made


def same(first: LocalIndex, second: LocalIndex) -> bool:
    return list(first.items()) == list(second.items()) and first.search(QUERIES, 100) == second.search(QUERIES, 100)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def file_of(folder: Path, kind: str) -> Path:
    (path,) = folder.glob(f"{kind}-*")
    return path


def snapshot(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def write_index_file(folder: Path, content: dict) -> None:
    """With the checksum that it should have: made so, not damaged."""
    content.pop("xxh3", None)
    (folder / "index.json").write_text(json.dumps({**content, "xxh3": storage._checksum_of(content)}))
