"""What every search index can do, and the checks that they share."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from clip_itm.retrieval.items import Hit, Item

MODALITIES = ("image", "text")


class SearchIndex(ABC):
    """A gallery of one `modality` ("image" or "text"), encoded by the model with the hash `model_sha256`.

    Scores are dot products of the stored vectors in float32; normalise them first for cosines.
    """

    modality: str
    model_sha256: str

    @abstractmethod
    def add(self, items: Sequence[Item], embeddings: Tensor, vectors: Tensor | None = None) -> None:
        """Append items with their embeddings [N, D], which are then the vectors that a search compares.

        Heads whose embedding of an item is a set or a grid give embeddings [N, ...] for re-ranking and vectors [N, D]
        for the search. Raises ValueError, and adds nothing, if an id is already there or given twice, if shapes differ
        from those of the index, or values are not finite.
        """

    @abstractmethod
    def delete(self, ids: Iterable[str]) -> int:
        """Delete items and return how many. Raises ValueError, and deletes nothing, if one is not there."""

    @abstractmethod
    def search(self, vectors: Tensor, top_k: int) -> list[list[Hit]]:
        """The `top_k` best items (all, if there are fewer) for each query [Q, D], best first, ties in gallery order.

        Raises ValueError for an empty index and for vectors of another dimension.
        """

    @abstractmethod
    def embeddings_of(self, ids: Sequence[str]) -> Tensor:
        """The embeddings that `add` got for these items, as the index stores them: float32 [n, ...] on the CPU."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All items, in gallery order."""

    @abstractmethod
    def find(self, ids: Iterable[str], thumbnails: bool = False) -> dict[str, Item]:
        """The items with those of the ids that are in the index, by id; with their thumbnails only if asked for."""

    @abstractmethod
    def ids(self) -> list[str]:
        """The ids of all items."""

    @property
    @abstractmethod
    def note(self) -> str:
        """One line: how it is searched, and why."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __contains__(self, id: str) -> bool: ...


def check_modality(modality: str) -> None:
    if modality not in MODALITIES:
        raise ValueError(f"modality is {modality!r}; expected {' or '.join(MODALITIES)}")


def check_model(where: str, stored: str, model_sha256: str | None) -> None:
    """Refuse an index of another model: its vectors mean something else."""
    if model_sha256 is not None and model_sha256 != stored:
        raise ValueError(
            f"{where}: this index was made by another model ({stored[:12]}, not {model_sha256[:12]}); search it with "
            f"the model that made it, or index the gallery again with this one"
        )


def check_embeddings(
    items: Sequence[Item], embeddings: Tensor, vectors: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Copies on the CPU in the stored type: vectors [N, D], and embeddings if they differ from these, else None."""
    given = {"vectors": embeddings if vectors is None else vectors}
    if vectors is not None:
        given["embeddings"] = embeddings
    stored = []
    for name, tensor in given.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or (name == "vectors" and tensor.ndim != 2):
            raise ValueError(
                f"{name} have shape {tuple(tensor.shape)} and type {tensor.dtype}; expected floating numbers [N, D] "
                f"(with embeddings of another shape, also give vectors)"
            )
        if len(tensor) != len(items):
            raise ValueError(f"{len(items)} items, but {len(tensor)} {name}; expected one per item")
        stored.append(tensor.detach().to("cpu", dtype, copy=True).contiguous())
        _check_finite(items, stored[-1], name)
    return stored[0], stored[1] if len(stored) > 1 else None


def _check_finite(items: Sequence[Item], stored: Tensor, name: str) -> None:
    wrong = (~stored.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{name} of {len(wrong)} items, the first with id {items[wrong[0]].id!r}, have values that are not finite "
            f"in {str(stored.dtype).removeprefix('torch.')}; check the model and these photos or captions"
        )


def check_same_shapes(here: tuple, new: tuple) -> None:
    """Shapes of a vector and an embedding (None if that is the vector) have to be the same in index and addition."""
    if here != new:
        raise ValueError(
            f"vectors {new[0]} with embeddings {new[1]} do not fit an index of vectors {here[0]} with embeddings "
            f"{here[1]}; encode with the model that made the index"
        )


def check_new_ids(ids: Sequence[str], known: Container[str]) -> None:
    if wrong := [id for id in ids if not isinstance(id, str) or not id]:
        raise ValueError(f"an item has the id {wrong[0]!r}; expected non-empty text")
    if there := [id for id in ids if id in known]:
        raise ValueError(f"{_named(there)} already in the index; delete before adding again, or use other ids")
    if twice := [id for id, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{_named(twice)} given more than once; expected a unique id for every item")


def check_known_ids(ids: Sequence[str], known: Container[str]) -> None:
    if missing := [id for id in ids if id not in known]:
        raise ValueError(f"{_named(missing)} not in the index")


def _named(ids: Sequence[str]) -> str:
    if len(ids) == 1:
        return f"id {ids[0]!r} is"
    return f"{len(ids)} ids ({', '.join(map(repr, ids[:5]))}{', ...' if len(ids) > 5 else ''}) are"


def check_search(count: int, top_k: int) -> None:
    if not count:
        raise ValueError("the index is empty; add items before searching")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected 1 or more")


def check_queries(vectors: Tensor, size: int) -> Tensor:
    """The queries in float32."""
    if vectors.ndim != 2 or vectors.shape[1] != size or not vectors.is_floating_point():
        raise ValueError(
            f"queries have shape {tuple(vectors.shape)} and type {vectors.dtype}; expected floating numbers "
            f"[Q, {size}] from the model that made the index"
        )
    if not vectors.isfinite().all():
        raise ValueError("a query has values that are not finite; check the model and the photo or caption")
    return vectors.detach().float()
