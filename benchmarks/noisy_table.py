"""The tables of recipes/flickr8k/README.md and recipes/flickr8k/pretrained/README.md, from runs of `clip-itm compare`.

    python benchmarks/noisy_table.py runs/pretrained     # the --out of one comparison, or of several with the same one

One row per noise and method: test rsum of the checkpoint that is best on val, mean and sample standard deviation over
seeds; differences from the plain loss and from gce over their common seeds, with their paired 95 % interval over test
images; the mean as a part of the oracle's. Then how well the methods found how many captions are wrong, and which.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

from clip_itm.evaluation.recall import paired_difference_of_runs
from clip_itm.evaluation.result import RetrievalResult
from clip_itm.reading import read_json
from clip_itm.runs.compare import noise_label

LABELS = {
    "robust": "robust (gce)",
    "mixture": "two Gaussians, doubted pairs go",
    "crossfit_alone": "crossfit, no siblings",
    "crossfit_as_it_is": "crossfit, folds 0",
    "osa_released": "osa, released",
    "oracle": "right pairs only (oracle)",
}
ORDER = (
    *("clip", "robust", "rince", "sce", "tal", "osa", "osa_released", "npc", "crcl"),
    *("mixture", "crossfit_as_it_is", "crossfit_alone", "crossfit", "oracle"),
)
Runs = dict[tuple[str, str], dict[int, Path]]  # (noise, method) -> seed -> folder


def finished(out: Path) -> Runs:
    runs: Runs = {}
    for file in sorted(out.glob("*/noise-*/seed-*/results.json")):
        noise = read_json(file, "the results of a run")["noise"]
        key = noise_label(noise["level"], noise["ratio"]), file.parents[2].name
        runs.setdefault(key, {})[int(file.parent.name.removeprefix("seed-"))] = file.parent
    return runs


def results(folder: Path) -> dict:
    return read_json(folder / "results.json", "the results of a run")


def metrics(folder: Path, protocol: str, stage: str = "best") -> dict:
    return results(folder)[stage][protocol]["metrics"]


def spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def difference(before: dict[int, Path], after: dict[int, Path], protocol: str) -> str:
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return ""
    ranks = [
        [RetrievalResult.load(runs[seed] / f"ranks_best/{protocol}.npz").folds for seed in seeds]
        for runs in (before, after)
    ]
    value, low, high = paired_difference_of_runs(*ranks)["rsum"]
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def retrieval(runs: Runs, protocol: str) -> Iterator[tuple]:
    yield (
        "noise",
        "method",
        "i2t R@1",
        "t2i R@1",
        "rsum",
        "against clip [95 %]",
        "against gce [95 %]",
        "of the oracle",
        "last",
        "seeds",
    )
    for noise, method in ordered(runs):
        own = runs[noise, method]
        best = [metrics(folder, protocol) for folder in own.values()]
        rsum = [row["rsum"] for row in best]
        others = [runs.get((noise, name), {}) for name in ("clip", "robust")]
        against = [
            "" if method in ("clip", name) else difference(other, own, protocol)
            for name, other in zip(("clip", "robust"), others, strict=True)
        ]
        oracle = [metrics(folder, protocol)["rsum"] for folder in runs.get((noise, "oracle"), {}).values()]
        part = f"{100 * mean(rsum) / mean(oracle):.1f} %" if oracle and method != "oracle" else ""
        last = [metrics(folder, protocol, "last")["rsum"] for folder in own.values()]
        recalls = (spread([row[name] for row in best]) for name in ("i2t_r1", "t2i_r1"))
        yield noise, LABELS.get(method, method), *recalls, spread(rsum), *against, part, spread(last), len(own)


def found(runs: Runs) -> Iterator[tuple]:
    yield "noise", "method", "share found [95 %]", "AUC", "precision", "ECE", "seeds"
    for noise, method in ordered(runs):
        rows = [results(folder) for folder in runs[noise, method].values()]
        shares = [one for one in (row.get("wrong_share") or {} for row in rows) if one.get("share") is not None]
        pairs = [row["wrong_pairs"] for row in rows if row.get("wrong_pairs")]
        if shares or pairs:
            share = ""
            if shares:
                share = f"{mean(one['share'] for one in shares):.3f}"
                if any(one["low"] != one["high"] for one in shares):  # two Gaussians give no interval
                    share += f" [{mean(one['low'] for one in shares):.3f}, {mean(one['high'] for one in shares):.3f}]"
            figures = (
                f"{mean(row[name] for row in pairs):.3f}" if pairs else "" for name in ("auc", "precision", "ece")
            )
            yield noise, LABELS.get(method, method), share, *figures, len(rows)


def ordered(runs: Runs) -> list[tuple[str, str]]:
    """By noise, numbers first, then by method as in `ORDER`."""
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(runs, key=lambda key: (not key[0][0].isdigit(), key[0], place.get(key[1], len(place)), key[1]))


def print_table(rows: Iterator[tuple]) -> None:
    for number, row in enumerate(rows):
        print("|", " | ".join(str(cell) for cell in row), "|")
        if number == 0:
            print("|" + "--:|:--|" + "--:|" * (len(row) - 2))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of the comparison")
    parser.add_argument("--protocol", default="flickr-1k")
    args = parser.parse_args()
    runs = finished(args.out)
    if not runs:
        raise SystemExit(f"{args.out}: there is no finished run of a comparison; make them with clip-itm compare")
    print_table(retrieval(runs, args.protocol))
    print_table(found(runs))


if __name__ == "__main__":
    main()
