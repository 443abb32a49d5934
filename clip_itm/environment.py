"""What this installation and this machine are, for `clip-itm doctor`: nothing here needs the network or torch."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from clip_itm.import_check import module_of, try_imports
from clip_itm.offline import hub_answers, hub_cache, is_offline

PACKAGE = "clip-itm"
FOR_DEVELOPERS = ("dev", "docs")  # extras that no command needs
SHOWN = ("ACCELERATE_", "CLIP_ITM_", "CUDA_VISIBLE_DEVICES", "HF_", "LC_ALL", "MASTER_", "OMP_", "PYTHONUTF8", "TMPDIR",
         "TRANSFORMERS_", "WORLD_SIZE", "XDG_CACHE_HOME")  # beginnings of names of variables  # fmt: skip
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|AUTH", re.IGNORECASE)
MOST_FILES = 200_000  # that are counted in one cache


def survey(cache_folder: Path, ask_hub: bool = True) -> dict:
    """Everything that a bug report needs, in JSON types; `problems`: sentences on what cannot work as it is.

    `cache_folder`: that of clip_itm. With `ask_hub` a connection to the Hub is tried for at most three seconds, unless
    the user has forbidden it. Values of environment variables that may be secret are left out.
    """
    required, extras = requirements()
    packages = {name: package_state(name, needs) for name, needs in required.items()}
    optional = {
        extra: {name: package_state(name, needs) for name, needs in parts.items()} for extra, parts in extras.items()
    }
    every = packages | {name: state for parts in optional.values() for name, state in parts.items()}
    modules = {state["module"]: name for name, state in every.items() if state["module"]}
    errors, devices = try_imports(list(modules))
    for module, error in errors.items():
        every[modules[module]]["error"] = error
    for parts in optional.values():  # a package of two extras
        parts.update({name: every[name] for name in parts})
    return {
        "clip_itm": own_version(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "prefix": shortened(Path(sys.prefix)),
        "platform": platform.platform(),
        "encoding": f"{sys.getfilesystemencoding()} for names, {getattr(sys.stdout, 'encoding', None)} for output",
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": memory(),
        "devices": devices,
        "packages": packages,
        "extras": optional,
        "hub": hub_state(ask_hub),
        "variables": dict(variables()),
        "places": places(cache_folder),
        "problems": list(problems(packages, optional)),
    }


def requirements() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Names of packages with the versions that are needed: those of every installation, and those of each extra."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    required: dict[str, str] = {}
    extras: dict[str, dict[str, str]] = {}
    for line in lines:
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"](.+?)['\"]", str(requirement.marker))
        if requirement.name == PACKAGE or (extra and extra[1] in FOR_DEVELOPERS):
            continue
        (extras.setdefault(extra[1], {}) if extra else required)[requirement.name] = str(requirement.specifier)
    return required, extras


def own_version() -> str:
    """The version of the package, or a sentence if it is not installed."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "not installed (imported from a folder)"


def package_state(name: str, needs: str) -> dict:
    """The `version` (None: not installed) of a distribution, whether it is one that is needed, and its `module`."""
    state = {"needs": needs, "version": None, "fits": False, "module": None, "error": None}
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return state
    return state | {
        "version": distribution.version,
        "fits": fits(distribution.version, needs),
        "module": module_of(distribution),
    }


def fits(version: str, needs: str) -> bool:
    """Whether a version is within a range such as ">=3.3,<5".

    >>> fits("4.1.0", ">=3.3,<5"), fits("5.0", ">=3.3,<5"), fits("2.15.0+cpu", ">=2.15")
    (True, False, True)
    """
    return SpecifierSet(needs).contains(version, prereleases=True)


def memory() -> dict:
    """Bytes of the machine's memory, in all and free; {} if the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    found = dict(re.findall(r"^(MemTotal|MemAvailable): +(\d+) kB", text, re.MULTILINE))
    return (
        {"bytes": int(found["MemTotal"]) * 1024, "free": int(found["MemAvailable"]) * 1024} if len(found) == 2 else {}
    )


def hub_state(ask: bool) -> str:
    """Whether the Hub may be asked, and whether it answers."""
    if is_offline():
        return "not asked: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so that only what is in the cache is used"
    if not ask:
        return "not asked"
    return (
        "answers, or a proxy is to be used" if hub_answers() else "cannot be reached: only what is in the cache is used"
    )


def variables() -> Iterator[tuple[str, str]]:
    """Environment variables that matter, by name; "(set)" for what may be secret."""
    for name, value in sorted(os.environ.items()):
        if name.upper().endswith("_PROXY") or (name.startswith(SHOWN) and (SECRET.search(name) or "@" in value)):
            yield name, "(set)"
        elif name.startswith(SHOWN):
            yield name, value


def places(cache_folder: Path) -> list[dict]:
    """The folders where things are kept or written: what is in them, and the room that is left on their disks."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    datasets = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    found = [
        ("cache of clip_itm", cache_folder),
        ("models of the Hub", hub_cache()),
        ("data sets of the Hub", datasets),
    ]
    counted = [_place(name, path.expanduser(), count=True) for name, path in found]
    return [*counted, _place("temporary files", Path(_temporary())), _place("current folder", Path.cwd())]


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # no folder can be written to
        return "/tmp"


def _place(name: str, path: Path, count: bool = False) -> dict:
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        free = None
    place = {"name": name, "path": shortened(path), "exists": path.exists(), "free": free}
    place["writable"] = os.access(existing, os.W_OK)
    if count and path.is_dir():
        place |= dict(zip(("files", "bytes", "is_all"), size_of(path), strict=True))
    return place


def size_of(folder: Path) -> tuple[int, int, bool]:
    """Number of files below a folder, their bytes, and whether these are all: no more than `MOST_FILES` are counted."""
    files = size = 0
    for above, _, names in os.walk(folder, onerror=lambda error: None):
        for name in names:
            try:
                found = os.lstat(os.path.join(above, name))
            except OSError:
                continue
            files, size = files + 1, size + found.st_blocks * 512
            if files >= MOST_FILES:
                return files, size, False
    return files, size, True


def shortened(path: Path) -> str:
    """A path that does not show whose home it is in."""
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path != home and path.is_relative_to(home) else str(path)


def problems(packages: dict[str, dict], extras: dict[str, dict]) -> Iterator[str]:
    """A sentence for each package that is needed and missing, and for each that is there and too old, new or broken."""
    if not packages:
        yield f"{PACKAGE} is not installed in this Python: pip install -e . in its folder"
    for name, state in packages.items():
        if state["version"] is None:
            yield f"{name} is not installed, and everything needs it: {_advice(name, state)}"
        yield from _faults(name, state, "")
    for extra, parts in extras.items():
        for name, state in parts.items():
            yield from _faults(name, state, f" (extra {extra})")


def _faults(name: str, state: dict, extra: str) -> Iterator[str]:
    """What is wrong with a package that is installed."""
    if state["version"] is not None and not state["fits"]:
        yield f"{name} {state['version']} is installed{extra}, {state['needs']} is needed: {_advice(name, state)}"
    if state["error"]:
        yield f"{name} {state['version']} is installed{extra}, but cannot be imported: {state['error']}"


def _advice(name: str, state: dict) -> str:
    return f"pip install '{name}{state['needs']}'"
