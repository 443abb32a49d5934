"""SIGKILL at random moments of a run, which is then run to its end: it must end as if nothing had been.

python -m support.kill_runs FOLDER MOMENTS SEED METHOD...      prints a line a try; status 1 where any ended otherwise

Runs are forked from one process that has imported everything, so that a try costs little more than its training.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from clip_itm.files import is_temporary
from clip_itm.runs.train import train
from clip_itm.training.checkpoints import is_complete, last_complete_checkpoint
from clip_itm.training.folder import other_files
from support.killed_runs import HEADS, assert_same_end, recipe_of


def run(recipe, log: Path, kill_after: float | None = None) -> int:
    """Exit status of a run in a process of its own; minus the signal where one ended it."""
    process = os.fork()
    if process == 0:
        with log.open("a", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            try:
                train(recipe)
                status = 0
            except BaseException:
                traceback.print_exc()
                status = 1
            output.flush()
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check(run_folder: Path, whole: Path, method: str) -> None:
    assert_same_end(run_folder, whole, method)
    assert other_files(run_folder) == []
    assert [path for path in run_folder.rglob("*") if is_temporary(path)] == []
    assert all(is_complete(path) for path in run_folder.glob("checkpoint-*"))


def main(folder: str, moments: str, seed: str, *methods: str) -> int:
    generator, failures = random.Random(int(seed)), 0
    Path(folder).mkdir(parents=True, exist_ok=True)
    for method in methods or HEADS:
        place = Path(folder) / method
        recipe = recipe_of(place, method, evaluate_every=4)
        log, whole = place / "log.txt", Path(recipe.output_dir)
        began = time.monotonic()
        assert run(recipe, log) == 0, log.read_text()
        lasted = time.monotonic() - began
        for number in range(int(moments)):
            own = recipe.with_overrides("--output_dir", str(place / f"killed-{number}"))
            run_folder, after = Path(own.output_dir), generator.uniform(0, lasted)
            killed = run(own, log, kill_after=after)
            reached = last_complete_checkpoint(run_folder)
            ended = run(own, log)
            try:
                assert ended == 0, log.read_text()[-3000:]
                check(run_folder, whole, method)
                said = "the same end"
            except AssertionError as error:
                failures, said = failures + 1, f"FAILED: {error}"
            print(
                f"{method} killed ({killed}) after {after:.2f} of {lasted:.2f} s, at {reached and reached.name}: {said}"
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
