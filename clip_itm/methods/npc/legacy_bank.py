"""Published memory banks: two .npy files per noise ratio, each a pickled dictionary, read without executing anything.

    <ratio>_mbank_img_idx.npy   decimal image id -> index of a pair
    <ratio>_mbank_txt_idx.npy   decimal index of a pair -> index of a pair; pairs are lines of train_caps.txt, from 0

Values are integer arrays of one element, NumPy scalars or plain integers (docs/papers/npc.md 4.3).
"""

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_itm.methods.npc.bank import MemoryBank
from clip_itm.visible import counted

if TYPE_CHECKING:
    from clip_itm.data.noise import CaptionNoise
    from clip_itm.data.rows import Pairs

FOLDERS = ("memory_bank", "query_bank", "frozen_memory_bank")
FILES = ("{}_mbank_img_idx.npy", "{}_mbank_txt_idx.npy")


def find_legacy_bank(folder: str | Path, ratio: float) -> tuple[Path, Path]:
    """The image file and the caption file of a noise ratio, in `folder` or where the programs keep them below it.

    Raises ValueError if there are none, or several.
    """
    folder = Path(folder)
    positions = [parent / name for parent in (folder, folder / "annotations") for name in ("", *FOLDERS)]
    spellings = dict.fromkeys([f"{ratio:g}", str(float(ratio))])
    candidates = [tuple(place / file.format(text) for file in FILES) for place in positions for text in spellings]
    found = [files for files in candidates if all(file.is_file() for file in files)]
    if not found:
        others = sorted(str(file) for place in positions for file in place.glob("*_mbank_*_idx.npy"))
        raise ValueError(
            f"{folder}: no {' and '.join(file.format(f'{ratio:g}') for file in FILES)} here, in "
            f"{', '.join(FOLDERS)} or in annotations/; found {', '.join(others) or 'no memory bank at all'}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{folder} has {len(found)} memory banks of ratio {ratio:g}: {', '.join(str(file) for file, _ in found)}; "
            "name the folder of one of them, and keep one spelling of the ratio in it"
        )
    return found[0]


def read_legacy_bank(image_file: Path, caption_file: Path, pairs: "Pairs", noise: "CaptionNoise") -> MemoryBank:
    """The two files as the bank of these training pairs with this noise; the files themselves do not name their noise.

    Raises ValueError if image ids are not whole numbers, pairs are not the lines of train_caps.txt, keys are missing or
    unknown, or entries are not training pairs.
    """
    noise.check(pairs)
    _require_published_order(pairs)
    bank = MemoryBank(
        image_entry=_entries(image_file, _whole_numbers(pairs.image_ids.to_pylist()), "photo"),
        caption_entry=_entries(caption_file, list(range(len(pairs))), "pair"),
        rho=None,
        model=f"unknown, imported from {image_file.name} and {caption_file.name}",
        noise_sha256=noise.sha256,
    )
    bank.check(noise, pairs)
    return bank


def read_legacy_file(path: str | Path) -> dict[int, int]:
    """One file as a dictionary. Raises ValueError for all but a pickled dictionary of whole numbers in a .npy file."""
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[version](file)
            if shape != () or dtype != np.dtype(object):
                raise ValueError(f"an array of shape {shape} and type {dtype}")
            content = _dictionary(_Recorder(file).load())
            numbers = {_key(key): _number(value) for key, value in content.items()}
            if numbers and not 0 <= min(numbers.values()) <= max(numbers.values()) < 2**63:
                raise ValueError(f"pair numbers from {min(numbers.values())} to {max(numbers.values())}")
            return numbers
        except Exception as error:  # a broken or hostile pickle can end in almost any of them
            raise ValueError(
                f"{path} is not a published memory bank, which is one pickled dictionary of whole numbers "
                f"({type(error).__name__}: {error})"
            ) from error


class _Recorded:
    """What a pickle says of one NumPy object: its constructor, the arguments, the state. It does nothing itself."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple = ()):
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: Any) -> "_Recorded":
        return _Recorded(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Recorder(pickle.Unpickler):
    """Reads pickles into plain data and `_Recorded`; NumPy's own constructors trust their input, so not even these run.

    NumPy 2 has renamed numpy.core to numpy._core.
    """

    KNOWN = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        }
    )

    def find_class(self, module: str, name: str) -> _Recorded:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a memory bank does not need")
        return _Recorded(name)


def _dictionary(array: Any) -> dict:
    """The one element of the recorded object array; its state is (version, shape, dtype, fortran_order, elements)."""
    _, shape, _, _, elements = array.state
    if array.name != "_reconstruct" or shape != () or len(elements) != 1 or not isinstance(elements[0], dict):
        raise ValueError("no dictionary in it")
    return elements[0]


def _key(key: Any) -> int:
    if isinstance(key, str) and key.isdecimal():
        return int(key)
    raise ValueError(f"key {key!r} is not a decimal number")


def _number(value: Any) -> int:
    """A plain integer, a recorded NumPy integer, or a recorded integer array of one element."""
    if type(value) is int:
        return value
    if value.name == "scalar":
        dtype, data = value.arguments
    elif value.name == "_reconstruct":
        _, _, dtype, _, data = value.state
    else:
        raise ValueError(f"a value is a NumPy {value.name}")
    code, order = dtype.arguments[0], dtype.state[1]
    if dtype.name != "dtype" or not re.fullmatch("[iu][1248]", code) or order not in ("<", ">", "|"):
        raise ValueError(f"a value is of type {code!r}")
    if len(data) != int(code[1]):
        raise ValueError(f"a value has {len(data)} bytes of type {code}; expected one number")
    return int.from_bytes(data, "big" if order == ">" else "little", signed=code[0] == "i")


def _require_published_order(pairs: "Pairs") -> None:
    """Pair k has to be line k + 1 of train_caps.txt: other layouts, and skipped images, number pairs differently."""
    for number, caption_id in enumerate(pairs.caption_ids.to_pylist()):
        if caption_id != f"train_caps.txt:{number + 1}":
            raise ValueError(
                "a published memory bank counts the lines of annotations/scan_split/train_caps.txt, but pair "
                f"{number} of this training split is {caption_id!r} and not 'train_caps.txt:{number + 1}'; use the "
                "data set in that layout (data.layout: scan_split) with all of its photos"
            )


def _whole_numbers(image_ids: list[str]) -> list[int]:
    if others := [image_id for image_id in image_ids if not image_id.isdecimal()]:
        raise ValueError(
            f"a published memory bank names photos by whole numbers, but {len(others)} of {len(image_ids)} photo ids "
            f"of this training split are not, such as {others[0]!r}"
        )
    return [int(image_id) for image_id in image_ids]


def _entries(path: Path, keys: list[int], what: str) -> np.ndarray:
    """The entry of each key, int64; the file has to have exactly these keys."""
    entries = read_legacy_file(path)
    missing, extra = [key for key in keys if key not in entries], sorted(entries.keys() - set(keys))
    for problem, wrong in (("no entry for", missing), ("not in the training split:", extra)):
        if wrong:
            raise ValueError(
                f"{path}: {problem} {counted(len(wrong), what)}, first {what} {wrong[0]}; it belongs to other "
                "training data"
            )
    return np.array([entries[key] for key in keys], dtype=np.int64)
