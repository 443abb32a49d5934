"""Calibrated cross-fit weights: what a wrong caption looks like is not guessed by a mixture, it is made.

    folds    K models, each trained by a bounded loss on the photos of the other folds; a pair is judged by the model
             that has not seen its photo
    made     every photo with a caption of another photo of its fold: mismatches, scored as the pairs are
    share    pi, the fraction of wrong pairs: how many rank among the photos as an unrelated caption would
    weight   w = 1 - pi f0 / f, the probability that a pair is right: f and f0 are the densities of the scores of pairs
             and of mismatches (local false discovery rate, Efron et al., JASA 2001); sibling captions are evidence, too
    train    fresh weights, pairs with w > 0.05, loss = mean_k w[k] l[k], as many steps as a plain run

If no random mismatches are found, every w is 1, and the run equals the plain run to the last digit.

When to use it: captions of unknown quality, such as scraped ones. It estimates how many are wrong, with an interval,
and with pretrained towers it comes close to training on the right pairs alone.
What it needs: one and a half plain runs, and encoding every pair once; if a pretrained model judges (`folds: 0`), one
plain run and the encoding.
What it cannot see: a caption of a photo that looks much the same. "None found" means no random mismatches.
Where to read on: `clip_itm/calibration/` (the estimate, pure functions); `folds.py` and `trainer.py` (folds within a
run), `weights.py`, `head.py`; docs/crossfit.md for the idea, docs/heads.md for the keys.
"""
