"""Simulated folds of two groups: right pairs, and wrong ones that are exchangeable with made mismatches."""

import numpy as np

from clip_itm.calibration.scores import FoldScores, made_mismatches


def simulated_fold(
    rng: np.random.Generator,
    share: float,
    images: int = 400,
    captions: int = 5,
    level: str = "caption",
    width: int = 16,
    first: int = 0,
    strength: float = 2.5,
    hard: float = 0.0,
) -> tuple[FoldScores, np.ndarray]:
    """Scores of a fold, and bool [n] which pairs are right; a pair is wrong with probability `share`.

    A wrong pair has a uniform rank and a score from N(0, 1), as a mismatch does; a right one a small rank and a score
    from N(-strength, 1). `level` "image": captions of an image are wrong together. Captions of one image, and wrong
    ones of one image where they are wrong together, have vectors near each other. `hard`: the fraction of right pairs
    that the judge hardly knows; their ranks lie anywhere, but halve from each tenth to the next.
    """
    image = np.repeat(np.arange(images), captions)
    count = len(image)
    wrong = rng.random(images)[image] < share if level == "image" else rng.random(count) < share
    mismatch = made_mismatches(image, rng)
    normal = (rng.normal(size=(2, count)) - np.array([[1], [0]]) * strength * ~wrong).astype(float)
    ranks = rng.random((2, count))
    falling = -np.log(1 - rng.random(count) * (1 - 2.0**-10)) / np.log(2) / 10
    right_ranks = np.where(rng.random(count) < hard, falling, rng.beta(0.3, 25, count))
    ranks[0] = np.where(wrong, ranks[0], right_ranks)
    themes = rng.normal(size=(2 * images, width))
    theme = np.where(wrong, rng.integers(images, size=count) if level == "caption" else image + images, image)
    texts = themes[theme] + rng.normal(size=(count, width)) * 0.7
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    pairs = first + np.arange(count)
    return FoldScores(pairs, *normal, *ranks, mismatch, image, images, texts), ~wrong


def simulated_folds(rng: np.random.Generator, share: float, sizes=(400, 400), **settings):
    """Several folds whose pairs are scattered over the training split, their number, and bool [N] which are right."""
    folds, right = [], []
    for size in sizes:
        fold, is_right = simulated_fold(rng, share, size, first=sum(map(len, right)), **settings)
        folds.append(fold)
        right.append(is_right)
    right = np.concatenate(right)
    places = rng.permutation(len(right))
    for fold in folds:
        fold.pairs[:] = places[fold.pairs]
    is_right = np.empty(len(right), dtype=bool)
    is_right[places] = right
    return folds, len(right), is_right
