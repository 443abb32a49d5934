"""What an installation has: its version, its files, its types, and the files beside the code that name them."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
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


def test_the_workflow_runs_targets_that_exist_on_every_python_that_is_named():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = {word for step in steps if step.startswith("make ") for word in step.split()[1:]}
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"lint", "docs", "test-quick", "test"} <= targets
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert workflow["jobs"]["quick"]["strategy"]["matrix"]["python-version"] == named


def test_reports_of_faults_ask_for_the_doctor():
    for name in ("fault", "result", "figures"):
        form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
        (field,) = (part for part in form["body"] if part["id"] == "doctor")
        assert "clip-itm doctor" in field["attributes"]["label"]
        assert field["validations"]["required"]


def test_constraints_are_the_ends_of_the_ranges():
    """Every direct requirement of lowest.txt is the lowest that is allowed, and what newest.txt names is allowed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    above = ("dev", "docs", "figures")
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in above]
    needed = [Requirement(line) for line in (*project["dependencies"], *chain(*extras))]
    lowest, newest = (constraints(name) for name in ("lowest", "newest"))
    wanted = {canonicalize_name(one.name): one.specifier for one in needed if one.name != "clip-itm"}
    assert {"torch", "torchvision", "transformers"} <= wanted.keys() & lowest.keys() & newest.keys()
    for name in wanted.keys() & lowest.keys():
        (floor,) = (part.version for part in wanted[name] if part.operator == ">=")
        assert Version(lowest[name]) == Version(floor), name
    assert all(newest[name] in wanted[name] for name in wanted.keys() & newest.keys())
    assert {canonicalize_name(Requirement(line).name) for line in project["dependencies"]} <= lowest.keys()


def constraints(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
