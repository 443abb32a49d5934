"""An audit of 200,000 pairs: time and memory of every stage, and the same result after a kill.

    python benchmarks/audit_large.py MODEL --pairs 200000      # needs the photos of Flickr8k

The data are the photos of Flickr8k again and again, under other names and ids, with 40 % of their captions exchanged.
`clip-itm audit` runs in a process of its own from an empty cache; then, from an empty cache again, it is killed
(SIGKILL) as soon as half of the photos are encoded and kept, and started again. Its table must be the same to the byte.
Seconds are processor time, which other work on the machine hardly affects. Writes OUT/large.json.
"""

import argparse
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clip_itm.checksums import checksum_of
from clip_itm.files import write_json
from clip_itm.training.feature_cache import IMAGES_AT_ONCE
from clip_itm.training.kept_embeddings import PART

STAGES = {  # the functions that `audit` calls, in the module that calls them
    "clip_itm.auditing.judging.load_splits": "reading the table",
    "clip_itm.auditing.judging.kept_embeddings": "embeddings",
    "clip_itm.auditing.judging.estimate": "scores, share, probabilities",
    "clip_itm.auditing.table.Photos.copies": "groups: hashes of photos, compared",
    "clip_itm.auditing.table.similar_photos": "groups: embeddings of photos, compared",
    "clip_itm.auditing.table.groups_of": "groups: captions",
    "clip_itm.auditing.table.suggested": "suggestions for the worst 500",
    "clip_itm.auditing.table.Audit.save": "table, with groups and suggestions",
    "clip_itm.auditing.page.audit_page": "page",
}


def made_data(flickr: Path, folder: Path, pairs: int) -> int:
    """Make a folder of links and a table; returns the number of its pairs."""
    rows = json.loads((flickr / "dataset_flickr8k.json").read_text(encoding="utf-8"))["images"]
    count, copy = 0, 0
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as table:
        while count < pairs:
            (folder / f"{copy}").symlink_to((flickr / "images").resolve())
            for row in rows:
                captions = [sentence["raw"].strip() for sentence in row["sentences"]][: pairs - count]
                if not captions:
                    break
                table.write(
                    json.dumps({"file_name": f"{copy}/{row['filename']}", "split": "train", "captions": captions})
                )
                table.write("\n")
                count += len(captions)
            copy += 1
    return count


def command(model: str, data: Path, out: Path, cache: Path) -> list[str]:
    keys = ["--noise.ratio", "0.4", "--data.cache_dir", str(cache)]
    return ["audit", str(data), "--model", model, "--out", str(out), *keys]


def timed_audit(words: list[str], file: str) -> None:
    """The command, in this process, with the clock around its stages; writes what it cost."""
    from importlib import import_module

    from clip_itm.cli import main as clip_itm

    seconds: Counter = Counter()
    peak: dict[str, float] = {}

    def timed(function, name):
        @functools.wraps(function)
        def call(*args, **kwargs):
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - began
                peak[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux

        return call

    for place, name in STAGES.items():
        module, _, attribute = place.rpartition(".")
        try:
            owner = import_module(module)
        except ModuleNotFoundError:  # a class of a module
            module, _, kind = module.rpartition(".")
            owner = getattr(import_module(module), kind)
        setattr(owner, attribute, timed(getattr(owner, attribute), name))
    if status := clip_itm(words):
        sys.exit(status)
    write_json(file, {"seconds": dict(seconds), "peak_mib": peak, "whole": time.process_time()})


def killed_half_way(words: list[str], cache: Path, photos: int) -> int:
    """Start the command, kill it when half of the photos are kept, and return how many are.

    They are kept as embeddings, or first as features if the tower of the judge is frozen.
    """
    kept_at_once = {"features/photos-*.part.npy": IMAGES_AT_ONCE, "embeddings/photos-*.npy": PART}
    with subprocess.Popen([sys.executable, "-m", "clip_itm.cli", *words], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            kept = max(len(list(cache.glob(name))) * count for name, count in kept_at_once.items())
            if kept >= max(1, min(photos // 2, photos // PART * PART)):
                process.send_signal(signal.SIGKILL)
                return kept
            time.sleep(0.2)
    raise SystemExit("it ended before half of the photos were kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what judges: a run, a model folder or a name on the Hub")
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--flickr", type=Path, default=Path("../shared/data/flickr8k"))
    parser.add_argument("--out", type=Path, default=Path("runs/audit_large"))
    args = parser.parse_args()
    if os.environ.get("CLIP_ITM_TIMED"):  # the process that is measured
        timed_audit(json.loads(os.environ["CLIP_ITM_TIMED"]), str(args.out / "cost.json"))
        return
    if args.out.exists() and any(args.out.iterdir()):
        raise SystemExit(f"{args.out} is not empty: name another folder with --out, or delete it")
    data, cache = args.out / "data", args.out / "cache"
    count = made_data(args.flickr, data, args.pairs)
    photos = sum(1 for _ in (data / "metadata.jsonl").open(encoding="utf-8"))

    def measured(name: str) -> dict:
        words = command(args.model, data, args.out / name, cache)
        subprocess.run([sys.executable, *sys.argv], env=os.environ | {"CLIP_ITM_TIMED": json.dumps(words)}, check=True)
        return json.loads((args.out / "cost.json").read_text(encoding="utf-8"))

    whole = measured("whole")
    shutil.rmtree(cache)
    kept = killed_half_way(command(args.model, data, args.out / "killed", cache), cache, photos)
    resumed = measured("killed")
    files = [args.out / name / "audit.parquet" for name in ("whole", "killed")]
    if checksum_of(files[0]) != checksum_of(files[1]):
        raise SystemExit(f"{files[1]} is another table after the kill")
    table = Table(title=f"{count:,} pairs, {photos:,} photos; killed with {kept:,} kept; both tables are the same")
    for column in ("stage", "processor s", "peak MiB by its end", "after the kill, s"):
        table.add_column(column)
    for name in [*STAGES.values()]:
        cells = (whole["seconds"].get(name, 0), whole["peak_mib"].get(name, 0), resumed["seconds"].get(name, 0))
        table.add_row(name, *(f"{cell:,.0f}" for cell in cells))
    table.add_row("all", f"{whole['whole']:,.0f}", "", f"{resumed['whole']:,.0f}")
    Console().print(table)
    write_json(args.out / "large.json", {"pairs": count, "photos": photos, "whole": whole, "resumed": resumed})
    shutil.rmtree(cache)


if __name__ == "__main__":
    main()
