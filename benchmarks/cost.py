"""What a whole run of every method costs, in runs of the plain one: processor seconds, peak memory, where they go.

    python benchmarks/cost.py pretrained        # or scratch; needs the files that the recipes name

Flickr8k with 40 % shuffled captions, seed 0, features kept (run it twice if they are not yet). Each run has a process
and one thread of its own; the clock is the processor time of that process, which other work on the machine hardly
affects. "Training" is everything between the untrained and the trained model: a bank, the passes of an estimator,
folds, evaluations on val. Memory is the peak of the process. Writes runs/cost/BENCH.json.
"""

import argparse
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clip_itm.files import write_json

RECIPES = {"pretrained": Path("recipes/flickr8k/pretrained"), "scratch": Path("recipes/flickr8k")}
METHODS = ("clip", "robust", "osa", "npc", "crcl", "crossfit", "controls/crossfit_as_it_is", "controls/mixture")
PARTS = {"_train_fold": "folds, training", "_judge": "folds, judging", "_estimate": "share and weights"}


def one_run(file: str, out: str) -> None:
    """Train, and write what it cost to `out`/cost.json."""
    from clip_itm import load_recipe, train
    from clip_itm.methods.crossfit.trainer import CrossfitTrainer
    from clip_itm.runs import train as of_runs

    seconds: Counter = Counter()

    def timed(function, name):
        @functools.wraps(function)
        def call(*args, **kwargs):
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - began

        return call

    for method, name in PARTS.items():
        setattr(CrossfitTrainer, method, timed(getattr(CrossfitTrainer, method), name))
    make_trainer = of_runs.make_trainer

    def making(*args, **kwargs):
        trainer = make_trainer(*args, **kwargs)
        trainer.train = timed(trainer.train, "training")
        return trainer

    of_runs.make_trainer = making
    keys = ["--noise.ratio", "0.4", "--training.trackers", "[]", "--output_dir", f"{out}/run"]
    results = train(load_recipe(file, keys))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    cost = {"parts": dict(seconds), "run": time.process_time(), "peak_mib": peak, "steps": results["steps"]}
    write_json(Path(out) / "cost.json", cost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=RECIPES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    args = parser.parse_args()
    place = Path("runs/cost") / args.bench
    found = {}
    for method in dict.fromkeys(["clip", *args.methods]):
        folder = place / method
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        words = [sys.executable, __file__, "--one", str(RECIPES[args.bench] / f"{method}.yaml"), str(folder)]
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
        if done.returncode:
            sys.exit(f"{method} failed: {folder / 'log.txt'}")
        found[method] = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    plain = found["clip"]
    table = Table(title=f"{args.bench}: processor seconds of a run at 40 % noise, one thread")
    for header in ("", "training, s", "x clip", "whole run, s", "x clip", "peak, MiB", "of the training"):
        table.add_column(header, justify="right" if header else "left")
    for method, cost in found.items():
        training = cost["parts"]["training"]
        parts = ", ".join(f"{name} {100 * cost['parts'].get(name, 0) / training:.0f} %" for name in PARTS.values())
        table.add_row(
            Path(method).name,
            f"{training:.0f}",
            f"{training / plain['parts']['training']:.2f}",
            f"{cost['run']:.0f}",
            f"{cost['run'] / plain['run']:.2f}",
            f"{cost['peak_mib']:.0f}",
            parts if any(name in cost["parts"] for name in PARTS.values()) else "",
        )
    Console(width=160).print(table)
    write_json(Path(f"runs/cost/{args.bench}.json"), found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one_run(*sys.argv[2:])
    else:
        main()
