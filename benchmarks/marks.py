"""What marks are worth: share and probabilities after 0, 50, 100 and 200 marks of a simulated reviewer, and by order.

    clip-itm train recipes/flickr8k/pretrained/clip.yaml --output_dir runs/judge
    python benchmarks/marks.py runs/judge

The run trained on the training photos of its data, without noise; it judges those of val and test together, which it
has not seen, with noise drawn among their captions (`--draws` of each kind). A reviewer looks at pairs of a random
sample (`draw_sample`, `--repeats` samples) and marks them as they are, or the opposite in a part of the cases
(`--errors`). "Again": the reviewer with the most errors looks once more at marks that contradict the probability (wrong
from .5 on, right below it), and errs as often:

    share     of wrong captions: how far off it is (mean deviation, root mean square), how wide its interval is, and how
              often that holds the true one
    ece, auc  calibration error and order of the probabilities

Then the orders: after 200 marks of the reviewer, in a random sample, most informative or worst first, how many pairs
are on the wrong side of .5 and how many wrong ones were seen. Prints Markdown, and writes --json FILE.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import concatenate_datasets

from clip_itm.allocator import keep_freed_memory
from clip_itm.auditing.judging import as_probabilities, judge_split
from clip_itm.auditing.marked import by_marks
from clip_itm.auditing.sampling import THRESHOLD, draw_sample, most_informative, worst_first
from clip_itm.calibration.reliability import calibration_error
from clip_itm.data.load import load_splits
from clip_itm.data.marked_pairs import MarkedPairs
from clip_itm.data.marks import Mark
from clip_itm.data.noise import CaptionNoise, Neighbours
from clip_itm.data.rows import Split
from clip_itm.evaluation.detection import auc
from clip_itm.files import write_json
from clip_itm.runs.folder import RunFolder
from clip_itm.runs.neighbours import nearest_images
from clip_itm.runs.setup import prepare_images, saved_encoder
from clip_itm.training.clean_probability import CleanProbability

CELLS = (("caption", 0.0), ("caption", 0.2), ("caption", 0.4), ("neighbour", 0.4))
COUNTS = (0, 50, 100, 200)
NEIGHBOURS = 50


def judged(run: RunFolder, draws: int) -> Iterator[tuple[str, CleanProbability, np.ndarray]]:
    """For every draw of noise a name, probabilities, and bool [N]: which pairs are wrong."""
    recipe = run.recipe()
    splits = load_splits(recipe.data)
    split = Split("test", concatenate_datasets([splits["val"].rows, splits["test"].rows]))
    encoder = saved_encoder(run.model, recipe, prepare_images(recipe, {"test": split}))
    features = torch.from_numpy(np.array(encoder.image_features(split)["image_features"]))
    near = Neighbours(nearest_images(features, NEIGHBOURS), "the frozen image tower")
    for level, ratio in CELLS:
        for seed in range(draws if ratio else 1):
            noise = CaptionNoise.draw(split.pairs, ratio, level, seed, near)
            found = as_probabilities(judge_split(encoder, split, noise), noise, run.model, False)
            yield f"{level} {ratio:g}" if ratio else "none", found, ~noise.is_clean(split.pairs)


def reviewed(
    pairs: np.ndarray,
    weight: np.ndarray | None,
    wrong: np.ndarray,
    errors: float,
    rng: np.random.Generator,
    doubted: np.ndarray | None = None,
) -> MarkedPairs:
    """What the reviewer says of `pairs`, with weights for a sample. What contradicts `doubted` is looked at twice."""
    said = wrong[pairs] ^ (rng.random(len(pairs)) < errors)
    if doubted is not None:
        said = np.where(said == doubted[pairs], said, wrong[pairs] ^ (rng.random(len(pairs)) < errors))
    order = np.argsort(pairs)
    weights = np.ones(len(pairs)) if weight is None else weight
    marks = [
        Mark("", "wrong" if said[k] else "right", sampled=weight is not None, weight=float(weights[k])) for k in order
    ]
    return MarkedPairs(pairs[order], marks, len(wrong))


def of_sample(
    clean: CleanProbability, wrong: np.ndarray, count: int, errors: float, seed: int, again: bool
) -> dict[str, float]:
    """Figures after `count` marks of one sample."""
    drawn, doubted = draw_sample(clean, count, seed), clean.values < THRESHOLD if again else None
    marked = reviewed(drawn.pairs, drawn.weight, wrong, errors, np.random.default_rng(seed), doubted)
    found, (share, low, high) = by_marks(clean, marked, seed)
    true = float(wrong.mean())
    return {
        "error": share - true,
        "width": high - low,
        "inside": low <= true <= high,
        "ece": calibration_error(found.values, ~wrong),
        "auc": None if not wrong.any() else auc(found.suspicion().astype(float), wrong),
    }


def of_order(clean: CleanProbability, wrong: np.ndarray, order: str, errors: float, seed: int) -> dict[str, float]:
    """Figures after the largest number of marks, in one order."""
    count, rng = COUNTS[-1], np.random.default_rng(seed)
    if order == "random":
        drawn = draw_sample(clean, count, seed)
        marked = reviewed(drawn.pairs, drawn.weight, wrong, errors, rng)
    else:
        first = {"informative": most_informative, "worst": worst_first}[order](clean)[:count]
        marked = reviewed(first, None, wrong, errors, rng)
    found, _ = by_marks(clean, marked, seed)
    return {
        "wrong side": float(((found.values < 0.5) != wrong).mean()),
        "wrong side before": float(((clean.values < 0.5) != wrong).mean()),
        "seen": int(wrong[marked.pair].sum()),
        "auc": None if not wrong.any() else auc(found.suspicion().astype(float), wrong),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run without noise")
    parser.add_argument("--errors", type=float, nargs="+", default=[0.0, 0.05], metavar="E", help="of the marks")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="of the noise")
    parser.add_argument("--repeats", type=int, default=40, metavar="N", help="samples of each draw")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/marks.json"), metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    began = time.perf_counter()
    rows, orders = [], []
    for name, clean, wrong in judged(RunFolder(args.run), args.draws):
        for errors, again in [*((errors, False) for errors in args.errors), (max(args.errors), True)]:
            for seed in range(args.repeats):
                known = {"noise": name, "errors": errors, "again": again, "true": float(wrong.mean())}
                counts = COUNTS if errors == args.errors[0] or seed == 0 else COUNTS[1:]
                rows += [known | {"marks": n} | of_sample(clean, wrong, n, errors, seed, again) for n in counts]
                if not again and (seed < args.repeats // 4 or seed == 0):
                    for order in ("random", "informative", "worst"):
                        orders.append(known | {"order": order} | of_order(clean, wrong, order, errors, seed))
    print(f"{len(wrong):,} pairs, {args.draws} draws of noise, {args.repeats} samples of each\n")
    print("| noise | errors | marks | share off by | rms | interval | holds the true one | ece | auc |")
    print("|---|---|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((row["noise"], row["errors"], row["again"], row["marks"]) for row in rows):
        own = [row for row in rows if (row["noise"], row["errors"], row["again"], row["marks"]) == key]
        error, width, inside, ece, order = (
            np.array([row[k] for row in own], dtype=float) for k in ("error", "width", "inside", "ece", "auc")
        )
        said = f"{error.mean():+.3f} | {np.sqrt((error**2).mean()):.3f} | {width.mean():.3f} | {inside.mean():.0%}"
        errors = f"{key[1]:.0%}{', again' if key[2] else ''}"
        print(f"| {key[0]} | {errors} | {key[3]} | {said} | {ece.mean():.3f} | {order.mean():.3f} |")
    print("\n| noise | errors | order | on the wrong side of .5 | before | wrong ones among 200 seen | auc |")
    print("|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((row["noise"], row["errors"], row["order"]) for row in orders):
        own = [row for row in orders if (row["noise"], row["errors"], row["order"]) == key]
        side, before, seen, order = (
            np.mean([row[k] for row in own], dtype=float) for k in ("wrong side", "wrong side before", "seen", "auc")
        )
        print(f"| {key[0]} | {key[1]:.0%} | {key[2]} | {side:.2%} | {before:.2%} | {seen:.0f} | {order:.3f} |")
    write_json(args.json, {"sample": rows, "orders": orders})
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
