"""What tests do to the folder of a run, and see in it."""

from pathlib import Path

from clip_itm.training.folder import MANIFEST


def as_of_earlier(folder: Path) -> None:
    for path in [folder / MANIFEST, *folder.rglob("checksums.json")]:
        path.unlink()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unfinished(folder: Path) -> None:
    (folder / "results.json").unlink()
