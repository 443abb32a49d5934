"""`q: auto`: the exponent of gce from the share of wrong captions, which the model estimates once."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from clip_itm.calibration.share import rank_score, share_interval, wrong_share
from clip_itm.data.training_data import TrainingData
from clip_itm.distributed import gather_constant
from clip_itm.methods.crossfit.folds import judge_pairs
from clip_itm.reading import reading
from clip_itm.training.encoder import Encoder
from clip_itm.training.trainer import PairTrainer

STATE = "robust_state.safetensors"
SLOPE, SMALLEST, LARGEST = 0.75, 0.05, 0.7
IMAGES = 1000  # for the estimate: with five captions each, it knows the share to about 0.03, and q to 0.02


class Share(NamedTuple):
    """The share of wrong captions among the training pairs, and its 95 % interval."""

    share: float
    low: float
    high: float


def q_of_share(share: float) -> float:
    """q for a share of wrong captions.

    Of the few values that were tried with pretrained towers, 0.3 was good at a share of 0.4, and 0.5 at 0.6; without
    wrong captions every q costs a little.

    Example:
        >>> [round(q_of_share(share), 2) for share in (0.0, 0.4, 0.6, 1.0)]
        [0.05, 0.3, 0.45, 0.7]
    """
    return min(max(SLOPE * share, SMALLEST), LARGEST)


class RobustTrainer(PairTrainer):
    """A `PairTrainer` that estimates the share of wrong captions after `q_epochs`, then trains on with the q for it."""

    def __init__(self, *args, data: TrainingData, encoder: Encoder, **kwargs):
        super().__init__(*args, **kwargs)
        self.data, self.encoder = data, encoder
        self.found: Share | None = None

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if epoch >= self.model.head.config.q_epochs and self.found is None:
            self._use(estimate_share(self.data, self.encoder, self.section.seed))
            share, low, high = self.found
            q = self.model.head.options.q
            self.log({"q": q, "wrong_share": share, "wrong_share_low": low, "wrong_share_high": high})

    def _use(self, found: Share) -> None:
        head = self.model.head
        self.found, head.options = found, head.options._replace(q=q_of_share(found.share))

    # Checkpoints

    def save_method_state(self, folder: Path) -> None:
        if self.found is not None:
            save_file({"share": torch.tensor(self.found, dtype=torch.float64)}, folder / STATE)

    def load_method_state(self, folder: Path) -> None:
        if not (folder / STATE).is_file():
            return  # not estimated yet
        with reading(folder / STATE, "the share of wrong captions among these training pairs"):
            self._use(Share(*load_file(folder / STATE)["share"].tolist()))


def estimate_share(data: TrainingData, encoder: Encoder, seed: int) -> Share:
    """The share of wrong captions among the training pairs, from their ranks and those of made mismatches.

    Uses up to 1,000 images, drawn with `seed`, and the encoder's current weights. If these were trained on the pairs,
    memorised captions make the share smaller. The result is the same in every process.
    """
    generator = np.random.default_rng([seed, IMAGES])
    images = generator.permutation(len(data.train))[:IMAGES]
    pairs = np.flatnonzero(np.isin(data.train.pairs.image, images))
    scores, _ = judge_pairs(data, encoder, pairs, seed)
    r, r0 = (rank_score(p, scores.images) for p in (scores.p, scores.p0))
    low, high = np.clip(share_interval(r, r0, scores.image, generator, scores.is_made), 0, 1)
    found = torch.tensor([[wrong_share(r, r0[scores.is_made]), low, high]], dtype=torch.float64)
    return Share(*gather_constant(found.to(encoder.model.device))[0].tolist())
