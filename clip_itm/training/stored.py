"""Reads a checkpoint back: an error names the file that is not what the run wrote."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_itm.reading import reading
from clip_itm.visible import counted


def require_trainer_state(checkpoint: Path) -> None:
    """Raises ValueError if `trainer_state.json` of a checkpoint is not that of its step."""
    from transformers import TrainerState

    path = checkpoint / "trainer_state.json"
    with reading(path, "the state of a trainer", _elsewhere(checkpoint)):
        state = TrainerState.load_from_json(str(path))
        if checkpoint.name != f"checkpoint-{state.global_step}":
            raise ValueError(f"it belongs to step {state.global_step}")


@contextmanager
def reading_state(checkpoint: str | Path | None, *names: str) -> Iterator[None]:
    """A block that restores the files `names` of a checkpoint; a failure becomes a ValueError naming the file to blame.

    If all of them can be read, the error says that the first does not belong to this run.
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


def require_weights(checkpoint: str | Path, wanted: set[str]) -> None:
    """Raises ValueError if `model.safetensors` of a checkpoint lacks some of the weights `wanted`."""
    from safetensors import safe_open

    path = Path(checkpoint) / "model.safetensors"
    if not path.is_file():
        return
    with reading(path, "the weights of this checkpoint", _elsewhere(path.parent)), safe_open(path, "pt") as file:
        if missing := sorted(wanted - set(file.keys())):
            raise ValueError(
                f"{counted(len(missing), 'weight of the model is', 'weights of the model are')} not in it, such "
                f"as {missing[0]}"
            )


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
    return f"move {checkpoint} away to resume from an earlier one, or start again with --overwrite"
