"""What `clip-itm doctor` finds out: with packages that are broken, too old or missing, and without secrets."""

import sys

import pytest

from clip_itm import environment
from clip_itm.environment import memory, places, problems, requirements, size_of, survey, variables
from clip_itm.import_check import try_imports

MODULES = {
    "sound": "",
    "loud": "print('1, 2'); import sys; print('x', file=sys.stderr)",
    "broken": "raise ImportError('libfoo.so: cannot open\\nshared object file')",
    "exits": "raise SystemExit(0)",
    "ends": "import os; os._exit(3)",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
}


def distribution(folder, name, version, module, code=""):
    """A package as pip leaves it."""
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "RECORD").write_text(f"{module}.py,,\n{info.name}/METADATA,,\n", encoding="utf-8")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages that this process and its children find."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.mark.parametrize("last", [*MODULES, "absent"])
def test_a_package_that_cannot_be_imported_is_told_and_harms_no_other(site, last):
    for name, code in MODULES.items():
        (site / f"{name}.py").write_text(code, encoding="utf-8")
    order = [name for name in (*MODULES, "absent") if name != last]
    errors, devices = try_imports([*order, last])
    assert errors == {
        "sound": None,
        "loud": None,
        "broken": "ImportError: libfoo.so: cannot open\nshared object file",
        "exits": "SystemExit: 0",
        "ends": "ends the process (exit status 3)",
        "crashes": "ends the process (Segmentation fault)",
        "absent": "ModuleNotFoundError: No module named 'absent'",
    }
    assert devices == {}


def test_a_python_that_cannot_be_started_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    errors, devices = try_imports(["numpy", "torch"])
    assert all("cannot start" in error for error in errors.values())
    assert (list(errors), devices) == (["numpy", "torch"], {})


def test_devices_are_those_that_torch_sees(site):
    (site / "torch.py").write_text(
        """
from types import SimpleNamespace as space
version = space(cuda="13.0", hip=None)
gpu = space(name="H\\x1b", total_memory=10**11, major=9, minor=0)
cuda = space(is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda number: gpu)
backends = space(mps=space(is_available=lambda: False))
get_num_threads = lambda: 4
""",
        encoding="utf-8",
    )
    errors, devices = try_imports(["torch"])
    assert errors == {"torch": None}
    assert (devices["built for"], devices["threads"], devices["mps"]) == ("CUDA 13.0", 4, False)
    assert devices["gpus"] == [{"name": "H\x1b", "bytes": 10**11, "capability": "9.0"}] * 2


def test_requirements_are_those_of_the_installed_package():
    required, extras = requirements()
    assert {"torch", "transformers", "pillow"} <= required.keys()
    assert {"plot", "onnx", "app"} <= extras.keys()
    assert not {"dev", "docs"} & extras.keys()
    assert extras["qdrant"].keys() == {"qdrant-client"}


def test_a_survey_says_what_is_missing_old_and_broken(site, tmp_path, monkeypatch):
    distribution(site, "old-one", "1.2", "old_one")
    distribution(site, "broken-one", "3.0", "broken_one", "import foo")
    wanted = (
        {"numpy": ">=1", "absent-one": ">=2"},
        {"one": {"old-one": ">=2", "absent-two": ""}, "two": {"broken-one": ""}},
    )
    monkeypatch.setattr(environment, "requirements", lambda: wanted)
    found = survey(tmp_path / "cache", ask_hub=False)
    assert found["packages"]["numpy"]["error"] is None
    assert found["extras"]["one"]["absent-two"]["version"] is None
    assert found["problems"] == [
        "absent-one is not installed, and everything needs it: pip install 'absent-one>=2'",
        "old-one 1.2 is installed (extra one), >=2 is needed: pip install 'old-one>=2'",
        "broken-one 3.0 is installed (extra two), but cannot be imported: ModuleNotFoundError: No module named 'foo'",
    ]


def test_a_folder_that_is_no_installation_is_a_problem():
    assert list(problems({}, {})) == ["clip-itm is not installed in this Python: pip install -e . in its folder"]


def test_places_are_counted_and_say_nothing_of_whose_they_are(tmp_path, monkeypatch):
    home = tmp_path / "home"
    cache = home / "cache"
    cache.mkdir(parents=True)
    for number in range(3):
        (cache / f"{number}").write_bytes(b"x" * 5000)
    (cache / "loop").symlink_to(cache)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "nothing"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    own, models, datasets, *_ = places(cache)
    assert (own["path"], own["files"], own["is_all"], own["writable"]) == ("~/cache", 3, True, True)
    assert own["bytes"] >= 15000
    assert (models["path"], models["exists"]) == ("~/nothing/hub", False)
    assert datasets["path"] == "~/nothing/datasets"
    assert models["free"] == own["free"] > 0
    monkeypatch.setattr(environment, "MOST_FILES", 2)
    assert size_of(cache)[::2] == (2, False)


def test_secrets_are_not_shown(monkeypatch):
    for name, value in {
        "HF_TOKEN": "hf_secret",
        "HF_ENDPOINT": "https://me:secret@mirror",
        "https_proxy": "http://me:secret@proxy",
        "CLIP_ITM_DEBUG": "1",
        "MY_HF_TOKEN": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    found = dict(variables())
    assert found["CLIP_ITM_DEBUG"] == "1"
    assert [found[name] for name in ("HF_TOKEN", "HF_ENDPOINT", "https_proxy")] == ["(set)"] * 3
    assert "MY_HF_TOKEN" not in found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory():
    assert 0 < memory()["free"] <= memory()["bytes"]
