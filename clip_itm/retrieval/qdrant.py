"""A gallery in a Qdrant collection, for what one machine cannot hold: a server, a cluster, or embedded for trials.

Qdrant finds the candidates; the scores of the first ones are summed again from their vectors, as in every index,
so that they are exact and ties fall in gallery order.
"""

import base64
import os
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from clip_itm.retrieval.base import (
    SearchIndex,
    check_embeddings,
    check_known_ids,
    check_modality,
    check_model,
    check_new_ids,
    check_queries,
    check_same_shapes,
    check_search,
)
from clip_itm.retrieval.exact import rounding_margin, score_pairs
from clip_itm.retrieval.items import Hit, Item, make_hits
from clip_itm.visible import counted

SCHEME = "qdrant+"
POINT_NAMESPACE = uuid.UUID("f6a3c1de-5b0e-4c39-9d52-0a7f6f1f5f10")
METADATA = "clip_itm"  # key of what this module keeps in the metadata of a collection
VERSION = 1
POINTS_AT_ONCE = 256
QUERIES_AT_ONCE = 64
TIMEOUT = 60  # seconds; a batch of large embeddings takes longer than the 5 of the client
HASHES = ("content", "stamp")  # of an item, in the payload as text: they are larger than Qdrant's integers
SPARE = 16  # candidates beyond top_k, among which ties and roundings are settled


