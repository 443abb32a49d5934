"""What a run trains and is evaluated on."""

from dataclasses import dataclass

from clip_itm.data.image_cache import ImageCache
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split


@dataclass
class TrainingData:
    """The splits of a recipe, the captions its training pairs really got, and the batches they come in."""

    splits: dict[str, Split]
    noise: CaptionNoise
    image_cache: ImageCache | None = None

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def val(self) -> Split:
        return self.splits["val"]
