"""How accurate an audit is when the truth is known: share, order and probabilities of every score, by kind of noise.

    clip-itm train recipes/flickr8k/pretrained/clip.yaml --output_dir runs/judge
    python benchmarks/audit.py runs/judge --coco ../shared/data/coco_mini --outside ../shared/data/f30k_precomp/*.txt

The run trained on the training photos of its data, without noise; it judges those of val and test together, which it
has not seen. They are encoded once. Noise is drawn among their captions (by caption, image, neighbour, noun), or the
captions come from elsewhere (`--outside`, text files with a caption per line), and each cell is `auditing.estimate` of
embeddings, as in `clip-itm audit`. Figures are the mean of the draws (`--draws`) and the largest deviation from it.

    share      found, its error, and how often the 95 % interval holds the true one
    auc        of finding wrong pairs
    precision  the fraction of wrong ones among the n most suspicious pairs, where n pairs are wrong
    ece        calibration error of the probabilities, if a score claims any

Then data in which nothing was exchanged: val and test as they are, `--coco` (val2017 of a COCO folder), the drawn
sample, and the training photos, which the run has seen. Prints Markdown, and writes --json FILE.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import concatenate_datasets

from clip_itm.allocator import keep_freed_memory
from clip_itm.auditing.estimate import CANDIDATES, Estimate, estimate
from clip_itm.auditing.judging import as_probabilities, audit, judge_split
from clip_itm.auditing.table import Audit
from clip_itm.calibration.reliability import calibration_error
from clip_itm.data.configuration import CocoData, SampleData
from clip_itm.data.equal_captions import number_captions
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise, Neighbours
from clip_itm.data.rows import Split
from clip_itm.evaluation.detection import auc, precision_at
from clip_itm.files import write_json
from clip_itm.runs.folder import RunFolder
from clip_itm.runs.neighbours import nearest_images
from clip_itm.runs.setup import prepare_images, saved_encoder
from clip_itm.training.encode import scoring
from clip_itm.training.encoder import Encoder
from clip_itm.training.kept_embeddings import kept_embeddings

CELLS = [
    *[("caption", ratio) for ratio in (0.05, 0.1, 0.2, 0.4)],
    *[("outside", ratio) for ratio in (0.05, 0.1, 0.2, 0.4)],
    ("image", 0.4),
    ("neighbour", 0.4),
    ("noun", 0.2),
    ("noun", 0.4),
]
NEIGHBOURS = 50  # photos, as noise.neighbours


class Judged(NamedTuple):
    """A split under a model: `images` [P, D] and `texts` [N, D]; `outside` [M, D] and `lines` [M] from elsewhere."""

    split: Split
    images: torch.Tensor
    texts: torch.Tensor
    near: np.ndarray
    outside: torch.Tensor
    lines: list[str]


def noisy(judged: Judged, level: str, ratio: float, seed: int) -> tuple[torch.Tensor, list[str], np.ndarray]:
    """Embeddings [N, D] and captions [N] of the pairs, and bool [N]: which are wrong."""
    pairs = judged.split.pairs
    if level != "outside":
        near = Neighbours(judged.near, "the frozen image tower") if level == "neighbour" else None
        noise = CaptionNoise.draw(pairs, ratio, level, seed, near)
        return judged.texts[torch.from_numpy(noise.source)], noise.apply(pairs).to_pylist(), ~noise.is_clean(pairs)
    generator = np.random.default_rng(seed)
    places = generator.choice(len(pairs), round(ratio * len(pairs)), replace=False)
    chosen = generator.choice(len(judged.lines), len(places), replace=len(places) > len(judged.lines))
    texts, captions = judged.texts.clone(), pairs.captions.to_pylist()
    texts[torch.from_numpy(places)] = judged.outside[torch.from_numpy(chosen)]
    for place, line in zip(places, chosen, strict=True):
        captions[place] = judged.lines[line]
    return texts, captions, np.isin(np.arange(len(pairs)), places)


def figures(found: Estimate, wrong: np.ndarray) -> dict[str, Any]:
    """Figures of one draw; `wrong` bool [N]."""
    true = float(wrong.mean())
    rows = {}
    for name, score in found.scores.items():
        known = ~np.isnan(score.suspicion)
        suspicion, truth = score.suspicion[known], wrong[known]
        rows[name] = {
            "auc": auc(suspicion, truth),
            "precision": precision_at(suspicion, truth, int(truth.sum())),
            "ece": None if score.probability is None else calibration_error(score.probability[known], ~truth),
        }
    row = {"true": true, "share": found.share, "low": found.low, "high": found.high, "weak": found.is_weak}
    return row | {"inside": found.low <= true <= found.high, "scores": rows}


def cells(judged: Judged, judge: Callable[..., Estimate], draws: int) -> Iterator[dict[str, Any]]:
    for level, ratio in CELLS:
        if level == "outside" and not judged.lines:
            continue
        for draw in range(draws):
            texts, captions, wrong = noisy(judged, level, ratio, 99 + draw)
            found = judge(judged.images, texts, judged.split.pairs.image, number_captions(captions), seed=draw)
            yield {"level": level, "ratio": ratio, "draw": draw, **figures(found, wrong)}


# Data that nobody has touched -----------------------------------------------------------------------------------------


def clean_row(name: str, found: Audit) -> dict[str, Any]:
    """What an audit says about data as they are, and the captions at the head of its list."""
    share, low, high = found.share
    worst = [(row["image_id"], row["caption"], row["clean_probability"]) for row in found.head(40)]
    row = {"data": name, "pairs": len(found.clean.values), "share": share, "low": low, "high": high}
    return row | {"sentence": found.sentence, "in the list": found.doubted, "below 0.5": found.suspects, "worst": worst}


def untouched(run: RunFolder, encoder: Encoder, split: Split, coco: Path | None) -> Iterator[dict[str, Any]]:
    recipe, model = run.recipe(), str(run.model)
    found = judge_split(encoder, split, CaptionNoise.clean(split.pairs))
    clean = as_audit(found, split, model)
    yield clean_row(f"{recipe.data.source}, val and test", clean)
    if coco is not None:
        mini = load_splits(CocoData(root=str(coco), cache_dir=recipe.data.cache_dir))
        yield clean_row("COCO, val2017", audit(mini["val"], model, cache_dir=recipe.data.cache_dir))
    sample = load_splits(SampleData(cache_dir=recipe.data.cache_dir))
    yield clean_row("the drawn sample", audit(sample["train"], model, cache_dir=recipe.data.cache_dir))
    yield clean_row(f"{recipe.data.source}, train, which the judge has seen", audit(run.path))


def as_audit(found: Estimate, split: Split, model: str) -> Audit:
    noise = CaptionNoise.clean(split.pairs)
    clean = as_probabilities(found, noise, model, False)
    return Audit(split.name, model, "", {split.name: split}, split.name, noise, found, clean)


# Tables ---------------------------------------------------------------------------------------------------------------


def spread(values: list[float | None], digits: int = 3) -> str:
    """Mean, and the largest deviation from it."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = float(np.mean(known))
    said = f"{mean:.{digits}f} ± {np.abs(np.array(known) - mean).max():.{digits}f}"
    return (said if len(known) == len(values) else f"{said} ({len(known)} of {len(values)})").replace("0.", ".")


