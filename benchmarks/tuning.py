"""Equally many tries for each method that has settings of its own: rsum on val at 40 % wrong captions, seed 0.

python benchmarks/tuning.py pretrained      # or scratch; needs the files that the recipes name

The first try of a method is its recipe as it is, and the best one is what the recipe has. The test split is not used.
"""

import argparse
from pathlib import Path

from clip_itm import load_recipe, train

RECIPES = {"pretrained": Path("recipes/flickr8k/pretrained"), "scratch": Path("recipes/flickr8k")}
# sections of the recipe other than these are the same for all methods
TRIES = {
    "clip": [
        {},
        {"training.learning_rate": 1.5e-3},
        {"training.learning_rate": 6e-3},
        {"head.max_logit_scale": 20},
        {"backbone.hidden_dropout": 0.5},
        {"training.batches": "unique"},
    ],
    "crcl": [
        {},
        {"head.temperature": 0.1},
        {"head.temperature": 0.03},
        {"head.frozen_epochs": 1},
        {"training.batch_size": 256},
        {"training.learning_rate": 1.5e-3},
    ],
    "npc": [
        {},
        {"head.memory_coef": 1},
        {"head.rho": 0.5},
        {"head.warmup_epochs": 1},
        {"head.warmup_epochs": 3},
        {"training.learning_rate": 1.5e-3},
    ],
    "osa": [
        {},
        {"head.loss": "infonce"},
        {"head.warmup_epochs": 2},
        {"head.loss": "infonce", "head.warmup_epochs": 2},
        {"head.normalise": "none"},
        {"training.learning_rate": 1.5e-3},
    ],
    "robust": [
        {},
        {"head.q": 0.2},
        {"head.q": 0.5},
        {"head.q": 0.7},
        {"training.learning_rate": 1.5e-3},
        {"training.learning_rate": 6e-3},
    ],
    "crossfit": [
        {},
        {"head.fold_epochs": 2},
        {"head.fold_epochs": 5},
        {"head.folds": 3},
        {"head.loss": "gce"},
        {"training.learning_rate": 1.5e-3},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=RECIPES)
    parser.add_argument("--methods", nargs="+", choices=TRIES, default=list(TRIES))
    parser.add_argument("--out", default="runs/tuning")
    args = parser.parse_args()
    rows = []
    for method in args.methods:
        for number, keys in enumerate(TRIES[method]):
            words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
            place = ["--output_dir", f"{args.out}/{args.bench}/{method}-{number}", "--training.trackers", "[]"]
            recipe = load_recipe(RECIPES[args.bench] / f"{method}.yaml", ["--noise.ratio", "0.4", *words, *place])
            results = train(recipe)
            settings = ", ".join(f"{key} {value}" for key, value in keys.items()) or "as it stands"
            rows.append(f"| {method} | {settings} | {results['best_val_rsum']:.1f} |")
            print(rows[-1], flush=True)
    print("\n".join(["", "| method | settings | rsum on val |", "|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
