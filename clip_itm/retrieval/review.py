"""An audit with the marks that people make: in which order its pairs are looked at, and what has become of them.

Rows are those of the audit, most suspicious first; a list is an array of rows in the order in which they are shown. A
pair may have several rows; one mark counts for all of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_itm.data.images import read_image, small_jpeg
from clip_itm.data.mark_file import MarkFile
from clip_itm.data.marks import Mark, marks_of_pairs
from clip_itm.retrieval.app_audit import AuditTable

LINE = 0.5  # a pair below it is more likely wrong than right
ORDERS = {"worst": "worst first", "informative": "most informative first", "sample": "random sample"}
MOST_SHOWN = 20  # pairs in one answer
MOST_OF_A_GROUP = 10_000  # pairs that are marked at once: as many as a browser keeps while the server is away
FEWEST_OF_A_TEXT = 10  # pairs with the same caption that are a group within their group
MOST_TEXTS = 20


class NoSuchPairError(ValueError):
    """A pair, or its photo, that the audit does not have."""


@dataclass(frozen=True)
class List:
    """What is shown: all pairs, those of a group, or those in it with one caption, in an order of ORDERS.

    Raises ValueError for another order.
    """

    order: str = "worst"
    group: str = ""
    text: str = ""

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order[:40]!r}; expected {', '.join(ORDERS)}")


@dataclass(frozen=True, eq=False)
class Said:
    """The marks that count among the first `lines` of `source`, by the hash of their pair.

    bool [N], one per row: `marked`, whether it has a mark; `decided`, whether that is not "skipped"; `sampled`, whether
    it was made in the random sample.
    """

    source: Sequence[Mark]
    lines: int
    marks: dict[str, Mark]
    marked: np.ndarray
    decided: np.ndarray
    sampled: np.ndarray

    def done(self, shown: List) -> np.ndarray:
        """bool [N]: a list does not show it again. Marks made for another reason say nothing about the sample."""
        return self.sampled if shown.order == "sample" else self.marked


class Review:
    """The pairs of `table` with the marks in `file`. Safe to use from several threads."""

    def __init__(self, table: AuditTable, file: MarkFile):
        self.audit, self.table, self.file = table, table.table, file
        self.hashes = self.table["pair_hash"].combine_chunks()
        self.probability = self.table["clean_probability"].to_numpy().astype(np.float64)
        self.rows = lru_cache(64)(self._rows)
        self._said: Said | None = None
        self._lock = Lock()
        self.said()

    def said(self) -> Said:
        """The marks as they are in the file now."""
        with self._lock:
            source = self.file.look()
            lines, known = len(source), self._said
            if known is None or known.source is not source or known.lines != lines:
                marks = marks_of_pairs(source[:lines])
                chosen = (
                    marks,
                    [pair for pair, mark in marks.items() if mark.mark != "skipped"],
                    [pair for pair, mark in marks.items() if mark.sampled],
                )
                masks = (pc.is_in(self.hashes, value_set=pa.array(list(pairs), pa.string())) for pairs in chosen)
                self._said = Said(source, lines, marks, *(mask.to_numpy(zero_copy_only=False) for mask in masks))
            return self._said

    def row_of(self, pair: str) -> int:
        """The first row of a pair. Raises NoSuchPairError."""
        row = pc.index(self.hashes, pair).as_py()
        if row < 0:
            raise NoSuchPairError("this audit has no such pair")
        return row

    def _rows(self, shown: List) -> np.ndarray:
        """Rows of a list, in its order."""
        rows = self._ordered(shown.order)
        if shown.group:
            rows = rows[np.isin(rows, self._members.get(shown.group, ()))]
        if shown.text:
            rows = rows[pc.equal(self.table["caption"].take(pa.array(rows)), shown.text).to_numpy()]
        return rows

    def _ordered(self, order: str) -> np.ndarray:
        if order == "worst":
            return np.arange(len(self.table))
        if order == "sample":
            return np.array([self.row_of(pair) for pair in self._weights], dtype=np.int64)
        # imported here: it takes seconds, and the order "worst" does not need it
        from clip_itm.auditing.sampling import most_informative
        from clip_itm.training.clean_probability import CleanProbability

        return most_informative(CleanProbability(self.probability, self.table["rank"].to_numpy(), "", ""))

    @cached_property
    def _weights(self) -> dict[str, float]:
        """For each pair of the random sample, in its order: how many pairs it stands for.

        The sample is drawn from what was judged without marks, so that it stays the same once they are applied.
        """
        from clip_itm.auditing.sampling import draw_sample
        from clip_itm.training.clean_probability import CleanProbability

        rows = np.argsort(self.table["pair"].to_numpy(), kind="stable")
        values, ranking = (self.table[name].to_numpy()[rows] for name in ("judged_probability", "judged_rank"))
        drawn = draw_sample(CleanProbability(values, ranking, "", ""))
        hashes = self.hashes.take(pa.array(rows[drawn.pairs])).to_pylist()
        return dict(zip(hashes, drawn.weight.tolist(), strict=True))

    @cached_property
    def _members(self) -> dict[str, np.ndarray]:
        """Rows of every group, ascending, the group of the most suspicious pair first."""
        groups = self.table["groups"].combine_chunks()
        if pa.types.is_list(groups.type):
            rows, names = pc.list_parent_indices(groups).to_numpy(), groups.flatten()
        else:  # one at most
            rows, names = np.arange(len(groups)), groups
        names = names.cast(pa.string())
        return {
            name: np.unique(rows[pc.fill_null(pc.equal(names, name), False).to_numpy(zero_copy_only=False)])
            for name in names.unique().drop_null().to_pylist()
            if name
        }

    def groups(self) -> list[dict]:
        """For each group `group`, `text` ("" or a caption that many of it share), `pairs` and how many are `marked`."""
        marked = self.said().marked
        found = []
        for name, rows in self._members.items():
            counts = pc.value_counts(self.table["caption"].take(pa.array(rows))).to_pylist()
            texts = [one["values"] for one in counts if FEWEST_OF_A_TEXT <= one["counts"] < len(rows)]
            for text in ("", *texts[:MOST_TEXTS]):
                of_text = self.rows(List("worst", name, text))
                found.append({"group": name, "text": text, "pairs": len(of_text), "marked": int(marked[of_text].sum())})
        return found

    def members(self, shown: List) -> dict:
        """`pairs`: hashes of the unmarked pairs of a list, MOST_OF_A_GROUP at most; `more`: how many are left."""
        rows = self.rows(shown)
        rows = rows[~self.said().done(shown)[rows]]
        pairs = list(dict.fromkeys(self.hashes.take(pa.array(rows)).to_pylist()))
        return {"pairs": pairs[:MOST_OF_A_GROUP], "more": max(0, len(pairs) - MOST_OF_A_GROUP)}

    def pairs(self, shown: List, start: int, count: int, backwards: bool = False, unmarked: bool = False) -> list[dict]:
        """Up to `count` pairs of a list from place `start` on, all of them or those without a mark."""
        rows, said = self.rows(shown), self.said()
        places = np.arange(len(rows))
        places = places[places <= start][::-1] if backwards else places[places >= start]
        if unmarked:
            places = places[~said.done(shown)[rows[places]]]
        places = places[: max(1, min(count, MOST_SHOWN))]
        found = self.table.take(pa.array(rows[places])).to_pylist()
        return [{"place": place, **self._pair(row, said)} for place, row in zip(places.tolist(), found, strict=True)]

    def pair(self, shown: List, pair: str) -> dict:
        """One pair, with its place in the list, or -1 if it is not there. Raises NoSuchPairError."""
        row = self.row_of(pair)
        places = np.flatnonzero(self.rows(shown) == row)
        place = int(places[0]) if len(places) else -1
        return {"place": place, **self._pair(self.table.slice(row, 1).to_pylist()[0], self.said())}

    def _pair(self, row: dict, said: Said) -> dict:
        pair = row["pair_hash"]
        return {
            "pair": pair,
            "image_id": row["image_id"],
            "caption": row["caption"],
            "probability": row["clean_probability"],
            "rank": row["rank"],
            "groups": _texts(row["groups"]),
            "suggestions": _texts(row["suggestion"]),
            "has_photo": row["image"] is not None or bool(self.audit.held),
            "mark": mark_of(said, pair),
        }

    def state(self, shown: List) -> dict:
        """How many of a list and of all pairs are marked, and how many undecided ones are probably wrong."""
        said, rows = self.said(), self.rows(shown)
        suspect = self.probability < LINE
        left = 1 - self.probability[~said.decided]
        return {
            "list": {"pairs": len(rows), "marked": int(said.done(shown)[rows].sum())},
            "all": {"pairs": len(self.table), "marked": int(said.marked.sum())},
            "suspects": {"pairs": int(suspect.sum()), "marked": int(said.marked[suspect].sum())},
            "marks": dict(Counter(mark.mark for mark in said.marks.values())),
            "left": {"pairs": len(left), "wrong": float(left.sum())},
        }

    def add(self, marks: Sequence[Mark]) -> None:
        """Write marks, with what the audit knows about their pairs; those in the file already are not repeated.

        Those that were made in the random sample (`sampled`) get the weight of their pair there.

        Raises NoSuchPairError, naming the pairs that the audit does not have, and writes nothing then.
        """
        wanted = pa.array([mark.pair for mark in marks], pa.string())
        rows = pc.index_in(wanted, value_set=self.hashes)
        if rows.null_count:
            raise NoSuchPairError(*wanted.filter(pc.is_null(rows)).unique().to_pylist())
        found = self.table.select(["image_id", "caption"]).take(rows).to_pylist()
        drawn = [self._weights.get(mark.pair) if mark.sampled else None for mark in marks]
        self.file.add(
            [
                replace(mark, **row, sampled=weight is not None, weight=weight)
                for mark, row, weight in zip(marks, found, drawn, strict=True)
            ]
        )

    def photo(self, pair: str, side: int) -> bytes:
        """A JPEG of the photo that the audit names for a pair, `side` pixels long at most.

        Raises NoSuchPairError, and ValueError if the photo cannot be read.
        """
        row = self.table.slice(self.row_of(pair), 1).to_pylist()[0]
        if (path := row["image"]) is None:
            if (jpeg := self.audit.held.jpeg(row["image_id"], side)) is None:
                raise NoSuchPairError("the data set itself holds this photo, and cannot be read; audit.html has it")
            return jpeg
        return small_jpeg(read_image({"path": path, "bytes": None}, draft_size=side), side)


def mark_of(said: Said, pair: str) -> dict | None:
    """The mark that counts for a pair, as the page shows it."""
    mark = said.marks.get(pair)
    return mark and {
        "mark": mark.mark,
        "text": mark.text,
        "author": mark.author,
        "time": mark.time,
        "sampled": mark.sampled,
    }


def _texts(value: str | list[str] | None) -> list[str]:
    """A column that holds a text, or several, or nothing."""
    return [text for text in ([value] if isinstance(value, str) else value or ()) if text]