def tables(rows: list[dict[str, Any]]) -> str:
    """In Markdown: shares, and the figures of every score."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["level"], row["ratio"]), []).append(row)
    lines = ["| noise | true | found | interval, first draw | holds the true share |", "|---|---|---|---|---|"]
    for (level, ratio), draws in groups.items():
        first, inside = draws[0], sum(row["inside"] for row in draws)
        interval = f"{first['low']:.3f} to {first['high']:.3f}"
        true, found = (spread([row[key] for row in draws]) for key in ("true", "share"))
        lines.append(f"| {level} {ratio:g} | {true} | {found} | {interval} | {inside} of {len(draws)} |")
    for figure in ("auc", "precision", "ece"):
        names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
        lines += ["", f"| {figure} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for (level, ratio), draws in groups.items():
            values = [spread([row["scores"].get(name, {}).get(figure) for row in draws]) for name in names]
            lines.append(f"| {level} {ratio:g} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run without noise")
    parser.add_argument("--outside", type=Path, nargs="*", default=[], metavar="FILE", help="captions from elsewhere")
    parser.add_argument("--coco", type=Path, metavar="DIR", help="a COCO folder, to judge its val2017 as it is")
    parser.add_argument("--draws", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/audit.json"), metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    began = time.perf_counter()
    run = RunFolder(args.run)
    recipe = run.recipe()
    splits = load_splits(recipe.data)
    split = Split("test", concatenate_datasets([splits["val"].rows, splits["test"].rows]))
    encoder = saved_encoder(run.model, recipe, prepare_images(recipe, {"test": split}))
    embeddings = kept_embeddings(encoder, split)
    features = torch.from_numpy(np.array(encoder.image_features(split)["image_features"]))
    lines = [line for file in args.outside for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    encoder.model.processor = encoder.processor
    outside = encoder.model.encode(lines, convert_to="torch") if lines else embeddings.texts[:0]
    judged = Judged(split, embeddings.images, embeddings.texts, nearest_images(features, NEIGHBOURS), outside, lines)

    def judge(images, texts, image, text, seed):
        scale = float(encoder.model.head.scale().detach())
        settings = {"scale": scale, "score": scoring(encoder.model), "vectors": None, "candidates": CANDIDATES}
        return estimate(images, texts, image, text, seed=seed, **settings)

    print(f"{len(split):,} photos, {len(split.pairs):,} captions, {len(lines):,} captions from elsewhere\n")
    rows = []
    for row in cells(judged, judge, args.draws):
        rows.append(row)
        print(json.dumps(row), flush=True)
    print("\n" + tables(rows) + "\n")
    clean = []
    for row in untouched(run, encoder, split, args.coco):
        clean.append(row)
        print(f"{row['data']}, {row['pairs']:,} pairs: {row['sentence']}, {row['in the list']:,} in the list")
        for image_id, caption, probability in row["worst"]:
            print(f"    {probability:.3f} {image_id}: {caption}")
    write_json(args.json, {"cells": rows, "clean": clean})
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
