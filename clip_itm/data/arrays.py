"""Large arrays in .npy files: disk space reserved first, mapped while they are filled, sealed at the end."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clip_itm.files import DamagedError, replacing
from clip_itm.seal import LENGTH, is_whole, seal

NPY = b"\x93NUMPY"


@contextmanager
def new_array(path: Path, dtype: type, shape: tuple[int, ...], remedy: str) -> Iterator[np.ndarray]:
    """A mapped array that becomes the file `path` at the end of the block, unless there was an error.

    Raises ValueError ending with `remedy` if the disk has no room for it: filling the holes of a sparse file would then
    kill the process (SIGBUS).
    """
    with replacing(path) as temporary:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        free = shutil.disk_usage(temporary.parent).free
        try:
            array = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            _fill_holes(temporary, free)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written ({error.strerror}): it needs {size:,} bytes, and {free:,} are free on that "
                f"disk; {remedy}"
            ) from None
        yield array
        array.flush()
        seal(temporary)


def _fill_holes(file: Path, free: int) -> None:
    """Allocate the space of a sparse file if the system can; otherwise check that there is enough."""
    size = file.stat().st_size
    if hasattr(os, "posix_fallocate"):  # not on macOS or Windows
        try:
            with file.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, size + LENGTH)
                os.ftruncate(stream.fileno(), size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # from file systems that cannot reserve
                raise
    if size > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cached_array(path: Path, length: int) -> np.ndarray | None:
    """The mapped array of a file from `new_array` or from an earlier clip_itm (without a seal); None if there is none.

    All of it is read once and compared with the seal. Raises DamagedError if it is not what was written or does not
    have `length` rows, and ValueError if the file is not a NumPy array.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        begin = file.read(len(NPY))
    if begin and not NPY.startswith(begin):
        raise ValueError(
            f"{path} is no array of NumPy, so somebody else's file is where features are kept; move it, or choose "
            "another data.cache_dir"
        )
    array = checked_array(path)[0]
    if len(array) != length:
        raise DamagedError(f"{path} is damaged: it has {len(array)} rows, not {length}")
    return array


def checked_array(path: Path) -> tuple[np.ndarray, bool]:
    """A mapped array, and whether it has a seal; DamagedError unless it is exactly what was sealed."""
    whole = is_whole(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        end = array.offset + array.nbytes + (0 if whole is None else LENGTH)
    except Exception as error:  # from the parser of its header
        raise DamagedError(f"{path} is damaged ({error})") from None
    if whole is False or path.stat().st_size != end:
        raise DamagedError(f"{path} is damaged: it is not what was written")
    return array, whole is not None
