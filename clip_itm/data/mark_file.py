"""A file of marks to which others may add at the same time: what is new in it, and no mark written twice."""

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from clip_itm.data.marks import Mark, append_marks, marks_of_lines
from clip_itm.reading import reading


class MarkFile:
    """The marks of a file, first to last, as far as it was read; it need not exist yet.

    Safe to use from several threads.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = Lock()
        self._forget()

    def look(self) -> Sequence[Mark]:
        """All marks that are in the file now; the same list that only grows, unless the file was replaced.

        Raises ValueError, naming the line, for a line that is not a mark.
        """
        with self._lock:
            self._look()
            return self.marks

    def add(self, marks: Sequence[Mark]) -> int:
        """Write those that are not there yet, and return how many these were; they are on disk when this returns.

        Marks are the same if pair, mark, text, author and time are: somebody who got no answer may send one again.
        Raises ValueError as `look` does, and OSError if the file cannot be written.
        """
        with self._lock:
            self._look()
            new = list({_key(mark): mark for mark in marks if _key(mark) not in self._known}.values())
            if new:
                append_marks(self.path, new)
                self._look()
            return len(new)

    def _forget(self) -> None:
        self.marks: list[Mark] = []
        self._known: set[tuple] = set()
        self._file: tuple[int, int] | None = None
        self._read = self._lines = 0  # bytes and lines that were read

    def _look(self) -> None:
        if not self.path.exists():
            self._forget()
            return
        with reading(self.path, "a file of marks (JSONL)"), self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if self._file != (status.st_dev, status.st_ino) or status.st_size < self._read:
                self._forget()
                self._file = (status.st_dev, status.st_ino)
            file.seek(self._read)
            new = file.read()
            end = new.rfind(b"\n") + 1
            marks = marks_of_lines(new[:end], self.path, self._lines + 1)
            self._read, self._lines = self._read + end, self._lines + new.count(b"\n")
            # the end of a line that was cut off stays unread, until the next mark begins a new line
            if last := marks_of_lines(new[end:], self.path, self._lines + 1):
                self._read += len(new) - end
                marks += last
        self.marks += marks
        self._known.update(map(_key, marks))


def _key(mark: Mark) -> tuple:
    return mark.pair, mark.mark, mark.text, mark.author, mark.time
