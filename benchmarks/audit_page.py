"""The picture of an audit's page in the documentation: drawn scenes with planted faults, judged by a model.

    clip-itm train recipes/sample/clip.yaml
    python benchmarks/audit_page.py runs/sample/clip

Needs Chromium. One caption in twenty is that of another scene; among the rest are names of files, words of a web
page, a copy of a scene, and scenes that the other split has, too.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from clip_itm.auditing.judging import audit
from clip_itm.auditing.page import audit_page
from clip_itm.data.configuration import SampleData
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits

SCENES, SHUFFLED, SEED = 400, 40, 7  # in train; with the captions of others; of scenes that the model has not seen
WINDOW = "1280,1250"


def make_data(folder: Path, cache: str | None) -> None:
    """Photos and `metadata.jsonl` below `folder`."""
    splits = load_splits(SampleData(train_images=SCENES, val_images=40, test_images=1, seed=SEED, cache_dir=cache))
    table = []
    for name in ("train", "val"):
        for number, row in enumerate(splits[name].rows):
            table.append({"file_name": f"{name}{number:03d}.png", "captions": row["captions"][:2], "split": name})
            read_image(row["image"]).save(folder / table[-1]["file_name"])
    train = table[:SCENES]
    moved = np.random.default_rng(0).permutation(SCENES)[:SHUFFLED]
    first = [train[number]["captions"] for number in moved]
    for number, captions in zip(moved, first[1:] + first[:1], strict=True):
        train[number]["captions"] = [captions[0], train[number]["captions"][1]]
    for place in range(5, SCENES, 70):
        train[place]["captions"][0] = f"IMG_{2000 + place}.JPG"
    for place in range(8, SCENES, 60):
        train[place]["captions"][1] = "Click to enlarge"
    for split, place in (("val", 3), ("val", 11), ("train", 20)):
        name = f"again{len(table):03d}.jpg"
        read_image({"path": str(folder / f"{split}{place:03d}.png"), "bytes": None}).resize((96, 96)).save(
            folder / name
        )
        table.append({"file_name": name, "captions": ["a scene", "some shapes"], "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what judges: a run, or what load_model takes")
    parser.add_argument("--out", type=Path, default=Path("docs/images/audit_page.png"), metavar="PNG")
    parser.add_argument("--cache-dir", help="of the data")
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "scenes")
        photos.mkdir()
        make_data(photos, args.cache_dir)
        keys = () if args.cache_dir is None else ("--data.cache_dir", args.cache_dir)
        page = audit_page(audit(photos, args.model, *keys), 60).replace(folder + "/", "")
        Path(folder, "page.html").write_text(page, encoding="utf-8")
        words = ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={WINDOW}")
        command = [browser, *words, f"--screenshot={args.out.absolute()}", Path(folder, "page.html").as_uri()]
        subprocess.run(command, check=True, capture_output=True)
    print(args.out)


if __name__ == "__main__":
    main()
