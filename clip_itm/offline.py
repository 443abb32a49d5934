"""Whether the Hub has to be asked, and whether it answers.

Libraries try for a minute or two before they report that there is no network. Here this is decided within seconds, and
in commands before the libraries are imported.
"""

import glob
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 3.0  # seconds for a name to be resolved and a connection to be made
KEPT = "or set HF_HOME to a cache that has it"


def looks_like_path(name: str | Path) -> bool:
    """Whether a name that is not a file or folder here was meant as one, not as a model of the Hub (`org/name`).

    Example:
        >>> looks_like_path("./model"), looks_like_path("openai/clip-vit-base-patch32")
        (True, False)
    """
    name = str(name)
    return (
        isinstance(name, Path)
        or name.startswith((".", "/", "~"))
        or name.endswith("/")
        or "\\" in name
        or name.count("/") > 1
        or (name.count("/") == 1 and Path(name).parent.is_dir())
    )


def require_path(name: str | Path) -> None:
    """Raises ValueError at once for a path that does not exist, which libraries would take for a name on the Hub."""
    if not _exists(name) and looks_like_path(name):
        raise ValueError(f"{name}: there is no such folder; expected a run folder, a model folder or a name on the Hub")


def require_source(name: str | Path) -> None:
    """Raises ValueError at once for a model that is neither here nor available from the Hub."""
    require_path(name)
    if not _exists(name) and not _is_available([_folder("model", str(name))]):
        why = f"there is no such folder here, and {_why_not()} for a model of this name"
        raise ValueError(f"{name}: {why}: download it before, {KEPT}")


def require_recipe(recipe, backbone: bool = True) -> None:
    """Raises ValueError at once if a recipe names data (or pretrained weights) of the Hub that are not available."""
    for key, name, kept, instead in _remote_parts(recipe, backbone):
        if looks_like_path(name):
            raise ValueError(f"{key}: {name}: there is no such folder, and the Hub has no such name")
        if not _is_available(kept):
            why = f"it was not downloaded before, and {_why_not()} for it"
            raise ValueError(f"{key}: {name}: {why}. Without network, {instead}, {KEPT}")


def _remote_parts(recipe, backbone: bool) -> Iterator[tuple[str, str, list[str], str]]:
    """What a recipe takes from the Hub: key, name, patterns of its folders in the cache, what works without network."""
    data, towers = recipe.data, recipe.backbone
    if (name := data.hub_dataset) and not _exists(name):
        folders = [_folder("dataset", name), f"../datasets/{glob.escape(name.replace('/', '___'))}"]
        yield "data.path", name, folders, "give a folder written by save_to_disk"
    if recipe.start_from is not None:
        if backbone and not _exists(recipe.start_from):
            yield "start_from", recipe.start_from, [_folder("model", recipe.start_from)], "give a run or a model folder"
        return
    for part in towers.hub_parts() if backbone else ():
        if not (part.or_path and _exists(part.name)):
            within = "" if part.file is None else f"/snapshots/*/{part.file}"
            yield f"backbone.{part.key}", part.name, [_folders("model", part.repository) + within], part.instead


def _is_available(patterns: list[str]) -> bool:
    """Whether the Hub answers, or one of the folders is in its cache; then only the cache is used."""
    if not is_offline() and hub_answers():
        return True
    found = any(map(_is_cached, patterns))
    if found:  # the libraries read this when they are imported
        os.environ["HF_HUB_OFFLINE"] = "1"
    return found


def _why_not() -> str:
    if is_offline():
        return "HF_HUB_OFFLINE forbids to ask the Hub"
    return f"the Hub ({_endpoint()}) cannot be reached to ask"


def _folders(kind: str, repository: str) -> str:
    """The folders of repositories in the cache; a pattern, from a pattern."""
    return f"{kind}s--{repository.replace('/', '--')}"


def _folder(kind: str, name: str) -> str:
    return _folders(kind, glob.escape(name))


def is_offline() -> bool:
    """Whether the user has told the libraries not to use the network."""
    words = (os.environ.get("HF_HUB_OFFLINE") or "", os.environ.get("TRANSFORMERS_OFFLINE") or "")
    return any(word.upper() in ("1", "ON", "YES", "TRUE") for word in words)


@cache
def hub_answers() -> bool:
    """Whether a connection to the Hub can be made; behind a proxy, which is not asked, this is assumed."""
    place = urlsplit(_endpoint() if "://" in _endpoint() else f"https://{_endpoint()}")
    if place.scheme in urllib.request.getproxies() or "all" in urllib.request.getproxies():
        return True
    answers = []

    def ask():
        try:
            port = place.port or (80 if place.scheme == "http" else 443)
            socket.create_connection((place.hostname, port), timeout=PATIENCE).close()
            answers.append(True)
        except (OSError, ValueError):
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)  # resolving a name cannot be given a time limit
    thread.start()
    thread.join(PATIENCE)
    return bool(answers and answers[0])


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def hub_cache() -> Path:
    """The folder in which libraries keep what comes from the Hub."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(given or Path(home) / "hub").expanduser()


def _is_cached(pattern: str) -> bool:
    return any(glob.iglob(str(Path(glob.escape(str(hub_cache()))) / pattern)))


def _exists(name: str | Path) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError):  # too long, or with a NUL in it
        return False
