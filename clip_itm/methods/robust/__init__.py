"""Robust: bounded contrastive losses, which let go of pairs that the model finds improbable.

    p      probability of the own column in the softmax of a row of S / tau; both directions are averaged
    gce    (1 - p^q) / q                                             Zhang and Sabuncu, NeurIPS 2018, eq. 6
    rince  (-e^(q s_k) + (lambda sum_j e^(s_j))^q) / q, s = S / tau  Chuang et al., CVPR 2022, eq. 5
    sce    -a log p + b A (1 - p), A = 4                             Wang et al., ICCV 2019, eq. 5 and 7
    tal    [m - S_k + tau log sum_{j != k} e^(S_j / tau)]_+          Qin et al., CVPR 2024, eq. 6

A wrong pair keeps a large cross-entropy, and its pull on the model, to the end; here, the worse it fits, the less it
pulls.

When to use it: wrong captions, and no compute to spare: a step costs as much as one of the plain loss.
What it needs: a q (or a lambda, or a margin) that fits the share of wrong captions, which `q: auto` estimates.
Where to read on: `loss.py` (pure functions), `head.py`, `trainer.py` (q: auto); docs/heads.md for the keys.
"""
