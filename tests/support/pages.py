"""A page of docs/ that adds something to the package, applied to a copy of it: its files, then its changes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.forks import run_python
from support.paths import ROOT


def apply_page(name: str, folder: Path) -> list[str]:
    """Write a copy of the package as docs/`name` leaves it into `folder`; the names of the files that the page adds."""
    shutil.copytree(ROOT / "clip_itm", folder / "clip_itm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes" / "sample", folder / "recipes" / "sample")
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, re.S)
    for path, content in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
    for number, change in enumerate(re.findall(r"```diff\n(.*?)```", text, re.S)):
        (folder / f"{number}.diff").write_text(change, encoding="utf-8")
        subprocess.run(["git", "apply", f"{number}.diff"], cwd=folder, check=True)
    settings = ("--config", str(ROOT / "pyproject.toml"), "clip_itm", "tests")
    subprocess.run([sys.executable, "-m", "ruff", "check", *settings], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", *settings], cwd=folder, check=True)
    place = _python(folder, "-c", "import clip_itm; print(clip_itm.__file__)")
    assert str(folder) in place, "the copy is the package there, not the installed one"
    return [path for path, _ in files]


def run(folder: Path, *words: str) -> str:
    """What `python -m` and these words print where the copy in `folder` is the package."""
    return _python(folder, "-m", *words)


def _python(folder: Path, *words: str) -> str:
    return run_python(*words, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"})
