"""Files written whole or not at all."""

import errno
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from clip_itm.lock import LOCK_FILE
from clip_itm.offline import require_source
from clip_itm.reading import reason
from clip_itm.seal import is_whole_zip, seal_zip

# .NAME.HOST-PID-THREAD.tmp.SUFFIX: its owner shows whether anybody still writes to it
TEMPORARY = re.compile(r"\..*\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-\d+\.tmp(\..*)?", re.DOTALL)


@contextmanager
def replacing(path: str | Path, exclusive: bool = False) -> Iterator[Path]:
    """A temporary name next to `path`, with its suffix, to write to; renamed to `path` at the end.

    So no reader ever sees half a file. Folders are created; what an error left behind is removed, and so is what killed
    writers left in the folder. A link stays and its target is written; anything but a regular file (a device, a FIFO)
    is written directly; "-" is standard output. Raises ValueError if a folder is in the way, or a file in the way of a
    folder; with `exclusive`, FileExistsError if the file exists at the end.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/notes.txt") as temporary:
        ...         _ = temporary.write_text("done")
        ...     os.listdir(folder)
        ['notes.txt']
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / ("stdout" if str(path) == "-" else Path(path).name)
            yield temporary
            try:
                _copy_into(temporary, path)
            except OSError as error:  # errors in writing name no file
                name = "standard output" if str(path) == "-" else str(path)
                raise OSError(error.errno, error.strerror or str(error), name) from None
        return
    path = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
    if path.is_symlink():
        raise ValueError(f"{path} is a link that leads to itself; choose another name")
    require_free_name(path)
    temporary = path.with_name(temporary_name(path.stem, path.suffix))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_temporary(path.parent)
        yield temporary
        if exclusive:
            _rename_new(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        if error.filename in (str(temporary), temporary) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None  # not the temporary name
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_stream(path: str | Path) -> bool:
    """Whether writing to `path` replaces nothing: standard output ("-"), a device, a FIFO."""
    return str(path) == "-" or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


def require_free_name(path: Path, is_folder: bool = False) -> None:
    """Raises ValueError if `path` cannot become a file (or a folder) because something is in its way."""
    if not is_folder and path.is_dir():
        raise ValueError(f"{path} is a folder; expected the name of a file to write")
    for part in [path, *path.parents] if is_folder else path.parents:
        if os.path.lexists(part) and not part.is_dir():
            raise ValueError(f"{path} cannot be written: {part} is no folder; choose another name")


def _rename_new(temporary: Path, path: Path) -> None:
    """Give a file its name, which must be free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)


def temporary_name(stem: str, suffix: str = "") -> str:
    """A name for a half-written file or folder of this thread, which `clear_temporary` removes if its process dies."""
    return f".{stem}.{_host()}-{os.getpid()}-{threading.get_ident()}.tmp{suffix}"


def is_temporary(path: Path) -> bool:
    """Whether a name is one of `temporary_name`."""
    return TEMPORARY.fullmatch(path.name) is not None


def clear_temporary(folder: Path) -> None:
    """Remove what dead writers of this machine left half-written in `folder`."""
    with os.scandir(folder) as entries:
        found = [(entry, match) for entry in entries if (match := TEMPORARY.fullmatch(entry.name))]
    for entry, match in found:
        if match["host"] == _host() and not _is_alive(int(match["pid"])):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)


def _host() -> str:
    return blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process; not the number of a process
        pass
    return True


def _copy_into(file: Path, path: str | Path) -> None:
    with file.open("rb") as source:
        if str(path) == "-":
            sys.stdout.flush()
            # not sys.stdout, where a command's messages may go elsewhere (commands/output.py)
            stdout = sys.__stdout__
            assert stdout is not None, "sys.stdout was there"
            shutil.copyfileobj(source, stdout.buffer)
            stdout.flush()
        else:
            with open(path, "wb") as target:
                shutil.copyfileobj(source, target)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file, under a temporary name that is renamed at the end."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content) -> None:
    """Write plain data as indented JSON; ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_arrays(path: str | Path, exclusive: bool = False, **arrays) -> None:
    """Write a compressed npz without pickle, sealed with a checksum; for `exclusive` see `replacing`."""
    import numpy as np

    with replacing(path, exclusive) as temporary:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        seal_zip(temporary)


class DamagedError(ValueError):
    """A file is not what was written."""


@contextmanager
def reading_arrays(path: str | Path, missing: str, wrong: str) -> Iterator[dict]:
    """The arrays of an npz, by name; nothing is unpickled.

    Whatever shows that it is the wrong file, here or where the block uses the arrays, becomes a ValueError: `missing`
    if there is no file, otherwise `wrong` with the error in place of {error}. A file that does not match its checksum
    is a `DamagedError`; files of an earlier clip_itm have no checksum.
    """
    try:
        yield read_arrays(path)[0]
    except FileNotFoundError:
        raise ValueError(missing) from None
    except DamagedError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(wrong.replace("{error}", str(error))) from error


def read_arrays(path: str | Path) -> tuple[dict, bool]:
    """The arrays of an npz, and whether they came with a checksum. Nothing is unpickled.

    Raises FileNotFoundError, DamagedError if they do not match the checksum, and ValueError if they cannot be read.
    """
    import numpy as np

    whole = is_whole_zip(path)
    if whole is False:
        raise DamagedError(f"{path} was changed or damaged: it is not what its checksum says; make it again")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}, bool(whole)
    except Exception as error:  # of zipfile, zlib, the parser of headers, ...
        raise ValueError(reason(error)) from error


def is_free(folder: Path) -> bool:
    """Whether a folder can be filled without touching anybody's files: it does not exist, or it is empty."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.name == LOCK_FILE or is_temporary(path) for path in folder.iterdir())


def require_free(folder: Path) -> None:
    """Raises ValueError unless `is_free`."""
    require_free_name(folder, is_folder=True)
    if not is_free(folder):
        raise ValueError(f"{folder} exists and is not empty: choose another folder, or delete it")


@contextmanager
def filling(folder: str | Path) -> Iterator[Path]:
    """A temporary folder to write to, which becomes `folder` at the end and is removed after an error.

    A folder that exists stays the same one (it may be a link, a mount or where the user is): the content is moved in.
    Raises ValueError if it is not empty.
    """
    folder = Path(os.path.realpath(folder))
    require_free(folder)
    exists = folder.is_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_temporary(folder if exists else folder.parent)
    name = temporary_name(folder.name)
    temporary = folder / name if exists else folder.with_name(name)
    temporary.mkdir()
    try:
        yield temporary
        if exists:
            (folder / LOCK_FILE).unlink(missing_ok=True)  # of a killed writer
            for path in sorted(temporary.iterdir()):
                os.replace(path, folder / path.name)
        else:
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_model(path: str | Path) -> None:
    """Raises ValueError at once if `path` is neither a run, nor a model folder, nor a name that the Hub could have."""
    require_source(path)
    if Path(path).exists():
        model_folder(path)


def model_folder(path: str | Path) -> Path:
    """The saved model of a run (its best/), or `path` if it is a model itself; raises ValueError for anything else."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such folder; expected a run folder or a saved model")
    for folder in (path / "best", path):
        if (folder / "config.json").is_file():
            return folder
    if (path / "recipe.yaml").is_file():
        raise ValueError(f"{path}: this run is not finished (it has no best/): train it to its end")
    raise ValueError(f"{path}: no config.json in it, so it is no model; expected a run folder or a saved model")
