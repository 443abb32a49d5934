"""`RunFolder`: what the folder of a run says about it. Nothing here loads torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_itm.recipe import Recipe, load_recipe
from clip_itm.runs.stored import read_provenance, read_results


@dataclass(frozen=True)
class RunFolder:
    """The folder `path` of a run that is finished, under way, or not begun: recipe, model, checkpoints, results."""

    path: Path

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end: results are written last."""
        return (self.path / "results.json").is_file()

    @property
    def model(self) -> Path:
        """The folder of its best model, which `ItmModel.from_pretrained` loads."""
        return self.path / "best"

    @property
    def has_model(self) -> bool:
        return (self.model / "config.json").is_file()

    @property
    def noise_file(self) -> Path:
        """The captions that its training pairs got."""
        return self.path / "noise.npz"

    @property
    def newest_checkpoint(self) -> Path | None:
        """The one that was written last, whole or not."""
        found = [path.parent for path in self.path.glob("checkpoint-*/trainer_state.json")]
        return max(found, key=lambda path: (path / "trainer_state.json").stat().st_mtime, default=None)

    def require_finished(self) -> None:
        """Raise ValueError naming what is missing."""
        wanted = {"results.json": self.is_finished, "best/": self.has_model, "noise.npz": self.noise_file.is_file()}
        for name, is_there in wanted.items():
            if not is_there:
                raise ValueError(f"{self.path}: this run is not finished (it has no {name}): train it to its end")

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe that it was begun with, with `--section.key value` overrides."""
        return load_recipe(self.path, overrides)

    def results(self) -> dict:
        """What `results.json` holds. Raises ValueError if that is not what a run wrote."""
        return read_results(self.path / "results.json")

    def provenance(self) -> dict:
        """What `provenance.json` holds: hashes of recipe, data and noise, versions, machine."""
        return read_provenance(self.path / "provenance.json")
