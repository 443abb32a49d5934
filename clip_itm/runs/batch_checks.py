"""Batches that cannot be trained on, reported before training: without negatives, or too small for batch norm."""

import warnings

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_itm.backbones.masked_batch_norm import MaskedBatchNorm
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Pairs
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.distributed import process_state
from clip_itm.recipe import Recipe
from clip_itm.similarity.saf import CaptionNorm
from clip_itm.visible import counted, visible


def require_pairs(recipe: Recipe) -> None:
    """ValueError for batches of one pair; needs no data."""
    if recipe.training.contrastive_batch < 2:
        raise ValueError(
            "training.batch_size 1: a pair alone has no negatives, and its loss is 0 in every step; write 2 or more"
        )


def require_negatives(recipe: Recipe, sampler: PairBatchSampler) -> None:
    """ValueError if batches show only one image: there is nothing to tell it from, and the loss is 0."""
    images = sampler.pair_image[sampler.draw(0)]
    alone = (images == images[:, :1]).all(axis=1)
    training = recipe.training
    if training.batches == "grouped" and alone.any():
        raise ValueError(
            f"training.batch_size {training.batch_size} with training.captions_per_image "
            f"{training.captions_per_image}: a batch would hold the captions of one photo alone, which have no "
            "negatives; set training.batch_size to several times as many"
        )
    if alone.all():
        raise ValueError(
            f"training.batch_size {training.batch_size}: every batch shows one photo alone, which has no negatives "
            f"(the training split has {len(set(sampler.pair_image.tolist()))}); training needs more photos"
        )


def warn_of_crowded_captions(sampler: PairBatchSampler, pairs: Pairs, noise: CaptionNoise) -> None:
    """Warn if a caption has more images than there are batches, none of which takes it twice."""
    batches = sampler.batches_per_pass
    if sampler.pair_caption is None or not process_state().is_main_process:
        return
    counts = np.bincount(sampler.pair_caption)
    if (most := int(counts.max())) <= batches:
        return
    pair = int(np.flatnonzero(sampler.pair_caption == counts.argmax())[0])
    caption = visible(pairs.captions[int(noise.source[pair])].as_py())
    left_out = int((counts - batches).clip(0).sum())
    warnings.warn(
        f"training.unique_captions: an epoch has {batches} batches, and {caption!r:.80} is the caption of {most} "
        f"pairs, of which a batch takes one: {left_out} pairs of {counted((counts > batches).sum(), 'caption')} are "
        f"left out of each epoch, other ones each time; with training.batch_size {max(2, len(pairs) // most)} or less "
        "an epoch has room for all",
        stacklevel=1,
    )


def require_chunks_for_batch_norm(recipe: Recipe, model: nn.Module, sampler: PairBatchSampler) -> None:
    """ValueError if the gradient cache would cut a batch before trained batch norm, whose statistics are those of all
    rows. Batch norm in a similarity (SAF, SGR) comes after the cache and sees the whole batch."""
    training = recipe.training
    chunk = training.chunk(process_state().num_processes)
    if chunk is None or chunk >= sampler.batch_size:
        return
    mode = model.training
    norms = [
        name
        for name, module in model.train().named_modules()
        if module.training
        and (isinstance(module, MaskedBatchNorm) or (isinstance(module, _BatchNorm) and name.startswith("backbone.")))
    ]
    model.train(mode)
    if norms:
        key = "cache_chunk" if training.accumulate == "separate" else "accumulate: cached"
        raise ValueError(
            f"training.{key}: {norms[0]} is batch norm that trains, whose statistics are those of a whole batch; the "
            f"gradient cache shows it {chunk} rows at a time, which would be other gradients. Freeze that tower "
            "(backbone.freeze_image), choose an encoder of regions without batch norm (linear), or leave "
            f"training.{key.partition(':')[0]} out"
        )


def require_rows_for_batch_norm(recipe: Recipe, model: nn.Module, sampler: PairBatchSampler) -> None:
    """ValueError if a process would have a single row in a layer with trained batch norm."""
    mode = model.training
    norms = [
        name
        for name, module in model.train().named_modules()
        if isinstance(module, _BatchNorm)
        and module.training
        and not isinstance(module, CaptionNorm)  # its rows are the nodes of a caption with all images
    ]
    model.train(mode)
    if not norms:
        return
    training, rows = recipe.training, sampler.batch_size
    counts = torch.bincount(torch.from_numpy(sampler.pair_image))
    epochs = -(-(training.max_steps or 0) // len(sampler)) or training.epochs
    for epoch in range(epochs if rows <= counts.max() else 0):  # otherwise no image fills the share of a process
        images = sampler.pair_image[sampler.draw(epoch)].reshape(-1, rows)
        if (images == images[:, :1]).all(axis=1).any():
            raise ValueError(
                f"training.batch_size {training.batch_size}, {rows} pairs in each process: in epoch {epoch + 1} a "
                f"process gets pairs of one photo alone, and {norms[0]} is batch norm, which needs two photos; raise "
                "training.batch_size, or use training.batches: unique"
            )
