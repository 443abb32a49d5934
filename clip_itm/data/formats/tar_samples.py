"""The samples of one tar as WebDataset and img2dataset write them: files of one name, a photo and its texts.

    000000012.jpg  000000012.txt  000000012.json      (or .jpeg, .png, .webp; in any order)

The name includes folders and ends at the first dot after the last slash, as in WebDataset. The caption is in `.txt`
(all of it is one caption) or under a key of `.json` (a text, or a list of texts); `uid` or `image_id` there is the
photo's id, otherwise its name is; `caption_id` and `caption_weight` are what `clip-itm audit --clean-as webdataset`
writes.
"""

import json
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import xxhash
from datasets import Features, Value

from clip_itm.data.formats.annotation_files import BrokenRow, check_text
from clip_itm.data.formats.cells import captions_of, weights_of
from clip_itm.data.formats.tables import CAPTION_COLUMNS, find_column
from clip_itm.data.formats.tar_reader import TarError, entries
from clip_itm.data.rows import WEIGHTED_ROW_FEATURES
from clip_itm.data.tar_members import TarMember

PHOTOS = ("jpg", "jpeg", "png", "webp")
ID_KEYS = ("uid", "image_id")
LARGEST_TEXT = 2**24  # bytes of a .txt or .json
SAMPLE_FEATURES = Features({**WEIGHTED_ROW_FEATURES, "is_named": Value("bool")})  # is_named: its id is its name


@dataclass
class TarSamples:
    """The samples of a tar: `table` of `SAMPLE_FEATURES`, a row for each sample with a photo, in the photos' order.

    `problems`: a sentence for each thing that is wrong with the tar. `left_out`: how many samples have no photo, how
    many files are of other kinds, and the first name of each.
    """

    table: pa.Table
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)


@dataclass
class _Sample:
    photo: TarMember | None = None
    txt: str | None = None
    json: dict[str, Any] | None = None


class TarIndexer:
    """Reads tars for the options of a recipe: `caption_key` ("txt", a key of .json; None: the usual), `id_key`."""

    def __init__(self, caption_key: str | None = None, id_key: str | None = None):
        self.caption_key, self.id_key = caption_key, id_key

    def read(self, file: BinaryIO, length: int, tar: str, label: str) -> TarSamples:
        """The samples of an open tar, all of which is read; `tar` is where it is, `label` what to call it.

        Raises ValueError for a compressed tar, in which nothing can be found.
        """
        found = TarSamples(SAMPLE_FEATURES.arrow_schema.empty_table())
        samples: dict[str, _Sample] = {}
        others: dict[str, list[str]] = {"files of other kinds": [], "further photos of a sample": []}
        try:
            for entry in entries(file, length):
                key, kind = _key_and_kind(entry.name)
                if kind not in (*PHOTOS, "txt", "json"):
                    others["files of other kinds"].append(entry.name)
                    continue
                content = file.read(entry.size)
                if len(content) < entry.size:
                    raise TarError(f"it ends in the middle of {entry.name!r}")
                sample = samples.setdefault(key, _Sample())
                where = f"{label}/{entry.name}"
                try:
                    self._take(sample, kind, content, where, TarMember(tar, *entry[1:], "", entry.name), others, found)
                except BrokenRow as error:
                    found.problems.append(str(error))
        except TarError as error:
            found.problems.append(f"{label}: {error}")
        without = [key for key, sample in samples.items() if sample.photo is None]
        others["samples without a photo"] = without
        found.left_out = {what: (len(names), names[0]) for what, names in others.items() if names}
        found.table = self._table(samples, label, found.problems)
        return found

    def _take(self, sample: _Sample, kind: str, content: bytes, where: str, member: TarMember, others, found) -> None:
        if kind in PHOTOS:
            if sample.photo is None:
                check_text(member.name, where)
                sample.photo = member._replace(xxh3=xxhash.xxh3_64_hexdigest(content))
            elif sample.photo.name == member.name:
                raise BrokenRow(f"{where} is there twice; the first one is taken")
            else:
                others["further photos of a sample"].append(member.name)
        elif len(content) > LARGEST_TEXT:
            raise BrokenRow(f"{where}: {len(content):,} bytes are no caption")
        elif getattr(sample, kind) is not None:
            raise BrokenRow(f"{where} is there twice; the first one is taken")
        elif kind == "txt":
            sample.txt = _text(content, where)
        else:
            sample.json = _facts(content, where)

    def _table(self, samples: dict[str, _Sample], label: str, problems: list[str]) -> pa.Table:
        columns: dict[str, list] = {name: [] for name in SAMPLE_FEATURES}
        for key, sample in samples.items():
            if sample.photo is not None:
                try:
                    row = self._row(key, sample, f"{label}/{key}")
                except ValueError as error:
                    problems.append(str(error))
                    continue
                for name, value in row.items():
                    columns[name].append(value)
        return pa.table(columns, schema=SAMPLE_FEATURES.arrow_schema)

    def _row(self, key: str, sample: _Sample, where: str) -> dict[str, Any]:
        facts = sample.json or {}
        captions, place = self._captions(sample, facts, where)
        captions = [caption.strip() for caption in captions]
        id_key = self.id_key or next((name for name in ID_KEYS if facts.get(name) not in (None, "")), None)
        if self.id_key is not None and facts.get(self.id_key) in (None, ""):
            raise BrokenRow(
                f"{where}.json: no {self.id_key!r} (data.id_key); the keys are {', '.join(facts) or 'none'}"
            )
        ids = [f"{key}.{place}"] if len(captions) == 1 else [f"{key}.{place}:{n}" for n in range(len(captions))]
        if "caption_id" in facts and len(captions) == 1:
            ids = [check_text(str(facts["caption_id"]), f"{where}.json")]
        weights = [1.0] * len(captions)
        if "caption_weight" in facts:
            weights = weights_of(facts["caption_weight"], len(captions), f"{where}.json, key 'caption_weight'")
        return {
            "image": {"path": sample.photo.path, "bytes": None},
            "image_id": key if id_key is None else check_text(str(facts[id_key]), f"{where}.json"),
            "captions": captions,
            "caption_ids": ids,
            "caption_weights": weights,
            "is_named": id_key is None,
        }

    def _captions(self, sample: _Sample, facts: dict[str, Any], where: str) -> tuple[list[str], str]:
        """Captions, and the file that they come from."""
        if sample.txt is not None and self.caption_key in (None, "txt"):
            return [sample.txt], "txt"
        if self.caption_key == "txt":
            return [], "txt"
        key = self.caption_key or find_column(list(facts), *CAPTION_COLUMNS)
        if self.caption_key is not None and facts and key not in facts:
            raise BrokenRow(
                f"{where}.json: no {key!r} (data.caption_key); the keys are {', '.join(facts)}, and txt for the .txt"
            )
        found = [] if facts.get(key) is None else captions_of(facts[key], f"{where}.json, key {key!r}")
        return found, "json"


def _key_and_kind(name: str) -> tuple[str, str]:
    folder, slash, file = name.removeprefix("./").rpartition("/")
    if file.startswith("."):  # ._photo.jpg, .DS_Store
        return name, ""
    stem, _, kind = file.partition(".")
    return folder + slash + stem, kind.lower()


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenRow(f"{where}: byte {error.start} is not UTF-8") from None


def _facts(content: bytes, where: str) -> dict[str, Any]:
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BrokenRow(f"{where}: not valid JSON ({error})") from None
    if not isinstance(facts, dict):
        raise BrokenRow(f"{where}: expected an object, got {str(facts)[:80]!r}")
    return facts
