"""NPC: negative pre-aware cross-modal matching (Zhang, Li and Ye, AAAI 2024; docs/papers/npc.md).

    trial    theta+ = AdamW(theta, gradient of mean l)             on a copy of the weights
    ratio    r[k] = (a[k] / a+[k] + b[k] / b+[k]) / 2              losses of two memory entries before and after it
    weight   w[k] = tanh(r[k]) if r[k] < 1, else 1
    train    mean(w * l) + memory_coef * mean(a + b)               l: the plain contrastive loss

A memory bank names, for every image and every caption, the nearest pair that is surely clean. A trial step comes before
the real one: pairs whose gradient makes the model worse on their memory entries get a smaller weight.

When to use it: wrong captions among the training pairs, and a pretrained model that can find surely clean pairs.
What it needs: three to five times the compute of the plain loss; whole weights on every GPU; from scratch, a warm-up.
Where to read on: `weights.py` and `step.py` (the step), `bank.py` (the memory), `trainer.py`, `method.py` (what the
rest of the package sees), `command.py` (`clip-itm bank`); docs/heads.md and docs/npc_bank.md for the keys.
"""
