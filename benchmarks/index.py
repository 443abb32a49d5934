"""Build time, latency, memory and recall of the search index, against numpy and plain faiss in the same run.

    python benchmarks/index.py --sizes 10000 100000 1000000

Vectors are clustered, as those of photos are: N / 50 centres drawn from a normal distribution, each vector its centre
plus 0.8 times as much noise, normalised. Queries are new vectors around the same centres: the nearest neighbours have a
cosine of about 0.6, the others of about 0.

Every engine runs in a process of its own. Build: all threads, from a mapped file to an index that answers (ours: from a
saved folder). Latency: single queries, one thread, top 10, with items (ours) or numbers (the others). Memory: the peak
of anonymous memory during build and queries beyond that before; mapped files are not counted. Recall@10 is against
exact scores. CPU columns (all threads of a build, the one thread of a query) depend less on other work on the machine.
Prints a table per size and writes runs/benchmarks/index.json (or --json FILE).
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from clip_itm.files import write_json
from clip_itm.retrieval import approximate
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Item

WIDTH, TOP_K, PER_CENTRE, NOISE = 512, 10, 50, 0.8
ROWS_AT_ONCE = 50_000
Search = Callable[[np.ndarray], list[int]]
"""`search(query [1, D])` gives the numbers of the first 10."""


def draw(path: Path, count: int, num_centres: int, seed: int) -> None:
    """Write `count` clustered unit vectors [N, D] of float32."""
    centres = torch.randn(num_centres, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (count, WIDTH))
    for start in range(0, count, ROWS_AT_ONCE):
        size = min(ROWS_AT_ONCE, count - start)
        own = torch.randint(num_centres, (size,), generator=generator)
        vectors = torch.randn(size, WIDTH, generator=generator).mul_(NOISE).add_(centres[own])
        out[start : start + size] = torch.nn.functional.normalize(vectors, dim=1).numpy()
    out.flush()


def true_neighbours(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Numbers [Q, 10] of the best by float32 scores."""
    scores = np.concatenate(
        [queries @ vectors[start : start + ROWS_AT_ONCE].T for start in range(0, len(vectors), ROWS_AT_ONCE)], axis=1
    )
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]


def numpy_argpartition(vectors: np.ndarray, folder: Path) -> Search:
    def search(query: np.ndarray) -> list[int]:
        scores = vectors @ query[0]
        best = np.argpartition(-scores, TOP_K)[:TOP_K]
        return best[np.argsort(-scores[best])].tolist()

    return search


def plain_faiss(kind: str) -> Callable[[np.ndarray, Path], Search]:
    """faiss alone, with our parameters."""

    def build(vectors: np.ndarray, folder: Path) -> Search:
        import faiss

        if kind == "flat":
            index, parameters = faiss.IndexFlatIP(WIDTH), None
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(WIDTH, approximate.HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = approximate.HNSW_CONSTRUCTION
            parameters = faiss.SearchParametersHNSW(efSearch=approximate.HNSW_SEARCH)
        else:
            lists = approximate.num_lists(len(vectors))
            codes = WIDTH // approximate.PQ_WIDTH
            coarse = faiss.IndexFlatIP(WIDTH)
            index = faiss.IndexIVFPQ(coarse, WIDTH, lists, codes, 8, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors[approximate.training_sample(len(vectors))])
            parameters = faiss.SearchParametersIVF(nprobe=min(approximate.IVF_PROBED, lists))
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            index.add(vectors[start : start + ROWS_AT_ONCE])
        return lambda query: index.search(query, TOP_K, params=parameters)[1][0].tolist()

    return build


def ours(kind: str, dtype: str = "float32") -> Callable[[np.ndarray, Path], Search]:
    def build(vectors: np.ndarray, folder: Path) -> Search:
        index = LocalIndex("image", "benchmark", "exact", dtype)
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            block = torch.tensor(vectors[start : start + ROWS_AT_ONCE])
            index.add([Item(str(start + number)) for number in range(len(block))], block)
            index.save(folder)
        index = LocalIndex.load(folder)
        index.kind = kind  # only now, so that one pass builds it
        index.save(folder)
        index = LocalIndex.load(folder)
        return lambda query: [int(hit.item.id) for hit in index.search(torch.from_numpy(query), TOP_K)[0]]

    return build


ENGINES = {
    "numpy argpartition": numpy_argpartition,
    "faiss IndexFlatIP": plain_faiss("flat"),
    "exact, float32": ours("exact"),
    "exact, float16": ours("exact", "float16"),
    "faiss IndexHNSWFlat": plain_faiss("hnsw"),
    "hnsw": ours("hnsw"),
    "faiss IndexIVFPQ": plain_faiss("ivf-pq"),
    "ivf-pq": ours("ivf-pq"),
}


class AnonymousMemory:
    """The peak of this process's anonymous memory, sampled every 20 ms (Linux)."""

    def __enter__(self) -> "AnonymousMemory":
        self.before = self.peak = self.now()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.02):
            self.peak = max(self.peak, self.now())

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()

    @staticmethod
    def now() -> int:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise ValueError("/proc/self/status has no RssAnon")


