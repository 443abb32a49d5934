"""The wheel and the sdist: built, checked, and the wheel used where the repository is not."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import clip_itm
from support.paths import ROOT
from support.tiny import tiny_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """dist/ of a copy of the repository, as `make dist` fills it."""
    for needed in ("build", "twine"):
        pytest.importorskip(needed, reason="make setup installs it")
    copy = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "clip_itm", copy / "clip_itm", ignore=shutil.ignore_patterns("__pycache__"))
    recipe = next(line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if "python -m build" in line)
    subprocess.run([sys.executable, *recipe.split()[1:]], cwd=copy, check=True, capture_output=True)
    return copy / "dist"


@pytest.fixture(scope="module")
def empty(built, tmp_path_factory) -> Path:
    """An environment with the wheel: what it needs comes from this one, without the installation of the repository."""
    place = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (wheel,) = built.glob("*.whl")
    installs = [sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--no-deps", "--no-index"]
    subprocess.run([*installs, wheel], env=without_repository(), check=True, capture_output=True)
    (own,) = place.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("-packages")] or [sysconfig.get_path("purelib")]
    (own / "others.pth").write_text("\n".join(others), encoding="utf-8")  # after its own, and without their .pth files
    return place


def without_repository() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(empty: Path, *words: str, cwd: Path) -> str:
    words = (str(empty / "bin" / words[0]), *words[1:])
    done = subprocess.run(words, cwd=cwd, env=without_repository(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_twine_finds_nothing(built):
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_what_is_in_them(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()} == {
        "clip_itm",
        f"clip_itm-{clip_itm.__version__}.dist-info",
    }
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("clip_itm/")}
    assert packaged == {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("clip_itm/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*packaged, "pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_wheel_works_without_the_repository(empty, tmp_path):
    """The commands of the first screen of the README and what surrounds them, in a folder of the user's."""
    where = run(empty, "python", "-c", "import clip_itm; print(clip_itm.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(empty)
    assert clip_itm.__version__ in run(empty, "clip-itm", "--version", cwd=tmp_path)
    recipe = tiny_recipe(tmp_path, training={"max_steps": 2})
    (tmp_path / "my.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert "Training can start" in run(empty, "clip-itm", "data", "check", "my.yaml", cwd=tmp_path)
    run(empty, "clip-itm", "train", "my.yaml", cwd=tmp_path)
    assert "rsum" in run(empty, "clip-itm", "evaluate", recipe.output_dir, cwd=tmp_path)
    run(empty, "clip-itm", "audit", "my.yaml", "--model", recipe.output_dir, "--out", "audit", cwd=tmp_path)
    assert (tmp_path / "audit" / "audit.html").is_file()
