"""The line between two models in the space of weights: WiSE-FT (Wortsman et al. 2022, section 3).

    theta(alpha) = (1 - alpha) * theta_base + alpha * theta_tuned          all weights, the temperature included

Fine-tuning gains on data like the training data and may lose elsewhere; points on the line often keep most of both. A
point is chosen on the val split (and on a zero-shot set, if asked), never on the final split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from clip_itm.data.class_folder import ClassFolder, without_broken
from clip_itm.data.load import load_splits
from clip_itm.distributed import process_state
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import Recipe
from clip_itm.runs.build import val_captions, val_metrics
from clip_itm.runs.setup import check_protocols, final_split, make_encoder, make_model, prepare_images
from clip_itm.runs.train import evaluate_split
from clip_itm.training.encoder import Encoder
from clip_itm.training.zero_shot import require_vectors, zero_shot_accuracy
from clip_itm.visible import counted

State = dict[str, Tensor]


def require_same_names(base: State, tuned: State, named: str) -> None:
    """ValueError if two state dicts are not of one architecture; `named` is what the first one is called."""
    if strange := base.keys() ^ tuned.keys():
        raise ValueError(
            f"{named} is no model to interpolate from: {counted(len(strange), 'weight is', 'weights are')} in one of "
            f"the two models only, such as {min(strange)}; expected the model that the tuned one began as (the same "
            "backbone and head)"
        )
    for name, weight in tuned.items():
        if base[name].shape != weight.shape:
            raise ValueError(
                f"{named} is no model to interpolate from: {name} is {list(base[name].shape)} there and "
                f"{list(weight.shape)} in the tuned model"
            )


@torch.no_grad()
def set_weights(model: nn.Module, base: State, tuned: State, alpha: float) -> None:
    """Give `model` the point `alpha`: 0 is `base` and 1 is `tuned`, to the bit; integers (counters) are `tuned`'s."""
    for name, weight in model.state_dict().items():
        # lerp, unlike the formula, leaves equal weights as they are
        point = torch.lerp(base[name], tuned[name], alpha) if weight.is_floating_point() else tuned[name]
        weight.copy_(point)


def float_state(model: nn.Module) -> State:
    """The weights on the CPU, in float32 whatever they were saved in."""
    return {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in model.state_dict().items()
    }


@dataclass
class Point:
    """Figures at one alpha, in percent: rsum and all recalls on val, results by protocol, top-1 accuracy."""

    alpha: float
    val: dict[str, float] | None
    results: dict[str, dict]
    zero_shot: float | None

    @property
    def both(self) -> float:
        """The mean of the mean recall on val and the zero-shot accuracy."""
        return (self.val["rsum"] / 6 + self.zero_shot) / 2


class Line:
    """All that is needed to make and evaluate the points between two models.

    `base`: the folder of a model, None for what the recipe of the tuned model started from.
    """

    def __init__(self, recipe: Recipe, base: Path | None, tuned: Path, classes: ClassFolder | None = None):
        self.recipe = recipe
        with process_state().main_process_first():
            splits = load_splits(recipe.data)
            self.classes = None if classes is None else without_broken(classes, recipe.data)
        self.final, self.val = final_split(recipe, splits), splits.get("val")
        check_protocols(recipe, self.final)
        self.image_cache = prepare_images(
            recipe, {split.name: split for split in (self.final, self.val) if split is not None}
        )
        self.processor = ItmProcessor.from_pretrained(tuned)
        start = make_model(recipe, splits)[0] if base is None else ItmModel.from_pretrained(base)
        self.base = float_state(start.without_lora())
        self.model = ItmModel.from_pretrained(tuned).without_lora().float().to(process_state().device)
        self.tuned = float_state(self.model)
        require_same_names(self.base, self.tuned, "step 0 of the recipe" if base is None else str(base))
        if classes is not None:
            require_vectors(self.model, "--zeroshot")

    def points(self, alphas: Sequence[float]) -> list[Point]:
        disable = not process_state().is_main_process
        return [self.point(alpha) for alpha in tqdm(alphas, desc="points of the line", disable=disable)]

    def point(self, alpha: float) -> Point:
        set_weights(self.model, self.base, self.tuned, alpha)
        # a new one for every point: it keeps the outputs of the towers
        encoder = make_encoder(self.recipe, self.model, self.processor, self.image_cache)
        val = None if self.val is None else self._val_metrics(encoder)
        return Point(alpha, val, evaluate_split(self.recipe, self.final, encoder), self._zero_shot(encoder))

    def _val_metrics(self, encoder: Encoder) -> dict[str, float]:
        captions = val_captions(self.recipe, self.val)
        return val_metrics(self.model, encoder.encode(self.val), captions=captions)

    def _zero_shot(self, encoder: Encoder) -> float | None:
        if self.classes is None:
            return None
        return zero_shot_accuracy(
            self.model, self.processor, self.classes, encoder.batch_size, encoder.num_workers, encoder.precision
        )


def choose(points: Sequence[Point], rule: str | float) -> Point:
    """The point with the best rsum on val ("val"), the best `Point.both` ("both"), or at an alpha; ties: the lowest."""
    if rule == "val":
        return max(points, key=lambda point: point.val["rsum"])
    if rule == "both":
        return max(points, key=lambda point: point.both)
    return next(point for point in points if point.alpha == rule)
