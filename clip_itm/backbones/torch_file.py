"""Files of `torch.save` that somebody else wrote: what is in them is read, and nothing in them is executed."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_torch_file(path: str | Path, classes: Sequence[type] = ()) -> Any:
    """What the file holds: tensors (mapped from the disk where its format allows), numbers, text, and `classes`.

    Raises ValueError if the file does not exist, asks for any other class, or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {what}; expected the file of a checkpoint, such as epoch4.pt")
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(classes)):
            # mapped, not read: the moments of the optimiser, two thirds of such a file, are never looked at
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest of torch's message says how to run it anyway
        why = f"it asks for {wanted[1]}" if wanted else "it is no file of torch.save"
        raise ValueError(
            f"{path}: refused, and nothing in it was executed: {why}. Only files of tensors, numbers and text are "
            "read; save the state dict alone where this one comes from"
        ) from None
    except Exception as error:  # a broken file may raise anything
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path}: this is a program of TorchScript, as OpenAI ships its models, and would have to be "
                "executed; a recipe gets the same weights with backbone.pretrained: openai"
            ) from None
        raise ValueError(
            f"{path}: no file of torch.save, or not all of it ({type(error).__name__}: {error}); download it again"
        ) from None


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefix of (Distributed)DataParallel, if all of them have it."""
    if state and all(str(name).startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)
