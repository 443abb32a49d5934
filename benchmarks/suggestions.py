"""How often suggestions for the suspects of a run with drawn noise find the right caption or photo.

    python benchmarks/suggestions.py runs/flickr8k/pretrained/crossfit     # noise.ratio 0.4

Suspects are the pairs that the run itself finds more likely wrong than right (`clean_probability.npz`, else judged by
its best model). Of those that are really wrong:

    in the data      their right captions (those of the photo, now at other pairs) are left where they are: how often
                     is one of them among the first 1, 5, 10; how often is the first proposed, and how often is it right
    not in the data  all of them are taken away: how often is something proposed

The same for the photos of a caption. "suspects only": captions are looked for among those of suspects.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from clip_itm.allocator import keep_freed_memory
from clip_itm.auditing import suggestions
from clip_itm.auditing.judging import audit_run
from clip_itm.auditing.sampling import THRESHOLD
from clip_itm.data.equal_captions import number_captions
from clip_itm.files import write_json
from clip_itm.runs.folder import RunFolder
from clip_itm.runs.setup import prepare_images, saved_encoder
from clip_itm.training.encode import scoring
from clip_itm.training.kept_embeddings import kept_embeddings

FIRST = (1, 5, 10)


def found(answers: suggestions.Suggestions, right: np.ndarray, there: np.ndarray) -> dict[str, float]:
    """`right` bool [S, k]: answers that are right; `there` bool [S]: a right one is in the data."""
    rows = right[there]
    shown = answers.proposed[there, 0]
    return {
        **{f"among the first {k}": float(rows[:, :k].any(axis=1).mean()) for k in FIRST},
        "proposed": float(shown.mean()),
        "of these right": float(rows[shown, 0].mean()) if shown.any() else float("nan"),
    }


def measure(fits: suggestions.Fits, owner: np.ndarray, wrong: np.ndarray) -> dict[str, dict[str, float]]:
    """`owner` int64 [N]: the photo that the caption of each pair was written for; `wrong` int64 [S]: suspects."""
    rows = {}
    photo = fits.image[wrong]
    for name, candidates in (("captions", np.ones(len(owner), dtype=bool)), ("captions, suspects only", ~fits.trusted)):
        answers = suggestions.suggest_captions(fits, wrong, max(FIRST), candidates)
        elsewhere = candidates & (owner != fits.image)
        there = np.bincount(owner[elsewhere], minlength=len(fits.images))[photo] > 0
        right = (answers.index >= 0) & (owner[answers.index] == photo[:, None])
        rows[name] = {"suspects": int(there.sum()), **found(answers, right, there)}
        rows[name]["proposed where there is none"] = without_captions(fits, owner, wrong, candidates)
    answers = suggestions.suggest_photos(fits, wrong, max(FIRST))
    right = answers.index == owner[wrong][:, None]
    rows["photos"] = {"suspects": len(wrong), **found(answers, right, np.ones(len(wrong), dtype=bool))}
    rows["photos"]["proposed where there is none"] = without_photos(fits, owner, wrong)
    return rows


def without_captions(fits, owner: np.ndarray, wrong: np.ndarray, candidates: np.ndarray) -> float:
    """How often a caption is proposed to a photo whose captions are all taken away, over parts of the photos.

    A twentieth of the photos at a time: the captions of the other 95 % stay, as they would.
    """
    proposed = []
    part = np.random.default_rng(0).permutation(len(fits.images)) % 20
    for number in range(20):
        some = wrong[part[fits.image[wrong]] == number]
        kept = candidates & (part[owner] != number)
        proposed.append(suggestions.suggest_captions(fits, some, 1, kept).proposed[:, 0])
    return float(np.concatenate(proposed).mean())


def without_photos(fits, owner: np.ndarray, wrong: np.ndarray) -> float:
    """The same for captions whose photo is taken away."""
    proposed = []
    part = np.random.default_rng(0).permutation(len(fits.images)) % 20
    for number in range(20):
        some = wrong[part[owner[wrong]] == number]
        proposed.append(suggestions.suggest_photos(fits, some, 1, part != number).proposed[:, 0])
    return float(np.concatenate(proposed).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run with drawn noise")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/suggestions.json"), metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    run, audit = RunFolder(args.run), audit_run(args.run)
    if audit.known_wrong is None:
        raise SystemExit(f"{args.run}: no noise was drawn, so that nobody knows what is right (noise.ratio)")
    recipe, pairs, noise = run.recipe(), audit.split.pairs, audit.noise
    encoder = saved_encoder(run.model, recipe, prepare_images(recipe, {audit.name: audit.split}))
    embeddings = kept_embeddings(encoder, audit.split)
    began = time.perf_counter()
    similarity = None if encoder.model.head.similarity.is_dot_product else scoring(encoder.model)
    fits = suggestions.fits_of(
        embeddings.images,
        embeddings.texts[noise.source],
        pairs.image,
        number_captions(noise.apply(pairs).to_pylist()),
        audit.clean.values >= THRESHOLD,
        similarity,
    )
    wrong = np.flatnonzero(~fits.trusted & audit.known_wrong)
    rows = measure(fits, pairs.image[noise.source], wrong)
    table = Table(title=f"{args.run}: {len(wrong):,} wrong of {(~fits.trusted).sum():,} suspects, {len(pairs):,} pairs")
    for name in ("", *next(iter(rows.values()))):
        table.add_column(name, justify="right" if name else "left")
    for name, row in rows.items():
        table.add_row(name, *(f"{x:,}" if isinstance(x, int) else f"{x:.1%}" for x in row.values()))
    Console(width=140).print(table)
    print(f"{time.perf_counter() - began:.0f} s without encoding")
    write_json(args.json, rows)


if __name__ == "__main__":
    main()
