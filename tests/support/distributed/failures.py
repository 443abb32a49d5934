"""Run by torchrun in test_run_starts.py: what each process says where only the first one meets the obstacle.

torchrun --nproc_per_node 2 -m support.distributed.failures FOLDER OUT
"""

import errno
import json
import sys
from pathlib import Path

import torch

from clip_itm.distributed import leave_process_group, process_state
from clip_itm.lock import locked
from clip_itm.runs.train import train
from clip_itm.training import guarded
from clip_itm.training.callbacks import FinishCallback
from support.tiny import tiny_recipe


def said(recipe) -> str:
    try:
        train(recipe)
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder: str, out: str) -> None:
    state = process_state()
    found = {}
    recipe = tiny_recipe(Path(folder), training={"epochs": 1, "max_steps": 3, "save_every": 1})
    if state.is_main_process:
        with locked(recipe.output_dir, "train"):
            found["locked"] = said(recipe)
    else:
        found["locked"] = said(recipe)

    commit = guarded.commit

    def full(run, temporary, name):
        if name == "checkpoint-2":
            raise OSError(errno.ENOSPC, "No space left on device")
        commit(run, temporary, name)

    guarded.commit = full
    found["full"] = said(recipe)
    guarded.commit = commit
    found["steps"] = train(recipe)["steps"]

    def spoil(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1 and args.process_index == 1:
            parameter = next(value for value in model.parameters() if value.requires_grad)
            parameter.register_hook(lambda gradient: gradient * torch.nan)

    FinishCallback.on_step_begin = spoil
    found["diverged"] = said(recipe.with_overrides("--output_dir", str(Path(folder) / "other")))
    Path(f"{out}-{state.process_index}.json").write_text(json.dumps(found), encoding="utf-8")
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_process_group()
