"""The bidirectional hinge of SCAN (Lee et al., ECCV 2018), with the hardest negatives of VSE++ (Faghri et al. 2018).

    cost[i, j] = max(0, margin + S[i, j] - S[i, i])   for j != i, and the same in S^T
    loss       = sum_i max_j cost[i, j], or sum_ij cost[i, j], of both directions

When to use it: to compare with the literature on region features, most of which trains with it.
What it needs: a warm-up on all negatives if the hardest ones make a model from scratch collapse.
Where to read on: `head.py`; docs/papers/polyloss.md 5 and docs/polyloss.md for the keys.
"""
