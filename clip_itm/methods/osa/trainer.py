"""OSA in training: one pass of the estimator over all pairs, which gives their weights."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_itm.calibration.equal_captions import EqualCaptions
from clip_itm.calibration.scores import made_mismatches
from clip_itm.calibration.share import wrong_share
from clip_itm.calibration.weights import clean_probability
from clip_itm.data.equal_captions import numbers_if_asked
from clip_itm.data.training_data import TrainingData
from clip_itm.distributed import gather_constant
from clip_itm.evaluation.detection import auc
from clip_itm.methods.osa.weights import Boundary, excess, intended_weights, mismatch_boundary
from clip_itm.methods.warmup import warn_if_it_is_all
from clip_itm.reading import reading
from clip_itm.training.clean_probability import CleanProbability
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.encoder import Encoder
from clip_itm.training.trainer import PairTrainer

STATE = "osa_state.safetensors"
SAMPLE = 4096  # pairs; beta comes from all mismatches among them
NOISE_TOKENS = 100  # the released program draws token ids below it


class Look(NamedTuple):
    """What the estimator found: cosines float32 [N] of the pairs and of one made mismatch for each, and beta."""

    cosines: Tensor
    mismatched: Tensor
    boundary: Boundary


class OsaTrainer(PairTrainer):
    """A `PairTrainer` that looks at all pairs once, with the model as it is when the warm-up is over."""

    def __init__(self, *args, data: TrainingData, encoder: Encoder, **kwargs):
        super().__init__(*args, **kwargs)
        self.data, self.encoder = data, encoder
        self.config = self.model.head.config
        self.look: Look | None = None
        warn_if_it_is_all(
            self.args.max_steps, self.config.warmup_epochs, self._steps_per_epoch, "no pair gets a weight"
        )

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if epoch >= self.config.warmup_epochs and self.look is None:
            self._use(look_at_pairs(self.data, self.encoder, self.config.weights == "released", self.section))
            self.log(self._describe())

    def _use(self, look: Look) -> None:
        """Give the pairs their weights. Raises ValueError if all of them are 0."""
        x = excess(look.cosines, look.boundary.beta)
        if not x.any():
            raise ValueError(
                f"no cosine of the {len(x)} pairs exceeds that of unrelated ones ({look.boundary.beta:.3f}) under the "
                "estimator, so that OSA would train on none: it knows nothing of these pairs. Set head.warmup_epochs, "
                "or begin with another model"
            )
        self.look, head = look, self.model.head
        head.excess, label = x.to(self.args.device), self.data.train.pairs.label
        head.right = None if label is None else torch.from_numpy(label == 1).to(self.args.device)
        if self.config.weights == "intended":
            mean = float(intended_weights(x.double()).mean())
            if self.config.normalise == "mean":
                head.unit = mean
            else:
                head.full = mean  # what normalised weights make 1

    def _describe(self) -> dict[str, float]:
        """For the log: beta with its error, the weights, and, if the truth is known, how well cosines predict it."""
        cosines, boundary = self.look.cosines, self.look.boundary
        x = excess(cosines, boundary.beta)
        weights = intended_weights(x.double()).numpy()
        logs = {"boundary": boundary.beta, "no_weight": float((x == 0).double().mean())}
        if self.config.weights == "intended":
            logs |= {"boundary_error": boundary.error, "mean_weight": float(weights.mean())}
        is_clean = self.data.noise.truth(self.data.train.pairs)
        if is_clean is not None and (value := auc(cosines.numpy(), is_clean)) is not None:
            logs["cosine_auc"] = value
            for name, own in (("clean", is_clean), ("wrong", ~is_clean)):
                logs[f"no_weight_{name}"] = float((x[torch.from_numpy(own)] == 0).double().mean())
        return logs

    # Checkpoints

    def save_method_state(self, folder: Path) -> None:
        if self.look is None:
            return  # still in the warm-up
        boundary = torch.tensor(self.look.boundary, dtype=torch.float64)
        save_file(
            {"cosines": self.look.cosines, "mismatched": self.look.mismatched, "boundary": boundary}, folder / STATE
        )

    def load_method_state(self, folder: Path) -> None:
        if not (folder / STATE).is_file():
            return
        with reading(folder / STATE, "what the estimator of OSA said of these training pairs"):
            state = load_file(folder / STATE)
            self._use(Look(state["cosines"], state["mismatched"], Boundary(*state["boundary"].tolist())))

    def clean_probability(self) -> CleanProbability | None:
        """From the cosines, compared with those of made mismatches. OSA's own weight is not a probability."""
        if self.look is None:
            return None
        suspicion, made = (-cosines.double().numpy() for cosines in (self.look.cosines, self.look.mismatched))
        return CleanProbability(
            values=clean_probability(suspicion, made, wrong_share(suspicion, made)).astype(np.float32),
            ranking=-suspicion.astype(np.float32),
            method="cosines under OSA's estimator against those of made mismatches (its weights are no probabilities)",
            noise_sha256=self.data.noise.sha256,
        )


