"""AAHR: ambiguity-aware, high-order relation learning (Chen et al., KBS 2025; docs/papers/aahr.md).

    L = T(f_i, f_t) + L_graph + 0.2 L_prototypes + 10 L_regulariser + L_queue

T is a triplet loss of the embeddings; prototypes group similar items, a graph relates those of a batch, and queues of
momentum encoders add negatives. Each term starts when its gate opens, after a number of batches.

When to use it: near-duplicate images and captions, so that negatives of a batch often match.
What it needs: towers that return tokens and pooled features, a second forward pass, long runs (the gates are counted
in batches, and the run warns about those that stay closed), and memory for a second copy of the encoders.
Where to read on: `criterion.py` (how the terms fit together), `triplet.py`, `prototypes.py`, `graph.py`, `queue.py`,
`relation.py`, `trainer.py` (momentum encoders), `method.py`; docs/aahr.md for the keys.
"""