def measure(engine: str, folder: Path) -> dict:
    """One engine on the vectors and queries of a folder."""
    import faiss

    vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    torch.eye(8) @ torch.eye(8)  # the libraries' own buffers are not the index's
    with AnonymousMemory() as memory, tempfile.TemporaryDirectory(dir=folder) as place:
        start, start_cpu = time.perf_counter(), time.process_time()
        search = ENGINES[engine](vectors, Path(place) / "index")
        build, build_cpu = time.perf_counter() - start, time.process_time() - start_cpu
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        for query in queries[:10]:  # reads what is mapped
            search(query[None])
        times, cpu_times, found = [], [], []
        for query in queries:
            start, start_cpu = time.perf_counter(), time.thread_time()
            found.append(search(query[None]))
            times.append(1000 * (time.perf_counter() - start))
            cpu_times.append(1000 * (time.thread_time() - start_cpu))
    truth = np.load(folder / "truth.npy")
    hits = [len(set(own) & set(right)) for own, right in zip(found, truth.tolist(), strict=True)]
    return {
        "build_seconds": build,
        "build_cpu_seconds": build_cpu,
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        "cpu_p50_ms": float(np.percentile(cpu_times, 50)),
        "extra_megabytes": (memory.peak - memory.before) / 1e6,
        "recall_at_10": sum(hits) / (TOP_K * len(queries)),
    }


def run(size: int, num_queries: int, engines: list[str], time_limit: float, work: str | None) -> dict:
    """All engines, each in a fresh process; None for one that did not end in time."""
    results = {}
    with tempfile.TemporaryDirectory(dir=work) as place:
        folder = Path(place)
        centres = max(1, size // PER_CENTRE)
        draw(folder / "vectors.npy", size, centres, seed=1)
        draw(folder / "queries.npy", num_queries, centres, seed=2)
        vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
        np.save(folder / "truth.npy", true_neighbours(vectors, queries))
        for engine in engines:
            command = [sys.executable, __file__, "--engine", engine, "--folder", place]
            try:
                child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=time_limit)
                results[engine] = json.loads(child.stdout)
            except subprocess.TimeoutExpired:
                results[engine] = None
            print(f"{size:,} {engine}: {results[engine]}", file=sys.stderr, flush=True)
    return results


def table_of(size: int, results: dict, time_limit: float) -> Table:
    table = Table(title=f"{size:,} vectors of {WIDTH}")
    for header in ("", "build s", "CPU s", "p50 ms", "p99 ms", "CPU ms", "extra MB", "recall@10"):
        table.add_column(header, justify="left" if not header else "right")
    for engine, result in results.items():
        if result is None:
            table.add_row(engine, f"> {time_limit:.0f}", *["-"] * 6)
        else:
            shown = (f"{result[key]:.{digits}f}" for key, digits in zip(result, (1, 1, 2, 2, 2, 0, 4), strict=True))
            table.add_row(engine, *shown)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds that an engine may take")
    parser.add_argument("--work", help="folder for temporary files (4 GB for a million vectors)")
    parser.add_argument("--json", default="runs/benchmarks/index.json")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        print(json.dumps(measure(args.engine, args.folder)))
        return
    console, report = Console(width=100), {}
    for size in args.sizes:
        report[size] = run(size, args.queries, args.engines, args.time_limit, args.work)
        console.print(table_of(size, report[size], args.time_limit))
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
    write_json(Path(args.json), {"width": WIDTH, "sizes": report, "machine": machine})
    console.print(f"{machine['threads']} threads to build, 1 to search; written to {args.json}", highlight=False)


if __name__ == "__main__":
    main()
