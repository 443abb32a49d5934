"""An index of photos or captions: add, delete, search.

    vectors [N, D] of the gallery ──► the first k by dot product ──► hits: item, score, rank

Scores are exact dot products of the stored vectors; normalise before for cosines.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clip_itm.retrieval.exact import BLOCK_BYTES, QUERIES_AT_ONCE, Block, search_blocks
from clip_itm.retrieval.items import Hit, Item
from clip_itm.retrieval.segments import Segment, make_segment

MODALITIES = ("image", "text")
DTYPES = {"float32": torch.float32, "float16": torch.float16}


class SearchIndex(ABC):
    """A gallery of one `modality` ("image" or "text"), encoded by the model with the hash `model_sha256`."""

    modality: str
    model_sha256: str

    @abstractmethod
    def add(self, items: Sequence[Item], embeddings: Tensor, vectors: Tensor | None = None) -> None:
        """Append items with their embeddings [N, D], which are then the vectors that a search compares.

        Heads whose embedding of an item is a set or a grid give embeddings [N, ...] for re-ranking and vectors [N, D]
        for the search. Raises ValueError, and adds nothing, for ids that are there already or twice, other shapes than
        those of the index, and values that are not finite.
        """

    @abstractmethod
    def delete(self, ids: Iterable[str]) -> int:
        """Take items out and return how many. Raises ValueError, and deletes nothing, if one is not there."""

    @abstractmethod
    def search(self, vectors: Tensor, top_k: int) -> list[list[Hit]]:
        """The `top_k` best items of each query [Q, D] (all, where there are fewer), best first, ties in gallery order.

        Raises ValueError for an empty index and for vectors of another dimension.
        """

    @abstractmethod
    def embeddings_of(self, ids: Sequence[str]) -> Tensor:
        """What `add` got for these items, as the index stores it: float32 [n, ...] on the CPU."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All items, in gallery order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __contains__(self, id: str) -> bool: ...


