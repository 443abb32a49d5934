"""The noise that the `noise:` section of a recipe asks for: a file, or a draw."""

from collections.abc import Callable
from pathlib import Path

from clip_itm.data.configuration import NoiseSection
from clip_itm.data.noise import CaptionNoise, Neighbours
from clip_itm.data.noise_import import import_noise
from clip_itm.data.rows import Pairs


def load_noise(section: NoiseSection, pairs: Pairs, neighbours: Callable[[], Neighbours] | None = None) -> CaptionNoise:
    """The noise that a recipe asks for: a saved (`.npz`) or published (`.npy`, `.txt`) file, or a draw.

    `pairs` are those of the training split; `neighbours` finds the photos nearest to each, and is called only if the
    section `needs_neighbours`. Raises ValueError if the file belongs to other captions, is given together with a ratio,
    or has another hash than `noise.sha256`.

    Example:
        >>> import tempfile
        >>> from clip_itm.data.configuration import SampleData
        >>> from clip_itm.data.load import load_splits
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = SampleData(train_images=4, val_images=1, test_images=1, cache_dir=folder)
        ...     pairs = load_splits(data)["train"].pairs
        >>> noise = load_noise(NoiseSection(ratio=0.5), pairs)
        >>> len(noise.source), int((noise.source != range(20)).sum())  # one of the ten shuffled kept its own
        (20, 9)
    """
    if section.file is None:
        near = neighbours() if section.needs_neighbours and neighbours is not None else None
        noise = CaptionNoise.draw(pairs, section.ratio, section.level, section.seed, near)
    elif section.ratio > 0:
        raise ValueError(
            f"noise.file ({section.file}) and noise.ratio ({section.ratio}) exclude each other: remove one"
        )
    elif Path(section.file).suffix == ".npz":
        noise = CaptionNoise.load(section.file)
        try:
            noise.check(pairs)
        except ValueError as error:
            raise ValueError(f"noise.file {section.file}: {error}") from None
    else:
        noise = import_noise(section.file, pairs)
    if section.sha256 is not None and noise.sha256 != section.sha256:
        raise ValueError(f"noise.sha256 is {section.sha256} in the recipe, but this noise has {noise.sha256}")
    return noise
