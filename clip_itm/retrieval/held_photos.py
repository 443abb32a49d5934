"""Photos of an audit that are not files: they are in the data set that was audited, which is read again."""

import warnings
from collections.abc import Mapping
from functools import cached_property
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value
from pydantic import TypeAdapter

from clip_itm.data.configuration import DataConfig
from clip_itm.data.images import thumbnail

NOTHING = Dataset.from_dict({"image_id": []}, features=Features(image_id=Value("string")))


class HeldPhotos:
    """Photos by their id, from the data that an audit names; read when the first one is asked for.

    metadata: of audit.parquet, with `data`, the section of a recipe in JSON, and `split`. An audit of data in memory
    has neither, and then there are no photos.
    """

    def __init__(self, metadata: Mapping[bytes, bytes] | None):
        metadata = metadata or {}
        self.data, self.split = metadata.get(b"data"), metadata.get(b"split", b"train").decode()
        self._lock = Lock()  # requests come in several threads, and the first one reads the data

    def __bool__(self) -> bool:
        return self.data is not None

    def jpeg(self, image_id: str, side: int) -> bytes | None:
        """At most `side` pixels per side; None if the data are gone, or the photo is missing or damaged."""
        with self._lock:
            place = pc.index(self._ids, image_id).as_py()
        return None if place < 0 else thumbnail(self._rows[place]["image"], side)

    @cached_property
    def _rows(self) -> Dataset:
        from clip_itm.data.load import load_splits

        if self.data is not None:
            try:
                splits = load_splits(TypeAdapter(DataConfig).validate_json(self.data))
                return splits[self.split].rows if self.split in splits else NOTHING
            except ValueError as error:
                warnings.warn(f"the photos that the data set itself holds cannot be shown: {error}", stacklevel=1)
        return NOTHING

    @cached_property
    def _ids(self) -> pa.ChunkedArray:
        return self._rows.select_columns(["image_id"]).with_format("arrow")[:]["image_id"]
