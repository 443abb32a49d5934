"""Where the app keeps what visitors upload: a folder of its own, bounded in total, that is deleted with the server."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from starlette.types import Message, Send

from clip_itm.lock import LOCK_FILE, locked

PREFIX = "clip-itm-app-"
FOLDER = "GRADIO_TEMP_DIR"  # where gradio looks for the folder
MOST_BYTES = 512 * 2**20  # of all uploads: what is kept, and what is under way
MOST_FILES = 256


class Uploads:
    """A folder that holds at most `most_bytes` in `most_files`: the oldest ones make room for new ones."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, most_files: int = MOST_FILES):
        self.folder, self.most_bytes, self.most_files = folder, most_bytes, most_files
        self.under_way = 0  # bytes

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes may come in addition to those under way."""
        return self.under_way + size <= self.most_bytes

    @contextmanager
    def coming(self, size: int) -> Iterator[None]:
        """Count `size` bytes as under way, while they come in."""
        self.under_way += size
        self.make_room()
        try:
            yield
        finally:
            self.under_way -= size

    def making_room(self, send: Send) -> Send:
        """`send`, with room made before the answer begins: only then is the number of files known."""

        async def send_then(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.make_room()
            await send(message)

        return send_then

    def make_room(self) -> None:
        kept, size = 0, self.under_way
        for path, entry in sorted(self._files(), key=lambda file: file[1].st_mtime_ns, reverse=True):
            kept, size = kept + 1, size + entry.st_size
            if kept > self.most_files or size > self.most_bytes:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty, or the folder of all uploads
                    path.parent.rmdir()

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # an upload is renamed when it is complete
                if path.is_file() and path.name != LOCK_FILE:
                    yield path, path.lstat()


@contextmanager
def uploads_of_a_server() -> Iterator[Uploads]:
    """A new folder for one server, below $GRADIO_TEMP_DIR or that of the system; removed at the end.

    What killed servers left there is removed, too.
    """
    given = os.environ.get(FOLDER)
    parent = Path(given or tempfile.gettempdir()).resolve()
    parent.mkdir(parents=True, exist_ok=True)
    remove_left_behind(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    os.environ[FOLDER] = str(folder)
    try:
        with locked(folder, "app"):
            yield Uploads(folder)
    finally:
        if given is None:
            del os.environ[FOLDER]
        else:
            os.environ[FOLDER] = given
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_behind(parent: Path) -> None:
    """Remove the folders of this user's servers that are no longer running."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError, ValueError):  # it is gone, or in use
            if folder.lstat().st_uid != user or not stat.S_ISDIR(folder.lstat().st_mode):
                continue
            with locked(folder, "app"):
                shutil.rmtree(folder)