class LocalIndex(SearchIndex):
    """An index in memory or in a folder."""

    def __init__(
        self,
        modality: str,
        model_sha256: str,
        kind: str = "auto",
        dtype: str = "float32",
        device: str | torch.device = "cpu",
    ):
        for name, value, known in (("modality", modality, MODALITIES), ("dtype", dtype, tuple(DTYPES))):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        self.modality, self.model_sha256, self.kind, self.dtype = modality, model_sha256, kind, dtype
        self.device = torch.device(device)
        self._segments: list[Segment] = []
        self._dead = np.empty(0, bool)
        self._largest_norm = 0.0
        self._position: dict[str, int] | None = {}

    @property
    def note(self) -> str:
        return f"exact search over {len(self):,} vectors"

    def add(self, items: Sequence[Item], embeddings: Tensor, vectors: Tensor | None = None) -> None:
        embeddings, vectors = check_embeddings(items, embeddings, vectors, DTYPES[self.dtype])
        if not items:
            return
        if self._segments:
            check_shapes(self._segments[0], vectors, embeddings)
        positions = self._positions()
        check_ids([item.id for item in items], positions)
        start = len(self._dead)
        self._segments.append(make_segment(items, vectors, embeddings))
        self._dead = np.concatenate([self._dead, np.zeros(len(items), bool)])
        self._largest_norm = max(self._largest_norm, float(vectors.float().norm(dim=1).max()))
        positions.update({item.id: start + number for number, item in enumerate(items)})

    def delete(self, ids: Iterable[str]) -> int:
        ids = list(dict.fromkeys(ids))
        positions = self._positions()
        check_known(ids, positions)
        self._dead[[positions.pop(id) for id in ids]] = True
        return len(ids)

    def search(self, vectors: Tensor, top_k: int) -> list[list[Hit]]:
        check_search(len(self), top_k)
        queries = check_queries(vectors, self._segments[0].vectors.shape[1]).to(self.device)
        self._join_unsaved()
        found = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            block = queries[start : start + QUERIES_AT_ONCE]
            best = search_blocks(block, self._blocks(len(block)), top_k, self._largest_norm)
            found += [self._hits(*of_one) for of_one in best.of_each(len(block))]
        return found

    def embeddings_of(self, ids: Sequence[str]) -> Tensor:
        positions = self._positions()
        check_known(ids, positions)
        if not ids:
            raise ValueError("no ids given; expected at least one")
        rows = [self._locate(positions[id]) for id in ids]
        return torch.stack([segment.embedding(row) for segment, row in rows]).float()

    def items(self) -> Iterator[Item]:
        for position in np.flatnonzero(~self._dead).tolist():
            segment, row = self._locate(position)
            yield segment.item(row)

    def __len__(self) -> int:
        return len(self._dead) - int(self._dead.sum())

    def __contains__(self, id: str) -> bool:
        return id in self._positions()

    def _positions(self) -> dict[str, int]:
        """The position of every item that is not deleted."""
        return self._position

    def _locate(self, position: int) -> tuple[Segment, int]:
        ends = np.cumsum([len(segment) for segment in self._segments])
        number = int(np.searchsorted(ends, position, side="right"))
        return self._segments[number], position - (int(ends[number - 1]) if number else 0)

    def _join_unsaved(self) -> None:
        pass

    def _blocks(self, num_queries: int) -> Iterator[Block]:
        start = 0
        for segment in self._segments:
            rows = max(1, BLOCK_BYTES // (4 * max(num_queries, segment.vectors.shape[1])))
            for vectors in segment.vectors.split(rows):
                dead = torch.from_numpy(self._dead[start : start + len(vectors)])
                yield Block(start, vectors.to(self.device), dead.to(self.device))
                start += len(vectors)

    def _hits(self, positions: np.ndarray, scores: np.ndarray) -> list[Hit]:
        ranks = 1 + np.searchsorted(-scores, -scores)
        rows = (self._locate(position) for position in positions.tolist())
        items = (segment.item(row) for segment, row in rows)
        return [Hit(*hit) for hit in zip(items, scores.tolist(), ranks.tolist(), strict=True)]


def check_embeddings(
    items: Sequence[Item], embeddings: Tensor, vectors: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor]:
    """Embeddings (None where they are the vectors) and vectors, as they are stored."""
    is_set = vectors is not None
    vectors = vectors if is_set else embeddings
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ValueError(
            f"the vectors have shape {tuple(vectors.shape)} and type {vectors.dtype}; expected floating numbers "
            f"[N, D] (give vectors beside embeddings of another shape)"
        )
    for name, tensor in (("vectors", vectors), ("embeddings", embeddings)):
        if len(tensor) != len(items):
            raise ValueError(f"{len(items)} items, but {len(tensor)} {name}; expected one of each for every item")
    stored = vectors.detach().to("cpu", dtype, copy=True).contiguous()
    check_finite(items, stored, "vector", dtype)
    if not is_set:
        return None, stored
    kept = embeddings.detach().to("cpu", dtype, copy=True).contiguous()
    check_finite(items, kept, "embedding", dtype)
    return kept, stored


def check_finite(items: Sequence[Item], stored: Tensor, name: str, dtype: torch.dtype) -> None:
    wrong = (~stored.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"the {name} of {items[wrong[0]].id!r} ({len(wrong)} in all) has values that are not finite"
            f"{' in float16' if dtype == torch.float16 else ''}; check the model and the photo or caption"
        )


def check_shapes(segment: Segment, vectors: Tensor, embeddings: Tensor | None) -> None:
    here = [None if x is None else tuple(x.shape[1:]) for x in (segment.vectors, segment.embeddings)]
    new = [None if x is None else tuple(x.shape[1:]) for x in (vectors, embeddings)]
    if here != new:
        raise ValueError(
            f"vectors {new[0]} with embeddings {new[1]} do not fit the index of vectors {here[0]} with embeddings "
            f"{here[1]}; encode with the model that made the index"
        )


def check_ids(ids: list[str], known) -> None:
    if wrong := [id for id in ids if not isinstance(id, str) or not id]:
        raise ValueError(f"id {wrong[0]!r}; expected text that is not empty")
    if there := [id for id in ids if id in known]:
        raise ValueError(f"{some(there)} in the index already; delete them before, or give other ids")
    if len(set(ids)) < len(ids):
        twice = list(dict.fromkeys(id for id in ids if ids.count(id) > 1))
        raise ValueError(f"{some(twice)} given more than once; ids must be unique")


def check_known(ids: Sequence[str], known) -> None:
    if missing := [id for id in ids if id not in known]:
        raise ValueError(f"{some(missing)} not in the index")


def some(ids: Sequence[str]) -> str:
    named = ", ".join(map(repr, ids[:5]))
    return f"id {named} is" if len(ids) == 1 else f"ids {named}{', ...' if len(ids) > 5 else ''} ({len(ids)}) are"


def check_search(count: int, top_k: int) -> None:
    if not count:
        raise ValueError("the index is empty; add items before searching")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected 1 or more")


def check_queries(vectors: Tensor, size: int) -> Tensor:
    if vectors.ndim != 2 or vectors.shape[1] != size:
        raise ValueError(
            f"queries have shape {tuple(vectors.shape)}; expected [Q, {size}], the dimension of the index: encode them "
            f"with the model that made it"
        )
    if not vectors.isfinite().all():
        raise ValueError("a query has values that are not finite; check the model and the photo or caption")
    return vectors.detach().float()


def open_index(where: str | Path, model_sha256: str | None = None) -> SearchIndex:
    """The index in a folder."""
    return LocalIndex.load(where, model_sha256)
