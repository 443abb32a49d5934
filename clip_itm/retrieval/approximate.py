"""Approximate search of large galleries with faiss, which only proposes: a shortlist is scored exactly afterwards.

    hnsw      a graph of neighbours over the vectors in float16: high recall, memory 2 D + 8 M bytes per vector
    ivf-pq    lists around centroids, product-quantised residuals: about D / 8 bytes per vector

A proposed item has the score that an exact search gives it; only items that are not proposed are lost.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import xxhash
from torch import Tensor
from tqdm.auto import tqdm

from clip_itm.files import replacing
from clip_itm.retrieval.exact import BLOCK_BYTES, NOTHING, Best, merge, score_pairs
from clip_itm.retrieval.gallery import Gallery
from clip_itm.retrieval.rows import REMEDY
from clip_itm.retrieval.storage import check_content, check_size
from clip_itm.visible import counted

KINDS = ("exact", "hnsw", "ivf-pq")
EXACT_UP_TO = 200_000  # about 20 ms per query of 512; above, users wait
HNSW_UP_TO = 2_000_000  # about 2.5 GB in memory; above, compressed lists
LARGEST_TAIL = 10_000  # newest vectors that are searched exactly (1 ms) before they go into the graph or the lists,
LARGEST_TAIL_PART = 1 / 16  # or this part of all: every change rewrites the whole file of faiss

HNSW_NEIGHBOURS = 32  # links per vector and level, twice as many on the lowest: what hundreds of dimensions need
HNSW_CONSTRUCTION = 80  # candidates of an insertion: 160 doubles the time and adds 0.001 of recall
HNSW_SEARCH = 128  # candidates of a query, at least twice top_k: recall@10 of 0.999 on clustered vectors
HNSW_SHORTLIST = 4  # times top_k are scored exactly: float16 swaps only close neighbours

IVF_LISTS = 4  # times the root of the number of vectors: comparing centroids then costs about as much as scanning lists
IVF_TRAINING = 39  # vectors per centroid, the fewest that faiss considers enough
IVF_PROBED = 64  # lists that a query scans at most: recall is lost at borders between lists
PQ_WIDTH = 8  # dimensions per byte
PQ_CODES = 256
IVF_SHORTLIST = 40  # times top_k are scored exactly: codes of one byte for 8 dimensions order neighbours badly
FEWEST_FOR_IVF = IVF_TRAINING * PQ_CODES


def check_kind(kind: str) -> None:
    if kind not in ("auto", *KINDS):
        raise ValueError(f"kind is {kind!r}; expected auto, {', '.join(KINDS)}")
    if kind not in ("auto", "exact") and not has_faiss():
        raise ValueError(f"kind {kind} needs faiss: pip install 'clip-itm[search]'")


def has_faiss() -> bool:
    return find_spec("faiss") is not None


def choose_kind(kind: str, count: int, device: torch.device) -> tuple[str, str]:
    """The kind of search that `kind` (or "auto") means for `count` vectors, and a line that says why."""
    chosen, reason = kind, "as asked for"
    if kind == "auto" and device.type != "cpu":
        chosen, reason = "exact", f"on {device.type}"
    elif kind == "auto":
        chosen = "exact" if count <= EXACT_UP_TO else "hnsw" if count <= HNSW_UP_TO else "ivf-pq"
        reasons = {
            "exact": f"up to {EXACT_UP_TO:,}; hnsw beyond",
            "hnsw": f"exact up to {EXACT_UP_TO:,}, ivf-pq beyond {HNSW_UP_TO:,}",
            "ivf-pq": f"hnsw up to {HNSW_UP_TO:,}",
        }
        reason = reasons[chosen]
        if chosen != "exact" and not has_faiss():
            chosen, reason = "exact", f"{chosen} would be faster: pip install 'clip-itm[search]'"
    if chosen == "ivf-pq" and count < FEWEST_FOR_IVF:
        chosen, reason = "exact", f"ivf-pq learns from {FEWEST_FOR_IVF:,} or more"
    return chosen, f"{chosen} search over {counted(count, 'vector')} ({reason})"


class Shortlist:
    """A faiss index of the first `count` positions of a gallery.

    `files`: what index.json says about it, None if that is out of date; `file`: its open file, until it is needed (a
    name would be gone once another process has saved a later index).
    """

    def __init__(self, kind: str, count: int, index=None, files: dict | None = None, file: BinaryIO | None = None):
        self.kind, self.count, self.files = kind, count, files
        self._index, self._file = index, file

    @classmethod
    def of_folder(cls, folder: Path, files: dict) -> "Shortlist":
        """What index.json describes, not read yet."""
        return cls(files["kind"], files["count"], files=files, file=check_size(folder, files["index"]).open("rb"))

    @property
    def index(self):
        if self._index is None:
            check_content(self._file, self.files["index"])
            self._index = read_faiss(self._file, self.count)
            self._file.close()
        return self._index

    def written(self, folder: Path, token: str) -> "Shortlist":
        """The same, with a file of its own in a folder. Raises OSError if it cannot be written."""
        path = folder / f"{self.kind}-{token}.faiss"
        with replacing(path) as temporary:
            described = {"name": path.name, **write_faiss(self.index, temporary)}
        return Shortlist(
            self.kind, self.count, self.index, {"kind": self.kind, "count": self.count, "index": described}
        )

    def extend(self, gallery: Gallery) -> None:
        """Add the vectors of all positions that are not covered yet."""
        total = len(gallery.dead)
        with tqdm(total=total - self.count, desc=f"{self.kind} index", unit="vector", leave=False) as bar:
            for block in gallery.blocks(1, torch.device("cpu"), self.count):
                for vectors in block.vectors.split(4096):
                    self.index.add(vectors.float().numpy())
                    bar.update(len(vectors))
        self.count, self.files = total, None

    def num_proposed(self, top_k: int) -> int:
        return top_k * (HNSW_SHORTLIST if self.kind == "hnsw" else IVF_SHORTLIST)

    def propose(self, queries: Tensor, top_k: int, dead: np.ndarray) -> np.ndarray:
        """Positions [Q, s] of living items that may be among the first `top_k`; -1 if there are fewer."""
        import faiss

        proposed = self.num_proposed(top_k)
        living = np.packbits(~dead[: self.count], bitorder="little")  # must outlive the selector
        selector = faiss.IDSelectorBitmap(living) if dead.any() else None
        if self.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(HNSW_SEARCH, proposed), sel=selector)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=min(IVF_PROBED, self.index.nlist), sel=selector)
        return self.index.search(queries.numpy(), proposed, params=parameters)[1]

    def is_outgrown(self, total: int) -> bool:
        """Whether there are too few lists for what the gallery has grown to."""
        return self.kind == "ivf-pq" and num_lists(total) > 2 * self.index.nlist


def prepare(shortlist: Shortlist | None, kind: str, gallery: Gallery) -> Shortlist | None:
    """The shortlist for an approximate `kind` of search in a gallery: the given one, extended, or a new one."""
    if kind == "exact":
        return None
    total = len(gallery.dead)
    if shortlist is None or shortlist.kind != kind or shortlist.is_outgrown(total):
        shortlist = Shortlist(kind, 0, new_faiss(kind, gallery))
    elif total - shortlist.count <= max(LARGEST_TAIL, LARGEST_TAIL_PART * total):
        return shortlist
    shortlist.extend(gallery)
    return shortlist


def new_faiss(kind: str, gallery: Gallery):
    """An index without vectors, trained if it has to be."""
    import faiss

    width = gallery.segments[0].vectors.shape[1]
    if kind == "hnsw":
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexHNSWSQ(width, half, HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_CONSTRUCTION
        return index
    total = len(gallery.dead)
    codes = width // PQ_WIDTH if width % PQ_WIDTH == 0 else width
    coarse = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFPQ(coarse, width, num_lists(total), codes, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(gallery.vectors(training_sample(total)).numpy())
    return index


def training_sample(count: int) -> np.ndarray:
    """Positions, ascending, from which centroids and codes are learnt."""
    size = max(IVF_TRAINING * num_lists(count), FEWEST_FOR_IVF)
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))


def num_lists(count: int) -> int:
    return max(1, min(int(IVF_LISTS * count**0.5), count // IVF_TRAINING))


def search_shortlist(shortlist: Shortlist, gallery: Gallery, queries: Tensor, top_k: int) -> Best:
    """The best `top_k` of each query [Q, D] among what is proposed for it, with exact scores."""
    best = NOTHING
    at_once = max(1, BLOCK_BYTES // (4 * queries.shape[1] * shortlist.num_proposed(top_k)))
    for start in range(0, len(queries), at_once):
        some = queries[start : start + at_once]
        proposed = shortlist.propose(some, top_k, gallery.dead)
        query, column = np.nonzero(proposed >= 0)
        position = proposed[query, column]
        score = score_pairs(some, gallery.vectors(position), torch.from_numpy(query), torch.arange(len(position)))
        best = merge(best, Best(query + start, position, score), top_k)
    return best


def write_faiss(index, path: Path) -> dict:
    """Write a file; returns its {bytes, xxh3}. faiss alone would not report that a full disk cut off the end."""
    import faiss

    digest, failed = xxhash.xxh3_128(), []

    def write(data: bytes) -> None:
        try:
            file.write(data)
            digest.update(data)
        except OSError as error:
            failed.append(error)
            raise

    try:
        with path.open("wb") as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(write))
    except RuntimeError as error:
        raise failed[0] if failed else OSError(f"{path.name}: {error}") from None
    return {"bytes": path.stat().st_size, "xxh3": digest.hexdigest()}


def read_faiss(file: BinaryIO, count: int):
    import faiss

    file.seek(0)
    try:
        index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
    except Exception as error:  # RuntimeError, and what C++ raises when it is asked for too much memory
        raise ValueError(f"{file.name} cannot be read by this faiss ({error}); {REMEDY}") from None
    if index.ntotal != count:
        raise ValueError(f"{file.name} holds {index.ntotal:,} vectors, not {count:,}; {REMEDY}")
    return index
