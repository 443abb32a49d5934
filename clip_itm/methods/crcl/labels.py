"""The labels of CRCL: how much each training pair is believed, and how training corrects that (docs/papers/crcl.md 4).

    y = filter(stored)                              in the frozen epochs at the start of a piece
    y = filter(alpha * stored + (1 - alpha) * p)    after them
    filter(v) = 0 if v < threshold else v

y weights the loss and is stored again. In the last frozen epoch of the first piece p is stored instead: the initial
labels give way to the model's opinion. A piece begins with fresh weights and keeps the labels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clip_itm.distributed import gather_constant


class Phase(NamedTuple):
    """What an epoch does with the labels."""

    piece: int  # 0-based
    epoch_in_piece: int  # 0-based
    frozen: bool  # labels are used as they are stored
    replaces: bool  # the matching probabilities replace the labels


def piece_lengths(schedules: Sequence[int], frozen_epochs: int) -> list[int]:
    """Number of epochs of every piece: the frozen ones come on top of its schedule (docs/papers/crcl.md 4.4)."""
    return [epochs + frozen_epochs for epochs in schedules]


def phase_of(epoch: int, schedules: Sequence[int], frozen_epochs: int) -> Phase:
    """Phase of `epoch`, counted from 0 over all pieces. Raises ValueError if the pieces end before it.

    Example:
        >>> phase_of(3, schedules=[4, 8], frozen_epochs=2)
        Phase(piece=0, epoch_in_piece=3, frozen=False, replaces=False)
    """
    start = 0
    for piece, length in enumerate(piece_lengths(schedules, frozen_epochs)):
        if epoch < start + length:
            place = epoch - start
            return Phase(piece, place, place < frozen_epochs, piece == 0 and place == frozen_epochs - 1)
        start += length
    raise ValueError(f"epoch {epoch} (from 0): the pieces {list(schedules)} have {start} epochs in all")


def label_filter(values: Tensor, threshold: float) -> Tensor:
    """`values` with 0 for everything below `threshold`; the threshold itself stays (docs/papers/crcl.md 4.3)."""
    return values.masked_fill(values < threshold, 0)


def refine(
    stored: Tensor, p: Tensor, phase: Phase, momentum: float, threshold: float, store_filtered: bool = True
) -> tuple[Tensor, Tensor]:
    """Labels [b] for the loss, and labels [b] to store (docs/papers/crcl.md 4.2).

    `stored` [b] are the labels so far, `p` [b] the matching probabilities of this step. Without `store_filtered` the
    moving average is stored unfiltered, and the filter acts only on the loss: a label at 0 then returns as soon as the
    average passes the threshold.

    Example:
        >>> stored, p = torch.tensor([1.0, 0.1]), torch.tensor([0.5, 0.0])
        >>> used, written = refine(stored, p, phase_of(3, [4], 2), momentum=0.8, threshold=0.1)
        >>> used
        tensor([0.9000, 0.0000])
    """
    moved = stored if phase.frozen else momentum * stored + (1 - momentum) * p
    used = label_filter(moved, threshold)
    if phase.replaces:
        return used, p
    return used, used if store_filtered else moved


class LabelStore:
    """Label and latest matching probability of every training pair; row k is pair k.

    `labels` float32 [N], 1 at the start unless given; `probabilities` float32 [N], NaN until a pair has been seen;
    `known` float32 [N], labels that people gave, which never change, NaN for others (`Pairs.label`; None: none at all).
    They are on the device of the ids that are read. Every process holds all of them, and they stay equal.
    """

    def __init__(self, num_pairs: int, labels: Tensor | None = None, known: Tensor | None = None):
        self.labels = torch.ones(num_pairs)
        self.probabilities = torch.full((num_pairs,), torch.nan)
        if labels is not None:
            self.labels.copy_(labels)
        self.known = known
        self.labels = self.heeded(slice(None), self.labels)

    def heeded(self, pair_ids: Tensor | slice, labels: Tensor) -> Tensor:
        """Labels [b] of pairs, replaced by those that people gave."""
        if self.known is None:
            return labels
        known = self.known[pair_ids]
        return torch.where(known.isnan(), labels, known.to(labels.dtype))

    def read(self, pair_ids: Tensor) -> Tensor:
        """Labels [b] of the pairs `pair_ids` int64 [b]."""
        self._move(pair_ids.device)
        return self.labels[pair_ids]

    def write(self, pair_ids: Tensor, labels: Tensor, probabilities: Tensor) -> None:
        """Store the values [b] of this step for the pairs of all processes; no pair occurs twice in a global batch."""
        self._move(pair_ids.device)
        values = gather_constant(torch.stack([labels, probabilities], dim=1).detach().float())
        pair_ids = gather_constant(pair_ids)
        self.labels[pair_ids], self.probabilities[pair_ids] = values.unbind(dim=1)

    def _move(self, device: torch.device) -> None:
        self.labels, self.probabilities = self.labels.to(device), self.probabilities.to(device)
        self.known = None if self.known is None else self.known.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"labels": self.labels.cpu().clone(), "probabilities": self.probabilities.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a `state_dict()`. Raises ValueError if it has another number of pairs."""
        for name, own in (("labels", self.labels), ("probabilities", self.probabilities)):
            if state[name].shape != own.shape:
                raise ValueError(
                    f"the stored {name} belong to {len(state[name])} training pairs, this run has {len(own)}; "
                    "resume with the data and the noise that the checkpoint was made with"
                )
            own.copy_(state[name])

    @property
    def share_zero(self) -> float:
        """Fraction of the labels that are 0."""
        return float((self.labels == 0).float().mean())

    def histogram(self, bins: int = 10) -> list[float]:
        """Fraction of the labels in each of `bins` equal parts of [0, 1]; 1 counts in the last part."""
        positions = (self.labels.cpu() * bins).long().clamp(0, bins - 1)
        return (torch.bincount(positions, minlength=bins) / len(positions)).tolist()


def expected_probability(gap: float, temperature: float, candidates: int) -> float:
    """p of a pair whose similarity is `gap` above that of all its other candidates (docs/papers/crcl.md 9).

    Example:
        >>> round(expected_probability(gap=0.1, temperature=0.02, candidates=128), 3)
        0.539
    """
    return 1 / (1 + (candidates - 1) * math.exp(-gap / temperature))


def fitting_temperature(gap: float, candidates: int, probability: float = 0.5) -> float:
    """The temperature at which such a pair gets `probability`. Raises ValueError if there is none."""
    odds = (candidates - 1) * probability / (1 - probability)
    if gap <= 0 or odds <= 1:
        raise ValueError(f"no temperature makes {probability} of a gap of {gap} among {candidates} candidates")
    return gap / math.log(odds)
