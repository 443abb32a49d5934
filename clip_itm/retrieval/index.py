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

from clip_itm.lock import locked
from clip_itm.retrieval import storage
from clip_itm.retrieval.approximate import Shortlist, check_kind, choose_kind, prepare, search_shortlist
from clip_itm.retrieval.base import (
    SearchIndex,
    check_embeddings,
    check_known_ids,
    check_modality,
    check_model,
    check_new_ids,
    check_queries,
    check_search,
)
from clip_itm.retrieval.exact import QUERIES_AT_ONCE, Best, merge, search_blocks
from clip_itm.retrieval.gallery import Gallery
from clip_itm.retrieval.items import Hit, Item, make_hits
from clip_itm.retrieval.segments import make_segment

DTYPES = {"float32": torch.float32, "float16": torch.float16}
LARGEST_DELETED_PART = 0.25  # beyond, the files are rewritten without what is deleted
CONTENT = ("modality", "model_sha256", "kind", "dtype", "largest_norm", "count", "segments", "deleted", "shortlist")
MOST_SEGMENTS = 64  # beyond, they are merged: every segment costs files and a pass of its own


class LocalIndex(SearchIndex):
    """Vectors [N, D] in memory, or mapped from the files of a folder, which are never loaded as a whole.

    kind: "exact", "hnsw", "ivf-pq", or "auto", which chooses by size.
    dtype: "float32" or "float16", how vectors and embeddings are stored; scores are float32.
    device: where exact scores are computed; a device other than the CPU keeps a copy of the vectors.

    Example:
        >>> from clip_itm.retrieval.items import Item
        >>> index = LocalIndex("image", model_sha256="")
        >>> index.add([Item("a", path="a.jpg"), Item("b", path="b.jpg")], torch.eye(2))
        >>> [(hit.item.id, hit.score, hit.rank) for hit in index.search(torch.tensor([[0.6, 0.8]]), top_k=2)[0]]
        [('b', 0.800000011920929, 1), ('a', 0.6000000238418579, 2)]
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
        check_kind(kind)
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; expected {' or '.join(DTYPES)}")
        self.modality, self.model_sha256, self.kind, self.dtype = modality, model_sha256, kind, dtype
        self.device = torch.device(device)
        self._gallery = Gallery()
        self._shortlist: Shortlist | None = None
        self._largest_norm = 0.0
        self._folder: Path | None = None
        self._commit: str | None = None  # sha256 of the index.json that was loaded or saved last,
        self._content: dict | None = None  # and what it says

    @property
    def note(self) -> str:
        """See `SearchIndex`: which kind of search."""
        return choose_kind(self.kind, len(self), self.device)[1]

    def add(self, items: Sequence[Item], embeddings: Tensor, vectors: Tensor | None = None) -> None:
        check_new_ids([item.id for item in items], self._gallery.position)
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
        queries = check_queries(vectors, self._gallery.segments[0].vectors.shape[1])
        self._gallery.join_unsaved()
        self._shortlist = self._prepared(self._gallery, self._shortlist)
        found = []
        for block in queries.split(QUERIES_AT_ONCE):
            best = self._approximate(block, top_k) if self._proposes(top_k) else self._exact(block, top_k)
            for positions, scores in best.split(len(block)):
                found.append(make_hits([self._gallery.item(position) for position in positions.tolist()], scores))
        return found

    def embeddings_of(self, ids: Sequence[str]) -> Tensor:
        check_known_ids(ids, self._gallery.position)
        if not ids:
            raise ValueError("no ids given; expected at least one")
        rows = [self._gallery.locate(self._gallery.position[id]) for id in ids]
        return torch.stack([segment.embedding(row) for segment, row in rows]).float()

    def items(self) -> Iterator[Item]:
        return (self._gallery.item(position) for position in np.flatnonzero(~self._gallery.dead).tolist())

    def find(self, ids: Iterable[str], thumbnails: bool = False) -> dict[str, Item]:
        return self._gallery.find(ids, thumbnails)

    def ids(self) -> list[str]:
        return list(self._gallery.position)

    def __len__(self) -> int:
        return len(self._gallery)

    def __contains__(self, id: str) -> bool:
        return id in self._gallery.position

    def save(self, folder: str | Path) -> None:
        """Write what is new; the folder's present index stays untouched until the new one is whole.

        Raises ValueError, and changes nothing, if the folder holds another index or something else, if the index has
        changed since it was loaded, if another process is writing it, or if the disk is full.

        Example::

            index.save("gallery")
            index = LocalIndex.load("gallery", pipe.model_sha256)
        """
        folder = Path(folder)
        storage.require_index_folder(folder)
        with locked(folder, "index"):
            self.write(folder)

    def write(self, folder: str | Path, compact: bool = False) -> None:
        """`save`, for a caller that already holds the lock of the folder; `compact` also drops deleted items."""
        folder = Path(folder)
        self._check_own(folder)
        many = self._has_much_deleted() or len(self._gallery.segments) > MOST_SEGMENTS
        storage.clear(folder)
        token, old = storage.new_token(), self._content if self._owns(folder) else None
        names = storage.names_of_save(token) | {file["name"] for file in (storage.named_files(old) if old else ())}
        try:
            storage.announce(folder, names)
            self._write(folder, token, compact or many)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(
                f"{folder}: the index cannot be saved ({reason}); what was saved before is kept"
            ) from error
        finally:
            storage.clear(folder, names)

    def compact(self) -> None:
        """Drop deleted items for good and merge all segments; an index with a folder is saved."""
        if self._folder is None:
            self._gallery, self._shortlist = self._gallery.compacted(), None
        else:
            with locked(self._folder, "index"):
                self.write(self._folder, compact=True)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model_sha256: str | None = None,
        device: str | torch.device = "cpu",
        verify: bool = False,
    ) -> "LocalIndex":
        """The index that was saved in a folder; with `model_sha256`, it has to be of that model.

        Raises ValueError for files that are missing, of another size or damaged. Vectors, embeddings and thumbnails are
        compared with their checksums when first used, for example by a search, which then raises the same; `verify`
        reads all of them now.
        """
        folder = Path(folder)
        while True:
            content, commit = storage.read_index_file(folder)
            try:
                if verify and (found := storage.index_damages(folder)):
                    raise ValueError("; ".join(found))
                return cls._loaded(folder, content, commit, model_sha256, device)
            except ValueError:
                if storage.committed(folder) == commit:  # else another process has saved and removed old files
                    raise

    @classmethod
    def _loaded(cls, folder: Path, content: dict, commit: str, model_sha256: str | None, device) -> "LocalIndex":
        try:
            check_model(str(folder), content["model_sha256"], model_sha256)
            try:
                index = cls(content["modality"], content["model_sha256"], content["kind"], content["dtype"], device)
                index._largest_norm = float(content["largest_norm"])
            except ValueError as error:
                raise ValueError(f"{folder / storage.INDEX_FILE}: {error}") from None
            segments = [storage.read_segment(folder, files, DTYPES[index.dtype]) for files in content["segments"]]
            deleted = storage.read_deleted(folder, content["deleted"]) if content["deleted"] else []
            index._gallery = Gallery(segments, deleted)
            if content["shortlist"]:
                index._shortlist = Shortlist.of_folder(folder, content["shortlist"])
            index._content = {key: content[key] for key in CONTENT}
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(storage.damaged(folder, error)) from error
        index._folder, index._commit = folder, commit
        return index

    def _check_own(self, folder: Path) -> None:
        storage.require_index_folder(folder)
        found = storage.committed(folder)
        if self._owns(folder) and found != self._commit:
            raise ValueError(f"{folder} was changed by another process since this index was loaded; load it again")
        if not self._owns(folder) and found is not None:
            raise ValueError(f"{folder} already holds an index; load it and add to it, or choose another folder")

    def _owns(self, folder: Path) -> bool:
        return self._folder is not None and folder.resolve() == self._folder.resolve()

    def _write(self, folder: Path, token: str, compact: bool) -> None:
        gallery, own = self._gallery, self._owns(folder)
        before = self._content if own else None
        kept = [] if compact or not own else [segment for segment in gallery.segments if segment.files]
        new = gallery.selection([segment for segment in gallery.segments if segment not in kept], compact)
        segments = list(kept)
        if len(new):
            files = storage.write_segment(folder, token, new)
            segments.append(storage.read_segment(folder, files, DTYPES[self.dtype]))
        written = Gallery(segments, [] if compact else np.flatnonzero(gallery.dead))
        moved = compact and gallery.num_dead > 0
        shortlist = self._prepared(written, None if moved else self._shortlist)
        if shortlist is not None and not (own and shortlist.files):
            shortlist = shortlist.written(folder, token)
        content = {
            "modality": self.modality,
            "model_sha256": self.model_sha256,
            "kind": self.kind,
            "dtype": self.dtype,
            "largest_norm": self._largest_norm,
            "count": len(written),
            "segments": [segment.files for segment in segments],
            "deleted": self._deleted(folder, token, written, before),
            "shortlist": None if shortlist is None else shortlist.files,
        }
        if content != before:
            self._commit = storage.commit(folder, content, self._commit if own else None)
        self._gallery, self._shortlist, self._folder, self._content = written, shortlist, folder, content

    def _deleted(self, folder: Path, token: str, written: Gallery, before: dict | None) -> dict | None:
        """What index.json says about the file of deleted positions, which is written if they have changed."""
        if not written.num_dead:
            return None
        same = before is not None and before["segments"] == [segment.files for segment in written.segments]
        if same and before["deleted"] and written.num_dead == len(written.dead) - before["count"]:
            return before["deleted"]  # nothing is ever undeleted
        return storage.write_deleted(folder, token, np.flatnonzero(written.dead))

    def _prepared(self, gallery: Gallery, shortlist: Shortlist | None) -> Shortlist | None:
        kind, _ = choose_kind(self.kind, len(gallery), self.device)
        return prepare(shortlist, kind, gallery)

    def _proposes(self, top_k: int) -> bool:
        """Whether a shortlist is much shorter than the gallery."""
        return self._shortlist is not None and 4 * self._shortlist.num_proposed(top_k) < len(self)

    def _exact(self, queries: Tensor, top_k: int, start: int = 0) -> Best:
        """The best items from position `start` on."""
        blocks = self._gallery.blocks(len(queries), self.device, start)
        return search_blocks(queries.to(self.device), blocks, top_k, self._largest_norm)

    def _approximate(self, queries: Tensor, top_k: int) -> Best:
        """The best of the shortlist and of the newest items, which it does not cover."""
        near = search_shortlist(self._shortlist, self._gallery, queries.cpu(), top_k)
        best = merge(near, self._exact(queries, top_k, self._shortlist.count), top_k)
        # If most neighbours of a query are deleted, faiss proposes too few.
        num_found = np.bincount(best.query, minlength=len(queries))
        few = np.flatnonzero(num_found < min(top_k, len(self)))
        if not len(few):
            return best
        enough = ~np.isin(best.query, few)
        exact = self._exact(queries[few], top_k)
        return merge(Best(*(x[enough] for x in best)), exact._replace(query=few[exact.query]), top_k)

    def _has_much_deleted(self) -> bool:
        return self._gallery.num_dead > LARGEST_DELETED_PART * len(self._gallery.dead)


def open_index(where: str | Path, model_sha256: str | None = None) -> SearchIndex:
    """The index in a folder, or in a Qdrant collection (`QdrantIndex` describes its address).

    Raises ValueError if there is none or, with `model_sha256`, if another model made it.
    """
    if str(where).startswith("qdrant+"):
        from clip_itm.retrieval.qdrant import QdrantIndex

        return QdrantIndex(str(where), model_sha256=model_sha256)
    return LocalIndex.load(where, model_sha256)
