"""The index of a gallery on one machine, in memory or in a folder; and `open_index` for any index by its address.

index = LocalIndex("image", model_sha256)
index.add(items, embeddings)          # also to a loaded index: the next save writes the new items only
index.save("gallery")
index = LocalIndex.load("gallery", model_sha256)
index.search(vectors, top_k=5)
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clip_itm.retrieval import storage
from clip_itm.retrieval.base import (
    SearchIndex,
    check_embeddings,
    check_known_ids,
    check_modality,
    check_model,
    check_queries,
    check_search,
)
from clip_itm.retrieval.exact import QUERIES_AT_ONCE, search_blocks
from clip_itm.retrieval.gallery import Gallery
from clip_itm.retrieval.items import Hit, Item
from clip_itm.retrieval.segments import make_segment

DTYPES = {"float32": torch.float32, "float16": torch.float16}
LARGEST_DELETED_PART = 0.25  # beyond, the files are rewritten without what is deleted
MOST_SEGMENTS = 64  # beyond, they are merged: every segment costs files and a pass of its own


class LocalIndex(SearchIndex):
    """Vectors [N, D] in memory, or mapped from the files of a folder that nothing loads as a whole.

    dtype: "float32" or "float16", how vectors and embeddings are stored; scores are float32.
    device: where exact scores are computed; another device than the CPU keeps a copy of the vectors.
    """

    def __init__(
        self,
        modality: str,
        model_sha256: str,
        kind: str = "auto",
        dtype: str = "float32",
        device: str | torch.device = "cpu",
    ):
        check_modality(modality)
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; expected {' or '.join(DTYPES)}")
        self.modality, self.model_sha256, self.kind, self.dtype = modality, model_sha256, kind, dtype
        self.device = torch.device(device)
        self._gallery = Gallery()
        self._largest_norm = 0.0
        self._folder: Path | None = None
        self._commit: str | None = None  # sha256 of the index.json that was loaded or saved last
        self._next_number = 0  # of the files of the next save

    @property
    def note(self) -> str:
        """One line: which kind of search, and why."""
        return f"exact search over {len(self):,} vectors"

    def add(self, items: Sequence[Item], embeddings: Tensor, vectors: Tensor | None = None) -> None:
        vectors, own_embeddings = check_embeddings(items, embeddings, vectors, DTYPES[self.dtype])
        if items:
            self._gallery.add(make_segment(items, vectors, own_embeddings))
            self._largest_norm = max(self._largest_norm, float(vectors.float().norm(dim=1).max()))

    def delete(self, ids: Iterable[str]) -> int:
        ids = list(dict.fromkeys(ids))
        self._gallery.delete(ids)
        if self._folder is None and self._has_much_deleted():
            self.compact()
        return len(ids)

    def search(self, vectors: Tensor, top_k: int) -> list[list[Hit]]:
        check_search(len(self), top_k)
        queries = check_queries(vectors, self._gallery.segments[0].vectors.shape[1]).to(self.device)
        self._gallery.join_unsaved()
        found = []
        for block in queries.split(QUERIES_AT_ONCE):
            best = search_blocks(block, self._gallery.blocks(len(block), self.device), top_k, self._largest_norm)
            found += [self._hits(positions, scores) for positions, scores in best.split(len(block))]
        return found

    def embeddings_of(self, ids: Sequence[str]) -> Tensor:
        check_known_ids(ids, self._gallery.position)
        if not ids:
            raise ValueError("no ids given; expected at least one")
        rows = [self._gallery.locate(self._gallery.position[id]) for id in ids]
        return torch.stack([segment.embedding(row) for segment, row in rows]).float()

    def items(self) -> Iterator[Item]:
        return (self._gallery.item(position) for position in np.flatnonzero(~self._gallery.dead).tolist())

    def __len__(self) -> int:
        return len(self._gallery)

    def __contains__(self, id: str) -> bool:
        return id in self._gallery.position

    def save(self, folder: str | Path) -> None:
        """Write what is new; nothing that the folder's index is made of is touched before the new one is whole.

        Raises ValueError if the folder holds another index, or one that was changed since it was loaded.
        """
        folder = Path(folder)
        self._check_own(folder)
        self._write(folder, compact=self._has_much_deleted() or len(self._gallery.segments) > MOST_SEGMENTS)

    def compact(self) -> None:
        """Drop deleted items for good and merge all segments; an index with a folder is saved that way."""
        if self._folder is None:
            self._gallery = self._gallery.compacted()
        else:
            self._check_own(self._folder)
            self._write(self._folder, compact=True)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model_sha256: str | None = None,
        device: str | torch.device = "cpu",
        verify: bool = False,
    ) -> "LocalIndex":
        """The index that was saved in a folder, which must be one of the model with that hash, if it is given.

        Raises ValueError for files that are missing, of another size or damaged. Contents are compared by hash for all
        but vectors, embeddings and thumbnails; `verify` reads these once, too.
        """
        folder = Path(folder)
        content, commit = storage.read_index_file(folder)
        try:
            check_model(str(folder), content["model_sha256"], model_sha256)
            index = cls(content["modality"], content["model_sha256"], content["kind"], content["dtype"], device)
            dtype = DTYPES[index.dtype]
            segments = [storage.read_segment(folder, files, dtype, verify) for files in content["segments"]]
            deleted = storage.read_deleted(folder, content["deleted"]) if content["deleted"] else []
            index._gallery = Gallery(segments, deleted)
            index._largest_norm = float(content["largest_norm"])
            index._next_number = content["number"] + 1
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{folder / storage.INDEX_FILE} is damaged ({error!r}); {storage.REMEDY}") from error
        index._folder, index._commit = folder, commit
        return index

    def _check_own(self, folder: Path) -> None:
        found = storage.committed(folder)
        is_own = self._folder is not None and folder.resolve() == self._folder.resolve()
        if is_own and found != self._commit:
            raise ValueError(f"{folder} was changed by another process since this index was loaded; load it again")
        if not is_own and found is not None:
            raise ValueError(f"{folder} holds an index already; load that one and add to it, or choose another folder")

    def _write(self, folder: Path, compact: bool) -> None:
        gallery, is_own = self._gallery, self._folder is not None and folder.resolve() == self._folder.resolve()
        number = self._next_number if is_own else 0
        dtype = DTYPES[self.dtype]
        folder.mkdir(parents=True, exist_ok=True)
        kept = [] if compact or not is_own else [segment for segment in gallery.segments if segment.files]
        new = gallery.selection([segment for segment in gallery.segments if segment not in kept], compact)
        segments = list(kept)
        if len(new):
            segments.append(storage.read_segment(folder, storage.write_segment(folder, number, new), dtype))
        written = Gallery(segments, [] if compact else np.flatnonzero(gallery.dead))
        deleted = np.flatnonzero(written.dead)
        self._commit = storage.commit(
            folder,
            {
                "modality": self.modality,
                "model_sha256": self.model_sha256,
                "kind": self.kind,
                "dtype": self.dtype,
                "largest_norm": self._largest_norm,
                "count": len(written),
                "number": number,
                "segments": [segment.files for segment in segments],
                "deleted": storage.write_deleted(folder, number, deleted) if len(deleted) else None,
                "shortlist": None,
            },
        )
        self._gallery, self._folder, self._next_number = written, folder, number + 1

    def _has_much_deleted(self) -> bool:
        return self._gallery.num_dead > LARGEST_DELETED_PART * len(self._gallery.dead)

    def _hits(self, positions: np.ndarray, scores: np.ndarray) -> list[Hit]:
        ranks = 1 + np.searchsorted(-scores, -scores)
        found = zip(positions.tolist(), scores.tolist(), ranks.tolist(), strict=True)
        return [Hit(self._gallery.item(position), score, rank) for position, score, rank in found]


def open_index(where: str | Path, model_sha256: str | None = None) -> SearchIndex:
    """The index in a folder."""
    return LocalIndex.load(where, model_sha256)
