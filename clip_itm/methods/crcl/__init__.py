"""CRCL: active complementary loss with self-refined labels (Qin et al., NeurIPS 2023; docs/papers/crcl.md).

    P, Q     softmax of the rows of S / tau and of its transpose;    p[k] = (P[k,k] + Q[k,k]) / 2
    active   A[k] = -log P[k,k] - log Q[k,k]
    compl.   C[k] = sum_{j != k} tan P[k,j] / (sum_j tan P[k,j])^(1 - y[k])   + the same of Q
    loss     mean(y * A) + complementary_weight * mean(C)
    label    y = filter(0.8 * stored + 0.2 * p),   filter(v) = 0 below 0.1, else v

Every training pair has a label y in [0, 1], which says how much it is believed. A pair that is not believed keeps only
C, which is bounded.

When to use it: wrong captions, and no compute to spare: a step costs as much as one of the plain loss.
What it needs: a fixed temperature that fits the model's cosines (the run measures and warns), some epochs before labels
move, and a known number of candidates (`softmax_set`).
Where to read on: `loss.py` and `labels.py` (pure functions), `trainer.py` (pieces, labels in a checkpoint),
`method.py`; docs/heads.md for the keys.
"""
