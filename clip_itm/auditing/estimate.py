"""How likely each training pair of a finished run is right: what the run kept, else an estimate from its best model.

Wrong captions are learned last, so their losses are larger, and a mixture of two components on the losses tells the
two groups apart (Li et al. 2020, DivideMix; docs/papers/npc.md 4.1).
"""

from pathlib import Path

import numpy as np

from clip_itm.checksums import add_checksums
from clip_itm.data.equal_captions import numbers_if_asked
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.distributed import process_state
from clip_itm.methods.mixture import fit_mixture
from clip_itm.methods.pair_losses import pair_losses
from clip_itm.recipe import Recipe
from clip_itm.runs.folder import RunFolder
from clip_itm.runs.setup import prepare_images, saved_encoder
from clip_itm.training.clean_probability import FILE, CleanProbability
from clip_itm.training.encode import scoring
from clip_itm.training.folder import record_added


def clean_probability_of_run(folder: Path, recipe: Recipe, train: Split, noise: CaptionNoise) -> CleanProbability:
    """What the run in `folder` left behind, else an estimate from its best model, which is then kept beside it.

    `train` and `noise` are the pairs the run was trained on. Raises ValueError when the kept file names other pairs.
    """
    state = process_state()
    if (folder / FILE).is_file():
        kept = CleanProbability.load(folder / FILE)
        if kept.noise_sha256 != noise.sha256 or len(kept.values) != len(noise.source):
            raise ValueError(f"{folder / FILE} belongs to other training pairs than {folder / 'noise.npz'}: delete it")
        return kept
    estimate = estimate_from_losses(RunFolder(folder).model, recipe, train, noise)
    if state.is_main_process:
        record_added(folder, FILE)
        estimate.save(folder / FILE)
        add_checksums(folder, [FILE])
    state.wait_for_everyone()
    return estimate


def estimate_from_losses(model_folder: Path, recipe: Recipe, train: Split, noise: CaptionNoise) -> CleanProbability:
    """Probability of the component with the lower losses, under a saved model. Encodes the training split once."""
    encoder = saved_encoder(model_folder, recipe, prepare_images(recipe, {train.name: train}))
    embeddings = encoder.encode(train)
    losses = pair_losses(
        embeddings.images,
        embeddings.texts,
        train.pairs.image,
        noise.source,
        float(encoder.model.head.scale().detach()),
        similarity=scoring(encoder.model),
        captions=numbers_if_asked(recipe.head, train.pairs, noise),
    )
    return CleanProbability(
        values=fit_mixture(losses, seed=0).monotone_clean_posterior(losses).astype(np.float32),
        ranking=-losses,
        method="mixture of two components on the losses of the best model, pair by pair in random batches of 256",
        noise_sha256=noise.sha256,
    )
