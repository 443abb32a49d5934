"""What a run trains and is evaluated on."""

from dataclasses import dataclass

from clip_itm.data.class_folder import ClassFolder
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split


@dataclass
class TrainingData:
    """The splits of a recipe, the captions that its training pairs got, and the cache of resized images, if any.

    `classes`: photos in folders of classes, if a run is to measure its zero-shot accuracy.
    """

    splits: dict[str, Split]
    noise: CaptionNoise
    image_cache: ImageCache | None = None
    classes: ClassFolder | None = None

    @property
    def train(self) -> Split:
        """The training split, before noise."""
        return self.splits["train"]

    @property
    def val(self) -> Split:
        """The validation split."""
        return self.splits["val"]
