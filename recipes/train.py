"""Fine-tune as a recipe says; the same as `clip-itm train`.

accelerate launch --config_file accelerate_config.yaml recipes/train.py recipes/flickr30k/clip.yaml --noise.ratio 0.4
"""

import sys

from clip_itm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
