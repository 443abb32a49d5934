"""`audit`: the pairs of a run, or of any data under any model, judged by made mismatches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import DatasetDict

from clip_itm.auditing.estimate import CANDIDATES, FEW_CANDIDATES, Estimate, PairScore, estimate
from clip_itm.auditing.table import Audit
from clip_itm.calibration.equal_captions import EqualCaptions
from clip_itm.checksums import add_checksums, check_files
from clip_itm.data.equal_captions import numbers_if_asked
from clip_itm.data.given import GivenData, given_data
from clip_itm.data.load import load_given, load_splits
from clip_itm.data.marked_pairs import read_all_marks
from clip_itm.data.marked_training import with_marks
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.distributed import process_state
from clip_itm.encoding import processor_of
from clip_itm.files import model_folder
from clip_itm.model import ItmModel
from clip_itm.recipe import Recipe
from clip_itm.runs.audited_data import DataToAudit, data_to_audit
from clip_itm.runs.folder import RunFolder
from clip_itm.runs.models import load_model
from clip_itm.runs.setup import make_encoder, noise_of, prepare_images, saved_encoder
from clip_itm.runs.stored import read_provenance
from clip_itm.similarity.cosine import unit
from clip_itm.training.clean_probability import FILE, CleanProbability
from clip_itm.training.encode import Embeddings, scoring
from clip_itm.training.encoder import Encoder
from clip_itm.training.folder import record_added
from clip_itm.training.kept_embeddings import kept_embeddings

if TYPE_CHECKING:
    from clip_itm.runs.trainer import ItmTrainer

METHOD = "score of crossfit under the model, calibrated by made mismatches"
MIXTURE = "mixture of two components on the losses of the best model"  # of an earlier version; not a probability
ON_ITS_OWN = "an estimate that the run made of its own while it trained"


def audit(
    data: "ItmTrainer | str | Path | Recipe | Split | Any",
    model: Any = None,
    *overrides: str,
    split: str = "train",
    marks: str | Path | Sequence[str | Path] | None = None,
    **keys: Any,
) -> Audit:
    """Which captions are probably wrong, and how many: all pairs by how suspicious they are.

    audit(run): the training pairs of a trainer that has trained, or of a run folder, by what the run found about them,
    else by its best model. audit(data, model): the pairs of a recipe (an object or a file), a folder, "hub:NAME", a
    `Split`, a `Dataset` or a list of {"image", "caption"}; `model` is what `load_model` takes.
    overrides: keys of the recipe, such as "--data.root", "FOLDER". split: the one to judge. keys: of the data section,
    for data in memory, such as `caption_column`. marks: one or several files of what people said about pairs, which the
    answer takes into account.

    Raises ValueError for a run that is not finished, for data without this split, for fewer than two images, and for
    files that hold no marks.

    >>> print(audit(trainer).head(20))
    >>> print(audit("photos", "openai/clip-vit-base-patch32").head(20))
    """
    if marks is not None:
        said = read_all_marks([marks] if isinstance(marks, str | Path) else marks)
        return audit(data, model, *overrides, split=split, **keys).with_marks(said)
    if isinstance(model, str) and model.startswith("--"):  # a key of the recipe of a run
        overrides, model = (model, *overrides), None
    if model is None:
        run = Path(data) if isinstance(data, str | Path) else data.run.path
        return audit_run(run, overrides, split)
    if isinstance(data, str | Path):
        data = data_to_audit(data, overrides)
    elif isinstance(data, Recipe):
        data = DataToAudit(data.with_overrides(*overrides), data.data.source)
    return audit_data(data, model, split, keys)


def audit_run(folder: Path, overrides: Sequence[str] = (), name: str = "train") -> Audit:
    """Pairs of a finished run. Raises ValueError for a folder without one, and for data that are not those of the run.

    What the run kept about its training pairs comes first if it is calibrated; otherwise its best model judges them,
    and what it finds is kept in the run.
    """
    run = RunFolder(folder)
    recipe = run.recipe(overrides)
    run.require_finished()
    with process_state().main_process_first():
        splits = load_splits(recipe.data)
    check_files(folder, ("provenance.json",))
    began, noise = run.provenance(), CaptionNoise.load(run.noise_file)
    if "train" in splits:
        splits, noise = with_marks(splits, noise, recipe.data.marks)
    if "train" not in splits or splits["train"].sha256 != began["splits"]["train"]["sha256"]:
        raise ValueError(
            f"{folder}: the training split is another one than the run was trained on; restore the data, or say "
            "where they are now (such as --data.root FOLDER)"
            + ("; marks in data.marks that were added since belong to --marks" if recipe.data.marks else "")
        )
    if noise.sha256 != began["noise"]["sha256"]:
        raise ValueError(f"{run.noise_file} is that of another run; restore it from {run.model}")
    split, is_train = one_of(splits, name), name == "train"
    noise = noise if is_train else CaptionNoise.clean(split.pairs)
    kept = kept_by_run(folder, noise) if is_train else None
    encoder = saved_encoder(run.model, recipe, prepare_images(recipe, {name: split}))
    embeddings = kept_embeddings(encoder, split)
    equal = numbers_if_asked(recipe.head, split.pairs, noise)
    found = judge_split(encoder, split, noise, True, equal, embeddings)
    if is_train:
        found = doubtful(found)
    clean = as_probabilities(found, noise, run.model, is_train)
    if kept is not None and kept.is_calibrated:
        found, clean, is_train = with_kept(found, kept, "crossfit"), kept, False
    elif kept is not None:
        found = with_kept(found, kept, "kept")
    elif name == "train":
        keep(folder, clean)
    settings = {"is_trained": is_train, "run": folder, "recipe_sha256": began["recipe_sha256"]}
    settings |= {"data": recipe.data, **for_suggestions(encoder, embeddings)}
    return Audit(str(folder), str(run.model), recipe.data.source, splits, name, noise, found, clean, **settings)


def audit_data(data: Any, model: Any, name: str = "train", keys: Mapping[str, Any] | None = None) -> Audit:
    """Pairs of data under a model: `data` as in `audit`, or a `DataToAudit`."""
    if isinstance(data, DataToAudit):
        recipe, title = data.recipe, data.title
        with process_state().main_process_first():
            splits = load_splits(recipe.data)
        split = one_of(splits, name)
    else:
        splits = {found.name: found for found in [data if isinstance(data, Split) else _in_memory(data, keys or {})]}
        name, split = next(iter(splits.items()))
        recipe, title = None, "the given data"
    where = getattr(model, "name_or_path", None) or "model" if isinstance(model, ItmModel) else str(model)
    model = model if isinstance(model, ItmModel) else load_model(model)
    if model.backbone.config.reads_regions != (split.regions is not None):
        reads = "regions" if split.regions is None else "photos"
        raise ValueError(f"--model {where} reads {reads}, which these data do not give: name another model")
    recipe = recipe or data_to_audit({"source": "hub", "path": ".", **_cache(keys)}).recipe
    noise = noise_of(recipe, splits) if name == "train" and recipe.noise != type(recipe.noise)() else None
    noise = noise or CaptionNoise.clean(split.pairs)
    images = prepare_images(recipe, {name: split}) if isinstance(data, DataToAudit) else None
    encoder = replace(make_encoder(recipe, model, processor_of(model), images), random_crop=1.0)
    embeddings = kept_embeddings(encoder, split)
    found, is_trained = judge_split(encoder, split, noise, embeddings=embeddings), _saw(where, split)
    if is_trained:
        found = doubtful(found)
    clean = as_probabilities(found, noise, where, is_trained)
    settings = {"is_trained": is_trained, **for_suggestions(encoder, embeddings)}
    settings["data"] = recipe.data if isinstance(data, DataToAudit) else None
    return Audit(title, where, recipe.data.source, splits, name, noise, found, clean, **settings)


def one_of(splits: Mapping[str, Split], name: str) -> Split:
    if name not in splits:
        raise ValueError(f"--split {name}: these data have {', '.join(splits)}")
    return splits[name]


def for_suggestions(encoder: Encoder, embeddings: Embeddings) -> dict[str, Any]:
    """What an `Audit` needs to look for copies and for what would be right."""
    compares_vectors = encoder.model.head.similarity.is_dot_product
    return {"embeddings": embeddings if compares_vectors else None, "cache_folder": encoder.cache_folder.parent}


def judge_split(
    encoder: Encoder,
    split: Split,
    noise: CaptionNoise,
    has_loss: bool = False,
    captions: np.ndarray | None = None,
    embeddings: Embeddings | None = None,
) -> Estimate:
    """All scores of the pairs of a split, with the captions that `noise` gives them, under the encoder's model.

    `captions` int64 [N]: a number that equal captions share, if they fit all of their images (`EqualCaptions`).
    `embeddings`: those of the split, if they have been made.
    """
    embeddings = embeddings or kept_embeddings(encoder, split)
    similarity, device = encoder.model.head.similarity, encoder.model.device
    given = torch.from_numpy(noise.source)
    text = noise.apply(split.pairs).dictionary_encode().indices.to_numpy().astype(np.int64)
    is_plain = similarity.is_dot_product
    return estimate(
        embeddings.images.to(device),
        embeddings.texts[given].to(device),
        split.pairs.image,
        text,
        scale=float(encoder.model.head.scale().detach()),
        score=scoring(encoder.model),
        vectors=None if is_plain else lambda texts: unit(similarity.vectors(texts)),
        has_loss=has_loss,
        candidates=CANDIDATES if is_plain else FEW_CANDIDATES,
        equal=None if captions is None else EqualCaptions(split.pairs.image, captions),
    )


def as_probabilities(found: Estimate, noise: CaptionNoise, model: str | Path, is_trained: bool) -> CleanProbability:
    """The default score under `model`, which was trained on these pairs or not."""
    return CleanProbability(
        values=found.probability.astype(np.float32),
        ranking=-found.scores[found.default].suspicion.astype(np.float32),
        method=f"{METHOD}: {model}{', trained on these pairs' if is_trained else ''}",
        noise_sha256=noise.sha256,
        share=(found.share, found.low, found.high),
        is_weak=found.is_weak,
    )


def doubtful(found: Estimate) -> Estimate:
    """For a model that was trained on the pairs: only the default score keeps its probabilities, which are too high."""
    first, why = found.default, "the model was trained on these pairs"
    scores = {name: PairScore(one.suspicion, None, why) for name, one in found.scores.items() if name != first}
    return replace(found, scores={first: found.scores[first], **scores})


def with_kept(found: Estimate, kept: CleanProbability, name: str) -> Estimate:
    """The scores of a model next to what the run found, which is the default if it is calibrated."""
    suspicion = kept.suspicion().astype(np.float64)
    if not kept.is_calibrated:
        return replace(found, scores={**found.scores, name: PairScore(suspicion, None, ON_ITS_OWN)})
    assert kept.share is not None, "it is calibrated"
    share, low, high = kept.share
    others = {other: one for other, one in found.scores.items() if other != name}
    own = PairScore(suspicion, kept.values.astype(np.float64))
    return replace(found, scores={name: own, **others}, share=share, low=low, high=high, is_weak=kept.is_weak)


# Files of a run -------------------------------------------------------------------------------------------------------


def kept_by_run(folder: Path, noise: CaptionNoise) -> CleanProbability | None:
    """What a run found about its training pairs; None if nothing, or if an audit left it there.

    Raises ValueError if the kept file names other pairs.
    """
    if not (folder / FILE).is_file():
        return None
    kept = CleanProbability.load(folder / FILE)
    if kept.noise_sha256 != noise.sha256 or len(kept.values) != len(noise.source):
        raise ValueError(f"{folder / FILE} belongs to other training pairs than {folder / 'noise.npz'}: delete it")
    return None if kept.method.startswith((METHOD, MIXTURE)) else kept


def keep(folder: Path, clean: CleanProbability) -> None:
    """Leave the probabilities in the run, for later audits and for `head.weights` of other runs."""
    state = process_state()
    if state.is_main_process:
        record_added(folder, FILE)
        clean.save(folder / FILE)
        add_checksums(folder, [FILE])
    state.wait_for_everyone()


# Data of a user -------------------------------------------------------------------------------------------------------


def _in_memory(data: Any, keys: Mapping[str, Any]) -> Split:
    found = given_data(data, {**keys, **_cache(keys)}, Path("data"))
    if not isinstance(found, GivenData):
        raise ValueError("data: expected a folder, a recipe, hub:NAME, a Split, a Dataset or a list of rows")
    if isinstance(found.splits, DatasetDict):
        raise ValueError(f"data: these are the splits {', '.join(found.splits)}; choose one, such as data['train']")
    return load_given(found.section, found.splits)


def _cache(keys: Mapping[str, Any] | None) -> dict[str, str]:
    cache = (keys or {}).get("cache_dir")
    return {} if cache is None else {"cache_dir": str(cache)}


def _saw(model: str, split: Split) -> bool:
    """Whether a model is known to have been trained on the captions of this split: its folder names them."""
    try:
        folder = model_folder(Path(model))
    except (ValueError, OSError):
        return False
    if not (folder / "provenance.json").is_file():
        return False
    began = read_provenance(folder / "provenance.json")
    hashes = began["splits"].get("train", {}).get("sha256"), (began.get("marks") or {}).get("train_sha256")
    return split.sha256 in hashes
