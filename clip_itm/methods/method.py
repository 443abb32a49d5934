"""What a method does besides the loss of its head: the hooks through which the rest of the package uses it."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Pairs
from clip_itm.data.training_data import TrainingData
from clip_itm.kinds import METHODS
from clip_itm.methods.section import HeadSection
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.encoder import Encoder

if TYPE_CHECKING:
    from clip_itm.training.trainer import PairTrainer


class Method:
    """One per run, made from the `head:` section of its recipe; these defaults do nothing.

    `history`: a log entry with one of these keys belongs to the method's history in `results.json`. `state_files`: what
    its trainer saves next to the weights of a checkpoint. `keeps_whole`: why the model cannot be cut in parts, one for
    each process, or None if it can.
    """

    history: tuple[str, ...] = ("method_epoch",)
    state_files: tuple[str, ...] = ()
    keeps_whole: str | None = None

    def __init__(self, section: HeadSection):
        self.section = section

    def open(self, noise: CaptionNoise, pairs: Pairs) -> None:
        """Read the files that the section names, for these training pairs.

        Raises ValueError if a file belongs to other pairs.
        """

    def caution(self, random_part: str | None) -> str | None:
        """A warning to show before the model is built, or None; `random_part` of the backbone has random weights."""

    @property
    def provenance(self) -> dict[str, str]:
        """Hashes of what `open` read, by name."""
        return {}

    def trainer(self, data: TrainingData, encoder: Encoder, training: TrainingSection, **engine) -> "PairTrainer":
        """The trainer of this method; `engine`: the arguments that every `PairTrainer` takes."""
        from clip_itm.training.trainer import PairTrainer  # here, so that an evaluation does not wait for training code

        return PairTrainer(**engine)


def method_of(section: HeadSection) -> Method:
    """The hooks of the method that `section` configures."""
    return _hooks(section.kind)(section)


def state_files() -> set[str]:
    """Names of the files that the trainer of any method saves next to the weights of a checkpoint."""
    return {file for kind in METHODS for file in _hooks(kind).state_files}


def _hooks(kind: str) -> type[Method]:
    name = f"clip_itm.methods.{kind}.method"
    return Method if find_spec(name) is None else getattr(import_module(name), f"{METHODS[kind]}Method")
