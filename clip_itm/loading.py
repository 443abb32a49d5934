"""Loading models, tokenizers and image processors of transformers: a failure names the file that is to blame."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_itm.offline import require_path
from clip_itm.reading import reason


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """A block that loads the folder or Hub name `name`; whatever fails becomes a ValueError that names it.

    A path that does not exist is an error before anything is tried.
    """
    require_path(name)
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(name) in str(error) and "pickle" not in str(error):
            raise
        raise ValueError(cannot_load(name, error)) from error


def cannot_load(name: str | Path, error: Exception) -> str:
    """The message for a model `name` that cannot be loaded: its damaged file, or what the library says; what to do."""
    folder = Path(name)
    if not folder.is_dir():
        return (
            f"{name}: cannot load this model: {reason(error)} Check the name on the Hub; without network, give a "
            "folder written by save_pretrained (model, tokenizer and image processor), or download it before with "
            "`hf download`"
        )
    found = damaged_file(folder)
    blamed, why = (folder, reason(error)) if found is None else found
    return f"{blamed}: cannot load this model: {why}; restore the folder from a copy, or save the model again"


def damaged_file(folder: Path) -> tuple[Path, str] | None:
    """The first file of a model that is not what its name says, and why; None if all are."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    for path in sorted(folder.iterdir()):
        try:
            if path.suffix in (".json", ".txt", ".jinja"):
                text = path.read_text(encoding="utf-8")
                content = json.loads(text) if path.suffix == ".json" else {}
                if path.name.endswith(("config.json", "tokenizer.json")) and not isinstance(content, dict):
                    return path, f"it holds a {type(content).__name__} in place of a mapping"
            if path.name == "tokenizer.json":
                Tokenizer.from_file(str(path))
            if path.suffix == ".safetensors":
                with safe_open(path, framework="np") as file:
                    file.keys()
        except Exception as error:
            return path, reason(error)
    return None
