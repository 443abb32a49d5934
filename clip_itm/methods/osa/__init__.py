"""OSA: one-step anti-noise (Li et al., "One-step Noisy Label Mitigation", arXiv 2410.01944).

    s[k]    cosine of pair k under the estimator: the model as it is before training (or after a warm-up), frozen
    beta    mean cosine of unrelated images and captions under the estimator
    x[k]    max(0, s[k] - beta)
    w[k]    x[k]^2 (1 - x[k])                            eq. 5
    loss    mean_k w[k] l[k] / mean w                    l: the plain loss, or a bounded one

Cosines of unrelated pairs crowd around a beta above 0, so a pair whose cosine does not exceed beta looks unrelated.
The estimator never changes: one pass over the pairs gives all weights.

When to use it: wrong captions and a pretrained model, at the cost of the plain loss.
What it needs: an estimator that knows something about the pairs; from scratch, a warm-up. Even if all captions are
right, it weights them by how usual they are.
Where to read on: `weights.py` (pure functions), `head.py`, `trainer.py`, `method.py`; docs/heads.md for the keys.
"""
