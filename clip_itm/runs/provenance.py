"""What a run records about itself, so that every artefact says what made it."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from clip_itm.distributed import num_processes
from clip_itm.files import write_json, write_text
from clip_itm.recipe import Recipe
from clip_itm.runs.start import start_sha256

PACKAGES = ("clip-itm", "torch", "transformers", "open_clip_torch", "timm", "datasets", "accelerate")


@dataclass(frozen=True)
class Provenance:
    """Hashes and versions of one run; written as `provenance.json` into the run and into every checkpoint.

    `splits` name -> {sha256, images, captions} and the numbers left out {missing, broken, empty_captions}; `noise`
    {sha256, ratio, level, seed} of the training captions, with more entries at some levels;
    `start`, hash of the model that `start_from` names; `python`, what a run was given that no recipe holds (callbacks);
    `marks`, how many training pairs people marked and how, with hashes of the marks and of the split without them;
    `method`, hashes of what the recipe's method reads for these pairs, such as a memory bank.
    """

    recipe_sha256: str
    splits: dict[str, dict]
    noise: dict
    versions: dict[str, str]
    machine: dict[str, str | int] = field(default_factory=dict)
    method: dict[str, str] = field(default_factory=dict)
    start: str | None = None
    python: list[str] = field(default_factory=list)
    marks: dict[str, int | str] = field(default_factory=dict)

    def write(self, folder: Path, recipe: Recipe) -> None:
        """`provenance.json` and `recipe.yaml` in `folder`."""
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        write_json(folder / "provenance.json", asdict(self))

    def changes_since(self, began: dict) -> list[str]:
        """What differs from a `provenance.json`: splits, noise and what the method reads, with their hashes."""
        now = self._hashes(asdict(self))
        then = self._hashes(began)
        return [
            f"{name} {then.get(name, 'none')[:12]} -> {now.get(name, 'none')[:12]}"
            for name in then | now
            if then.get(name) != now.get(name)
        ]

    @staticmethod
    def _hashes(content: dict) -> dict[str, str]:
        method = content.get("method") or {}
        if content.get("bank") is not None:  # of an earlier version
            method = {"bank": content["bank"]}
        splits = {name: split["sha256"] for name, split in content["splits"].items()}
        start = {"start_from": content["start"]} if content.get("start") else {}
        return splits | {"noise": content["noise"]["sha256"]} | method | start


def describe_run(recipe: Recipe, splits: dict, noise, method: dict[str, str], python: Sequence[str] = ()) -> Provenance:
    return Provenance(
        recipe_sha256=recipe.sha256,
        splits={
            name: {"sha256": split.sha256, "images": len(split), "captions": len(split.pairs), **split.skipped_counts}
            for name, split in splits.items()
        },
        noise={"sha256": noise.sha256, "ratio": noise.ratio, "level": noise.level, "seed": noise.seed, **noise.details},
        versions={"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        machine={
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "cpu_threads": torch.get_num_threads(),
            "processes": num_processes(),
        },
        method=method,
        start=None if recipe.start_from is None else start_sha256(recipe.start_from),
        python=list(python),
        marks=dict(splits["train"].marks) if "train" in splits else {},
    )
