"""The audit.parquet of `clip-itm audit`, a page at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PAGE_SIZE = 24
COLUMNS = ("image_id", "image", "caption_id", "caption", "clean_probability", "rank", "known_wrong")


@dataclass(frozen=True, eq=False)
class AuditTable:
    """Training pairs, most suspicious first."""

    table: pa.Table

    @classmethod
    def load(cls, place: Path) -> "AuditTable":
        """From the file, or from the folder of a run that was audited. Raises ValueError for anything else."""
        path = place / "audit" / "audit.parquet" if place.is_dir() else place
        if not path.is_file():
            raise ValueError(f"{path}: there is no such audit; make it with clip-itm audit --run RUN")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a Parquet file ({error}); make it with clip-itm audit --run RUN") from None
        table = table.rename_columns({"photo": "image"}) if "photo" in table.column_names else table  # of version 0.1.0
        if missing := [name for name in COLUMNS if name not in table.column_names]:
            raise ValueError(
                f"{path} has no column {', '.join(missing)}; expected the audit.parquet of clip-itm audit --run RUN"
            )
        return cls(table.select(COLUMNS).combine_chunks())

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
