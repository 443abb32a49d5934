"""Folds of the photos: who judges whom, and what a fold's model says about pairs that it has not seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from clip_itm.calibration.equal_captions import EqualCaptions
from clip_itm.calibration.scores import BLOCK, FoldScores, made_mismatches, score_pairs
from clip_itm.data.equal_captions import numbers_if_asked
from clip_itm.data.training_data import TrainingData
from clip_itm.files import reading_arrays
from clip_itm.methods.pair_losses import pair_losses
from clip_itm.similarity.cosine import unit
from clip_itm.training.encode import scoring
from clip_itm.training.encoder import Encoder


def fold_of_images(count: int, folds: int, seed: int) -> np.ndarray:
    """The fold of each of `count` images, int64 [count]: 0..folds-1, of equal size up to one image, at random.

    Example:
        >>> np.bincount(fold_of_images(7, folds=2, seed=0))
        array([4, 3])
    """
    fold = np.empty(count, dtype=np.int64)
    fold[np.random.default_rng([seed, folds]).permutation(count)] = np.arange(count) % folds
    return fold


def judge_pairs(
    data: TrainingData,
    encoder: Encoder,
    pairs: np.ndarray,
    seed: int,
    candidates: int | None = None,
    with_losses: bool = False,
) -> tuple[FoldScores, np.ndarray | None]:
    """What the encoder's model says about training pairs, `pairs` int64 [n], which must be all pairs of some images.

    Returns their scores with those of made mismatches, and, if `with_losses`, their plain losses float32 [n], in seeded
    batches, for a mixture.
    """
    train, source = data.train, data.noise.source[pairs]
    images, image = np.unique(train.pairs.image[pairs], return_inverse=True)
    embeddings = encoder.encode_some(train, images, source)
    model, generator = encoder.model, np.random.default_rng([seed, len(pairs)])
    of_images, of_texts = embeddings.images.to(model.device), embeddings.texts.to(model.device)
    scale, score = float(model.head.scale().detach()), scoring(model)
    captions = numbers_if_asked(model.head.config, train.pairs, data.noise)
    captions = None if captions is None else captions[pairs]
    equal = None if captions is None else EqualCaptions(image, captions)
    mismatch = made_mismatches(image, generator, equal)
    scores = score_pairs(of_images, of_texts, image, mismatch, scale, score, BLOCK, candidates, generator, equal)
    losses = None
    if with_losses:
        source = np.arange(len(pairs))
        losses = pair_losses(of_images, of_texts, image, source, scale, seed=seed, similarity=score, captions=captions)
    features = encoder.text_features(train)
    if features is None:
        texts = unit(model.head.similarity.vectors(embeddings.texts)).numpy()
    else:  # of a pretrained tower, which has seen none of the pairs
        texts = features[source] / np.linalg.norm(features[source], axis=1, keepdims=True)
    return replace(scores, pairs=pairs, texts=texts.astype(np.float32)), losses


def load_scores(path: Path) -> tuple[FoldScores, np.ndarray | None] | None:
    """What `judge_pairs` gave for a fold, from a file of an interrupted run; None if it does not exist yet."""
    if not path.is_file():
        return None
    with reading_arrays(path, "", f"{path} holds no scores of a fold ({{error}}); delete it") as arrays:
        losses = arrays.pop("losses", None)
        return FoldScores(**{name: array[()] for name, array in arrays.items()}), losses
