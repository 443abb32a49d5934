"""What each part of crossfit is worth on Flickr8k with 40 % shuffled captions: one thing changed at a time.

    python benchmarks/ablations.py pretrained --seeds 0 1 2      # or scratch; needs the files that the recipes name

Three groups: what the folds are (each a whole run), what is made of their scores (the same folds, other weights), and
how training uses the weights (the same weights). A row: the share of wrong captions found, AUC and calibration error
of the weights, rsum on val and test of the model that is best on val, and the difference of the test rsum from the
recipe as it is, with its paired 95 % interval over test images. Means over seeds. Runs that are finished are kept.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np

from clip_itm import load_recipe, train
from clip_itm.calibration.estimate import judge
from clip_itm.calibration.scores import FoldScores, made_mismatches, score_pairs
from clip_itm.calibration.share import rank_score, wrong_share
from clip_itm.calibration.siblings import has_siblings, sibling_features, with_siblings
from clip_itm.calibration.weights import clean_probability, reweighted_null, standardised
from clip_itm.evaluation.recall import paired_difference_of_runs
from clip_itm.evaluation.result import RetrievalResult
from clip_itm.files import write_json
from clip_itm.methods.crossfit import folds as of_folds
from clip_itm.methods.crossfit import trainer as of_trainer
from clip_itm.training.clean_probability import CleanProbability

RECIPES = {"pretrained": Path("recipes/flickr8k/pretrained"), "scratch": Path("recipes/flickr8k")}
PROTOCOL = "flickr-1k"
PLAIN = "as it stands"
FOLDS = {
    "folds 3": {"folds": 3},
    "folds 5": {"folds": 5},
    "fold_epochs 1": {"fold_epochs": 1},
    "fold_epochs 2": {"fold_epochs": 2},
    "fold_epochs as many as the run": {"fold_epochs": None},
    "fold_loss infonce": {"fold_loss": "infonce"},
    "estimate mixture": {"estimate": "mixture"},
}
FINAL = {
    "smallest_weight 0": {"smallest_weight": 0},
    "smallest_weight 0.2": {"smallest_weight": 0.2},
    "smallest_weight 0.5": {"smallest_weight": 0.5},
    "loss infonce": {"loss": "infonce"},
    "loss gce": {"loss": "gce"},
    "loss mix (a doubted pair is not dropped)": {"loss": "mix", "smallest_weight": 0},
}


@dataclass
class Judging:
    """What a run gave to `score_pairs`, fold by fold, and what came of it."""

    inputs: list[tuple] = field(default_factory=list)
    folds: list[FoldScores] = field(default_factory=list)
    count: int = 0


@contextmanager
def recorded() -> Iterator[Judging]:
    """Record what a run within judges."""
    seen, score, estimate = Judging(), of_folds.score_pairs, of_trainer.judge

    def scoring(*inputs):
        seen.inputs.append(inputs)
        return score(*inputs)

    def judging(folds, count, *args):
        seen.folds, seen.count = list(folds), count
        return estimate(folds, count, *args)

    of_folds.score_pairs, of_trainer.judge = scoring, judging
    try:
        yield seen
    finally:
        of_folds.score_pairs, of_trainer.judge = score, estimate


def scored_again(seen: Judging, scale: float | None = None, seed: int | None = None) -> list[FoldScores]:
    """The scores of all folds with another scale, or with other made mismatches."""
    scores = []
    for number, (fold, inputs) in enumerate(zip(seen.folds, seen.inputs, strict=True)):
        images, texts, image, mismatch, own_scale, *rest = inputs
        if seed is not None:
            mismatch = made_mismatches(image, np.random.default_rng([seed, number]))
        again = score_pairs(images, texts, image, mismatch, scale or own_scale, *rest)
        scores.append(FoldScores(**{**vars(again), "pairs": fold.pairs, "texts": fold.texts}))
    return scores


def weights_of(draws: list[list[FoldScores]], count: int, reweighted: bool = True) -> tuple[np.ndarray, float]:
    """The weights of `judge` from several draws of made mismatches together, and the share of wrong pairs."""
    z, r = np.empty((2, count))
    image = np.empty(count, dtype=np.int64)
    z0, r0, owner, made, first = [], [], [], [], 0
    for of_fold in zip(*draws, strict=True):
        fold, all_z0 = of_fold[0], np.concatenate([each.z0 for each in of_fold])
        z[fold.pairs], null = standardised(fold.z, all_z0)
        r[fold.pairs] = rank_score(fold.p, fold.images)
        image[fold.pairs] = first + fold.image
        first += fold.images
        z0.append(null)
        r0 += [rank_score(each.p0, fold.images) for each in of_fold]
        owner += [fold.pairs[each.mismatch] for each in of_fold]
        made += [each.is_made for each in of_fold]
    is_made = np.concatenate(made)
    z0, r0, owner = (np.concatenate(parts)[is_made] for parts in (z0, r0, owner))
    share = wrong_share(r, r0)
    null_weight = reweighted_null(clean_probability(r, r0, share), owner) if reweighted else None
    before = clean_probability(z, z0, share, null_weight)
    features = np.empty((count, 2))
    for fold in draws[0]:
        features[fold.pairs] = sibling_features(fold, before[fold.pairs])
    return with_siblings(features, before, has_siblings(image)), share


def variants(seen: Judging, seed: int) -> dict[str, tuple[np.ndarray, float]]:
    """Other weights and shares from the same folds."""
    scale = mean(inputs[4] for inputs in seen.inputs)
    alone = judge(seen.folds, seen.count, seed, siblings=False)
    same = judge(scored_again(seen, scale=scale), seen.count, seed)
    several = [scored_again(seen, seed=draw) for draw in range(1, 9)]
    return {
        "no siblings": (alone.weights, alone.share),
        "one scale for all folds": (same.weights, same.share),
        "another draw of mismatches": weights_of(several[:1], seen.count),
        "mismatches 3 times": weights_of([seen.folds, *several[:2]], seen.count),
        "mismatches 9 times": weights_of([seen.folds, *several], seen.count),
        "mismatches that all count the same": weights_of([seen.folds], seen.count, reweighted=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--out", default="runs/ablations")
    args = parser.parse_args()
    place = Path(args.out) / args.bench / f"noise-{args.noise:g}"
    file = RECIPES[args.bench] / "crossfit.yaml"

    def run(name: str, seed: int, **keys) -> dict:
        folder = place / f"seed-{seed}" / name.replace(" ", "-")
        words = [word for key, value in keys.items() for word in (f"--head.{key}", str(value))]
        own = ["--noise.ratio", str(args.noise), "--training.seed", str(seed), "--training.trackers", "[]"]
        recipe = load_recipe(file, [*own, *words, "--output_dir", str(folder)])
        return train(recipe) | {"folder": folder}

    epochs = load_recipe(file).training.epochs
    found: dict[str, list[dict]] = {}
    for seed in args.seeds:
        weights = place / f"seed-{seed}" / "weights"
        with recorded() as seen:
            plain = run(PLAIN, seed)
        rows = {PLAIN: plain}
        if seen.folds:
            own = CleanProbability.load(plain["folder"] / "clean_probability.npz")
            weights.mkdir(parents=True, exist_ok=True)
            for name, (values, share) in variants(seen, seed).items():
                made = CleanProbability(
                    values.astype(np.float32), own.ranking, name, own.noise_sha256, (share, share, share)
                )
                made.save(weights / f"{name}.npz")
        for path in sorted(weights.glob("*.npz")):
            rows[path.stem] = run(path.stem, seed, weights=path)
        for name, keys in FINAL.items():
            rows[name] = run(name, seed, weights=plain["folder"] / "clean_probability.npz", **keys)
        for name, keys in FOLDS.items():
            keys = {key: epochs if value is None else value for key, value in keys.items()}
            rows[name] = run(name, seed, **keys)
        for name, results in rows.items():
            found.setdefault(name, []).append(results)

    def ranks(results: dict) -> tuple:
        return RetrievalResult.load(results["folder"] / "ranks_best" / f"{PROTOCOL}.npz").folds

    lines, table = [], []
    for name, runs in found.items():
        row = {
            "name": name,
            "share": mean(each["wrong_share"]["share"] for each in runs),
            "auc": mean(each["wrong_pairs"]["auc"] for each in runs),
            "ece": mean(each["wrong_pairs"]["ece"] for each in runs),
            "val": mean(each["best_val_rsum"] for each in runs),
            "test": mean(each["best"][PROTOCOL]["metrics"]["rsum"] for each in runs),
        }
        if name != PLAIN:
            pair = [[ranks(each) for each in group] for group in (found[PLAIN], runs)]
            row["difference"] = list(paired_difference_of_runs(*pair)["rsum"])
        table.append(row)
        difference = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row["difference"]) if "difference" in row else ""
        lines.append(
            f"| {name} | {row['share']:.3f} | {row['auc']:.3f} | {row['ece']:.3f} | {row['val']:.1f} | "
            f"{row['test']:.1f} | {difference} |"
        )
    write_json(place / "ablations.json", table)
    header = ["| crossfit | share | AUC | ECE | rsum, val | rsum, test | against the recipe [95 %] |", "|---" * 7 + "|"]
    print("\n".join(["", *header, *lines]))


if __name__ == "__main__":
    main()
