"""Sources in every layout, some of whose photos are broken and captions empty."""

import json
import os
from pathlib import Path

from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature

from clip_itm.data.configuration import Cc120kData, CocoData, FlickrData, FolderData, HubData
from support.photo_faults import FORMATS, PAGE, picture

COUNT = 12  # photos of train; the last one of each split is broken, too


BROKEN = {2: "page", 3: "cut", 5: "empty", 7: "folder", 8: "pipe", 11: "cut"}


EMPTY = {4: "", 6: "   "}  # captions of photos that have no other


def content(number: int, kind: str = "JPEG") -> bytes:
    return FORMATS[kind](picture(48, 40, number))


def put(path: Path, fault: str | None, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    match fault:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "cut":
            path.write_bytes(content(number)[:-200])
        case "page":
            path.write_bytes(PAGE)
        case "empty":
            path.write_bytes(b"")
        case _:
            path.write_bytes(content(number))


def caption(number: int) -> str:
    return EMPTY.get(number, f"photo {number}")


def folder_source(root: Path) -> FolderData:
    lines = ["image,caption,split", *(f"{n}.jpg,{caption(n)},train" for n in range(COUNT)), "good.jpg,a photo,val"]
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return FolderData(root=str(root))


def flickr_source(root: Path) -> FlickrData:
    names = [*((f"{n}.jpg", caption(n), "train") for n in range(COUNT)), ("good.jpg", "a photo", "val")]
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": text, "sentid": k}]}
        for k, (name, text, split) in enumerate(names)
    ]
    (root / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return FlickrData(root=str(root), images=str(root))


def coco_source(root: Path) -> CocoData:
    for split, names in {"train": [f"{n}.jpg" for n in range(COUNT)], "val": ["good.jpg"]}.items():
        (root / f"{split}2017").symlink_to(root)
        (root / "annotations").mkdir(exist_ok=True)
        first = 1000 * (split == "val")
        images = [{"id": first + number, "file_name": name} for number, name in enumerate(names)]
        texts = ["a photo"] if split == "val" else [caption(number) for number in range(COUNT)]
        captions = [{"id": n, "image_id": first + n, "caption": text} for n, text in enumerate(texts)]
        file = root / "annotations" / f"captions_{split}2017.json"
        file.write_text(json.dumps({"images": images, "annotations": captions}))
    return CocoData(root=str(root))


def cc120k_source(root: Path) -> Cc120kData:
    folder = root / "annotations" / "scan_split"
    folder.mkdir(parents=True)
    for split, names in {"train": range(COUNT), "dev": ["good"], "test": ["good2"]}.items():
        (folder / f"{split}_ids.txt").write_text("".join(f"{name}\n" for name in names))
        texts = [caption(name) if split == "train" else "a photo" for name in names]
        (folder / f"{split}_caps.txt").write_text("".join(f"{text}\n" for text in texts))
    put(root / "good2.jpg", None, 98)
    return Cc120kData(root=str(root), images=str(root))


def hub_rows(root: Path) -> tuple[list, list]:
    texts = [caption(number) if number != 4 else None for number in range(COUNT)]
    return [str(root / f"{number}.jpg") for number in range(COUNT)], texts


def hub_paths(root: Path) -> HubData:
    paths, texts = hub_rows(root)
    return save_hub(root, [*paths[:8], None, *paths[9:]], texts, str(root / "good.jpg"))


def hub_bytes(root: Path) -> HubData:
    paths, texts = hub_rows(root)
    images = [Path(path).read_bytes() if Path(path).is_file() else None for path in paths]  # folder, pipe: null
    return save_hub(root, images, texts, (root / "good.jpg").read_bytes())


def save_hub(root: Path, images: list, texts: list, good) -> HubData:
    train = Dataset.from_dict({"image": images, "caption": texts})
    val = Dataset.from_dict({"image": [good], "caption": ["a photo"]})
    sets = DatasetDict({"train": train, "validation": val})
    if isinstance(good, bytes):
        sets = sets.cast_column("image", ImageFeature())
    sets.save_to_disk(root / "hub")
    return HubData(path=str(root / "hub"))


SOURCES = {
    "folder": folder_source,
    "flickr": flickr_source,
    "coco": coco_source,
    "cc120k": cc120k_source,
    "hub with paths": hub_paths,
    "hub with bytes": hub_bytes,
}


def change(data, **values):
    return type(data).model_validate(data.model_dump() | values)