def look_at_pairs(data: TrainingData, encoder: Encoder, released: bool, section: TrainingSection) -> Look:
    """One pass over the training pairs under the encoder's current weights; see `Look`. The same in every process."""
    embeddings, pairs = encoder.encode(data.train), data.train.pairs
    image, source = torch.from_numpy(pairs.image), torch.from_numpy(data.noise.source)
    generator = np.random.default_rng([section.seed, len(pairs)])
    captions = numbers_if_asked(encoder.model.head.config, pairs, data.noise)
    equal = None if captions is None else EqualCaptions(pairs.image, captions)
    other = source[made_mismatches(pairs.image, generator, equal)]
    if released:
        boundary = noise_boundary(encoder, section.contrastive_batch, generator)
    else:
        some = torch.from_numpy(generator.permutation(len(pairs))[:SAMPLE])
        alike = None if captions is None else torch.from_numpy(captions)[some]
        boundary = mismatch_boundary(embeddings.images[image[some]], embeddings.texts[source[some]], image[some], alike)
    cosines, mismatched = (paired_cosines(embeddings.images, embeddings.texts, image, text) for text in (source, other))
    return Look(cosines, mismatched, boundary)


def paired_cosines(images: Tensor, texts: Tensor, image: Tensor, text: Tensor) -> Tensor:
    """Cosines float32 [N] of image `image[k]` with caption `text[k]`; unit vectors [Ni, D] and [Nt, D]."""
    parts = [(images[i] * texts[t]).sum(dim=1) for i, t in zip(image.split(8192), text.split(8192), strict=True)]
    return torch.cat(parts)


@torch.inference_mode()
def noise_boundary(encoder: Encoder, count: int, generator: np.random.Generator) -> Boundary:
    """The mean cosine of `count` images of uniform noise in [0, 1) with `count` rows of random tokens, all with all.

    As in the released program; photos and captions never look like that. Its error is not known (NaN).
    """
    model, processor = encoder.model, encoder.processor
    one = processor(images=[Image.new("RGB", (8, 8))])
    images = {key: value.expand(count, *value.shape[1:]) for key, value in one.items()}
    pixels = torch.from_numpy(generator.random(images["pixel_values"].shape, dtype=np.float32))
    images["pixel_values"] = pixels.to(one["pixel_values"].dtype)
    ids = generator.integers(min(NOISE_TOKENS, len(processor.tokenizer)), size=(count, processor.max_length))
    was_training, device = model.training, model.device
    model.eval()
    sums = []
    with torch.autocast(device.type, dtype=encoder.precision, enabled=encoder.precision is not None):
        captions = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.int64)}
        for encode, inputs in ((model.encode_images, images), (model.encode_texts, captions)):
            blocks = zip(*(x.to(device).split(encoder.batch_size) for x in inputs.values()), strict=True)
            embedded = (encode(**dict(zip(inputs, block, strict=True))) for block in blocks)
            sums.append(sum(rows.double().sum(dim=0) for rows in embedded))
    model.train(was_training)
    beta = (sums[0] @ sums[1] / count**2).reshape(1)
    return Boundary(float(gather_constant(beta)[0]), math.nan)
