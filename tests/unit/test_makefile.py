"""What `make` does, without doing it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.browser import start_browser
from support.paths import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def commands(checkout: Path, target: str) -> str:
    done = subprocess.run(["make", "-n", target], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_installs_only_what_it_uses(checkout):
    assert "'.[plot]'" in commands(checkout, "demo")
    assert "'.[dev]'" not in commands(checkout, "demo")
    assert "clip-itm compare" in commands(checkout, "demo")


def test_tests_install_the_rest_on_top(checkout):
    found = commands(checkout, "test-quick")
    assert found.index("'.[plot]'") < found.index("'.[dev]'") < found.index("-m pytest")
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".runs").touch()  # after the demo
    found = commands(checkout, "test-quick")
    assert "'.[plot]'" not in found
    assert "'.[dev]'" in found


def test_check_is_lint_types_and_tests_that_are_there(checkout):
    found = commands(checkout, "check")
    assert found.index("ruff check .") < found.index("ruff format --check .") < found.index("bin/mypy")
    (folder,) = re.findall(r" (tests/\S+)", found)
    assert len(list((ROOT / folder).rglob("test_*.py"))) > 50


def test_an_installation_that_fails_is_tried_again(checkout):
    """pip's status is that of the target, though its output goes through a pipe."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho Collecting torch\nexit 3\n")
    python.chmod(0o755)
    (checkout / ".venv" / ".runs").touch()
    done = subprocess.run(["make", "setup"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Collecting torch" in done.stdout
    assert not (checkout / ".venv" / ".installed").exists()


def test_threads_that_wait_are_passive_unless_the_user_says_otherwise(checkout):
    (checkout / "Makefile").open("a").write("\nshow:\n\t@echo $$OMP_WAIT_POLICY\n")
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run(
            ["make", "show"], cwd=checkout, env={"PATH": "/usr/bin:/bin", **given}, capture_output=True, text=True
        )
        assert done.stdout == f"{expected}\n"


def test_a_browser_is_installed_where_there_is_none(tmp_path):
    """As root without sudo, as somebody else with it; where it is there, nothing is done."""
    for name in ("apt-get", "sudo", "id"):
        answer = "echo 0" if name == "id" else f'echo {name} "$@"; [ "$2" != install ] || exit 0'
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("make", "bash", "sh", "env", "test"):
        (tmp_path / name).symlink_to(shutil.which(name))

    def browser() -> str:
        done = subprocess.run(
            ["make", "--silent", "browser"],
            cwd=ROOT,
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    wanted = "apt-get install -y --no-install-recommends chromium chromium-driver\n"
    assert browser() == wanted
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    assert browser() == f"sudo env DEBIAN_FRONTEND=noninteractive {wanted}"
    for name in ("chromium", "chromedriver"):
        (tmp_path / name).symlink_to(shutil.which("sh"))
    assert "apt-get" not in browser()


@pytest.mark.parametrize("is_required", [True, False])
def test_a_browser_that_is_missing_is_a_failure_where_it_is_required(monkeypatch, is_required):
    assert "CLIP_ITM_REQUIRE_BROWSER=1 make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CLIP_ITM_REQUIRE_BROWSER", raising=False)
    if is_required:
        monkeypatch.setenv("CLIP_ITM_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception if is_required else pytest.skip.Exception, match="apt-get install"):
        start_browser()
