"""What a run gets from Python besides its recipe: things in memory to keep in its folder, callbacks, metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clip_itm.checksums import check_files
from clip_itm.files import write_json
from clip_itm.reading import read_json
from clip_itm.training.checkpoints import holds_work
from clip_itm.training.folder import staged

ComputeMetrics = Callable[[Any, Any], dict[str, float]]
"""`compute_metrics(embeddings, ranks)` gets `Embeddings` and `Ranks` of the val split: more metrics by name."""
CONTENT = "content.json"  # next to what is kept, to recognise it


class Kept(NamedTuple):
    """Something in memory that the recipe names as `<output_dir>/<name>`: a hash of its content, and what writes it."""

    name: str
    content: str
    write: Callable[[Path], Any]


@dataclass(frozen=True)
class Additions:
    kept: Sequence[Kept] = ()
    callbacks: Sequence[Any] = ()
    compute_metrics: ComputeMetrics | None = None

    @property
    def names(self) -> list[str]:
        """What the recipe does not hold, for the provenance."""
        named = [type(callback) for callback in self.callbacks]
        named += [] if self.compute_metrics is None else [self.compute_metrics]
        return [f"{one.__module__}.{getattr(one, '__qualname__', type(one).__qualname__)}" for one in named]

    def require_same(self, run: Path) -> None:
        """ValueError if the folder holds a run, with work to lose, that was given other data or another model."""
        for name, content, _ in self.kept:
            found = _content_of(run / name)
            if found not in (None, content) and holds_work(run):
                raise ValueError(
                    f"{run} holds a run on other {name} (those in {run / name}): choose another output_dir, or delete "
                    "that run (overwrite=True)"
                )

    def keep(self, run: Path, overwrite: bool) -> None:
        """Write what is kept into the folder of the run, whole or not at all, unless it is there already."""
        if not overwrite:
            self.require_same(run)
        for name, content, write in self.kept:
            if _content_of(run / name) == content:
                check_files(run / name)
                continue
            with staged(run, name) as folder:
                write(folder)
                write_json(folder / CONTENT, {"xxh3_128": content})


NOTHING = Additions()


def _content_of(folder: Path) -> str | None:
    if not (folder / CONTENT).is_file():
        return None
    return read_json(folder / CONTENT, "the hash of what a run was given", ("xxh3_128",))["xxh3_128"]
