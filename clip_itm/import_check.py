"""Which packages can be imported, tried in a separate process: a broken one affects nothing else."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import Distribution

LONGEST_ERROR = 300  # characters
PATIENCE = 300.0  # seconds for all imports: on a busy disk the first ones take minutes

# argv: the file to write to, then modules. It gets a line per module, begun before the import, then one on devices.
CHILD = """
import importlib, json, os, sys

with os.fdopen(int(sys.argv[1]), "w") as out:
    for name in sys.argv[2:]:
        print(json.dumps(name), end=", ", file=out, flush=True)
        try:
            importlib.import_module(name)
            error = None
        except BaseException as problem:
            error = f"{type(problem).__name__}: {problem}"
        print(json.dumps(error), file=out, flush=True)
    if (torch := sys.modules.get("torch")) and hasattr(torch, "cuda"):
        found = {"built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"}
        if getattr(torch.version, "hip", None):
            found["built for"] = f"ROCm {torch.version.hip}"
        found["threads"] = torch.get_num_threads()
        found["gpus"] = []
        if torch.cuda.is_available():
            for number in range(torch.cuda.device_count()):
                gpu = torch.cuda.get_device_properties(number)
                capability = f"{gpu.major}.{gpu.minor}"
                found["gpus"].append({"name": gpu.name, "bytes": gpu.total_memory, "capability": capability})
        found["mps"] = torch.backends.mps.is_available()
        print(json.dumps("devices"), json.dumps(found), sep=", ", file=out, flush=True)
"""


def module_of(distribution: Distribution) -> str | None:
    """The module that is imported for a distribution: PIL for pillow, sklearn for scikit-learn."""
    found = (distribution.read_text("top_level.txt") or "").split()
    for file in () if found else distribution.files or ():
        head = file.parts[0]
        if len(file.parts) == 2 and file.name == "__init__.py":
            found.append(head)
        elif len(file.parts) == 1 and file.suffix in (".py", ".so"):
            found.append(head.partition(".")[0])
    found = [name for name in found if name.isidentifier() and not name.startswith("_")]
    like = re.sub(r"[-_.]+", "_", distribution.name).lower()
    return min(found, key=lambda name: (name.lower() != like, not like.startswith(name.lower())), default=None)


def try_imports(modules: list[str]) -> tuple[dict[str, str | None], dict]:
    """Why each of `modules` cannot be imported (None: it can), and the devices that torch sees ({}: no torch)."""
    errors: dict[str, str | None] = {}
    devices: dict = {}
    while left := [name for name in modules if name not in errors]:
        text, end = _import_in_child(left)
        for line in text.splitlines():
            try:
                name, value = json.loads(f"[{line}]")
            except ValueError:  # the process ended here
                errors[json.loads(line.partition(", ")[0])] = end
                continue
            if name == "devices":
                devices = value
            else:
                errors[name] = value and value[:LONGEST_ERROR]
        if not text:
            return dict.fromkeys(left, end) | errors, devices
    return errors, devices


def _import_in_child(modules: list[str]) -> tuple[str, str]:
    """What a process that imports `modules` wrote, and how it ended, for the module that it ended with."""
    reader, writer = os.pipe()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    words = [sys.executable, "-P", "-W", "ignore", "-c", CHILD, str(writer), *modules]
    with open(reader, encoding="utf-8", errors="replace") as lines:
        try:
            done = subprocess.Popen(
                words, env=environment, pass_fds=(writer,), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            os.close(writer)
            return "", f"cannot start {sys.executable}: {error}"
        os.close(writer)
        try:
            status = done.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            done.kill()
            done.wait()
            return lines.read(), f"not imported within {PATIENCE:.0f} s"
        return lines.read(), f"ends the process ({_ending(status)})"


def _ending(status: int) -> str:
    return signal.strsignal(-status) or f"signal {-status}" if status < 0 else f"exit status {status}"
