"""Fine-tune CLIP for image-text matching when some of the captions are wrong."""
