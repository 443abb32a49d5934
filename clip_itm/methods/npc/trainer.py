"""NPC in training: plain warm-up, memory bank, then `NpcStep` in place of forward, loss and backward."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_itm.data.equal_captions import numbers_if_asked
from clip_itm.data.training_data import TrainingData
from clip_itm.distributed import gather_constant, is_same_everywhere, say
from clip_itm.evaluation.detection import auc
from clip_itm.methods.npc.bank import MemoryBank, build_bank
from clip_itm.methods.npc.configuration import NpcHeadConfig
from clip_itm.methods.npc.step import NpcStep
from clip_itm.methods.warmup import warn_if_it_is_all
from clip_itm.reading import reading
from clip_itm.training.clean_probability import CleanProbability
from clip_itm.training.encode import Embeddings
from clip_itm.training.encoder import Encoder
from clip_itm.training.folder import record_added
from clip_itm.training.trainer import PairTrainer
from clip_itm.visible import counted

BANK, STATE = "bank.npz", "npc_state.safetensors"
WHOLE = (
    "npc: weights and gradients stay whole in every process, because every step makes a trial step, whose weights each "
    "needs whole, and takes two gradients of one graph past the hooks that would cut them; the moments of both "
    "optimisers are in parts"
)


class NpcTrainer(PairTrainer):
    """A `PairTrainer` whose steps, after the warm-up, are `NpcStep`s with a memory bank.

    `build_bank` makes the bank from the current weights when the warm-up is over; `is_clean` bool [N] is the truth
    about the training pairs if it is known, for the log only. `label`: `Pairs.label`. With `shards`, the moments of
    both optimisers are in parts; weights stay whole.
    """

    def __init__(
        self,
        *args,
        build_bank: Callable[[], MemoryBank],
        is_clean: np.ndarray | None,
        label: np.ndarray | None = None,
        shards: bool = False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.slices = shards
        if shards:
            say(WHOLE)
        self.right = None if label is None else torch.from_numpy(label == 1).to(self.args.device)
        self.build_bank, self.is_clean = build_bank, is_clean
        self.config = self.model.head.config
        self.bank: MemoryBank | None = None
        self.step: NpcStep | None = None
        self._step_state: dict[str, Tensor] = {}
        # ratio and weight of each pair in this epoch; NaN if it was not seen
        self.seen = torch.full((2, len(self.train_dataset)), torch.nan, device=self.args.device)
        warn_if_it_is_all(
            self.args.max_steps, self.config.warmup_epochs, self._steps_per_epoch, "this is a run of the plain loss"
        )

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if epoch >= self.config.warmup_epochs and self.bank is None:
            self.use_bank(self.build_bank())
            if self.watched is not None:
                self.watched.require()
                record_added(self.run, BANK)
                self.bank.save(self.run / BANK)
            if described := self._describe_bank():
                self.log(described)

    def use_bank(self, bank: MemoryBank) -> None:
        """From now on, every batch gets its memory entries from `bank`."""
        self.bank = bank
        self.train_dataset.memory = (bank.image_entry, bank.caption_entry)

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        if self.bank is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        if self.step is None:
            self.step = NpcStep(self.model, self.optimizer.optimizer, self.config, self.right, self.chunks)
            self.step.load_state_dict(self._step_state)
        fraction = 1 / self.current_gradient_accumulation_steps
        with self.accelerator.autocast():  # the step calls the towers itself, past the wrapped forward
            outcome = self.step(inputs, fraction)
        self._head_logs["logit_scale"].append(self.model.head.logit_scale.detach().exp())
        self._head_logs["batch_loss"].append(outcome.losses.mean())
        found = gather_constant(torch.stack([outcome.ratio, outcome.weight], dim=1).float())
        self.seen[:, gather_constant(inputs["pair_ids"])] = found.T
        return outcome.loss * fraction

    def end_epoch(self, epoch: int) -> None:
        ratio, weight = self.seen.cpu().numpy()
        seen = ~np.isnan(ratio)
        if not seen.any():
            return
        ratio, weight = ratio[seen], weight[seen]
        summary = {
            "method_epoch": epoch + 1,
            "mean_weight": float(weight.mean()),
            "weight_below_1": float((weight < 1).mean()),
            # to be compared with the rounding of float32: a weight jumps where the ratio crosses 1
            "ratio_distance": float(np.median(np.abs(np.minimum(ratio, 2) - 1))),
        }
        if self.is_clean is not None and (value := auc(ratio, self.is_clean[seen])) is not None:
            summary["ratio_auc"] = value
            for name, own in (("clean", self.is_clean[seen]), ("wrong", ~self.is_clean[seen])):
                summary[f"mean_weight_{name}"] = float(weight[own].mean())
        self.log(summary)
        self.seen.fill_(torch.nan)

    def _describe_bank(self) -> dict[str, float]:
        clean = self.bank.clean
        if clean is None:
            return {}
        known = {"clean": len(clean), "below_clean_mean_rejected": self.bank.below_clean_mean_rejected}
        if self.is_clean is not None:
            known |= bank_against_truth(self.bank, self.is_clean)
        return {f"bank_{name}": value for name, value in known.items() if value is not None}

    # Checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        if self.step is not None and self.slices:  # what the first process saves is put together by all
            self._step_state = self.step.state_dict()
        super()._save_checkpoint(model, trial)

    def save_method_state(self, folder: Path) -> None:
        if self.bank is None:
            return
        self.bank.save(folder / BANK)
        state = self._step_state if self.step is None or self.slices else self.step.state_dict()
        save_file({"seen": self.seen.cpu(), **{name: value.cpu() for name, value in state.items()}}, folder / STATE)

    def load_method_state(self, folder: Path) -> None:
        if not (folder / BANK).is_file():
            return  # still in the warm-up
        self.use_bank(MemoryBank.load(folder / BANK))
        with reading(folder / STATE, "the state of NPC for these training pairs"):
            self._step_state = load_file(folder / STATE)
            self.seen.copy_(self._step_state.pop("seen"))

    def clean_probability(self) -> CleanProbability | None:
        bank = self.bank
        if bank is None or bank.losses is None:
            return None
        values, method = bank.posterior, "weights that NPC's memory bank was built of"
        if bank.mixture is not None:
            values = bank.mixture.monotone_clean_posterior(bank.losses).astype(np.float32)
            method = "posterior of the mixture behind NPC's memory bank (losses of the model that built it)"
        return CleanProbability(values=values, ranking=-bank.losses, method=method, noise_sha256=bank.noise_sha256)


def bank_of_pairs(
    embeddings: Embeddings,
    data: TrainingData,
    model: nn.Module,
    rho: float,
    name: str,
    seed: int,
    found: CleanProbability | None = None,
) -> MemoryBank:
    """The bank of the training pairs, from embeddings of `data.train` under `model`; the search runs on its device.

    `name` is how the bank names the model. `found`: the probabilities that say which pairs are clean.
    """
    return build_bank(
        embeddings.images.to(model.device),
        embeddings.texts.to(model.device),
        data.train.pairs.image,
        data.noise.source,
        scale=float(model.head.scale().detach()),
        rho=rho,
        model=name,
        noise_sha256=data.noise.sha256,
        seed=seed,
        weights=None if found is None else found.values,
        captions=numbers_if_asked(model.head.config, data.train.pairs, data.noise),
        label=data.train.pairs.label,
    )


def bank_against_truth(bank: MemoryBank, is_clean: np.ndarray) -> dict[str, float | None]:
    """How well a bank agrees with the truth `is_clean` bool [N].

    `purity`: the fraction of the clean set that is right; `auc`: of the losses, or of the weights that were given; None
    if all pairs are right or all are wrong.
    """
    scores = bank.posterior if bank.mixture is None else -bank.losses
    return {"purity": float(is_clean[bank.clean].mean()), "auc": auc(scores, is_clean)}


def make_bank(
    section: NpcHeadConfig, seed: int, data: TrainingData, encoder: Encoder, found: CleanProbability | None = None
) -> MemoryBank:
    """The bank of the training pairs under the encoder's current weights; `found`: which of them are clean.

    Raises ValueError if the processes built different banks.
    """
    epochs = section.warmup_epochs
    name = f"seed {seed} after {counted(epochs, 'epoch')}" if epochs else "step 0"
    bank = bank_of_pairs(encoder.encode(data.train), data, encoder.model, section.rho, name, seed, found)
    if not is_same_everywhere(bank.sha256, encoder.model.device):
        raise ValueError(
            "the processes built different memory banks from the same embeddings; build it once with "
            "`clip-itm bank build` and name it in head.bank"
        )
    return bank
