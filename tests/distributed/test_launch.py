"""The script for Slurm, and the configurations of accelerate, where no GPU is: two gloo processes."""

import json
import re
import subprocess
import sys

import pytest

from support.paths import ROOT
from support.processes import ENVIRONMENT
from support.tiny import tiny_recipe

SRUN = '#!/bin/bash\n[ "$1" = --kill-on-bad-exit=1 ] && shift\nexec "$@"\n'
SCONTROL = '#!/bin/bash\n[ "$*" = "show hostnames node[1-2]" ] && printf "localhost\\nnode2\\n"\n'
JOB = {
    "SLURM_JOB_ID": "40017",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_CPUS_PER_TASK": "2",
}


@pytest.mark.slow
def test_a_job_of_slurm_trains_and_goes_on_where_it_was(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"epochs": 1}, noise={"ratio": 0.0})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    tools = tmp_path / "bin"
    tools.mkdir()
    torchrun = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": torchrun}.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    words = [
        "bash",
        str(ROOT / "recipes" / "launch.slurm"),
        str(tmp_path / "recipe.yaml"),
        "--evaluation.bootstrap",
        "0",
    ]
    environment = ENVIRONMENT | JOB | {"PATH": f"{tools}:{ENVIRONMENT['PATH']}"}
    for is_finished in (False, True):
        done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("this run is finished" in done.stderr) == is_finished, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["steps"] == 6
    assert results["provenance"]["machine"]["processes"] == 2


ONE_MACHINE = ["--num_machines", "1", "--num_processes", "2", "--main_process_ip", "127.0.0.1", "--machine_rank", "0"]
CONFIGURATIONS = {  # processes, and what else `accelerate launch` is told here
    "single_gpu": (1, []),
    "multi_gpu": (2, []),
    "two_machines": (2, ONE_MACHINE),
    "fsdp2": (2, []),
    "zero2": (2, []),
    "cpu": (2, []),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_of_accelerate_starts_a_run(tmp_path, name):
    processes, more = CONFIGURATIONS[name]
    recipe = tiny_recipe(tmp_path, training={"epochs": 1, "max_steps": 2}, evaluation={"bootstrap": 0})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    words = [sys.executable, "-m", "accelerate.commands.launch", *more, "--main_process_port", "0"]
    words += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{name}.yaml")]
    words += [str(ROOT / "recipes" / "train.py"), str(tmp_path / "recipe.yaml")]
    done = subprocess.run(words, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left aside" not in done.stderr, "a configuration says what the recipe says"
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["provenance"]["machine"]["processes"] == processes


def test_every_configuration_is_started_and_names_its_own_command():
    found = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "recipes" / "accelerate").glob("*.yaml")}
    assert found.keys() == CONFIGURATIONS.keys()
    for name, text in found.items():
        told = re.findall(r"recipes/accelerate/(\w+)\.yaml", text)
        assert told == ([] if name == "single_gpu" else [name]), name
