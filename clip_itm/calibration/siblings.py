"""Captions of the same image as evidence: a right one says much the same as the others.

The evidence is fitted on the weights found so far, never against made mismatches: if all captions of an image are wrong
together they agree, and evidence fitted against mismatches would believe them. Fitted on the weights, a feature that
tells nothing changes nothing.
"""

from collections.abc import Iterator

import numpy as np

from clip_itm.calibration.scores import FoldScores

PRIOR = 0.05  # weight of the mean similarity of strangers next to siblings of weight 1
TRUSTED = 0.5  # the nearest sibling is looked for among those with a weight above this
FLOOR = -0.2  # the similarity to the nearest sibling if none is trusted
LEAST_WRONG = 0.005  # below this share of wrong pairs there is nothing to learn from
CERTAIN = 0.001  # weights are kept this far from 0 and 1, so that evidence can move them
CELLS = 2**22  # similarities at once


def has_siblings(image: np.ndarray) -> np.ndarray:
    """bool [n]: whether the image of a pair (int64 [n]) has more than one caption."""
    _, index, counts = np.unique(image, return_inverse=True, return_counts=True)
    return counts[index] > 1


def sibling_features(fold: FoldScores, weights: np.ndarray) -> np.ndarray:
    """How near each caption is to the others of its image: float64 [n, 2]; `weights` [n], those of the fold's pairs.

    The weighted mean similarity, with a little of c0, the mean similarity of strangers; and the largest similarity to
    a sibling of weight above .5. Without a sibling these are c0 and -.2.
    """
    assert fold.texts is not None, "the caller has seen to it"
    strangers = float(np.einsum("nd,nd->n", fold.texts, fold.texts[fold.mismatch]).astype(np.float64).mean())
    features = np.empty((len(weights), 2))
    for members, queries in _groups(fold.image):
        texts, weight = fold.texts[members], weights[members][:, None]  # [q, m, D], [q, 1, m]
        similar = (fold.texts[queries] @ texts.transpose(0, 2, 1)).astype(np.float64)  # [q, rows, m]
        other = queries[:, :, None] != members[:, None]
        weight = weight * other
        mean = ((weight * similar).sum(axis=2) + PRIOR * strangers) / (weight.sum(axis=2) + PRIOR)
        nearest = np.where(other & (weight > TRUSTED), similar, FLOOR).max(axis=2)
        features[queries] = np.stack([mean, np.maximum(nearest, FLOOR)], axis=2)
    return features


def _groups(image: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of images with equally many captions: their pairs int64 [q, m], and [q, rows] those of them to look at."""
    order = np.argsort(image, kind="stable")
    _, first, counts = np.unique(image[order], return_index=True, return_counts=True)
    for size in np.unique(counts):
        members = order[first[counts == size][:, None] + np.arange(size)]
        at_once = max(1, CELLS // size**2)
        rows = min(size, max(1, CELLS // size))
        for start in range(0, len(members), at_once):
            block = members[start : start + at_once]
            for row in range(0, size, rows):
                yield block, block[:, row : row + rows]


def with_siblings(features: np.ndarray, weights: np.ndarray, has_sibling: np.ndarray) -> np.ndarray:
    """Weights float64 [n] after the evidence of siblings: sigmoid(logit w + logit e - logit mean(w)).

    features: [n, 2], from `sibling_features`. weights: [n], so far. has_sibling: bool [n]; the others keep their
    weight, as all do if hardly any pair is wrong. e is a logistic regression of the weights, as soft labels, on the
    features, standardised and to the second degree.
    """
    w = weights[has_sibling]
    if not len(w) or 1 - w.mean() <= LEAST_WRONG or w.mean() <= 0:
        return weights
    evidence = _regression(features[has_sibling], w)
    logit = _logit(np.clip(w, CERTAIN, 1 - CERTAIN)) + evidence - _logit(w.mean())
    result = weights.copy()
    result[has_sibling] = 1 / (1 + np.exp(-np.clip(logit, -50, 50)))
    return result


def _regression(features: np.ndarray, soft_labels: np.ndarray) -> np.ndarray:
    """The logit of e at the features it was fitted on, float64 [n]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    expanded = make_pipeline(StandardScaler(), PolynomialFeatures(2, include_bias=False)).fit_transform(features)
    labels = np.repeat([1, 0], len(features))
    fitted = LogisticRegression(C=10, max_iter=1000).fit(
        np.concatenate([expanded, expanded]), labels, sample_weight=np.concatenate([soft_labels, 1 - soft_labels])
    )
    return fitted.decision_function(expanded)


def _logit(p):
    return np.log(p) - np.log1p(-p)
