"""PolyLoss: universal weighting metric learning (Wei et al., CVPR 2020; docs/papers/polyloss.md).

    p_i = S[i, i]           n_i = max_{j != i} S[i, j]                       one direction; the other one in S^T
    P(s) = max(0, 0.2 s^2 - 0.7 s + 0.5)        Q(s) = max(0, 0.9 s^2 - 0.4 s + 0.03)
    loss = (1 / N) sum over both directions of sum_i active_i (P(p_i) + Q(n_i))

Pairs are weighted by polynomials of their own score: hard positives and hard negatives pull more.

When to use it: token similarities such as SCAN, for which it was made, and as an alternative to the hinge.
What it needs: nothing besides a similarity. It does not doubt captions: the hardest negative may be a match.
Where to read on: `loss.py` (pure functions), `head.py`; docs/polyloss.md for the keys.
"""
