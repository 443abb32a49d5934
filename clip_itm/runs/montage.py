"""A picture of a few captions with the images that each model finds for them."""

from pathlib import Path

import torch

from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.distributed import process_state
from clip_itm.files import replacing
from clip_itm.recipe import load_recipe
from clip_itm.runs.folder import RunFolder
from clip_itm.runs.setup import final_split, prepare_images, saved_encoder
from clip_itm.training.encode import scoring
from clip_itm.visible import visible


def draw_montage(runs: dict[str, Path], file: Path, queries: int = 4, top: int = 6) -> None:
    """For `queries` captions spread over the final split, the `top` images of every run (label -> run folder) as a PNG.

    The right image has a green frame; its rank is at the start of the row. Raises ValueError without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'clip-itm[plot]'") from None
    found = {label: _search(folder, queries, top) for label, folder in runs.items()}
    if not process_state().is_main_process:
        return
    with rc_context({"text.parse_math": False}):  # dollars in captions are dollars
        _draw(Figure, found, file, queries, top)


def _draw(make_figure, found: dict[str, list[dict]], file: Path, queries: int, top: int) -> None:
    rows = queries * len(found)
    figure = make_figure(figsize=(1.15 * top + 2.6, 1.2 * rows + 0.5 * queries), layout="constrained")
    blocks = figure.subfigures(queries, 1)
    for query, block in zip(range(queries), blocks if queries > 1 else [blocks], strict=True):
        block.suptitle(visible(next(iter(found.values()))[query]["caption"]), fontsize=10, weight="bold")
        axes = block.subplots(len(found), top, squeeze=False)
        for line, (label, answers) in zip(axes, found.items(), strict=True):
            answer = answers[query]
            line[0].set_ylabel(
                f"{visible(label)}\nright one: rank {answer['rank']}", rotation=0, ha="right", va="center", fontsize=8
            )
            for axis, (image, right) in zip(line, answer["images"], strict=False):
                axis.imshow(image)
                axis.set_xticks([])
                axis.set_yticks([])
                for side in axis.spines.values():
                    side.set_color("tab:green" if right else "lightgrey")
                    side.set_linewidth(4 if right else 1)
            for axis in line[len(answer["images"]) :]:
                axis.axis("off")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)


def _search(folder: Path, queries: int, top: int) -> list[dict]:
    """Captions of the final split with the images of highest similarity under the best model of one run."""
    recipe = load_recipe(folder)
    splits = load_splits(recipe.data)
    split = final_split(recipe, splits)
    encoder = saved_encoder(RunFolder(folder).model, recipe, prepare_images(recipe, {split.name: split}))
    embeddings = encoder.encode(split)
    answers = []
    sampled = torch.linspace(0, len(embeddings.images) - 1, queries + 2).long()[1:-1].tolist()
    for query, asked in enumerate(sampled):
        own = (embeddings.caption_image == asked).nonzero()[:, 0]
        caption_index = int(
            own[query % len(own)]
        )  # the first of one image, the second of the next: captions differ by place
        scores = scoring(encoder.model)(embeddings.images, embeddings.texts[caption_index : caption_index + 1])[:, 0]
        right = int(embeddings.caption_image[caption_index])
        best = scores.topk(min(top, len(scores))).indices.tolist()
        answers.append(
            {
                "caption": split.pairs.captions[caption_index].as_py(),
                "rank": 1 + int((scores > scores[right]).sum()),
                "images": [(read_image(split.rows[image]["image"]), image == right) for image in best],
            }
        )
    return answers
