"""DivE: a set of diverse embeddings for each image and each caption (Kim et al., CVPR 2023; docs/papers/dive.md).

    set of an item     K slots that attend to its tokens iteratively, each added to the pooled feature
    similarity         smooth Chamfer: a soft maximum over pairs of elements, averaged over both sets
    loss               hardest-negative hinge + 0.01 MMD + 0.01 (diversity of image sets + of caption sets)

When to use it: captions that describe an image in several ways, so that one vector cannot be near to all.
What it needs: towers that give tokens, and more memory: an item has K vectors. It does not doubt captions.
Where to read on: `losses.py` and `set_similarity.py` (pure functions), `set_attention.py`, `set_prediction.py`;
docs/dive.md for the keys.
"""
