"""The name under which transformers knows the search pipeline."""

TASK = "image-text-retrieval"
