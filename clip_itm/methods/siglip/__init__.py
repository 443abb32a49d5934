"""SigLIP: the sigmoid loss (Zhai et al., ICCV 2023, section 3.2).

    z[i, j] = 1 for the pairs, -1 for all others
    loss    = -(1 / N) sum_ij log sigmoid(z[i, j] (exp(logit_scale) S[i, j] + logit_bias))

Every score is a decision of its own, so the loss needs no softmax over the batch.

When to use it: to fine-tune towers that were pretrained with it (SigLIP), starting from their scale and bias.
What it needs: nothing. It does not doubt captions.
Where to read on: `head.py`.
"""
