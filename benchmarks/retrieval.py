"""Recall of a run's searches compared with the evaluator's, for every kind of index.

    python benchmarks/retrieval.py runs/flickr8k/clip

Photos and captions of the split are indexed through the pipeline and searched by each other, ten results per query.
Exact search must give the evaluator's recalls to the last digit: it scores the same embeddings, each on its own. The
difference is what an approximate index loses. Below some thousand vectors `hnsw` and `ivf-pq` are searched exactly as
well, so they are also compared with exact search in a gallery of all captions of the data set (40,000 on Flickr8k),
searched by the photos of the split. `benchmarks/index.py` has larger galleries.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from clip_itm.allocator import keep_freed_memory
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.evaluation.protocols import evaluate_retrieval
from clip_itm.evaluation.recall import CUTOFFS, RECALLS
from clip_itm.files import write_json
from clip_itm.recipe import load_recipe
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Hit
from clip_itm.retrieval.pipeline import load_pipeline
from clip_itm.runs.setup import final_split
from clip_itm.training.encode import encode_split

APPROXIMATE = (("exact", "float32"), ("hnsw", "float32"), ("ivf-pq", "float32"))
TOP = max(CUTOFFS)


def evaluator_recalls(pipe, split) -> dict[str, float]:
    embeddings = encode_split(pipe.model, split.rows, split.pairs, pipe.processor)
    result = evaluate_retrieval(embeddings.images, embeddings.texts, embeddings.caption_image, bootstrap=0)["all"]
    return {name: result.metrics[name] for name in RECALLS}


def recalls(split, captions_of_photos: list[list[Hit]], photos_of_captions: list[list[Hit]]) -> dict[str, float]:
    """The share of queries with a right answer of rank k or better among the results.

    The best right answer's rank decides: a tie with it counts as won, as in the evaluator.
    """
    image_ids = split.pairs.image_ids.to_pylist()
    right = {"i2t": map(set, split.rows["caption_ids"]), "t2i": ({image_ids[k]} for k in split.pairs.image)}
    found = {"i2t": captions_of_photos, "t2i": photos_of_captions}
    shares = {}
    for direction, answers in found.items():
        best = np.array(
            [
                min((hit.rank for hit in hits if hit.item.id in ids), default=np.inf)
                for hits, ids in zip(answers, right[direction], strict=True)
            ]
        )
        shares |= {f"{direction}_r{k}": 100 * float(np.mean(best <= k)) for k in CUTOFFS}
    return shares


def copy_of(index: LocalIndex, kind: str, dtype: str) -> LocalIndex:
    items = list(index.items())
    other = LocalIndex(index.modality, index.model_sha256, kind, dtype)
    other.add(items, index.embeddings_of([item.id for item in items]))
    return other


def measure(pipe, split) -> tuple[dict[str, dict[str, float]], Tensor]:
    """Recalls in the galleries of the split, and the embeddings of its photos."""
    photos, captions = pipe.index(split.rows, "image"), pipe.index(split.rows, "text")
    pixels, texts = [read_image(image) for image in split.rows["image"]], split.pairs.captions.to_pylist()
    rows = {"evaluator": evaluator_recalls(pipe, split)}
    rows["pipe, exact"] = recalls(split, pipe.search(pixels, TOP), pipe.search(texts, TOP))
    queries = pipe.embed(pixels), pipe.embed(texts)
    half = [
        copy_of(index, "exact", "float16").search(q, TOP) for index, q in zip((captions, photos), queries, strict=True)
    ]
    rows["exact, float16"] = recalls(split, *half)
    return rows, queries[0]


def measure_all_captions(pipe, split, splits, queries: Tensor) -> dict[str, dict[str, float]]:
    """Recall of the photos' own captions, and agreement with exact search, among the captions of all splits."""
    captions = {id: text for each in splits.values() for id, text in _captions(each)}
    exact = pipe.index(captions, "text", kind="exact")
    own = [set(ids) for ids in split.rows["caption_ids"]]
    rows, first = {}, None
    for kind, dtype in APPROXIMATE:
        found = [[hit.item.id for hit in hits] for hits in copy_of(exact, kind, dtype).search(queries, TOP)]
        first = first or found
        rows[f"{kind}, {dtype}"] = {
            **{
                f"i2t_r{k}": _share(bool(ids & set(hits[:k])) for ids, hits in zip(own, found, strict=True))
                for k in CUTOFFS
            },
            "agreement": _share(len(set(a) & set(b)) / TOP for a, b in zip(first, found, strict=True)),
        }
    return rows


def _captions(split):
    return zip(split.pairs.caption_ids.to_pylist(), split.pairs.captions.to_pylist(), strict=True)


def _share(values) -> float:
    return 100 * float(np.mean(list(values)))


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    table = Table(title=title)
    for header in ("", *next(iter(rows.values()))):
        table.add_column(header, justify="right" if header else "left")
    for name, shares in rows.items():
        table.add_row(name, *(f"{share:.2f}" for share in shares.values()))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/retrieval.json"), metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    recipe = load_recipe(args.run)
    splits = load_splits(recipe.data)
    split = final_split(recipe, splits)
    pipe = load_pipeline(args.run, "cpu")
    rows, queries = measure(pipe, split)
    show(f"{args.run}: {len(split):,} photos, {len(split.pairs):,} captions", rows)
    same = rows["evaluator"] == rows["pipe, exact"]
    print(f"exact search and evaluator: {'equal to the last digit' if same else 'DIFFERENT'}")
    large = measure_all_captions(pipe, split, splits, queries)
    show(f"the same photos among {len(pipe.galleries['text']):,} captions; agreement of the first 10 with exact", large)
    write_json(args.json, {split.name: rows, "all captions": large})


if __name__ == "__main__":
    main()
