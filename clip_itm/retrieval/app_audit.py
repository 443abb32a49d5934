"""The audit.parquet of `clip-itm audit`, a page at a time."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_itm.data.marks import pair_hashes
from clip_itm.retrieval.held_photos import HeldPhotos

PAGE_SIZE = 24
COLUMNS = ("image_id", "image", "caption_id", "caption", "clean_probability", "rank", "known_wrong")
# not in audits of earlier versions
LATER = ("pair", "pair_hash", "groups", "suggestion", "judged_probability", "judged_rank")


def audit_file(place: Path) -> Path:
    """The audit.parquet in the folder of a run or of an audit; a file is returned as it is."""
    if not place.is_dir():
        return place
    own = place / "audit.parquet"
    return own if own.is_file() else place / "audit" / own.name


def _column(table: pa.Table, name: str) -> pa.Array | pa.ChunkedArray:
    """A column of LATER, for an audit that lacks it."""
    match name:
        case "pair":
            return pa.array(np.arange(len(table)))
        case "pair_hash":
            return pa.array(pair_hashes(table["image_id"].to_pylist(), table["caption"].to_pylist()), pa.string())
        case "judged_probability":
            return table["clean_probability"]
        case "judged_rank":
            return table["rank"]
    return pa.nulls(len(table), pa.list_(pa.string()))


@dataclass(frozen=True, eq=False)
class AuditTable:
    """Pairs that were audited, most suspicious first. `held`: photos that are not files."""

    table: pa.Table
    held: HeldPhotos = field(default_factory=lambda: HeldPhotos(None))

    @classmethod
    def load(cls, place: Path) -> "AuditTable":
        """From the file, or from a folder (`audit_file`). Raises ValueError for anything else.

        Missing columns of LATER are added: hashes are computed, no mark has changed what was judged, and there are no
        groups or suggestions.
        """
        path = audit_file(place)
        if not path.is_file():
            raise ValueError(f"{path}: there is no such audit; make it with clip-itm audit")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a Parquet file ({error}); make it with clip-itm audit") from None
        table = table.rename_columns({"photo": "image"}) if "photo" in table.column_names else table  # of version 0.1.0
        if missing := [name for name in COLUMNS if name not in table.column_names]:
            raise ValueError(f"{path} has no column {', '.join(missing)}; expected the audit.parquet of clip-itm audit")
        table = table.select([*COLUMNS, *(name for name in LATER if name in table.column_names)])
        for name in LATER:
            if name not in table.column_names:
                table = table.append_column(name, _column(table, name))
        return cls(table.combine_chunks(), HeldPhotos(table.schema.metadata))

    def __len__(self) -> int:
        return len(self.table)

    def matching(self, words: str, low: float, high: float) -> np.ndarray:
        """Numbers of the rows whose caption has all the words, with a probability from `low` to `high`."""
        probability = self.table["clean_probability"].to_numpy()
        keep = (probability >= low) & (probability <= high)
        for word in words.split():
            keep &= pc.match_substring(self.table["caption"], word, ignore_case=True).to_numpy()
        return np.flatnonzero(keep)

    def rows(self, indices: np.ndarray) -> list[dict]:
        return self.table.take(indices).to_pylist()
