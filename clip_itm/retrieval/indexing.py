"""Bringing an index up to date with a gallery: what is already there and has not changed is not encoded again.

An item is identified by what it was made from: a caption by its text, an image by the content of its file. If size and
times of a file are the same, it counts as unchanged without being read; if they differ, the content decides. An
image at a URL is not fetched again to compare.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from clip_itm.data.image_names import is_utf8, printable
from clip_itm.data.inputs import URLS, fetch_image
from clip_itm.retrieval.base import SearchIndex
from clip_itm.retrieval.images import ImageBatch, ImageBatches, content_of, stamp_of
from clip_itm.retrieval.items import Item
from clip_itm.retrieval.sources import Source

SAVE_EVERY = 16384  # items: a killed run loses about a minute of half an hour
REUSED_AT_ONCE = 4096


@dataclass
class Changes:
    """What a run did: how many items are new, have changed, have moved to another name or path, or stayed; which ids
    are gone from the gallery; a sentence for each image or caption that was left out."""

    new: int = 0
    changed: int = 0
    moved: int = 0
    kept: int = 0
    gone: list[str] = field(default_factory=list)
    pruned: bool = False
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = {"new": self.new, "changed": self.changed, "moved": self.moved, "kept": self.kept}
        told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "new")
        if self.gone:
            done = "taken out" if self.pruned else "still in the index (--prune removes them)"
            told += f"; {len(self.gone):,} no longer in the gallery: {done}"
        return told + (f"; {len(self.skipped):,} left out" if self.skipped else "")


class Plan(NamedTuple):
    """What to do with the rows of a source: `encode` these; `reuse`, by row, the embedding of the item with this id,
    with the current stamp. `replaced`: ids in the index whose content has changed."""

    encode: list[int]
    reuse: dict[int, tuple[str, int | None]]
    replaced: set[str]


class Encoded(NamedTuple):
    """Items with their embeddings [n, ...] (None: there are none), and by row what is wrong with the others."""

    items: list[Item]
    embeddings: Tensor | None
    problems: dict[int, str]


class Indexer:
    """Adds a gallery to an index with a pipeline; `save`, if given, is called from time to time and at the end."""

    def __init__(
        self,
        pipe,
        index: SearchIndex,
        save: Callable[[], None] | None = None,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        skip_broken: bool = False,
        thumbnails: bool = False,
    ):
        self.pipe, self.index, self.save = pipe, index, save or (lambda: None)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.skip_broken, self.thumbnails = skip_broken, thumbnails

    def update(self, source: Source, prune: bool = False) -> Changes:
        """Encode what is new or has changed; `prune` deletes what is gone from the gallery.

        Raises ValueError for what cannot be read, unless `skip_broken`.
        """
        ids = set(source.ids)
        gone = [id for id in self.index.ids() if id not in ids]
        changes = Changes(gone=gone, pruned=prune, skipped=list(source.skipped))
        source = self._storable(source, changes)
        plan = make_plan(source, self.index, gone)
        self._reuse(source, plan)
        changes.moved = len(plan.reuse)
        changes.kept = len(source) - len(plan.encode) - len(plan.reuse)
        encode = self._encode_images if source.modality == "image" else self._encode_captions
        with tqdm(total=len(plan.encode), desc=f"indexing {source.modality}s", unit="") as progress:
            for start in range(0, len(plan.encode), SAVE_EVERY):
                if start:
                    self.save()
                part = _part(source, plan.encode[start : start + SAVE_EVERY])
                encoded = encode(part, progress)
                self._replace(part, plan.replaced, encoded, changes)
        if prune and gone:
            self.index.delete(gone)
        self.save()
        return changes

    def _storable(self, source: Source, changes: Changes) -> Source:
        """The source without names and captions that cannot be stored as text."""
        problems = dict(_unstorable(source))
        if not problems:
            return source
        if not self.skip_broken:
            more = f" ({len(problems) - 1} more like it)" if len(problems) > 1 else ""
            raise ValueError(f"{next(iter(problems.values()))}, or leave it out with --skip-broken{more}")
        changes.skipped += problems.values()
        return _part(source, [row for row in range(len(source)) if row not in problems])

    def _reuse(self, source: Source, plan: Plan) -> None:
        """Add items whose content is in the index under another id or path."""
        rows = list(plan.reuse)
        for start in range(0, len(rows), REUSED_AT_ONCE):
            some = rows[start : start + REUSED_AT_ONCE]
            old = [plan.reuse[row][0] for row in some]
            stored, embeddings = self.index.find(old, thumbnails=True), self.index.embeddings_of(old)
            items = [
                replace(stored[id], id=source.ids[row], path=source.paths[row], stamp=plan.reuse[row][1])
                for row, id in zip(some, old, strict=True)
            ]
            self.index.delete(source.ids[row] for row in some if source.ids[row] in plan.replaced)
            self.index.add(items, embeddings, self.pipe.vectors_of(embeddings))

    def _replace(self, part: Source, replaced: set[str], encoded: Encoded, changes: Changes) -> None:
        """Replace items by new ones with the same ids; an old one goes even if the new one has a problem."""
        if old := [id for id in part.ids if id in replaced]:
            self.index.delete(old)
        if encoded.items:
            self.index.add(encoded.items, encoded.embeddings, self.pipe.vectors_of(encoded.embeddings))
        changed = sum(item.id in replaced for item in encoded.items)
        changes.changed += changed
        changes.new += len(encoded.items) - changed
        for row, problem in encoded.problems.items():
            was_there = part.ids[row] in replaced
            changes.skipped.append(problem + (" (its former version is removed)" if was_there else ""))

    def _encode_images(self, part: Source, progress) -> Encoded:
        images = ImageBatches(part.entries, part.paths, self.pipe.processor, self.thumbnails, self.skip_broken)
        size = self.batch_size
        rows = [list(range(k, min(k + size, len(part)))) for k in range(0, len(part), size)]
        loader = DataLoader(images, batch_sampler=rows, collate_fn=_as_it_is, num_workers=self.num_workers)
        items, embeddings, problems = [], [], {}
        batch: ImageBatch
        for asked, batch in zip(rows, loader, strict=True):
            problems |= batch.problems
            if batch.inputs is not None:
                embeddings.append(self.pipe.forward(batch.inputs))
            for read in batch.images:
                id, path = part.ids[read.row], part.paths[read.row]
                items.append(Item(id, path, None, read.thumbnail, read.content, read.stamp))
            progress.update(len(asked))
        return Encoded(items, torch.cat(embeddings) if embeddings else None, problems)

    def _encode_captions(self, part: Source, progress) -> Encoded:
        embeddings = self.pipe.embed([{"text": caption} for caption in part.entries], self.batch_size, progress)
        items = [Item(id, caption=caption) for id, caption in zip(part.ids, part.entries, strict=True)]
        return Encoded(items, embeddings, {})


def make_plan(source: Source, index: SearchIndex, gone: Sequence[str]) -> Plan:
    """What of a source has to be encoded, given what is in the index; `gone` are ids that only the index has."""
    plan, there = Plan([], {}, set()), index.find(source.ids)
    of_gone = {_content(item): item.id for item in index.find(gone).values()} if len(there) < len(source) else {}
    of_gone.pop(None, None)
    for row, (id, path) in enumerate(zip(source.ids, source.paths, strict=True)):
        item, stamp = there.get(id), stamp_of(path)
        if item is not None and item.path == path and _is_untouched(item, stamp):
            continue
        content = _content_now(source, row) if item is not None or of_gone else None
        if item is not None and content is not None and content == _content(item):
            if item.path == path:
                continue
            old = id
        else:
            old = of_gone.get(content)
        if item is not None:
            plan.replaced.add(id)
        if old is None:
            plan.encode.append(row)
        else:
            plan.reuse[row] = old, stamp
    return plan


def _part(source: Source, rows: Sequence[int]) -> Source:
    ids, paths = ([column[row] for row in rows] for column in (source.ids, source.paths))
    return Source(source.modality, ids, _Chosen(source.entries, rows), paths)


@dataclass(frozen=True)
class _Chosen(Sequence):
    """Entries by row, read when they are asked for."""

    entries: Sequence[Any]
    rows: Sequence[int]

    def __getitem__(self, k):
        return self.entries[self.rows[k]]

    def __len__(self) -> int:
        return len(self.rows)


def _is_untouched(item: Item, stamp: int | None) -> bool:
    return (item.path or "").startswith(URLS) or (stamp is not None and stamp == item.stamp)


def _content(item: Item) -> Any:
    return item.content if item.caption is None else item.caption


def _content_now(source: Source, row: int) -> Any:
    """What an item of the source would be made from; None for an image that cannot be read."""
    entry = source.entries[row]
    if source.modality == "text":
        return entry
    try:
        return content_of(fetch_image(entry))
    except ValueError:
        return None


def _unstorable(source: Source) -> Iterator[tuple[int, str]]:
    """Rows of items with a name or a caption that is not Unicode text, and a sentence for each."""
    for row, (id, path) in enumerate(zip(source.ids, source.paths, strict=True)):
        if not is_utf8(id) or not is_utf8(path or ""):
            yield row, f"{printable(path or id)}: this name is not UTF-8; rename it"
        elif source.modality == "text" and not is_utf8(source.entries[row]):
            yield row, f"caption {id}: {printable(source.entries[row])!r} has half a character; correct it"


def _as_it_is(batch):
    return batch
