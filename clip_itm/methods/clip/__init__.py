"""The plain contrastive loss: CLIP (Radford et al. 2021, section 2.3).

    S = exp(logit_scale) * A B^T                         A [B, D] images, B [B, D] captions, rows of unit length
    l[k] = (CE(S[k, :], k) + CE(S[:, k], k)) / 2         one value per pair
    loss = mean_k l[k]

When to use it: first, and as the baseline that every other method is measured against, at its own best settings. It
believes every caption; if many are wrong, it memorises some of them late in training.
What it needs: nothing. Where to read on: `head.py` has the loss; docs/heads.md the keys.
"""
