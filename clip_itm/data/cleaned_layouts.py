"""How a cleaned data set is laid out in its folder: for the source `folder`, for `datasets`, WebDataset and DataComp.

A writer gets the new folder, a split, and for each of its images that stay the row and its texts: `image_id`,
`captions`, `caption_ids`, and, if there are any, `caption_weights` and `original_captions` (of those that a person
fixed).
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from clip_itm.data.images import image_bytes, naming_image, open_image
from clip_itm.data.rows import ROW_FEATURES, Split
from clip_itm.data.tar_members import tar_member

Rows = Iterable[tuple[int, dict]]
Writer = Callable[[Path, Split, Rows], None]

SHARD_BYTES = 500_000_000  # of photos in a Parquet file, as the Hub advises
ROW_GROUP = 100  # rows, so that a reader of one photo reads few others
SHARD_SAMPLES = 10_000  # in a tar
UIDS = "kept_uids.npy"
UID = re.compile(r"[0-9a-fA-F]{32}")


def write_table(folder: Path, split: Split, rows: Rows, copy_images: bool = False) -> None:
    """Write lines of `metadata.jsonl`, which `data.source: folder` reads.

    An image in a file is named by its absolute path or, with `copy_images`, copied to `photos/`; one that is stored as
    bytes, or in a tar, is written there.
    """
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as table:
        for row, texts in rows:
            file_name = _file_name(split.rows[row]["image"], folder, f"photos/{split.name}/{row:06d}", copy_images)
            table.write(json.dumps({"file_name": file_name, "split": split.name, **texts}, ensure_ascii=False) + "\n")


def _file_name(image: dict, folder: Path, name: str, copy: bool) -> str:
    """The `file_name` of a stored image in the table; `name` is that of a new file below `folder`, without suffix."""
    if image["bytes"] is None and not copy and tar_member(image["path"]) is None:
        return os.path.abspath(image["path"])
    name += f".{_format(image)}"
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming_image(image):
        target.write_bytes(image_bytes(image))
    return name


def _format(image: dict) -> str:
    """jpeg, png, ..."""
    with naming_image(image):
        return open_image(image).format.lower()


def write_parquet(folder: Path, split: Split, rows: Rows) -> None:
    """Write `data/train-00000-of-00002.parquet` and so on, photos inside, for `datasets.load_dataset(folder)`."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    files: list[Path] = []
    writer, held, group = None, 0, []
    schema = None

    def flush() -> None:
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            group.clear()

    for row, texts in rows:
        if writer is None or held >= SHARD_BYTES:
            if writer is not None:
                flush()
                writer.close()
            if schema is None:
                schema = _features(texts).arrow_schema
            files.append(data / f"part-{len(files)}")
            writer, held = pq.ParquetWriter(files[-1], schema), 0
        image = split.rows[row]["image"]
        with naming_image(image):
            content = image_bytes(image)
        name = os.path.basename(image["path"] or "") or None
        group.append({"image": {"bytes": content, "path": name}, **texts})
        held += len(content)
        if len(group) == ROW_GROUP:
            flush()
    if writer is not None:
        flush()
        writer.close()
    for number, file in enumerate(files):
        file.rename(data / f"{split.name}-{number:05d}-of-{len(files):05d}.parquet")


def _features(texts: dict) -> Features:
    kinds = {"caption_weights": "float32", "original_captions": "string"}
    more = {name: List(Value(kind)) for name, kind in kinds.items() if name in texts}
    return Features({**ROW_FEATURES, "image": Image(), **more})


def write_shards(folder: Path, split: Split, rows: Rows) -> None:
    """Write `train-000000.tar` and so on for WebDataset: a sample for every caption.

    A sample has the photo as it is, `.txt` and `.json`. The same data give the same bytes.
    """
    for shard, samples in groupby(enumerate(_samples(split, rows)), key=lambda found: found[0] // SHARD_SAMPLES):
        with tarfile.open(
            folder / f"{split.name}-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT, encoding="utf-8"
        ) as tar:
            for _, sample in samples:
                for name, content in sample.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def _samples(split: Split, rows: Rows) -> Iterator[dict[str, bytes]]:
    """The files of every sample, by name."""
    for row, texts in rows:
        image = split.rows[row]["image"]
        suffix = _format(image).replace("jpeg", "jpg")
        with naming_image(image):
            content = image_bytes(image)
        weights, originals = texts.get("caption_weights"), texts.get("original_captions")
        for place, caption in enumerate(texts["captions"]):
            facts = {"image_id": texts["image_id"], "caption_id": texts["caption_ids"][place]}
            if weights is not None:
                facts["caption_weight"] = weights[place]
            if originals is not None and originals[place] is not None:
                facts["original_caption"] = originals[place]
            name = f"{row:08d}-{place:02d}"
            facts = json.dumps(facts, ensure_ascii=False).encode()
            yield {f"{name}.{suffix}": content, f"{name}.txt": caption.encode(), f"{name}.json": facts}


def write_uids(folder: Path, split: Split, rows: Rows) -> None:
    """Write `kept_uids.npy` for the resharder of DataComp: ascending, dtype `u8,u8`, the 128 bits of every uid.

    https://github.com/mlfoundations/datacomp. The ids of the images are the uids. Raises ValueError for other ids, and
    for an image with several captions, which DataComp does not have.
    """
    found = []
    for row, texts in rows:
        uid = texts["image_id"]
        if not UID.fullmatch(uid):
            raise ValueError(
                f"photo {row} has the id {uid!r}, which is no uid of DataComp (32 hexadecimal digits); give the table "
                "the columns image_id, with the uids, and caption_ids"
            )
        found.append(divmod(int(uid, 16), 2**64))
    several = np.flatnonzero(np.bincount(split.pairs.image, minlength=len(split)) > 1)
    if len(several):
        uid = split.pairs.image_ids[int(several[0])].as_py()
        raise ValueError(f"photo {uid} has several captions; a uid of DataComp is of one photo with its one caption")
    uids = np.sort(np.array(found, dtype="u8,u8"))
    np.save(folder / UIDS, uids, allow_pickle=False)


def write_card(folder: Path, splits: Iterable[str], sentence: str) -> None:
    """Write `README.md` next to the Parquet files, by which `datasets` finds the splits."""
    lines = [line for name in splits for line in (f"  - split: {name}", f"    path: data/{name}-*.parquet")]
    head = "\n".join(["configs:", "- config_name: default", "  data_files:", *lines])
    (folder / "README.md").write_text(f"---\n{head}\n---\n\n{sentence}\n", encoding="utf-8")


LAYOUTS: dict[str, Writer] = {
    "folder": write_table,
    "datasets": write_parquet,
    "webdataset": write_shards,
    "datacomp": write_uids,
}
