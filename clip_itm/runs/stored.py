"""What a run keeps in files, read back: whatever is not what the run wrote is told by the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_itm.reading import read_json, reading

STAGES = ("zero_shot", "best", "last")
OF_RESULT = ("protocol", "images", "captions", "metrics", "intervals", "tie_gap", "folds", "bootstrap")


def read_results(path: Path) -> dict:
    """`results.json` of a finished run."""
    what, keys = "the results of a run", (*STAGES, "split", "noise", "seed", "best_step", "best_dev_rsum")
    remedy = "delete it and give the command of the run again, which then goes on from the last checkpoint"
    with reading(path, what, remedy):
        content = read_json(path, what, keys, remedy)
        content["dev_history"][0]["eval_rsum"], content["dev_history"][0]["step"]
        for stage in STAGES:
            for result in content[stage].values():
                for key in OF_RESULT:
                    result[key]
    return content


def read_provenance(path: Path) -> dict:
    """`provenance.json` of a run, a checkpoint or a model."""
    what = "the provenance of a run"
    with reading(path, what):
        content = read_json(path, what, ("recipe_sha256", "versions"))
        content["noise"]["sha256"], content["noise"]["ratio"]
        for split in content["splits"].values():
            split["sha256"]
    return content


def demand_trainer_state(checkpoint: Path) -> None:
    """ValueError where `trainer_state.json` of a checkpoint is not that of its step."""
    from transformers import TrainerState

    path = checkpoint / "trainer_state.json"
    with reading(path, "the state of a trainer", _elsewhere(checkpoint)):
        state = TrainerState.load_from_json(str(path))
        if checkpoint.name != f"checkpoint-{state.global_step}":
            raise ValueError(f"it is of step {state.global_step}")


@contextmanager
def reading_state(checkpoint: str | Path | None, *names: str) -> Iterator[None]:
    """Restore what lies in the files `names` of a checkpoint inside of this; a failure is told by the file to blame.

    Where each of them can be read, the first one is not of this run.
    """
    try:
        yield
    except Exception as error:
        checkpoint = Path(checkpoint)
        paths = [checkpoint / name for name in names if (checkpoint / name).exists()] or [checkpoint / names[0]]
        for path in paths:
            with reading(path, "a file of this checkpoint", _elsewhere(checkpoint)):
                _open(path)
        with reading(paths[0], "the state of this run", _elsewhere(checkpoint)):
            raise error


def demand_weights(checkpoint: str | Path, wanted: set[str]) -> None:
    """ValueError where `model.safetensors` of a checkpoint has not all the weights `wanted`."""
    from safetensors import safe_open

    path = Path(checkpoint) / "model.safetensors"
    if not path.is_file():
        return
    with reading(path, "the weights of this checkpoint", _elsewhere(path.parent)), safe_open(path, "pt") as file:
        if missing := sorted(wanted - set(file.keys())):
            raise ValueError(f"{len(missing)} weights of the model are not in it, such as {missing[0]}")


def _open(path: Path) -> None:
    """Read a file of tensors to its end; nothing in it is executed."""
    import torch
    from safetensors.torch import load_file
    from transformers.trainer_pt_utils import safe_globals

    if path.suffix == ".safetensors":
        load_file(path)
        return
    with safe_globals():
        torch.load(path, map_location="cpu", weights_only=True)


def _elsewhere(checkpoint: Path) -> str:
    return f"move {checkpoint} away to go on from an earlier one, or start anew with --overwrite"
