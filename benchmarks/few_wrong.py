"""How small a share of wrong captions is seen, and how often one is seen where nothing is wrong.

    clip-itm train recipes/flickr8k/pretrained/clip.yaml --output_dir runs/judge
    python benchmarks/few_wrong.py runs/judge [other runs]

Each run judges photos of its data that it has not seen: val and test together, of which a number is drawn
(`--photos`), with 0, 1, 2 and 5 % of their captions shuffled. Every draw has photos, noise and made mismatches of its
own, and is judged by `made_null`, as an audit does it. "Weakened" judges have as much noise added to their embeddings
as these are long. A row says in how many of the draws wrong captions were found, the mean share if so, how many of the
intervals hold the true share, and their mean upper end. Prints Markdown, and writes --json FILE.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import concatenate_datasets
from torch.nn.functional import normalize

from clip_itm.allocator import keep_freed_memory
from clip_itm.calibration.estimate import MadeNull, made_null
from clip_itm.calibration.scores import BLOCK, made_mismatches, score_pairs
from clip_itm.data.load import load_splits
from clip_itm.data.rows import Split
from clip_itm.files import write_json
from clip_itm.runs.folder import RunFolder
from clip_itm.runs.setup import prepare_images, saved_encoder
from clip_itm.training.kept_embeddings import kept_embeddings

RATIOS = (0, 0.01, 0.02, 0.05)
SCALE = 10.0  # of the scores; ranks, by which shares are found, do not depend on it


def embeddings_of(folder: Path) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Unit vectors of images [P, D] and of the captions of all pairs [N, D], and the image int64 [N] of every pair."""
    run = RunFolder(folder)
    recipe = run.recipe()
    splits = load_splits(recipe.data)
    split = Split("test", concatenate_datasets([splits["val"].rows, splits["test"].rows]))
    found = kept_embeddings(saved_encoder(run.model, recipe, prepare_images(recipe, {"test": split})), split)
    return normalize(found.images, dim=1), normalize(found.texts, dim=1), split.pairs.image


def weakened(vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vectors [n, D] with noise that is as long as they are."""
    noise = torch.randn(vectors.shape, generator=generator)
    return normalize(vectors + normalize(noise, dim=1), dim=1)


def judged(
    images: torch.Tensor, texts: torch.Tensor, image: np.ndarray, photos: int, ratio: float, seed: int
) -> tuple[float, MadeNull]:
    """The true share and what is found in `photos` images, a fraction `ratio` of whose captions is shuffled."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(images), photos, replace=False))
    pairs = np.flatnonzero(np.isin(image, chosen))
    own = np.searchsorted(chosen, image[pairs])
    moved = rng.choice(len(pairs), round(ratio * len(pairs)), replace=False)
    source = pairs.copy()
    source[moved] = np.roll(pairs[moved], 1)
    scores = score_pairs(
        images[torch.from_numpy(chosen)],
        texts[torch.from_numpy(source)],
        own,
        made_mismatches(own, rng),
        SCALE,
        lambda rows, columns: rows @ columns.T,
        BLOCK,
    )
    return float((image[source] != image[pairs]).mean()), made_null([scores], len(pairs), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs without noise")
    parser.add_argument("--photos", type=int, nargs="+", default=[150, 500, 1000], metavar="P")
    parser.add_argument("--draws", type=int, default=20, metavar="N")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/few_wrong.json"), metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    rows = []
    print("| judge | photos | wrong | found in | mean share if so | intervals that hold | upper end |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for folder in args.runs:
        images, texts, image = embeddings_of(folder)
        generator = torch.Generator().manual_seed(0)
        judges = {str(folder): (images, texts)}
        judges[f"{folder}, weakened"] = weakened(images, generator), weakened(texts, generator)
        for name, vectors in judges.items():
            for photos in args.photos:
                for ratio in RATIOS:
                    draws = [judged(*vectors, image, photos, ratio, seed) for seed in range(args.draws)]
                    found = [null.share for _, null in draws if null.share > 0]
                    holds = sum(null.low <= true <= null.high for true, null in draws)
                    upper = float(np.mean([null.high for _, null in draws]))
                    share = f"{100 * np.mean(found):.1f} %" if found else ""
                    print(
                        f"| {name} | {photos:,} | {100 * ratio:g} % | {len(found)} of {len(draws)} | {share} "
                        f"| {holds} | {100 * upper:.1f} % |",
                        flush=True,
                    )
                    row = {"judge": name, "photos": photos, "ratio": ratio, "draws": len(draws)}
                    rows.append(row | {"found": found, "holds": holds, "upper": upper})
    write_json(args.json, rows)


if __name__ == "__main__":
    main()
