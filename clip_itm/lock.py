"""One writer of a folder at a time, over processes and machines."""

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: there, two writers are not noticed
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".clip_itm.lock"
_held: set[str] = set()  # a process never conflicts with its own fcntl lock: two threads have to be told apart here
_holding = threading.Lock()  # of `_held`


@contextmanager
def locked(folder: str | Path, doing: str) -> Iterator[None]:
    """Hold `folder` (created if missing) for one writer; `doing` says what it does, such as "train".

    The lock is the system's, on a file that names the owner: it ends with its process, however that ends, and loader
    processes do not inherit it. Raises ValueError, naming the owner, while somebody else writes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK_FILE
    with _holding:
        if str(path) in _held:
            raise ValueError(f"{folder} is being written by this very process; one writer at a time")
        _held.add(str(path))
    try:
        with _locked_file(path, folder) as descriptor:
            _name_owner(descriptor, doing)
            yield
    finally:
        _held.discard(str(path))


@contextmanager
def _locked_file(path: Path, folder: Path) -> Iterator[int]:
    descriptor = _lock(path, folder)
    try:
        yield descriptor
    finally:
        with suppress(OSError):  # the folder may be gone
            path.unlink()  # while it is still held: whoever waits for this file finds that it is no longer there
        os.close(descriptor)


def _name_owner(descriptor: int, doing: str) -> None:
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "doing": doing}
    text = json.dumps(owner | {"since": datetime.now(UTC).isoformat(timespec="seconds")}).encode()
    with suppress(OSError):  # on a full disk, it is held without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)


def _lock(path: Path, folder: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"{folder} is being written by {owner}; wait until it has finished, or choose another folder"
                ) from None
            raise OSError(error.errno, f"{path}: this file system cannot lock files ({error.strerror})") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # the former owner removed the file after it had been opened here


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['pid']} on {owner['host']} (clip-itm {owner['doing']}, since {owner['since']})"
    except (ValueError, KeyError, TypeError):  # it has just begun
        return "another process"
