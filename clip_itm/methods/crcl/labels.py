"""The labels of CRCL: how much each training pair is believed, and how training corrects it (docs/papers/crcl.md 4).

    y = filter(stored)                              in the frozen epochs at the start of a piece
    y = filter(alpha * stored + (1 - alpha) * p)    after them
    filter(v) = 0 if v < threshold else v

y weights the loss and is stored again. In the last frozen epoch of the first piece p is stored in its place: the
belief of the start gives way to the model's opinion. A piece begins with fresh weights and keeps the labels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clip_itm.distributed import gather_constant


class Phase(NamedTuple):
    """What an epoch does with the labels."""

    piece: int
    epoch_in_piece: int
    frozen: bool  # labels are used as they are stored
    replaces: bool  # the matching probabilities are stored in place of the labels


def piece_lengths(schedules: Sequence[int], frozen_epochs: int) -> list[int]:
    """Epochs of every piece: the frozen ones come on top of its schedule (docs/papers/crcl.md 4.4)."""
    return [epochs + frozen_epochs for epochs in schedules]


def phase_of(epoch: int, schedules: Sequence[int], frozen_epochs: int) -> Phase:
    """Phase of `epoch`, counted from 0 over all pieces; ValueError when the pieces end before it."""
    start = 0
    for piece, length in enumerate(piece_lengths(schedules, frozen_epochs)):
        if epoch < start + length:
            place = epoch - start
            return Phase(piece, place, place < frozen_epochs, piece == 0 and place == frozen_epochs - 1)
        start += length
    raise ValueError(f"epoch {epoch} (from 0): the pieces {list(schedules)} have {start} epochs in all")


def label_filter(values: Tensor, threshold: float) -> Tensor:
    """0 in place of what lies below `threshold`; the threshold itself is kept (docs/papers/crcl.md 4.3)."""
    return values.masked_fill(values < threshold, 0)


def refine(
    stored: Tensor, p: Tensor, phase: Phase, momentum: float, threshold: float, store_filtered: bool = True
) -> tuple[Tensor, Tensor]:
    """Labels [b] for the loss, and what to store, from those in the store and the matching probabilities [b] (4.2).

    Without `store_filtered` the store keeps what momentum makes of the probabilities, and the filter acts on the loss
    alone: a label at 0 then returns as soon as the average passes the threshold.
    """
    moved = stored if phase.frozen else momentum * stored + (1 - momentum) * p
    used = label_filter(moved, threshold)
    if phase.replaces:
        return used, p
    return used, used if store_filtered else moved


class LabelStore:
    """Label and latest matching probability of every training pair, by number of the pair.

    `labels` float32 [N], 1 at the start unless given; `probabilities` float32 [N], NaN until the pair was seen. They
    live where the ids that are read first live. Every process holds all of them, and they stay equal.
    """

    def __init__(self, num_pairs: int, labels: Tensor | None = None):
        self.labels = torch.ones(num_pairs)
        self.probabilities = torch.full((num_pairs,), torch.nan)
        if labels is not None:
            self.labels.copy_(labels)

    def read(self, pair_ids: Tensor) -> Tensor:
        """Labels [b] of the pairs `pair_ids` int64 [b]."""
        self._move(pair_ids.device)
        return self.labels[pair_ids]

    def write(self, pair_ids: Tensor, labels: Tensor, probabilities: Tensor) -> None:
        """Store the values [b] of all processes' pairs of this step; no pair comes twice in a global batch."""
        self._move(pair_ids.device)
        values = gather_constant(torch.stack([labels, probabilities], dim=1).detach().float())
        pair_ids = gather_constant(pair_ids)
        self.labels[pair_ids], self.probabilities[pair_ids] = values.unbind(dim=1)

    def _move(self, device: torch.device) -> None:
        self.labels, self.probabilities = self.labels.to(device), self.probabilities.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"labels": self.labels.cpu().clone(), "probabilities": self.probabilities.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a `state_dict()`; ValueError when it belongs to another number of pairs."""
        for name, own in (("labels", self.labels), ("probabilities", self.probabilities)):
            if state[name].shape != own.shape:
                raise ValueError(
                    f"the stored {name} belong to {len(state[name])} training pairs, this run has {len(own)}; "
                    "resume with the data and the noise that the checkpoint was made with"
                )
            own.copy_(state[name])

    @property
    def share_zero(self) -> float:
        return float((self.labels == 0).float().mean())

    def histogram(self, bins: int = 10) -> list[float]:
        """Shares of the (finite) labels in `bins` equal parts of [0, 1], the upper end counted in the last."""
        positions = (self.labels.cpu() * bins).long().clamp(0, bins - 1)
        return (torch.bincount(positions, minlength=bins) / len(positions)).tolist()


def expected_probability(gap: float, temperature: float, candidates: int) -> float:
    """p of a pair whose similarity lies `gap` above that of all its other candidates (docs/papers/crcl.md 9)."""
    return 1 / (1 + (candidates - 1) * math.exp(-gap / temperature))


def fitting_temperature(gap: float, candidates: int, probability: float = 0.5) -> float:
    """The temperature at which such a pair gets `probability`; ValueError when there is none."""
    odds = (candidates - 1) * probability / (1 - probability)
    if gap <= 0 or odds <= 1:
        raise ValueError(f"no temperature makes {probability} of a gap of {gap} among {candidates} candidates")
    return gap / math.log(odds)