class QdrantIndex(SearchIndex):
    """The collection at `address`; the first `add` makes it if there is none.

    address: qdrant+http://HOST:PORT/COLLECTION (or https; the key is read from QDRANT_API_KEY), or
        qdrant+path:FOLDER#COLLECTION for the embedded mode, which one process at a time can open.
    modality, model_sha256: what a new collection is made for, and what an old one must have been made for; None takes
        what the collection says, which must then exist.
    """

    def __init__(self, address: str, modality: str | None = None, model_sha256: str | None = None):
        self.address = address
        self._client, self._collection = connect(address)
        self._close = weakref.finalize(self, self._client.close)  # at exit if not before: embedded ones fail later
        with self._naming():
            known = self._client.collection_exists(self._collection)
            info = self._client.get_collection(self._collection) if known else None
        if info is None:
            if modality is None or model_sha256 is None:
                raise ValueError(f"{address}: there is no such collection; make one with clip-itm index")
            check_modality(modality)
            self.modality, self.model_sha256, self._shapes = modality, model_sha256, None
            return
        stored = (info.config.metadata or {}).get(METADATA)
        if not isinstance(stored, dict) or stored.get("version") != VERSION:
            raise ValueError(f"{address}: this collection was not made by this version of clip_itm; name another one")
        if modality not in (None, stored["modality"]):
            raise ValueError(f"{address}: an index of modality {stored['modality']}, not {modality}; name another one")
        check_model(address, stored["model_sha256"], model_sha256)
        self.modality, self.model_sha256 = stored["modality"], stored["model_sha256"]
        self._shapes = tuple(None if shape is None else tuple(shape) for shape in stored["shapes"])

    def add(self, items: Sequence[Item], embeddings: Tensor, vectors: Tensor | None = None) -> None:
        vectors, own_embeddings = check_embeddings(items, embeddings, vectors, torch.float32)
        if not items:
            return
        ids = [item.id for item in items]
        check_new_ids(ids, ())
        check_new_ids(ids, self.find(ids))
        self._fit(tuple(vectors.shape[1:]), None if own_embeddings is None else tuple(own_embeddings.shape[1:]))
        order = time.time_ns()  # ascending over all adds, whoever makes them
        with self._naming():
            for rows in batches(range(len(items))):
                points = [
                    self._point(items[k], order + k, vectors[k], None if own_embeddings is None else own_embeddings[k])
                    for k in rows
                ]
                self._client.upsert(self._collection, points)

    def delete(self, ids: Iterable[str]) -> int:
        from qdrant_client import models

        ids = list(dict.fromkeys(ids))
        check_known_ids(ids, self.find(ids))
        with self._naming():
            for some in batches([point_id(id) for id in ids]):
                self._client.delete(self._collection, models.PointIdsList(points=some))
        return len(ids)

    def search(self, vectors: Tensor, top_k: int) -> list[list[Hit]]:
        count = len(self)
        check_search(count, top_k)
        queries = check_queries(vectors, self._shapes[0][0]).cpu()
        return [
            hits for some in queries.split(QUERIES_AT_ONCE) for hits in self._search(some, min(top_k, count), count)
        ]

    def _search(self, queries: Tensor, top_k: int, count: int) -> list[list[Hit]]:
        from qdrant_client import models

        limits = dict.fromkeys(range(len(queries)), min(top_k + SPARE, count))
        found = {}
        while limits:
            requests = [
                models.QueryRequest(
                    query=queries[row].tolist(),
                    using="vector",
                    limit=limit,
                    with_payload=True,
                    with_vector=["vector"],
                )
                for row, limit in limits.items()
            ]
            with self._naming():
                answers = self._client.query_batch_points(self._collection, requests)
            found |= {row: answer.points for row, answer in zip(limits, answers, strict=True)}
            limits = {
                row: min(2 * limit, count)
                for row, limit in limits.items()
                if limit < count and not is_settled(queries[row], found[row], top_k)
            }
        return [best_hits(queries[row], found[row], top_k) for row in range(len(queries))]

    def embeddings_of(self, ids: Sequence[str]) -> Tensor:
        name = "vector" if self._shapes is None or self._shapes[1] is None else "embedding"
        vectors = {}
        with self._naming():
            for some in batches([point_id(id) for id in ids] if self._shapes else []):
                records = self._client.retrieve(self._collection, some, with_payload=["id"], with_vectors=[name])
                vectors |= {record.payload["id"]: record.vector[name] for record in records}
        check_known_ids(ids, vectors)
        if not ids:
            raise ValueError("no ids given; expected at least one")
        return torch.tensor([vectors[id] for id in ids]).view(len(ids), *(self._shapes[1] or self._shapes[0]))

    def items(self) -> Iterator[Item]:
        points = [(record.payload["order"], record.id) for record in self._records("order")]
        for some in batches([point for _, point in sorted(points)]):
            with self._naming():
                records = self._client.retrieve(self._collection, some)
            yield from map(item_of, sorted(records, key=lambda record: record.payload["order"]))

    def find(self, ids: Iterable[str], thumbnails: bool = False) -> dict[str, Item]:
        from qdrant_client import models

        found = {}
        with self._naming():
            for some in batches([point_id(id) for id in ids] if self._shapes else []):
                records = self._client.retrieve(
                    self._collection, some, True if thumbnails else models.PayloadSelectorExclude(exclude=["thumbnail"])
                )
                found |= {item.id: item for item in map(item_of, records)}
        return found

    def ids(self) -> list[str]:
        return [record.payload["id"] for record in self._records("id")]

    @property
    def note(self) -> str:
        return f"{counted(len(self), 'vector')} in the Qdrant collection {self._collection}"

    def __len__(self) -> int:
        if self._shapes is None:
            return 0
        with self._naming():
            return self._client.count(self._collection, exact=True).count

    def __contains__(self, id: str) -> bool:
        return id in self.find([id])

    def close(self) -> None:
        """Let another process open an embedded collection."""
        self._close()

    def _records(self, key: str) -> Iterator:
        """All points, with one key of their payload."""
        offset = None
        while self._shapes is not None:
            with self._naming():
                records, offset = self._client.scroll(self._collection, None, 10_000, offset=offset, with_payload=[key])
            yield from records
            if offset is None:
                return

    def _fit(self, vector: tuple, embedding: tuple | None) -> None:
        """Make the collection for these shapes, or check that it has them."""
        from qdrant_client import models

        if self._shapes is None:
            config = {"vector": models.VectorParams(size=vector[0], distance=models.Distance.DOT)}
            if embedding is not None:  # only kept; no graph over it (m = 0)
                config["embedding"] = models.VectorParams(
                    size=embedding[-1],
                    distance=models.Distance.DOT,
                    hnsw_config=models.HnswConfigDiff(m=0),
                    multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
                )
            stored = {"version": VERSION, "modality": self.modality, "model_sha256": self.model_sha256}
            stored["shapes"] = [list(vector), None if embedding is None else list(embedding)]
            with self._naming():
                self._client.create_collection(self._collection, config, metadata={METADATA: stored})
            self._shapes = vector, embedding
        check_same_shapes(self._shapes, (vector, embedding))

    def _point(self, item: Item, order: int, vector: Tensor, embedding: Tensor | None):
        from qdrant_client import models

        vectors = {"vector": vector.tolist()}
        if embedding is not None:
            vectors["embedding"] = embedding.reshape(-1, embedding.shape[-1]).tolist()
        thumbnail = None if item.thumbnail is None else base64.b64encode(item.thumbnail).decode()
        payload = {"id": item.id, "path": item.path, "caption": item.caption, "thumbnail": thumbnail, "order": order}
        payload |= {name: f"{value:016x}" for name in HASHES if (value := getattr(item, name)) is not None}
        return models.PointStruct(id=point_id(item.id), vector=vectors, payload=payload)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Turn what the client raises into a ValueError that names the collection."""
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except ApiException as error:
            raise ValueError(f"{self.address}: Qdrant does not answer as expected ({error})") from error


def connect(address: str):
    """A client for the address, and the name of the collection."""
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise ValueError("an index in Qdrant needs its client: pip install 'clip-itm[qdrant]'") from None
    location = address.removeprefix(SCHEME)
    if location.startswith("path:"):
        folder, _, collection = location.removeprefix("path:").partition("#")
        if folder and collection:
            try:
                return QdrantClient(path=folder), collection
            except (RuntimeError, OSError) as error:  # another process has it open; no folder can be made there
                raise ValueError(f"{address}: {error}") from None
    else:
        url = urlsplit(location)
        collection = url.path.strip("/")
        if url.scheme in ("http", "https") and url.hostname and collection and "/" not in collection:
            server = location[: location.index(url.path)]
            return QdrantClient(
                url=server, api_key=os.environ.get("QDRANT_API_KEY"), timeout=TIMEOUT, check_compatibility=False
            ), collection
    raise ValueError(
        f"{address} is not the address of a Qdrant collection; expected qdrant+http://HOST:PORT/COLLECTION or "
        "qdrant+path:FOLDER#COLLECTION"
    )


def point_id(id: str) -> str:
    """Qdrant takes numbers and UUIDs only; equal ids always give the same one."""
    return str(uuid.uuid5(POINT_NAMESPACE, id))


def batches(entries: Sequence) -> Iterator[Sequence]:
    return (entries[start : start + POINTS_AT_ONCE] for start in range(0, len(entries), POINTS_AT_ONCE))


def is_settled(query: Tensor, points: list, top_k: int) -> bool:
    """Whether no item beyond `points` (best first) can be among the first `top_k`."""
    vectors = torch.tensor([point.vector["vector"] for point in points])
    margin = rounding_margin(query[None], float(vectors.norm(dim=1).max()))
    return points[-1].score < points[top_k - 1].score - float(margin)


def best_hits(query: Tensor, points: list, top_k: int) -> list[Hit]:
    """The first `top_k` by exact score, then in gallery order."""
    vectors = torch.tensor([point.vector["vector"] for point in points])
    row = torch.arange(len(points))
    scores = score_pairs(query[None], vectors, torch.zeros_like(row), row).tolist()
    order = sorted(row.tolist(), key=lambda k: (-scores[k], points[k].payload["order"]))[:top_k]
    return make_hits([item_of(points[k]) for k in order], np.array([scores[k] for k in order], np.float32))


def item_of(point) -> Item:
    payload = point.payload
    thumbnail = payload.get("thumbnail")
    return Item(
        id=payload["id"],
        path=payload["path"],
        caption=payload["caption"],
        thumbnail=None if thumbnail is None else base64.b64decode(thumbnail),
        **{name: int(payload[name], 16) for name in HASHES if payload.get(name)},
    )
