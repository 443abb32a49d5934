"""What an installation has: its version, its files, its types, and the files beside the code that name them."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import yaml
from setuptools import Distribution

import clip_itm
from support.paths import ROOT


def test_the_version_stands_in_one_place(monkeypatch):
    monkeypatch.chdir(ROOT)
    built = Distribution()
    built.parse_config_files()
    assert built.metadata.version == clip_itm.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == clip_itm.__version__
    assert f"\n## {clip_itm.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert version("clip-itm") == clip_itm.__version__, "install again: make setup"


def test_all_that_lies_beside_the_code_is_packaged(monkeypatch):
    """`py.typed` among it, without which a type checker ignores the annotations."""
    monkeypatch.chdir(ROOT)
    built = Distribution()
    built.parse_config_files()
    built.include_package_data = False  # what a manifest adds, which there is none of
    command = built.get_command_obj("build_py")
    command.ensure_finalized()
    packaged = {Path(folder) / file for _, folder, _, files in command.data_files for file in files}
    kept = {path for path in Path("clip_itm").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert packaged == kept
    assert Path("clip_itm/py.typed") in kept


def test_importing_the_package_waits_for_nothing():
    code = "import sys, clip_itm; print(clip_itm.__version__, {'torch', 'transformers', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"{clip_itm.__version__} set()\n"


def test_hooks_run_what_the_environment_has():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert {hook["entry"].split()[0] for hook in hooks[0]["hooks"]} == {".venv/bin/ruff"}
