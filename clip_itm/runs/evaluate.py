"""`evaluate`: recall of a model on images and captions that are in memory or anywhere else."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from clip_itm.data.configuration import HubData
from clip_itm.data.given import GivenData, given_data
from clip_itm.data.load import load_given
from clip_itm.data.rows import Split
from clip_itm.encoding import processor_of
from clip_itm.evaluation.protocol import Result
from clip_itm.evaluation.report import as_text, terminal_table
from clip_itm.model import ItmModel
from clip_itm.runs.ensemble import evaluate_encoders
from clip_itm.runs.models import load_model
from clip_itm.training.encoder import Encoder, autocast_dtype
from clip_itm.visible import counted


class Evaluation(Mapping[str, Result]):
    """Results by protocol, such as `evaluation["all"].metrics["rsum"]`; prints as the table of `clip-itm evaluate`."""

    def __init__(self, results: Mapping[str, Result], title: str):
        self.results, self.title = dict(results), title

    def __getitem__(self, protocol: str) -> Result:
        return self.results[protocol]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def as_dict(self) -> dict[str, dict]:
        """Plain JSON."""
        return {name: result.as_dict() for name, result in self.results.items()}

    def __str__(self) -> str:
        return as_text(terminal_table(list(self.as_dict().items()), title=self.title))

    __repr__ = __str__


def evaluate(
    model: Any,
    data: Any,
    *,
    protocols: Sequence[str] = ("all",),
    bootstrap: int = 1000,
    same_caption: bool = False,
    batch_size: int = 128,
    precision: str = "auto",
    cache_dir: str | Path | None = None,
    **columns: str,
) -> Evaluation:
    """Recall of `model` on `data`, with 95 % intervals over images.

    model: an `ItmModel`, or what `load_model` takes. data: a `Split` (such as `trainer.data["test"]`), a `Dataset`, or
    a list of {"image", "caption"} or (image, caption); rows of the same image are one image.
    protocols: see docs/evaluation.md. bootstrap: resamples (0: no intervals). same_caption: the right images of a
    caption are those of all equal captions (protocol all). batch_size: images or captions encoded at once. precision:
    that of the towers, as `training.precision`. cache_dir: where features of frozen towers are kept (default:
    ~/.cache/clip_itm). columns: `image_column` and `caption_column`, if their names are not the usual ones.

    Raises ValueError for data without images or captions, images that cannot be read, several splits at once, and for
    protocols that are unknown or not defined for these data.

    >>> result = evaluate(trainer.model, trainer.data["test"])
    >>> result["all"].metrics["rsum"]
    """
    model = model if isinstance(model, ItmModel) else load_model(model)
    cache = HubData(path=".", cache_dir=None if cache_dir is None else str(cache_dir)).cache_folder
    split = data if isinstance(data, Split) else _split(data, {**columns, "cache_dir": str(cache)})
    encoder = Encoder(model, processor_of(model), cache / "features", batch_size, precision=autocast_dtype(precision))
    results = evaluate_encoders(split, [encoder], protocols, bootstrap, same_caption)
    named = model.name_or_path or "model"
    return Evaluation(
        results,
        f"{named}: recall on {split.name} ({counted(len(split), 'photo')}, "
        f"{counted(len(split.pairs), 'caption')}), percent",
    )


def _split(data: Any, keys: dict[str, Any]) -> Split:
    found = given_data(data, keys, Path("data"))
    if not isinstance(found, GivenData):
        raise ValueError("data: expected a Split, a Dataset or a list of rows; load_dataset(...)[split] makes one")
    if isinstance(found.splits, DatasetDict):
        raise ValueError(f"data: these are the splits {', '.join(found.splits)}; choose one, such as data['test']")
    return load_given(found.section, found.splits)
