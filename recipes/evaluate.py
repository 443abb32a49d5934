"""Recall of a run, of a saved model, or of a recipe's untrained backbone; the same as `clip-itm evaluate`.

accelerate launch --config_file accelerate_config.yaml recipes/evaluate.py runs/flickr30k/clip --plot recall.png
"""

import sys

from clip_itm.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
